"""`check`: what it does with right, missing, wrong and harmful answers."""

import random
import sys
from types import ModuleType

import course
import einops
import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from torch import nn

from llama_adapter_edu.course import assert_close, check
from llama_adapter_edu.course.checks import source, verdict
from llama_adapter_edu.course.checks.checker import CheckFailed

CHECK = """
@check("99.1", "double")
def _():
    x = torch.arange(3.0)
    assert torch.equal(double(x), x + x), "twice x"
"""
RIGHT = "def double(x):\n    return 2 * x\n"


class Reference(ModuleType):
    """The course's solution of lesson 99."""

    @staticmethod
    def double(x):
        return x + x

    class Gate(nn.Module):
        def forward(self, x):
            return x


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    module = Reference("llama_adapter_edu.course.reference.lesson_99")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def notebook():
    own = {"check": check, "assert_close": assert_close, "random": random}
    return {**own, "torch": torch, "nn": nn, "np": np}


def run(notebook: dict, *cells: str) -> str | None:
    """The message of the check that fails, if one does."""
    try:
        for number, source in enumerate(cells):
            course.execute(source, f"<cell {number} of {abs(hash(source))}>", notebook)
    except CheckFailed as error:
        return str(error)
    return None


def test_a_right_answer_passes_and_stays(notebook, capsys):
    assert run(notebook, RIGHT, CHECK) is None
    assert capsys.readouterr().out == "✓ exercise 99.1 double: solved\n"
    assert notebook["double"].__code__.co_filename.startswith("<cell")


WRONG = {
    "stub": ("def double(x):\n    raise NotImplementedError", "○", "not solved yet"),
    "wrong": ("def double(x):\n    return 3 * x", "✗", "twice x"),
    "crash": (
        "def double(x):\n    return x[7]",
        "✗",
        "`return x[7]` stops: there is no index 7 on axis 0, whose size is 3",
    ),
    "not implemented by torch": (
        "def double(x):\n    raise NotImplementedError('no kernel for CPU')",
        "✗",
        "`raise NotImplementedError('no kernel for CPU')` stops: NotImplementedError: no kernel",
    ),
    "not a function": ("double = 2", "✗", "double should be a function, but it is of type int"),
    "recursion": ("def double(x):\n    return double(x)", "✗", "endless recursion"),
    "in place": (
        "def double(x):\n    return x.mul_(2)",
        "✗",
        "double changes its input x in place",
    ),
    "exit": (
        "def double(x):\n    raise SystemExit(0)",
        "✗",
        "`raise SystemExit(0)` stops: SystemExit: 0",
    ),
    "endless loop": (
        "def double(x):\n    while True:\n        pass",
        "✗",
        "it did not finish within 0.5 seconds",
    ),
}


@pytest.mark.parametrize(("answer", "mark", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_told_in_words_and_replaced(notebook, reference, answer, mark, words):
    source = CHECK.replace('"double")', '"double", seconds=0.5)')
    message = run(notebook, answer, source)
    assert message.startswith(f"{mark} exercise 99.1 double: {words}")
    assert "the cells below use the reference" in message
    assert notebook["double"] is reference.double


def test_a_crash_shows_the_learners_line_and_what_stands_in_it(notebook):
    message = run(notebook, "def double(x):\n    return x[7]", CHECK)
    assert "`return x[7]` stops" in message
    assert "x is a tensor (3,)" in message


def test_nan_is_told_in_words(notebook):
    source = (
        '@check("99.1", "double")\ndef _():\n'
        "    assert_close(double(torch.ones(3)), 2 * torch.ones(3))"
    )
    answer = "def double(x):\n    return x * float('nan')"
    assert "3 of 3 values are NaN" in run(notebook, answer, source)


def test_an_assert_without_words_is_quoted(notebook):
    source = '@check("99.1", "double")\ndef _():\n    assert double(1) == 2'
    message = run(notebook, "def double(x):\n    return x", source)
    assert "this does not hold: assert double(1) == 2" in message


def test_a_name_that_a_syntax_error_left_undefined(notebook, reference):
    assert "double is not defined. Run its cell" in run(notebook, CHECK)
    assert notebook["double"] is reference.double


def test_the_reference_itself_is_no_answer(notebook, reference):
    notebook["double"] = reference.double
    assert "double is the course's own: write it yourself" in run(notebook, CHECK)


def test_a_class_should_be_a_class(notebook):
    message = run(notebook, "Gate = 1", '@check("99.2", "Gate")\ndef _():\n    pass')
    assert "Gate should be a class" in message


def test_running_a_check_again_judges_the_learners_object(notebook):
    wrong = "def double(x):\n    return 3 * x"
    first = run(notebook, wrong, CHECK)
    assert run(notebook, CHECK) == first
    assert run(notebook, RIGHT, CHECK) is None
    assert notebook["double"](2) == 4


def test_a_check_run_before_its_cell_stays_undefined_until_the_cell_runs(notebook):
    for _ in range(2):
        assert "double is not defined" in run(notebook, CHECK)
    assert run(notebook, RIGHT, CHECK) is None


def test_several_names_fall_back_together(notebook, reference):
    gate = "class Gate(nn.Module):\n    pass"
    source = '@check("99.1", "double", "Gate")\ndef _():\n    assert double(1) == 2, "twice"'
    assert "99.1 double, Gate: twice" in run(notebook, "double = lambda x: x", gate, source)
    assert notebook["Gate"] is reference.Gate


def test_a_lesson_without_reference_still_fails(notebook):
    message = run(
        notebook, "def f():\n    return 1", '@check("98.1", "f")\ndef _():\n    assert f() == 2'
    )
    assert message.startswith("✗ exercise 98.1 f")
    assert "reference" not in message


def test_in_place_changes_in_a_module_are_caught_and_the_class_is_left_as_it_was(notebook):
    gate = "class Gate(nn.Module):\n    def forward(self, x):\n        return x.add_(1)"
    source = '@check("99.2", "Gate")\ndef _():\n    Gate()(torch.ones(2))'
    run(notebook, gate)
    theirs, forward = notebook["Gate"], notebook["Gate"].forward
    assert "Gate.forward changes its input x in place" in run(notebook, source)
    assert theirs.forward is forward


def test_in_place_changes_can_be_the_task(notebook):
    answer = "def double(x):\n    x.mul_(2)"
    source = """
@check("99.1", "double", in_place=True)
def _():
    x = torch.ones(2)
    double(x)
    assert x.sum() == 4
"""
    assert run(notebook, answer, source) is None


def test_a_check_leaves_random_state_and_settings_as_found(notebook):
    answer = """
def double(x):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")
    return 2 * x
"""
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    threads = torch.get_num_threads()
    assert run(notebook, answer, CHECK) is None
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert torch.empty(0).device.type == "cpu"
    assert torch.get_num_threads() == threads


def test_a_check_does_not_depend_on_what_ran_before(notebook):
    source = """
@check("99.1", "double")
def _():
    numbers.append((torch.rand(1).item(), np.random.rand(), random.random()))
    weight = torch.ones(1, requires_grad=True)
    double(weight).backward()
    assert weight.grad.dtype is torch.float32
"""
    notebook["numbers"] = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        with torch.no_grad():
            torch.set_default_dtype(torch.float64)
            try:
                assert run(notebook, RIGHT, source) is None
                assert torch.get_default_dtype() is torch.float64
            finally:
                torch.set_default_dtype(torch.float32)
    assert notebook["numbers"][0] == notebook["numbers"][1]


def test_stopping_by_hand_is_not_a_verdict(notebook):
    run(notebook, "def double(x):\n    raise KeyboardInterrupt")
    theirs = notebook["double"]
    with pytest.raises(KeyboardInterrupt):
        run(notebook, CHECK)
    assert notebook["double"] is theirs


def test_a_check_without_names_is_a_mistake_of_the_author():
    with pytest.raises(ValueError, match="needs the name"):
        check("99.1")


def test_the_mark_is_replaced_where_the_console_does_not_know_it(notebook, monkeypatch):
    with open("/dev/null" if sys.platform != "win32" else "nul", "w", encoding="ascii") as console:
        monkeypatch.setattr(sys, "stdout", console)
        assert run(notebook, RIGHT, CHECK) is None


def test_a_live_notebook_shows_a_box_and_goes_on(notebook, monkeypatch):
    shown = []
    monkeypatch.setattr(verdict, "in_live_notebook", lambda: True)
    monkeypatch.setattr(verdict, "show_box", lambda text, judged: shown.append(text))
    assert run(notebook, "def double(x):\n    return x < 0 & 1", CHECK) is None
    assert run(notebook, RIGHT, CHECK) is None
    assert shown[0].startswith("✗ exercise 99.1")
    assert shown[1] == "✓ exercise 99.1 double: solved"


def test_a_check_leaves_nothing_and_overwrites_nothing(notebook):
    notebook |= {"x": "mine", "_": "the last output"}
    before = set(notebook)
    assert run(notebook, RIGHT, CHECK) is None
    assert set(notebook) - {"__builtins__"} == before | {"double"}
    assert (notebook["x"], notebook["_"]) == ("mine", "the last output")


@pytest.fixture
def given(reference, notebook):
    """A given cell has set x, factor and Scale."""
    reference.GIVEN = ("x", "factor", "Scale")
    notebook |= {"x": torch.arange(3.0), "factor": 2, "Scale": nn.Identity}
    return notebook


@pytest.mark.parametrize(
    "answer", ["def double(y):\n    return x + x", RIGHT.replace("2", "factor")]
)
def test_an_answer_that_reads_the_notebook_in_place_of_its_argument_is_told(given, answer):
    said = run(given, answer, CHECK)
    assert "of the notebook, not its argument" in said
    assert "`x`" in said or "`factor`" in said
    assert given["factor"] == 2 and given["x"].shape == (3,)


def test_functions_classes_imports_and_the_answers_own_constants_stay_visible(given):
    answer = """
import math
factor = 2
def helper(y):
    return math.sqrt(4) * y
def double(y):
    return Scale()(helper(y)) * factor / factor
"""
    assert run(given, answer, CHECK) is None


def test_the_check_itself_sees_the_notebooks_values(given):
    source = '@check("99.1", "double")\ndef _():\n    assert factor == double(1)'
    assert run(given, RIGHT, source) is None


CASES = """
@check("99.1", "double", n=[3, 5], start=[0.0, 1.0])
def _(n, start):
    x = torch.arange(n) + start
    assert torch.equal(double(x), x + x), "twice x"
"""


def test_every_case_is_tried_and_the_one_that_fails_is_named(notebook):
    assert run(notebook, RIGHT, CASES) is None
    only_three = "def double(x):\n    return 2 * x if len(x) == 3 else x"
    said = run(notebook, only_three, CASES)
    assert "with n=3, start=0.0 it is right, with n=5, start=1.0 not: twice x" in said
    assert "it is right" not in run(notebook, "def double(x):\n    return x", CASES)


def test_cases_of_unequal_length_are_a_mistake_of_the_author():
    with pytest.raises(ValueError, match="equal length"):
        check("99.1", "double", n=[1, 2], d=[1])


OPEN = {
    "dots": ("def double(x):\n    y = ...\n    return y", "○", "`y = ...` is still there"),
    "raise": (
        "def double(x):\n    y = 2 * x\n    raise NotImplementedError",
        "✗",
        "the line `raise NotImplementedError` is still in your answer",
    ),
    "stub": ('def double(x):\n    """Other."""  # text\n    raise NotImplementedError', "○", "not"),
}


@pytest.mark.parametrize(("answer", "mark", "words"), OPEN.values(), ids=OPEN)
def test_what_is_left_of_the_exercise_is_named(notebook, reference, answer, mark, words):
    stub = "def double(x):\n    raise NotImplementedError"
    reference.STUBS = {"99.1": source.digest([source.definitions(stub)["double"]])}
    said = run(notebook, answer, CHECK)
    assert said.startswith(mark) and words in said


IN_PLACE = {
    "through data": "x.data.mul_(2)\n    return x",
    "through numpy": "x.numpy()[:] *= 2\n    return x",
    "a list": "y = [x]\n    return x.mul_(2)",
}


@pytest.mark.parametrize("body", IN_PLACE.values(), ids=IN_PLACE)
def test_every_way_to_change_an_input_is_found(notebook, body):
    assert "double changes its input x in place" in run(
        notebook, f"def double(x):\n    {body}", CHECK
    )


def test_inputs_in_lists_and_dictionaries_are_guarded(notebook):
    check_of_rows = """
@check("99.1", "double")
def _():
    double([{"a": torch.ones(2)}])
"""
    for body in ("rows[0]['a'] += 1", "rows.append(1)", "rows[0]['b'] = 2"):
        said = run(notebook, f"def double(rows):\n    {body}", check_of_rows)
        assert "double changes its input rows in place" in said


ERRORS = {
    "x + torch.ones(7)": "an axis of size 3 meets an axis of size 7",
    "rearrange(x, 'a b -> b a')": "the pattern names 2 axes, the tensor has 1",
    "rearrange(x, '(a b) -> a b')": "the pattern leaves",
    "x.reshape(2, 2)": "3 numbers do not fit into the shape (2, 2)",
    "x.nothing": "there is no `.nothing`",
    "nothing": "the name `nothing` is not defined",
    "None + x": "something in it is None",
    "torch.cat([x[None], x[None, :2]])": "torch.cat along axis 0 needs all other sizes equal",
    "x if x else x": "a condition needs one true or false",
}


@pytest.mark.parametrize(("expression", "words"), ERRORS.items(), ids=ERRORS)
def test_a_librarys_error_is_told_with_its_statement_and_shapes(notebook, expression, words):
    notebook["rearrange"] = einops.rearrange
    said = run(notebook, f"def double(x):\n    return {expression}", CHECK)
    assert f"`return {expression}` stops: " in said
    assert words in said
    if "x" in expression:
        assert "x is a tensor (3,)" in said


def test_an_answer_of_another_signature_is_told_so(notebook):
    said = run(notebook, "def double():\n    return 1", CHECK)
    assert "leave the first line, with its arguments, as it was given" in said


def test_a_result_of_none_is_told_so(notebook):
    body = '@check("99.1", "double")\ndef _():\n    a, b = double(1)'
    assert "is a `return` missing?" in run(notebook, "def double(x):\n    pass", body)


def test_run_all_in_jupyter_shows_a_box_at_each_open_exercise(monkeypatch, tmp_path):
    """A real kernel, neither of pytest nor of the build: nothing raises."""
    root = course.built_fixture()
    notebook = nbformat.read(root / "notebooks" / "91_second.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120).execute(cwd=str(tmp_path), env=course.environment(root))
    cells = course.code_cells(notebook)
    number = next(i for i, cell in enumerate(cells) if "@check(" in cell.source)
    box = cells[number].outputs[0].data
    assert box["text/plain"].startswith("○ exercise 91.1 add_one: not solved yet")
    assert "not solved yet" in box["text/html"]
    assert cells[number + 1].outputs[0].text == "42\n"
