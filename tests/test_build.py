"""The build: what it makes of the fixture lessons, and every master that it refuses."""

import re
import shutil

import course
import nbformat
import pytest
from nbformat.v4 import new_output

from tools import build, names
from tools.lesson import MasterError
from tools.master import read_lesson
from tools.notebook import code_cells, make_notebook
from tools.reference import reference_text
from tools.regions import blank, solve
from tools.run import clean_outputs

MASTER = (course.FIXTURE / "solutions" / "91_second.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def heads():
    return read_lesson(course.FIXTURE / "solutions" / "90_heads.py")


def refusal(text: str, folder, name: str = "91_second.py") -> str:
    """Why a master with this text is refused."""
    path = folder / "solutions" / name
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MasterError) as error:
        reference_text(read_lesson(path), course.FIXTURE)
    return str(error.value)


def test_building_writes_what_learners_open():
    root = course.built_fixture()
    notebook = nbformat.read(root / "notebooks" / "90_heads.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "BEGIN SOLUTION" not in text
    assert "x.chunk(n_heads" not in text  # the answers stay in the master
    assert "    # YOUR CODE HERE\n    x_bhsd = ...\n    raise NotImplementedError" in text
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, 13))
    assert "image/png" in code_cells(notebook)[8].outputs[0].data
    assert code_cells(notebook)[8].outputs[0].metadata["image/png"]["alt"].startswith("A line")
    assert len(re.findall(r'<img alt="[^"<]+" src="data:image/svg\+xml;base64,\w+', text)) == 2


def test_an_unsolved_notebook_looks_unsolved(heads):
    notebook = course.committed(heads, course.built_fixture())
    shown = [cell.outputs for cell in notebook.cells if "check" in cell.metadata.get("tags", [])]
    texts = ["".join(output.text for output in outputs) for outputs in shown]
    assert texts == [
        "○ exercise 90.1 split_heads: open\n",
        "○ exercise 90.2 double, halve: open\n",
        "○ exercise 90.3 Gate: open\n",
    ]


def test_building_twice_gives_the_same_bytes(tmp_path):
    first = course.built_fixture()
    second = course.copy_fixture(tmp_path / "course")
    course.build_course(second)
    for pattern in ("notebooks/*", "llama_adapter_edu/course/reference/*.py"):
        built = sorted(first.glob(pattern))
        assert built
        for path in built:
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_the_reference_module_copies_or_imports_the_solutions(heads):
    text = reference_text(heads, course.FIXTURE)
    module: dict = {}
    exec(text.replace("from fixture_library", "from tests.lessons_fixture.fixture_library"), module)
    assert module["EXERCISES"] == {"90.1": "split_heads", "90.2": "double, halve", "90.3": "Gate"}
    assert module["double"](2) == 4
    assert "\ndef split_heads" not in text
    assert "matplotlib" not in text


def test_an_inserted_cell_changes_no_other_cells_id(tmp_path, heads):
    text = heads.path.read_text(encoding="utf-8")
    path = tmp_path / "90_heads.py"
    shutil.copytree(heads.path.parent / "figures", tmp_path / "figures")
    path.write_text(text.replace("# %%\n# alt:", "# %%\nprint('new')\n\n# %%\n# alt:"))
    before = [cell.id for cell in make_notebook(heads).cells]
    after = [cell.id for cell in make_notebook(read_lesson(path)).cells]
    assert len(after) == len(before) + 1
    assert set(before) < set(after)


def test_solutions_have_neither_markers_nor_given_lines():
    source = "def f():\n    ### BEGIN SOLUTION\n    # ~ x = ...\n    return 1\n    ### END SOLUTION"
    assert solve(source) == "def f():\n    return 1"
    stub = "def f():\n    # YOUR CODE HERE\n    x = ...\n    raise NotImplementedError"
    assert blank(source) == blank(source.replace("# ~", "#~")) == stub


# What is replaced in the fixture master, by what, and the reason of the refusal.
REFUSALS = {
    "a check is missing": (
        r'# %% tags=\["check"\]\n@check.*?# %% \[raw\]',
        "# %% [raw]",
        "a raw cell is a `wrong` or `right` answer",
    ),
    "an exercise without a check": (
        r'# %% tags=\["check"\].*\Z',
        "# %%\nprint(1)\n",
        "the exercise is not followed directly by its check",
    ),
    "a check without an exercise": (
        r'tags=\["exercise"\](.*?)    ### BEGIN SOLUTION\n(.*?)    ### END SOLUTION\n',
        r"\1\2",
        "a check directly follows its exercise",
    ),
    "text between exercise and check": (
        r'# %% tags=\["check"\]',
        '# %% [markdown]\n# Look.\n\n# %% tags=["check"]',
        "a check directly follows its exercise",
    ),
    "an exercise without a card": (
        r'# %% \[markdown\] tags=\["card"\].*?# %% tags=\["exercise"\]',
        '# %% tags=["exercise"]',
        "an exercise directly follows its card",
    ),
    "a card alone": (
        r'# %% tags=\["exercise"\].*\Z',
        "",
        "the card is not followed directly by its exercise",
    ),
    "a begin without end": (r"    ### END SOLUTION\n", "", "### BEGIN SOLUTION without"),
    "an end without begin": (r"    ### BEGIN SOLUTION\n", "", "### END SOLUTION without"),
    "begin twice": (
        r"(    ### BEGIN SOLUTION\n)",
        r"\1\1",
        "### BEGIN SOLUTION inside a solution",
    ),
    "an unknown marker": ("### END SOLUTION", "### END SOLUTIONS", "unknown marker"),
    "an empty solution": (r"    return n \+ 1\n", "    # ~ x = ...\n", "the solution is empty"),
    "a given line outside": (
        r"    ### BEGIN SOLUTION\n",
        "    # ~ x = ...\n    ### BEGIN SOLUTION\n",
        "a given line (# ~) outside a solution",
    ),
    "no region": (
        r"    ### BEGIN SOLUTION\n(.*?)    ### END SOLUTION\n",
        r"\1",
        "an exercise has a region",
    ),
    "a region outside an exercise": (
        r"\Z",
        "\n# %%\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n",
        "a solution stands in a cell with the tag `exercise`",
    ),
    "no docstring": (r'    """n \+ 1\."""\n', "", "add_one needs a docstring"),
    "no types": (r"n: int\) -> int", "n) -> int", "add_one needs types"),
    "loose statements": (r"def add_one\(n: int", "N = 1\n\n\ndef add_one(n: int", "functions and"),
    "a variable of the notebook": (
        r"    return n \+ 1\n",
        "    return n + ONE\n",
        "uses ONE of the notebook",
    ),
    "an unknown library": (
        r'tags=\["exercise"\]',
        'tags=["exercise"] library="no.such"',
        "there is no module no.such",
    ),
    "a check with other names": ('"add_one"\\)', '"add_two")', "its check names ['add_two']"),
    "a check that does more": (
        r'@check\("91.1"',
        'x = 1\n\n\n@check("91.1"',
        "a check is one function under `@check",
    ),
    "a wrong number": (r'@check\("91.1"', '@check("91.2"', "this is exercise 91.1"),
    "another number on the card": ("### Exercise 91.1", "### Exercise 91.2", "the card says"),
    "no title on the card": ("### Exercise 91.1 · Add one", "### Add one", "the card's first line"),
    "no effort": (r"\*easy ●○○ · 1 minutes\*", "easy", "the card's second paragraph"),
    "wrong dots": ("easy ●○○", "easy ●●●", "the card's second paragraph"),
    "no goal": ("# Add one to a number.\n#\n", "", "the goal has 0 words"),
    "a long goal": ("# Add one to a number.", "# " + "word " * 61, "the goal has 61 words"),
    "a hint missing": (
        "# <details><summary>Hint 2: axes</summary>.*?# </details>\n",
        "",
        "the card ends with the hints",
    ),
    "a hint without empty lines": (
        "axes</summary>\n#\n",
        "axes</summary>\n",
        "Hint 2: axes needs text with an empty line",
    ),
    "an empty hint": ("# There are none.\n", "#\n", "Hint 2: axes needs text"),
    "an unknown tag": (r'tags=\["check"\]', 'tags=["chek"]', "the tag 'chek' is unknown"),
    "a misspelt header": (r'tags=\["check"\]', 'tags=["check"', "cannot be read"),
    "one wrong answer": (
        r"# %% \[raw\] tags=\[\"wrong\"\] says=\"add_one\(-1\).*?\"\"\"\n.*?\"\"\"\n",
        "",
        "2 different wrong answers follow a check, not 1",
    ),
    "the same right answer twice": ("n - -1", "1 + n", "2 different right answers"),
    "the solution as a right answer": ("return n - -1", "return n + 1", "the solution itself"),
    "a wrong answer without words": (r" says=\"add_one\(-1\) is 0\"", "", "has says="),
    "an answer for another name": ("def add_one.n.: return n - -1", "x = 1", "does not define add"),
    "an answer that is not Python": ("return n - -1", "return return", "invalid syntax"),
    "code that is not Python": (r"print\(add_one", "print print(add_one", "Missing parentheses"),
    "a picture without alt text": (
        "# ## Add",
        "# ## Add\n#\n# ![](https://example.org/a.png)",
        "has no alt text",
    ),
    "a picture of another site": (
        "# ## Add",
        "# ## Add\n#\n# ![It](https://example.org/a.png)",
        "is somewhere else",
    ),
    "a picture of an unknown kind": ("# ## Add", "# ## Add\n#\n# ![It](a.bmp)", "is not one of"),
    "an image tag without alt text": (
        "# ## Add",
        "# ## Add\n#\n# <img src='a.png' alt=''>",
        "has no alt text",
    ),
    "a picture that is missing": ("# ## Add", "# ## Add\n#\n# ![It](figures/a.svg)", "is not in"),
    "a skipped heading level": ("# ## Add\n", "# Add\n", "skips a level: 1 to 3"),
    "a second title": ("# ## Add\n", "# # Add\n", "a second title"),
    "no title": ("# # Fixture", "# ## Fixture", "the lesson's first heading is its title"),
    "a YAML header": (r"\A", "# ---\n# jupyter: {}\n# ---\n", "no YAML header"),
}


@pytest.mark.parametrize(("old", "new", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_a_master_with_a_mistake_is_refused(tmp_path, old, new, reason):
    text, changes = re.subn(old, new, MASTER, count=1, flags=re.S)
    assert changes and text != MASTER
    message = refusal(text, tmp_path)
    assert reason in message
    assert message.startswith("solutions/91_second.py")
    if "YAML" not in reason:
        assert re.match(r"solutions/91_second.py, cell \d+ \(.+\): ", message)


def test_the_refused_cell_is_named_by_number_and_first_line(tmp_path):
    message = refusal(MASTER.replace("n - -1", "1 + n"), tmp_path)
    assert message.startswith('solutions/91_second.py, cell 6 (@check("91.1", "add_one")): ')


def test_a_wrong_file_name_is_refused(tmp_path):
    assert "the name of a master is NN_words.py" in refusal(MASTER, tmp_path, "lesson.py")


def test_an_answer_that_differs_from_the_library_is_refused(tmp_path, heads):
    shutil.copytree(heads.path.parent / "figures", tmp_path / "solutions" / "figures")
    text = heads.path.read_text(encoding="utf-8").replace(" assemble=true", "")
    text = text.replace(
        'rearrange(x, "b s (h d) -> b h s d", h=n_heads)\n    ### END',
        'rearrange(x, "b s (g d) -> b g s d", g=n_heads)\n    ### END',
    )
    (tmp_path / "solutions" / "90_heads.py").write_text(text, encoding="utf-8")
    with pytest.raises(MasterError) as error:
        reference_text(read_lesson(tmp_path / "solutions" / "90_heads.py"), course.FIXTURE)
    assert "cell 5 (def split_heads" in str(error.value)
    assert "split_heads differs from fixture_library.split_heads" in str(error.value)
    assert "(g d) -> b g s d" in str(error.value)


PICTURE = new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
OUTPUTS = {
    "stderr": ([new_output("stream", name="stderr", text="UserWarning")], "writes to stderr"),
    "an address": ([new_output("stream", text="<A at 0x7f00aa00bb00>")], "a memory address"),
    "a path": (
        [new_output("stream", text=str(course.FIXTURE / "a.txt"))],
        "a path of this machine",
    ),
    "an outcome that nobody asked for": (
        [new_output("stream", text="The outcome nan is no number. Write a number")],
        "compares with what was not asked for",
    ),
    "a picture without alt text": ([PICTURE], "start with `# alt: what it shows`"),
}


@pytest.mark.parametrize(("outputs", "reason"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_that_must_not_be_stored_is_refused(heads, outputs, reason):
    notebook = make_notebook(heads)
    code_cells(notebook)[5].outputs = outputs
    with pytest.raises(MasterError, match=r"90_heads.py, cell 12 \(torch.manual_seed") as error:
        clean_outputs(heads, notebook)
    assert reason in str(error.value)


def test_several_pictures_in_a_cell_are_refused(heads):
    notebook = make_notebook(heads)
    code_cells(notebook)[8].outputs = [PICTURE, PICTURE]
    with pytest.raises(MasterError, match="draws several pictures"):
        clean_outputs(heads, notebook)


def test_output_in_pieces_is_stored_as_one(heads):
    notebook = make_notebook(heads)
    code_cells(notebook)[5].outputs = [new_output("stream", text=text) for text in ("a", "b\n")]
    [output] = code_cells(clean_outputs(heads, notebook))[5].outputs
    assert output.text == "ab\n"


def test_a_failing_build_names_the_cell_and_leaves_every_file_untouched(tmp_path, capsys):
    root = course.copy_built_fixture(tmp_path / "course")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    master = root / "solutions" / "91_second.py"
    master.write_text(MASTER.replace("assert add_one(1) == 2", "assert add_one(1) == 3"))
    before[master] = master.read_bytes()
    assert build.main(["91", "--root", str(root)]) == 1
    message = capsys.readouterr().err
    assert message.startswith('solutions/91_second.py, cell 6 (@check("91.1", "add_one")): ')
    assert "✗ exercise 91.1 add_one: this does not hold: assert add_one(1) == 3" in message
    assert "nothing was written" in message
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_lesson_that_does_not_exist(capsys):
    with pytest.raises(SystemExit, match="there is no master solutions/55_"):
        build.main(["--root", str(course.FIXTURE), "55"])


def test_two_masters_with_one_number(tmp_path):
    (tmp_path / "solutions").mkdir()
    for name in ("91_a.py", "91_b.py"):
        (tmp_path / "solutions" / name).write_text(MASTER)
    with pytest.raises(SystemExit, match="two masters have the number 91"):
        build.main(["--root", str(tmp_path)])


def changed(root, change) -> None:
    path = root / "notebooks" / "91_second.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


STALE = {
    "source": (
        lambda nb: nb.cells[0].update(source="# Other"),
        "91_second.ipynb, cell 1 (# Fixture lesson 91: One exercise): source differ",
    ),
    "id": (lambda nb: nb.cells[2].update(id="abc"), "cell 3 (from llama_adapter_edu"),
    "tags": (lambda nb: nb.cells[6].update(metadata={}), "metadata differ"),
    "kernel": (lambda nb: nb.metadata.update(kernelspec={"name": "x"}), "the notebook's metadata"),
    "fewer cells": (lambda nb: nb.cells.pop(), "7 cells, its master gives 8"),
    "no output": (lambda nb: nb.cells[1].update(execution_count=None), "code cell 1 lacks"),
    "a check that looks solved": (
        lambda nb: nb.cells[6].outputs[0].update(text="✓ exercise 91.1 add_one: solved\n"),
        "outputs differ",
    ),
    "stderr": (
        lambda nb: nb.cells[1].outputs.append(new_output("stream", name="stderr", text="x")),
        "code cell 1 holds an error or stderr",
    ),
}


@pytest.mark.parametrize(("change", "problem"), STALE.values(), ids=STALE)
def test_check_names_what_differs_from_the_master(tmp_path, capsys, change, problem):
    root = course.copy_built_fixture(tmp_path / "course")
    assert build.main(["--check", "--root", str(root)]) == 0
    changed(root, change)
    assert build.main(["--check", "--root", str(root)]) == 1
    assert problem in capsys.readouterr().err


def test_check_finds_missing_edited_and_left_over_files(tmp_path, capsys):
    root = course.copy_built_fixture(tmp_path / "course")
    references = root / "llama_adapter_edu/course/reference"
    (references / "lesson_90.py").write_text("edited")
    (root / "notebooks" / "91_second.ipynb").unlink()
    assert build.main(["--check", "--root", str(root)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "reference/lesson_90.py: does not match its master",
        "notebooks/91_second.ipynb: is missing",
    ]
    root = course.copy_built_fixture(tmp_path / "other")
    (root / "notebooks" / "92_old.ipynb").write_text("{}")
    assert build.main(["--check", "--root", str(root)]) == 1
    assert "92_old.ipynb: has no master" in capsys.readouterr().err
    (root / "notebooks" / "91_second.ipynb").write_text("no json")
    assert build.main(["--check", "--root", str(root)]) == 1
    assert "91_second.ipynb: cannot be read" in capsys.readouterr().err


NAMES = {
    "x = f(x)": ({"f", "x"}, {"x"}),
    "x += y": ({"x", "y"}, {"x"}),
    "for i in xs:\n    print(i)": ({"xs", "print"}, {"i"}),
    "[i for i in xs if i > n]": ({"xs", "n"}, set()),
    "def f(a, b=c) -> d:\n    e = a\n    return e + g": ({"c", "d", "g"}, {"f"}),
    "with open(p) as h:\n    t = h.read()": ({"open", "p"}, {"h", "t"}),
    "class A(B):\n    c = 1\n    def f(self):\n        return d": ({"B", "d"}, {"A"}),
    "import a.b as c, d.e": (set(), {"c", "d"}),
    "try:\n    x = 1\nexcept E as e:\n    raise e": ({"E"}, {"x", "e"}),
    "match a:\n    case [b, 1 as c]:\n        d = b": ({"a"}, {"b", "c", "d"}),
    "f = lambda a: a + b": ({"b"}, {"f"}),
    "if (n := f()):\n    n": ({"f"}, {"n"}),
    "%pip install x\ny = {k: v for k, v in z}": ({"z"}, {"y"}),
}


@pytest.mark.parametrize(("source", "expected"), NAMES.items(), ids=NAMES)
def test_names_that_a_cell_expects_and_binds(source, expected):
    assert (names.loaded_before_stored(source), names.stored(source)) == expected
