"""How good are the checks? Runs small changes of every solution through its exercise's check.

python tools/mutate.py            all lessons; writes benchmarks/results/mutants/NN.json
python tools/mutate.py 01 03      lessons 01 and 03
python tools/mutate.py 01 --exercise 1.4 --show     one exercise, with each verdict

A mutant that a check accepts is a survivor: a better check rejects it, or it is equal to the
solution. Equal ones stand in solutions/equal_mutants/NN.json, each with the reason.
"""

import argparse
import contextlib
import functools
import io
import json
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llama_adapter_edu.course.checks.checker import CheckFailed, check  # noqa: E402
from tools import names  # noqa: E402
from tools.lesson import Exercise, Lesson  # noqa: E402
from tools.master import read_lesson  # noqa: E402
from tools.mutants import mutants  # noqa: E402
from tools.regions import own_lines, solve  # noqa: E402

SECONDS = 20  # after which a mutant counts as endless
EQUAL = ROOT / "solutions" / "equal_mutants"
RESULTS = ROOT / "benchmarks" / "results" / "mutants"


def main(arguments: list[str] | None = None) -> int:
    """Judge the mutants; 1 if one survives that is not listed as equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN", help="lesson numbers; default: all")
    parser.add_argument("--exercise", metavar="N.N", help="only this one; nothing is written")
    parser.add_argument("--show", action="store_true", help="print each mutant's verdict")
    options = parser.parse_args(arguments)
    paths = sorted((ROOT / "solutions").glob("*.py"))
    survivors = 0
    for path in paths:
        if options.lessons and path.name[:2] not in options.lessons:
            continue
        found = judge_lesson(read_lesson(path), options.exercise, options.show)
        summary = {"lesson": path.stem, **_totals(found), "exercises": found}
        survivors += sum(len(e["survivors"]) for e in found.values())
        print(f"{path.stem}: " + ", ".join(f"{v} {k}" for k, v in _totals(found).items()))
        if not options.exercise:
            RESULTS.mkdir(parents=True, exist_ok=True)
            text = json.dumps(summary, indent=1, ensure_ascii=False)
            (RESULTS / f"{path.name[:2]}.json").write_text(text + "\n", encoding="utf-8")
    return 1 if survivors else 0


def _totals(found: dict[str, dict]) -> dict[str, int]:
    keys = ("mutants", "rejected", "raw")
    totals = {key: sum(exercise[key] for exercise in found.values()) for key in keys}
    lists = ("equal", "survivors")
    return totals | {key: sum(len(e[key]) for e in found.values()) for key in lists}


def judge_lesson(lesson: Lesson, only: str | None = None, show: bool = False) -> dict[str, dict]:
    """{exercise: counts, survivors and equal mutants} of a lesson, in this process."""
    return {
        exercise.id: judge_exercise(lesson, exercise, notebook, show)
        for exercise, notebook in at_each_check(lesson)
        if only in (None, exercise.id)
    }


def at_each_check(lesson: Lesson) -> Iterator[tuple[Exercise, dict]]:
    """Runs a lesson's cells, solved, and stops where a check would run."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    plt.show = lambda: plt.close("all")
    notebook = {"__name__": "__main__"}
    codes = {exercise.code: exercise for exercise in lesson.exercises}
    checks = {exercise.check: exercise for exercise in lesson.exercises}
    for number in needed_cells(lesson):
        cell, name = lesson.cells[number], f"<{lesson.name} cell {number}>"
        with contextlib.redirect_stdout(io.StringIO()):
            if number in codes:
                execute(lesson.solution(codes[number]), name, notebook)
            elif number not in checks:
                execute(cell.source, name, notebook)
        if number in checks:
            yield checks[number], notebook
            execute(lesson.solution(checks[number]), name, notebook)


def needed_cells(lesson: Lesson) -> list[int]:
    """The cells without which exercises and checks would lack a name: no plots, no training."""
    own = {n for exercise in lesson.exercises for n in (exercise.code, exercise.check)}
    needed, wanted = [], set()
    for number in range(len(lesson.cells) - 1, -1, -1):
        cell = lesson.cells[number]
        if cell.cell_type != "code":
            continue
        source = solve(cell.source)
        bound = names.stored(source)
        if number in own or bound & wanted:
            needed.append(number)
            wanted = (wanted - bound) | names.loaded_before_stored(source)
    return needed[::-1]


def execute(source: str, name: str, notebook: dict) -> None:
    """Run a cell without a kernel; its lines are known to tracebacks."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(names.parse(source), name, "exec"), notebook)


def equal_mutants(lesson: Lesson, exercise: Exercise) -> dict[str, str]:
    """{mutant: why it is equal to the solution}."""
    path = EQUAL / f"{lesson.number:02d}.json"
    listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return listed.get(exercise.id, {})


def judge_exercise(lesson: Lesson, exercise: Exercise, notebook: dict, show: bool) -> dict:
    """Counts of an exercise's mutants, those that its check accepts, and the equal ones."""
    equal = equal_mutants(lesson, exercise)
    found = {"mutants": 0, "rejected": 0, "raw": 0, "equal": {}, "survivors": []}
    values = {name for name, value in notebook.items() if not callable(value)}
    solution, own = lesson.solution(exercise), own_lines(lesson.cells[exercise.code].source)
    if said := verdict(lesson.cells[exercise.check].source, solution, exercise, notebook):
        raise SystemExit(f"the check rejects the solution: {said}")
    for what, source in mutants(solution, exercise.names, values, own):
        try:
            said = verdict(lesson.cells[exercise.check].source, source, exercise, notebook)
        except Exception:  # no answer at all: the cell itself stops
            continue
        found["mutants"] += 1
        if said:
            found["rejected"] += 1
            found["raw"] += said.raw
        elif what in equal:
            found["equal"][what] = equal[what]
        else:
            found["survivors"].append(what)
        if show or (not said and what not in equal):
            first = str(said).splitlines()[0] if said else "ACCEPTED"
            mark = "!" if said and said.raw else " "
            print(f"{mark} {what}\n      {first[:300]}", flush=True)
    return found


def verdict(check_cell: str, answer: str, exercise: Exercise, notebook: dict) -> CheckFailed | None:
    """What the check says about an answer; None if it accepts it."""
    notebook["check"] = functools.partial(check, seconds=SECONDS)
    with contextlib.redirect_stdout(io.StringIO()):
        execute(answer, f"<answer {exercise.id}>", notebook)
        try:
            execute(check_cell, f"<check {exercise.id}>", notebook)
        except CheckFailed as error:
            return error
    return None


if __name__ == "__main__":
    raise SystemExit(main())
