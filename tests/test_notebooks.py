"""Proofs for every lesson: the notebooks and checks do what the course promises.

`pytest -k lesson_01` runs those of one lesson. nbval runs for real, one notebook on each core.
"""

import copy
import sys
from pathlib import Path

import course
import nbformat
import pytest

from llama_adapter_edu.course import reference
from llama_adapter_edu.course.checks.checker import CheckFailed
from tools import build
from tools.lesson import Exercise, Lesson
from tools.master import read_lesson
from tools.notebook import make_notebook

OLD_RED_OUTPUT = {
    "output_type": "error",
    "ename": "CheckFailed",
    "evalue": "an old run",
    "traceback": ["✗ an old run"],
}
LESSONS = {
    f"lesson_{path.name[:2]}": path
    for folder in (course.ROOT / "solutions", course.FIXTURE / "solutions")
    for path in sorted(folder.glob("*.py"))
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in LESSONS],
)
def lesson(request) -> Lesson:
    return read_lesson(LESSONS[request.param])


@pytest.fixture(scope="module")
def root(lesson) -> Path:
    """The course that the lesson belongs to, built."""
    in_fixture = lesson.path.is_relative_to(course.FIXTURE)
    return course.built_fixture() if in_fixture else course.ROOT


@pytest.fixture(scope="module")
def failures(lesson, root, tmp_path_factory) -> dict[str, dict[int, str]]:
    """{variant of the notebook: {failing code cell: message}}, from runs of nbval."""
    folder = tmp_path_factory.mktemp(f"lesson_{lesson.number:02d}")
    right, half = lesson.solutions(), lesson.solutions()
    for exercise in lesson.exercises[solved_in_half(lesson) :]:
        half[exercise.id] = exercise.wrong[0][1]
    variants = {
        "solved": with_old_red_outputs(course.with_answers(lesson, root, right)),
        "open": course.committed(lesson, root),
        "half": until_last_check(without_outputs(course.with_answers(lesson, root, half)), lesson),
    }
    return course.nbval(variants, folder, root)


def solved_in_half(lesson: Lesson) -> int:
    return len(lesson.exercises) // 2


def with_old_red_outputs(notebook):
    """As saved before the exercises were solved."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if "check" in cell.metadata.get("tags", []):
            cell.outputs = [nbformat.from_dict(OLD_RED_OUTPUT)]
    return notebook


def without_outputs(notebook):
    """After "Clear all outputs" in Jupyter."""
    notebook = copy.deepcopy(notebook)
    for cell in course.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook


def test_solved_notebook_passes_whole_even_with_old_red_outputs(failures):
    assert failures["solved"] == {}


def test_open_notebook_fails_in_exactly_its_checks(lesson, failures):
    expect_failing_checks(failures["open"], lesson, ["not solved yet"] * len(lesson.exercises))


def test_half_solved_notebook_without_outputs_fails_in_exactly_the_rest(lesson, failures):
    """And with the listed words: the rest holds wrong answers."""
    done = solved_in_half(lesson)
    words = [exercise.wrong[0][0] for exercise in lesson.exercises[done:]]
    expect_failing_checks(failures["half"], lesson, [None] * done + words)


def until_last_check(notebook, lesson: Lesson):
    """Without the cells after the last check: the other two notebooks run them already."""
    notebook = copy.deepcopy(notebook)
    last = course.code_cells(notebook)[course.check_indices(lesson)[-1]]
    notebook.cells = notebook.cells[: notebook.cells.index(last) + 1]
    return notebook


def expect_failing_checks(found: dict[int, str], lesson: Lesson, words: list[str | None]) -> None:
    checks = course.check_indices(lesson)
    assert set(found) == {i for i, word in zip(checks, words, strict=True) if word}, found
    for index, word, exercise in zip(checks, words, lesson.exercises, strict=True):
        if word:
            assert word in found[index]
            assert exercise.id in found[index]


def test_every_listed_answer_is_judged_right(lesson, root, monkeypatch):
    """Without a kernel: right answers, the stub, and wrong answers with their words, at each check.

    A wrong one comes last: all other cells run after it.
    """
    problems = judge_all_answers(lesson, root, monkeypatch)
    assert not problems, "\n".join(problems)


def judge_all_answers(lesson: Lesson, root: Path, monkeypatch) -> list[str]:
    prepare_process(root, monkeypatch)
    notebook, problems = {"__name__": "__main__"}, []
    codes = {exercise.code: exercise for exercise in lesson.exercises}
    checks = {exercise.check: exercise for exercise in lesson.exercises}
    for number, cell in enumerate(lesson.cells[: max(checks) + 1]):
        name = f"<{lesson.name} cell {number}>"
        if number in codes:
            course.execute(lesson.solution(codes[number]), name, notebook)
        elif number in checks:
            problems += judge_answers(lesson, checks[number], notebook)
        elif cell.cell_type == "code":
            course.execute(cell.source, name, notebook)
    return problems


def prepare_process(root: Path, monkeypatch) -> None:
    """What the kernel of a built course finds: its modules, and figures that nobody sees."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    folder = str(root / "llama_adapter_edu/course/reference")
    monkeypatch.setattr(reference, "__path__", [*reference.__path__, folder])


def judge_answers(lesson: Lesson, exercise: Exercise, notebook: dict) -> list[str]:
    problems = []
    cell = lesson.cells[exercise.check]

    def message(answer: str) -> str | None:
        course.execute(answer, f"<answer {exercise.id}>", notebook)
        try:
            course.execute(cell.source, f"<check {exercise.id}>", notebook)
        except CheckFailed as error:
            return str(error)
        return None

    stub = make_notebook(lesson).cells[exercise.code].source
    answers = [
        ("solution", lesson.solution(exercise), None),
        *(("right", right, None) for right in exercise.right),
        ("stub", stub, "not solved yet"),
        *(("wrong", wrong, says) for says, wrong in exercise.wrong),
    ]
    for kind, answer, expected in answers:
        found = message(answer)
        if found != expected and not (expected and found and expected in found):
            problems.append(f"{exercise.id}: {kind}, expected {expected!r}, got {found}\n{answer}")
    return problems


def test_committed_files_match_the_masters(lesson, root, capsys):
    assert build.main(["--check", "--root", str(root), f"{lesson.number:02d}"]) == 0, (
        capsys.readouterr()
    )


def test_the_example_of_contributing_is_a_lesson(tmp_path, monkeypatch):
    text = (course.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = text.partition("````python\n")[2].partition("````")[0]
    (tmp_path / "solutions" / "figures").mkdir(parents=True)
    (tmp_path / "solutions" / "figures" / "heads.svg").write_text("<svg/>")
    path = tmp_path / "solutions" / "01_example.py"
    path.write_text(example, encoding="utf-8")
    assert judge_all_answers(read_lesson(path), tmp_path, monkeypatch) == []
