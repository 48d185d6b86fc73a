"""The report of `pytest --nbval`: for learners, in words; and nothing in other runs."""

import copy
import queue
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import course
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from llama_adapter_edu.course.progress import exercises, pytest_plugin
from llama_adapter_edu.course.progress import tables as progress_report
from llama_adapter_edu.course.progress import verdicts as progress
from llama_adapter_edu.course.progress.verdicts import Row

SOLVED = "def add_one(n):\n    return n + 1"


@pytest.fixture(scope="module")
def notebooks() -> dict:
    """What learners have on their disks: {file name: notebook or text}."""
    second = nbformat.read(course.built_fixture() / "notebooks" / "91_second.ipynb", as_version=4)

    def variant(answer: str, **metadata) -> nbformat.NotebookNode:
        notebook = copy.deepcopy(second)
        notebook.cells[5].source = answer
        notebook.metadata.update(metadata)
        return notebook

    colab = variant(SOLVED, colab={"provenance": []}, kernelspec={"name": "python3"})
    for number, cell in enumerate(colab.cells):
        del cell["id"]
        cell.metadata = nbformat.from_dict({"id": f"x{number}"})
    colab.cells[6].update(execution_count=None, outputs=[new_output("stream", text="✗ old")])
    colab.nbformat_minor = 0
    wrong = variant("def add_one(n):\n    return abs(n) + 1")
    wrong.cells += [
        new_code_cell("numbers = []\nnumbers[3]"),
        new_code_cell("print(1)", execution_count=6, outputs=[new_output("stream", text="2\n")]),
    ]
    no_kernel = variant("def add_one(n):\n    return n n", vscode={"version": 1})
    no_kernel.metadata.kernelspec = {"name": "gone", "display_name": "deleted venv"}
    return {
        "colab.ipynb": colab,
        "dead.ipynb": variant("import os\nos._exit(1)"),
        "no_json.ipynb": "{ broken",
        "open.ipynb": second,
        "plain.ipynb": new_notebook(cells=[new_code_cell("1 + 1")]),
        "vscode.ipynb": no_kernel,
        "wrong.ipynb": wrong,
    }


@pytest.fixture(scope="module")
def learner(notebooks, tmp_path_factory) -> tuple[str, Path]:
    """(what the run prints, its folder)."""
    folder = tmp_path_factory.mktemp("learner")
    for name, notebook in notebooks.items():
        text = notebook if isinstance(notebook, str) else nbformat.writes(notebook)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "test_ordinary.py").write_text("def test_it():\n    assert 1 == 2\n")
    options = ("--nbval", "--progress-report=out/report.md")
    return course.run_pytest(folder, *options, root=course.built_fixture()), folder


def part(output: str, notebook: str) -> str:
    """A notebook's part of the table, in one line."""
    table = output.partition("= exercises =")[2]
    lines = table.partition(f"\n{notebook}\n")[2].split("\n\n")[0]
    return " ".join(lines.split())


EXPECTED = {
    "colab.ipynb": "91.1 add_one ✓ solved 1 of 1 solved",
    "dead.ipynb": f"91.1 add_one ✗ wrong {progress.DEAD} 0 of 1 solved, 1 wrong",
    "no_json.ipynb": "notebook ! broken no_json.ipynb is not a notebook: it is not JSON",
    "open.ipynb": "91.1 add_one ○ not attempted not solved yet. Fill in YOUR CODE HERE above",
    "vscode.ipynb": "91.1 add_one ✗ wrong SyntaxError: invalid syntax (line 2 of its cell)",
    "wrong.ipynb": "91.1 add_one ✗ wrong add_one(-1) is 0 cell [6] ! broken IndexError: list index "
    "out of range at numbers[3] cell [7] ! broken it prints or shows something else",
}


@pytest.mark.parametrize(("notebook", "words"), EXPECTED.items(), ids=EXPECTED)
def test_each_notebook_has_its_rows(learner, notebook, words):
    assert part(learner[0], notebook).startswith(words)


def test_the_report_is_short_and_without_colour_codes(learner):
    output = learner[0]
    assert "\x1b" not in output
    assert "Traceback (most recent call last)" not in output
    assert "plain.ipynb" not in output.partition("= exercises =")[2]
    assert "all 6 notebooks: 1 of 5 solved, 3 wrong, 1 not attempted" in " ".join(output.split())
    assert "3 wrong, 1 not attempted" in output.splitlines()[-1]


def test_other_tests_of_the_run_keep_their_tracebacks(learner):
    assert "assert 1 == 2" in learner[0].partition("= exercises =")[0]


def test_the_table_is_written_for_a_teacher(learner):
    text = (learner[1] / "out" / "report.md").read_text(encoding="utf-8")
    assert "## wrong.ipynb\n\n0 of 1 solved, 1 wrong, 2 broken cells.\n" in text
    assert "| 91.1 | add_one | ✓ solved |  |" in text


ROWS = [
    Row("81.1", "split", "solved", notebook="a.ipynb"),
    Row("81.2", "a, b", "wrong", "expected <x>|y", ["at line"], "a.ipynb"),
    Row("82.1", "gate", "not attempted", "not solved yet", notebook="b.ipynb"),
    Row("cell", "[2]", "fine", notebook="b.ipynb"),
]


def test_markdown_and_html_escape_what_learners_write(tmp_path):
    table = progress.table(ROWS)
    progress_report.write(table, tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert '<html lang="en">' in page
    assert "<td>✗ wrong</td><td>expected &lt;x&gt;|y</td>" in page
    markdown = progress_report.as_markdown(table)
    assert "| 81.2 | a, b | ✗ wrong | expected &lt;x&gt;\\|y |" in markdown
    for text in (page, markdown):
        assert "All notebooks: 1 of 3 solved, 1 wrong, 1 not attempted." in text


def test_the_table_fits_the_terminal():
    rows = [Row("1.1", "split", "wrong", "many words " * 30, [], "a.ipynb")]
    text = progress_report.as_text(progress.table(rows), width=60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert "many words" in text


def test_rows_are_sorted_by_number_with_broken_cells_last():
    keys = ["81.10", "cell", "81.2"]
    rows = [Row(key, "[1]", "broken" if key == "cell" else "solved", "", [], "a") for key in keys]
    assert [row.key for row in progress.table(rows)["a"]] == ["81.2", "81.10", "cell"]


def test_an_exercise_whose_check_is_gone_is_not_forgotten(monkeypatch, tmp_path):
    """The lesson's exercises are read from its reference, which is not imported."""
    monkeypatch.setattr(exercises, "REFERENCES", tmp_path)
    known = "EXERCISES = {'81.1': 'split', '81.3': 'merge'}\nx = 1/0\n"
    (tmp_path / "lesson_81.py").write_text(known)
    [_, _, missing] = progress.table(ROWS)["a.ipynb"]
    assert (missing.key, missing.status, missing.reason) == (
        "81.3",
        "not judged",
        progress.NO_CHECK,
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"[1]", "has no list of cells"),
        (b'{"cells": 3}', "has no list of cells"),
        (b'{"cells": [{}]}', "is not a valid notebook"),
    ],
)
def test_a_notebook_that_cannot_be_read(tmp_path, content, words):
    path = tmp_path / "a.ipynb"
    path.write_bytes(content)
    assert words in progress.unreadable(path)
    assert "cannot be opened" in progress.unreadable(tmp_path / "none.ipynb")


def test_a_kernel_that_does_not_exist_is_told_in_one_line(tmp_path, notebooks):
    nbformat.write(notebooks["open.ipynb"], tmp_path / "a.ipynb")
    output = course.run_pytest(tmp_path, "--nbval", "--nbval-kernel-name=nope")
    assert "91.1 add_one ? not judged No such kernel named nope" in part(output, "a.ipynb")
    assert "Traceback" not in output


def test_a_cell_that_runs_too_long_is_stopped_and_the_rest_is_judged(tmp_path):
    """Without the course's own time limit: a stand-in for `check`, and no torch to load."""
    cells = [
        "import time\ncheck = lambda *names: lambda body: body()",
        "def slow():\n    time.sleep(60)",
        '@check("91.1", "slow")\ndef _():\n    slow()',
        '@check("91.2", "time")\ndef _():\n    pass',
    ]
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    output = course.run_pytest(tmp_path, "--nbval", "--nbval-cell-timeout=3")
    found = part(output, "a.ipynb")
    assert found.startswith(f"91.1 slow ✗ wrong {progress.TIMED_OUT} at ")
    assert "at slow() at time.sleep(60) 91.2 time ✓ solved" in found


def options_for(*args: str, plugins: tuple[str, ...] = ("nbval",)) -> list[str]:
    args = list(args)
    manager = SimpleNamespace(hasplugin=lambda name: name in plugins)
    pytest_plugin.pytest_load_initial_conftests(SimpleNamespace(pluginmanager=manager), args)
    return args


@pytest.fixture
def in_a_course(tmp_path, monkeypatch):
    """In a folder with a notebook of the course."""
    (tmp_path / "a.ipynb").write_text('{"cells": [{"source": "@check(...)"}]}')
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_course")
def test_needed_options_are_added_unless_the_user_gave_their_own():
    added = options_for("--nbval", "a.ipynb")
    assert "--nbval-current-env" in added
    assert "--nbval-cell-timeout=300" in added
    assert "--nbval-kernel-startup-timeout=120" in added
    own = ("--nbval-lax", "--nbval-cell-timeout", "5", "--nbval-kernel-name=x")
    assert set(options_for(*own)) - set(own) == {
        "--nbval-kernel-startup-timeout=120",
        "--continue-on-collection-errors",
    }
    assert "--dist=loadfile" in options_for("--nbval", "-n2")
    assert "--dist=loadfile" not in options_for("--nbval", "-n", "2", "--dist=load")


def test_without_nbval_nothing_is_added():
    assert options_for("tests", "-q", "-n2") == ["tests", "-q", "-n2"]


def test_notebooks_of_other_projects_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.ipynb").write_text('{"cells": []}')
    assert options_for("--nbval", "theirs.ipynb") == ["--nbval", "theirs.ipynb"]
    assert options_for("--nbval") == ["--nbval"]


@pytest.mark.usefixtures("in_a_course")
def test_the_option_that_is_missing_is_named():
    with pytest.raises(pytest.UsageError, match=r"pytest --nbval a\.ipynb"):
        options_for("a.ipynb")


@pytest.mark.usefixtures("in_a_course")
def test_nbval_missing_is_said_in_words():
    with pytest.raises(pytest.UsageError, match="pip install nbval"):
        options_for("--nbval", plugins=())


def test_a_report_of_an_unknown_kind_is_refused(tmp_path):
    output = course.run_pytest(tmp_path, "--nbval", "--progress-report=a.pdf")
    assert "--progress-report=a.pdf: the name must end with .md or .html" in output


def test_an_ordinary_run_has_no_course_hooks_and_the_plugin_does_not_load_torch(request):
    assert not request.config.pluginmanager.hasplugin("llama_adapter_edu_course")
    plugin = "llama_adapter_edu.course.progress.pytest_plugin"
    code = f"import {plugin}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def lesson(*cells: str) -> nbformat.NotebookNode:
    setup = "check = lambda *names: lambda body: body()"
    return new_notebook(cells=[new_code_cell(source) for source in (setup, *cells)])


ONE = '@check("91.1", "one")\ndef _():\n    assert one() == 1'
TWO = '@check("91.2", "two")\ndef _():\n    assert two() == 2'
ANSWERS = ("def one():\n    return 1", "def two():\n    return 2")


@pytest.fixture(scope="module")
def odd_notebooks(tmp_path_factory) -> str:
    """The report on notebooks that are right, and arranged in unusual ways."""
    folder = tmp_path_factory.mktemp("odd")
    indented = "if True:\n    " + TWO.replace("\n", "\n    ")
    notebooks = {
        "exit": lesson(ANSWERS[0], ONE, "exit()", ANSWERS[1], TWO),
        "twice": lesson(ANSWERS[0], ONE, ANSWERS[1], TWO, ONE, TWO),
        "merged": lesson("\n\n".join([*ANSWERS, ONE, TWO])),
        "indented": lesson(*ANSWERS, ONE, indented),
        "apart": lesson(ANSWERS[0] + "\nassert False", "1 + 1", ONE, ANSWERS[1], TWO),
    }
    for name, notebook in notebooks.items():
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return course.run_pytest(folder, "--nbval")


@pytest.mark.parametrize("name", ["exit", "twice", "merged", "indented", "apart"])
def test_a_right_answer_is_solved_however_the_notebook_is_arranged(odd_notebooks, name):
    found = part(odd_notebooks, f"{name}.ipynb")
    assert "2 of 2 solved" in found
    assert found.count("91.1") == found.count("91.2") == 1
    if name == "apart":
        assert "solved, though a cell with its code stops: AssertionError" in found


def test_a_check_that_pytest_did_not_reach_is_told_apart_from_a_missing_one(monkeypatch, tmp_path):
    monkeypatch.setattr(exercises, "REFERENCES", tmp_path)
    (tmp_path / "lesson_91.py").write_text("EXERCISES = {'91.1': 'a', '91.2': 'b', '91.3': 'c'}\n")
    nbformat.write(lesson(ONE, TWO), tmp_path / "n.ipynb")
    rows = progress.table([Row("91.1", "a", "solved", notebook="n.ipynb")], tmp_path)["n.ipynb"]
    assert [row.reason for row in rows] == ["", progress.NOT_RUN, progress.NO_CHECK]


def test_a_console_that_knows_no_marks_gets_other_signs():
    text = progress_report.printable("91.1 ✓ solved\n91.2 ✗ wrong: é", "cp1252")
    assert text == "91.1 + solved\n91.2 x wrong: ?"
    assert progress_report.printable("✓", "utf-8") == "✓"


def test_cells_are_the_same_whatever_a_formatter_does():
    mine = "@check('91.1', 'one', )\ndef _():  # a comment\n\n    assert (one() == 1)\n"
    assert exercises.cell_digest(mine) == exercises.cell_digest(ONE)
    assert exercises.cell_digest(TWO) != exercises.cell_digest(ONE)


def test_a_kernel_that_gives_no_answer_is_told_in_words():
    (row,) = progress.judge([("91.1", ["slow"])], 1, "failed", queue.Empty())
    assert row.status == "not judged"
    assert "--cov=FOLDER" in row.reason
