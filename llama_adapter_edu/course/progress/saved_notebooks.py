"""`python -m llama_adapter_edu progress`: what the saved notebooks say, without running them.

A lesson is a line with a mark for each exercise; then comes where to go on. What counts is the code
of the exercise, wherever it stands, and the box that its check showed when the learner ran it last:
the box says which code it judged.
`pytest --nbval` is the judge: it runs everything afresh.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from llama_adapter_edu.course.progress import verdicts
from llama_adapter_edu.course.progress.exercises import (
    Check,
    answer_digest,
    checks_in,
    defines,
    is_open,
)
from llama_adapter_edu.course.progress.tables import printable
from llama_adapter_edu.course.progress.verdicts import MARKS, Row

STUB = re.compile(r"^\s*raise NotImplementedError\s*$", re.M)
BOX = re.compile(r"\A([✓✗○]) exercise \S+ [\w, ]+: (.*)")
JUDGED = re.compile(r'data-judged="(\w*)"')
TITLE = re.compile(r"^# (?:Lesson \d+: )?(.*)", re.M)
OPEN = "nothing is written yet"
NOT_RUN = "its check has not been run since the code was written or changed"


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
    count = Counter(lesson.title for lesson in lessons)
    titles = [x.title if count[x.title] == 1 else f"{x.title} ({x.path.name})" for x in lessons]
    wide = max(map(len, titles))
    many = max(len(lesson.rows) for lesson in lessons)
    lines = []
    for title, lesson in zip(titles, lessons, strict=True):
        marks = "".join(MARKS[row.status] for row in lesson.rows)
        lines.append(f"{title:<{wide}}  {marks:<{many}}  {verdicts.total(lesson.rows)}")
    lines += ["", go_on(lessons)]
    lines.append(f"This is what was saved. To have it judged afresh: pytest --nbval {folder}")
    print(printable("\n".join(lines), sys.stdout.encoding))
    return 0


def read_notebook(path: Path) -> Lesson:
    """A saved notebook; one that cannot be read has a single row that says why."""
    try:
        return _read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Lesson(path, path.stem, [Row("notebook", "", "broken", verdicts.unreadable(path))])


def _read(path: Path) -> Lesson:
    cells = json.loads(path.read_text(encoding="utf-8-sig"))["cells"]
    first = "".join(cells[0]["source"]) if cells else ""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in code]
    rows = {}  # where a check stands twice, the last one counts
    for cell, source in zip(code, sources, strict=True):
        for check in checks_in(source):
            rows[check[0]] = _judge(check, code, sources, cell)
    title = TITLE.search(first) if rows else None
    number = int(next(iter(rows)).split(".")[0]) if rows else 0
    return Lesson(path, f"{number:02d} {title[1]}" if title else path.stem, list(rows.values()))


def _judge(check: Check, code: list[dict], sources: list[str], cell: dict) -> Row:
    """The row of an exercise from its code and from the box below its check."""
    row = Row(check[0], ", ".join(check[1]), "not judged", NOT_RUN)
    places = [place for place, source in enumerate(sources) if defines(source, check[1])]
    nothing = is_open(check, sources)
    if nothing is None:  # an exercise that the course does not know
        nothing = any(STUB.search(sources[place]) for place in places[-1:])
    if nothing:
        row.set("not attempted", OPEN)
    elif box := _box(cell):
        text, judged = box
        written = max((code[place].get("execution_count") or 0 for place in places), default=0)
        in_order = (cell.get("execution_count") or 0) >= written
        status = next(status for status, mark in MARKS.items() if mark == text[1])
        valid = judged == answer_digest(check, sources) if judged else in_order
        if valid and status != "not attempted":
            row.set(status, "" if status == "solved" else text[2])
    return row


def _box(check: dict) -> tuple[re.Match, str] | None:
    """What the check showed to a person, and the digest of the code that it judged.

    The output that the build stored is no such box.
    """
    for output in check.get("outputs", []):
        if output.get("output_type") == "display_data":
            data = output.get("data", {})
            text = BOX.search("".join(data.get("text/plain", "")))
            judged = JUDGED.search("".join(data.get("text/html", "")))
            return (text, judged[1] if judged else "") if text else None
    return None


def go_on(lessons: list[Lesson]) -> str:
    """The first exercise that is not solved, in words."""
    for lesson in lessons:
        for row in lesson.rows:
            if row.status != "solved":
                what = f"exercise {row.key}, {row.name}," if row.is_exercise else "the notebook"
                return f"Go on with {what} in {lesson.path}: {row.reason}"
    return "Every exercise is solved."
