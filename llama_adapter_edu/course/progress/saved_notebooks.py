"""`python -m llama_adapter_edu progress`: what the saved notebooks say, without running them.

A lesson is a line with a mark for each exercise; then comes where to go on. What counts is the code
in the exercise's cell, and the box that its check showed when the learner ran it last.
`pytest --nbval` is the judge: it runs everything afresh.
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from llama_adapter_edu.course.progress import verdicts
from llama_adapter_edu.course.progress.verdicts import MARKS, Row, check_in

STUB = re.compile(r"^\s*raise NotImplementedError\s*$", re.M)
BOX = re.compile(r"\A([✓✗○]) exercise \S+ [\w, ]+: (.*)")
TITLE = re.compile(r"^# (?:Lesson \d+: )?(.*)", re.M)
OPEN = "nothing is written yet"
NOT_RUN = "its check has not been run since the code was written"


class Lesson(NamedTuple):
    """A saved notebook of the course: where, its title, one row an exercise."""

    path: Path
    title: str
    rows: list[Row]


def show_progress(folder: str = "notebooks") -> int:
    """Print a line for each lesson in the folder, and where to go on. Returns the exit code."""
    paths = sorted(Path(folder).glob("*.ipynb"))
    lessons = [lesson for path in paths if (lesson := read_notebook(path)).rows]
    if not lessons:
        raise ValueError(
            f"there is no notebook of the course in {folder}. Say where yours are: "
            "python -m llama_adapter_edu progress FOLDER"
        )
    wide = max(len(lesson.title) for lesson in lessons)
    many = max(len(lesson.rows) for lesson in lessons)
    for lesson in lessons:
        marks = "".join(MARKS[row.status] for row in lesson.rows)
        print(f"{lesson.title:<{wide}}  {marks:<{many}}  {verdicts.total(lesson.rows)}")
    print(f"\n{go_on(lessons)}")
    print(f"This is what was saved. To have it judged afresh: pytest --nbval {folder}")
    return 0


def read_notebook(path: Path) -> Lesson:
    """A saved notebook; one that cannot be read has a single row that says why."""
    try:
        return _read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Lesson(path, path.stem, [Row("notebook", "", "broken", verdicts.unreadable(path))])


def _read(path: Path) -> Lesson:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    code = [i for i, cell in enumerate(cells) if cell["cell_type"] == "code"]
    rows = [
        _judge(exercise, cells[before], sources[before], cells[here])
        for before, here in pairwise(code)
        if (exercise := check_in(sources[here]))
    ]
    title = TITLE.search(sources[0]) if rows else None
    number = int(rows[0].key.split(".")[0]) if rows else 0
    return Lesson(path, f"{number:02d} {title[1]}" if title else path.stem, rows)


def _judge(exercise: tuple[str, str], cell: dict, source: str, check: dict) -> Row:
    """The row of an exercise from its cell's code and from the box below its check."""
    row = Row(*exercise, "not judged", NOT_RUN)
    if STUB.search(source):
        row.set("not attempted", OPEN)
    elif (box := _box(check)) and (check.get("execution_count") or 0) >= (
        cell.get("execution_count") or 0
    ):
        status = next(status for status, mark in MARKS.items() if mark == box[1])
        if status != "not attempted":  # that was before the code was written
            row.set(status, "" if status == "solved" else box[2])
    return row


def _box(check: dict) -> re.Match | None:
    """What the check showed to a person. The output that the build stored is no such box."""
    for output in check.get("outputs", []):
        if output.get("output_type") == "display_data":
            return BOX.search("".join(output.get("data", {}).get("text/plain", "")))
    return None


def go_on(lessons: list[Lesson]) -> str:
    """The first exercise that is not solved, in words."""
    for lesson in lessons:
        for row in lesson.rows:
            if row.status != "solved":
                what = f"exercise {row.key}, {row.name}," if row.is_exercise else "the notebook"
                return f"Go on with {what} in {lesson.path}: {row.reason}"
    return "Every exercise is solved."
