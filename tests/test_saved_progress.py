"""`progress`: what saved notebooks say about the exercises, and where to go on."""

import copy
import json

import course
import nbformat
import pytest
from nbformat.v4 import new_output

from llama_adapter_edu import __main__ as command_line
from llama_adapter_edu.course.progress import exercises
from llama_adapter_edu.course.progress import saved_notebooks as saved_progress

SOLVED = "def add_one(n):\n    return n + 1"
TITLE = "exercise 91.1 add_one"


def box(text: str, judged: str = "") -> dict:
    """What a check shows in a live notebook."""
    page = f'<div data-judged="{judged}">' if judged else "<div>"
    return new_output("display_data", {"text/html": page, "text/plain": text})


@pytest.fixture
def notebook():
    path = course.built_fixture() / "notebooks" / "91_second.ipynb"
    return copy.deepcopy(nbformat.read(path, as_version=4))


def row(notebook, folder, answer=None, output=None, counts=(3, 4)):
    cell, check = notebook.cells[5], notebook.cells[6]
    cell.source = answer or cell.source
    check.outputs = [output] if output else check.outputs
    cell.execution_count, check.execution_count = counts
    nbformat.write(notebook, folder / "a.ipynb")
    [row] = saved_progress.read_notebook(folder / "a.ipynb").rows
    assert (row.key, row.name) == ("91.1", "add_one")
    return row.status, row.reason


@pytest.mark.parametrize("stored", ["○ exercise 91.1 add_one: open", f"✓ {TITLE}: solved"])
def test_a_fresh_notebook_is_open_whatever_output_it_holds(notebook, tmp_path, stored):
    notebook.cells[6].outputs[0].text = stored
    assert row(notebook, tmp_path) == ("not attempted", saved_progress.OPEN)


def test_code_whose_check_was_never_run_is_not_judged(notebook, tmp_path):
    assert row(notebook, tmp_path, SOLVED) == ("not judged", saved_progress.NOT_RUN)


@pytest.mark.parametrize(
    ("text", "counts", "expected"),
    [
        (f"✓ {TITLE}: solved", (3, 4), ("solved", "")),
        (f"✗ {TITLE}: add_one(-1) is 0\n  at  x", (3, 4), ("wrong", "add_one(-1) is 0")),
        (f"○ {TITLE}: not solved yet.", (3, 4), ("not judged", saved_progress.NOT_RUN)),
        (f"✓ {TITLE}: solved", (5, 4), ("not judged", saved_progress.NOT_RUN)),
        (f"✓ {TITLE}: solved", (None, None), ("solved", "")),
    ],
)
def test_the_box_of_the_last_check_counts(notebook, tmp_path, text, counts, expected):
    assert row(notebook, tmp_path, SOLVED, box(text), counts) == expected


CHECK = ("91.1", ("add_one",))


def test_a_box_speaks_of_the_code_that_it_judged(notebook, tmp_path):
    """Not of its layout, nor of the order in which cells ran."""
    shown = box(f"✓ {TITLE}: solved", exercises.answer_digest(CHECK, [SOLVED]))
    formatted = "def add_one(n):\n    # one more\n    return (n + 1)"
    assert row(notebook, tmp_path, formatted, shown, (9, 4)) == ("solved", "")
    edited = row(notebook, tmp_path, SOLVED.replace("1", "2"), shown, (3, 4))
    assert edited == ("not judged", saved_progress.NOT_RUN)


def test_an_answer_in_another_cell_and_a_scratch_cell_between(notebook, tmp_path):
    shown = box(f"✓ {TITLE}: solved", exercises.answer_digest(CHECK, [SOLVED]))
    scratch = [nbformat.v4.new_code_cell(source) for source in ("1 + 1", SOLVED)]
    notebook.cells[6:6] = scratch
    notebook.cells[8].outputs = [shown]
    nbformat.write(notebook, tmp_path / "a.ipynb")
    [found] = saved_progress.read_notebook(tmp_path / "a.ipynb").rows
    assert found.status == "solved"


def test_a_check_that_stands_twice_is_one_exercise(notebook, tmp_path):
    notebook.cells.append(copy.deepcopy(notebook.cells[6]))
    nbformat.write(notebook, tmp_path / "a.ipynb")
    assert len(saved_progress.read_notebook(tmp_path / "a.ipynb").rows) == 1


def test_a_line_for_each_lesson_and_where_to_go_on(notebook, tmp_path, capsys):
    row(notebook, tmp_path, SOLVED, box(f"✓ {TITLE}: solved"))
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "b_other.ipynb")
    heads = course.built_fixture() / "notebooks" / "90_heads.ipynb"
    (tmp_path / "c.ipynb").write_bytes(heads.read_bytes())
    (tmp_path / "d.ipynb").write_text("{ broken")
    assert command_line.main(["progress", str(tmp_path)]) == 0
    first, second, third, _, then, judge = capsys.readouterr().out.splitlines()
    assert first.split("  ")[0] == "91 Fixture lesson 91: One exercise"
    assert first.endswith("✓    1 of 1 solved")
    assert second.endswith("○○○  0 of 3 solved, 3 not attempted")
    assert third.endswith("!    1 broken notebook")
    assert then.startswith(f"Go on with exercise 90.1, split_heads, in {tmp_path / 'c.ipynb'}: ")
    assert judge.endswith(f"pytest --nbval {tmp_path}")


@pytest.mark.parametrize("cells", [3, [3], [{}], [{"source": 3}], "x"])
def test_a_notebook_of_another_form_is_told(tmp_path, cells):
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    [row] = saved_progress.read_notebook(tmp_path / "a.ipynb").rows
    assert row.status == "broken"
    assert "a.ipynb is not a" in row.reason


@pytest.mark.parametrize("outputs", [3, [3], [{"output_type": "display_data", "data": 3}]])
def test_outputs_of_another_form_are_told(notebook, tmp_path, outputs):
    notebook.cells[5].source = SOLVED
    notebook.cells[6].outputs = outputs
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    [row] = saved_progress.read_notebook(tmp_path / "a.ipynb").rows
    assert row.status == "broken"


def test_all_solved(notebook, tmp_path, capsys):
    row(notebook, tmp_path, SOLVED, box(f"✓ {TITLE}: solved"))
    assert command_line.main(["progress", str(tmp_path)]) == 0
    assert "Every exercise is solved." in capsys.readouterr().out


def test_a_folder_without_notebooks_is_told(tmp_path, capsys):
    assert command_line.main(["progress", str(tmp_path)]) == 1
    assert "there is no notebook of the course in" in capsys.readouterr().err
