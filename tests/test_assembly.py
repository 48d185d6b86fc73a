"""The assemble form: how solutions are cut, which orders are right, and what is said to others."""

import ast
import itertools
import json
import shutil
import string
import subprocess

import course
import nbformat
import pytest

from llama_adapter_edu.course import assemble, assembly
from llama_adapter_edu.course.progress import exercises
from tools.cuts import orders
from tools.lesson import MasterError
from tools.master import read_lesson
from tools.pieces import puzzle
from tools.site import lessons

MASTER = (course.FIXTURE / "solutions" / "91_second.py").read_text(encoding="utf-8")
LINES = """\
    twice = 2 * n
    thrice = 3 * n
    for _ in range(2):
        twice = twice - n
        thrice = thrice - n
    return twice + thrice - n
"""


def lesson_of(folder, solution: str, *wrong: str):
    """Lesson 91 with another solution and wrong answers, in the assemble form."""
    text = MASTER.replace('["exercise"]', '["exercise"] assemble=true')
    text = text.replace("    return n + 1\n", solution)
    for i, answer in enumerate(wrong):
        cell = f'# %% [raw] tags=["wrong"] says="mistake {i}"\n"""\n{answer}\n"""\n\n'
        text = text.replace('# %% [raw] tags=["right"]', cell + '# %% [raw] tags=["right"]', 1)
    folder.mkdir(exist_ok=True)
    path = folder / "91_second.py"
    path.write_text(text, encoding="utf-8")
    return read_lesson(path)


def cut(body: str) -> list[tuple[str, ...]]:
    source = "def f(n):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    return orders(ast.parse(source).body[0].body, source, 4)


@pytest.fixture
def heads():
    lesson = read_lesson(course.FIXTURE / "solutions" / "90_heads.py")
    return puzzle(lesson, lesson.exercises[0])


def letter_of(found: dict, beginning: str) -> str:
    [place] = [i for i, (text, _) in enumerate(found["pieces"]) if text.startswith(beginning)]
    return string.ascii_uppercase[place]


def test_independent_lines_may_change_places():
    assert set(cut("a = n\nb = n\nreturn a + b")) == {
        ("a = n", "b = n", "return a + b"),
        ("b = n", "a = n", "return a + b"),
    }


@pytest.mark.parametrize(
    "body",
    [
        "a = n\nb = a\nreturn b",
        "a = n\na = a + 1\nreturn a",
        "b = n\nn = 2\nreturn b + n",  # what is read before it changes
        "n.x = 1\na = n.x\nreturn a",
        "n.append(1)\na = len(n)\nreturn a",
        "f(1)\ng(2)\nreturn 1",  # both do something
        "if n:\n    return 1\na = 2\nreturn a",
    ],
)
def test_lines_that_need_each_other_keep_their_order(body):
    lines = [line for line in body.split("\n")]
    assert cut(body) == [tuple(lines)]


def test_a_block_moves_as_a_whole_and_its_lines_within_it():
    found = cut("a = 0\nb = 0\nfor i in n:\n    a = i\n    b = i\nelse:\n    a = 1\nreturn a + b")
    assert len(found) == 4
    assert found[-1][:6] == ("b = 0", "a = 0", "for i in n:", "    b = i", "    a = i", "else:")


def test_one_statement_is_cut_at_the_arguments_of_a_call():
    right = ("return 2 * g(", "    n,", "    a=1,", "    b=(3, 4),", ") + 1")
    assert cut("return 2 * g(n, a=1, b=(3,\n  4)) + 1") == [
        right,
        (right[0], right[1], right[3], right[2], right[4]),
    ]


def test_pieces_are_the_solutions_and_two_of_tested_mistakes(heads):
    texts = dict(heads["pieces"])
    assert len(texts) == 7
    assert texts['    "b s (d h) -> b h s d",'] == "write (h d), not (d h)"
    assert texts['    "b s (h d) -> b s h d",'] == "heads and positions look swapped"
    [order] = heads["orders"]
    picked = [heads["pieces"][ord(letter) - 65][0] for letter in order]
    code = assembly.whole(picked, heads["around"])
    assert "YOUR CODE" not in code and "NotImplementedError" not in code
    tree = ast.parse(code)
    call = 'rearrange(x, "b s (h d) -> b h s d", h=n_heads)'
    assert ast.unparse(tree.body[0].body[-1].value) == ast.unparse(ast.parse(call))


def test_the_letters_stand_in_no_right_order(heads):
    for order in heads["orders"]:
        assert list(order) != sorted(order)


SENTENCES = {
    "": "Two of the lines are mistakes",
    "Z": "There is no line Z: the letters are A to G.",
    "{head}{head}": "stands twice",
    "{head}{x}{wrong}": "is a mistake: write (h d), not (d h).",
    "{x}": "{x} comes too early.",
    "{head}{tail}": "{head} is a right beginning. {tail} comes too early.",
    "{head}{x}": "{head} {x} is a right beginning. 3 more lines are missing.",
    "{head}{x}{right}{h}": "1 more line is missing.",
    "{head} {x}, {right} {h}{tail}": "Right.",
}


@pytest.mark.parametrize(("order", "sentence"), SENTENCES.items())
def test_what_is_said_to_an_order(heads, monkeypatch, capsys, order, sentence):
    monkeypatch.setattr(assembly, "puzzle", lambda exercise: heads)
    letters = {
        "head": letter_of(heads, "return"),
        "x": letter_of(heads, "    x"),
        "right": letter_of(heads, '    "b s (h d) -> b h'),
        "wrong": letter_of(heads, '    "b s (d h)'),
        "h": letter_of(heads, "    h="),
        "tail": letter_of(heads, ")"),
    }
    for written in (order.format(**letters), order.format(**letters).lower()):
        assemble("90.1", written)
        text = capsys.readouterr().out
        assert sentence.format(**letters) in text
        assert ("def split_heads" in text) == (sentence == "Right.")
        assert ("A  " in text) == (sentence != "Right.")


@pytest.mark.parametrize("order", [None, 5, ["A"], ..., "1 2 3"])
def test_another_kind_of_order_is_told_and_does_not_raise(heads, monkeypatch, capsys, order):
    monkeypatch.setattr(assembly, "puzzle", lambda exercise: heads)
    assemble("90.1", order)
    said = capsys.readouterr().out
    assert "There is no line ?" in said or "Two of the lines" in said


@pytest.mark.parametrize("exercise", ["99.1", "90", "", None, 99.1])
def test_an_exercise_without_pieces_is_told(capsys, exercise):
    assemble(exercise, "A")
    assert "has no lines to put in order" in capsys.readouterr().out


def test_every_right_order_of_several_lines_is_accepted(tmp_path):
    answer = "def add_one(n):\n" + LINES
    wrong = [answer.replace("3 * n", "4 * n"), answer.replace("+ thrice", "- thrice")]
    lesson = lesson_of(tmp_path, LINES, *wrong)
    found = puzzle(lesson, lesson.exercises[0])
    texts = [text for text, _ in found["pieces"]]
    right = set()
    places = [i for i, (_, says) in enumerate(found["pieces"]) if says is None]
    for order in itertools.permutations(places):
        notebook = {}
        try:
            exec(assembly.whole([texts[i] for i in order], found["around"]), notebook)
            works = [notebook["add_one"](n) for n in (1, 5)] == [0, 0]
        except (SyntaxError, NameError, IndentationError):
            works = False
        if works:
            right.add("".join(string.ascii_uppercase[i] for i in order))
    assert set(found["orders"]) == right and len(right) == 4


def test_the_master_can_add_an_order_that_is_right_all_the_same(tmp_path, heads):
    lines = "    m = n + 1\n    n = 0 * n\n    return m + n\n"
    answer = "def add_one(n):\n" + lines
    wrong = [answer.replace("0 *", "1 *"), answer.replace("+ 1", "- 1")]
    [order] = puzzle(lesson := lesson_of(tmp_path, lines, *wrong), lesson.exercises[0])["orders"]
    lesson.exercises[0].assemble = "213"
    found = puzzle(lesson, lesson.exercises[0])["orders"]
    assert sorted(found) == sorted([order, order[1] + order[0] + order[2]])
    lesson.exercises[0].assemble = "214"
    with pytest.raises(ValueError, match="other right orders"):
        puzzle(lesson, lesson.exercises[0])


def test_a_master_whose_exercise_does_not_fit_is_refused(tmp_path):
    with pytest.raises(MasterError, match=r"cell 5 \(def add_one.*a call with two arguments"):
        lesson_of(tmp_path, "    return n + 1\n")
    with pytest.raises(MasterError, match=r"2 wrong answers that differ .* each; 0 do"):
        lesson_of(tmp_path, "    m = 1\n    return n + m\n")


def test_the_build_puts_the_cell_between_card_and_exercise():
    root = course.built_fixture()
    notebook = nbformat.read(root / "notebooks" / "90_heads.ipynb", as_version=4)
    places = [i for i, cell in enumerate(notebook.cells) if "assemble(" in cell.source]
    assert len(places) == 1
    card, cell, exercise, check = notebook.cells[places[0] - 1 : places[0] + 3]
    assert card.source.startswith("### Exercise 90.1")
    assert "raise NotImplementedError" in exercise.source
    assert check.source.startswith("@check")
    assert cell.metadata["tags"] == ["nbval-ignore-output"]
    [output] = cell.outputs
    assert "A  " in output.data["text/plain"]
    assert "write (h d)" not in output.data["text/plain"]  # the mistakes are not given away


def test_the_site_shows_buttons_and_no_call(heads):
    lesson = read_lesson(course.FIXTURE / "solutions" / "90_heads.py")
    path = course.built_fixture() / "notebooks" / "90_heads.ipynb"
    page = lessons.lesson_page(lesson, nbformat.read(path, as_version=4))
    [form] = [cell for cell in page.cells if cell.source.startswith('<div class="assemble"')]
    assert form.cell_type == "markdown"
    assert "\n\n" not in form.source  # a blank line would end the HTML
    assert form.source.count("<li>") == 7
    assert not any("assemble(" in cell.source for cell in page.cells)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_site_judges_as_the_notebook_does(heads):
    letters = string.ascii_uppercase[: len(heads["pieces"])]
    asked = ["".join(p) for n in range(4) for p in itertools.permutations(letters, n)]
    asked += [order[:n] for order in heads["orders"] for n in range(len(order) + 1)]
    script = (course.ROOT / "docs/_static/assemble.js").read_text(encoding="utf-8")
    data = json.dumps({**heads, "says": assembly.SAYS})
    script = f"""globalThis.addEventListener = () => 0;{script}
        const puzzle = {data};
        console.log(JSON.stringify({json.dumps(asked)}.map((order) => judge(puzzle, order))));"""
    run = subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True)
    said = json.loads(run.stdout)
    assert said == [assembly.judge(heads, list(order))[0] for order in asked]


def test_pieces_are_kept_in_the_reference(monkeypatch):
    folder = course.built_fixture() / "llama_adapter_edu/course/reference"
    monkeypatch.setattr(exercises, "REFERENCES", folder)
    assert exercises.puzzle("90.1")["orders"]
    assert exercises.puzzle("90.2") is None
