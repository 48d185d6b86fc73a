"""Proofs for every lesson: the notebooks and checks do what the course promises.

`pytest -k lesson_01` runs those of one lesson. nbval runs for real: each solved notebook whole, the
first lesson as learners open it, and unsolved and half-solved ones of the fixture lessons. In the
others each check is given the open exercise and every listed answer, without a kernel. With --slow
they are all run as learners open them, too.
"""

import copy
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import course
import nbformat
import pytest

from llama_adapter_edu.course import assembly, reference
from llama_adapter_edu.course.checks.checker import CheckFailed
from tools import build, names
from tools.lesson import Exercise, Lesson
from tools.master import read_lesson
from tools.notebook import make_notebook
from tools.pieces import puzzle
from tools.regions import solve

OLD_RED_OUTPUT = {
    "output_type": "error",
    "ename": "CheckFailed",
    "evalue": "an old run",
    "traceback": ["✗ an old run"],
}
# The longest, which are the last, come first: no process is left with one at the end.
LESSONS = {
    f"lesson_{path.name[:2]}": path
    for folder in (course.ROOT / "solutions", course.FIXTURE / "solutions")
    for path in sorted(folder.glob("*.py"), reverse=True)
}
OPEN_FOR_REAL = {0, 90, 91}
HALF_FOR_REAL = {90, 91}


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
def run(lesson, root, tmp_path_factory):
    """What nbval says of a variant of the notebook: {failing code cell: message}."""
    folder = tmp_path_factory.mktemp(f"lesson_{lesson.number:02d}")
    return lambda notebook: course.nbval(notebook, folder, root)


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


def test_solved_notebook_passes_whole_even_with_old_red_outputs(lesson, root, run):
    solved = course.with_answers(lesson, root, lesson.solutions())
    assert run(with_old_red_outputs(solved)) == {}


def test_open_notebook_fails_in_exactly_its_checks(lesson, root, run, request):
    if lesson.number not in OPEN_FOR_REAL and not request.config.getoption("--slow"):
        pytest.skip("its open exercises are judged without a kernel")
    found = run(course.committed(lesson, root))
    expect_failing_checks(found, lesson, ["not solved yet"] * len(lesson.exercises))


def test_half_solved_notebook_without_outputs_fails_in_exactly_the_rest(lesson, root, run):
    """And with the listed words: the rest holds wrong answers."""
    if lesson.number not in HALF_FOR_REAL:
        pytest.skip("its wrong answers are judged without a kernel")
    done = solved_in_half(lesson)
    answers = lesson.solutions()
    answers |= {exercise.id: exercise.wrong[0][1] for exercise in lesson.exercises[done:]}
    found = run(without_outputs(course.with_answers(lesson, root, answers)))
    words = [exercise.wrong[0][0] for exercise in lesson.exercises[done:]]
    expect_failing_checks(found, lesson, [None] * done + words)


def expect_failing_checks(found: dict[int, str], lesson: Lesson, words: list[str | None]) -> None:
    checks = course.check_indices(lesson)
    assert set(found) == {i for i, word in zip(checks, words, strict=True) if word}, found
    for index, word, exercise in zip(checks, words, lesson.exercises, strict=True):
        if word:
            assert word in found[index]
            assert exercise.id in found[index]


def test_every_listed_answer_is_judged_right(lesson, root, monkeypatch):
    """Without a kernel: right answers, the stub, and wrong answers with their words, at each check.

    A wrong one comes last: the next exercises run after it.
    """
    problems = judge_all_answers(lesson, root, monkeypatch)
    assert not problems, "\n".join(problems)


def judge_all_answers(lesson: Lesson, root: Path, monkeypatch) -> list[str]:
    prepare_process(root, monkeypatch)
    notebook, problems = {"__name__": "__main__"}, []
    checks = {exercise.check: exercise for exercise in lesson.exercises}
    for number in needed_cells(lesson):
        cell = lesson.cells[number]
        if number in checks:
            problems += judge_answers(lesson, checks[number], notebook)
        else:
            course.execute(solve(cell.source), f"<{lesson.name} cell {number}>", notebook)
    return problems


def needed_cells(lesson: Lesson) -> list[int]:
    """The exercises, their checks, and the cells above that bind a name which those read."""
    answers = {e.code: [*e.right, *(wrong for _, wrong in e.wrong)] for e in lesson.exercises}
    checks = {exercise.check for exercise in lesson.exercises}
    needed, read = [], set()
    for number in range(max(checks), -1, -1):
        cell = lesson.cells[number]
        if cell.cell_type != "code":
            continue
        source = solve(cell.source)
        if number in answers or number in checks or names.stored(source) & read:
            needed.append(number)
            for text in (source, *answers.get(number, ())):
                read |= names.loaded_before_stored(text)
    return needed[::-1]


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
    for answer, right in assembled(lesson, exercise):
        try:
            found = message(answer)
        except Exception as error:  # the cell itself stops
            found = repr(error)
        if right != (found is None):
            problems.append(f"{exercise.id}: assembled, right is {right}, but {found}\n{answer}")
    return problems


def assembled(lesson: Lesson, exercise: Exercise) -> Iterator[tuple[str, bool]]:
    """Orders of the assemble form that are right, and those with two neighbours swapped."""
    if not exercise.assemble:
        return
    found = puzzle(lesson, exercise)
    texts = dict(zip(string.ascii_uppercase, (text for text, _ in found["pieces"]), strict=False))
    orders = found["orders"]
    swapped = {o[:i] + o[i + 1] + o[i] + o[i + 2 :] for o in orders[:2] for i in range(len(o) - 1)}
    for order in [*orders[:6], *sorted(swapped - set(orders))]:
        code = assembly.whole([texts[letter] for letter in order], found["around"])
        yield code, order in orders


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
