"""What a run of `pytest --nbval` says about each exercise; `tables.py` writes it down."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from llama_adapter_edu.course.progress.exercises import checks_in, exercises

MARKS = {"solved": "✓", "wrong": "✗", "not attempted": "○", "not judged": "?", "broken": "!"}
IN_EXERCISE = "in exercise"  # a broken cell whose check tells about it
QUIET = ("wrong", "not attempted", "not judged", IN_EXERCISE)  # the table says it all

DEAD = "the kernel died: it ran out of memory, or the cell ended the process"
DEAD_BEFORE = "the kernel had died in an earlier cell"
TIMED_OUT = "the cell ran out of time: an endless loop?"
DIFFERS = "it prints or shows something else than the output stored in the notebook"
NO_CHECK = "its check cell is not in this notebook"

VERDICT = re.compile(r"^([✗○]) exercise \d+\.\d+ [\w, ]+: (.*)", re.M)
LINE = re.compile(r"^  at  (.*)", re.M)
CELL_LINE = re.compile(r"^ *Cell In\[\d+\], line (\d+)", re.M)
ARROW = re.compile(r"^Cell.*\n(?:(?!-+>).*\n)*?-+> *\d+ (.*)", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Row:
    """One line of the report: an exercise, or another cell that is broken."""

    key: str  # "1.2", or "cell", or "notebook"
    name: str  # "causal_softmax", or "[4]": the fourth code cell
    status: str
    reason: str = ""
    lines: list[str] = field(default_factory=list)  # of the notebook, that led to the failure
    notebook: str = ""

    @property
    def is_exercise(self) -> bool:
        return self.key[0].isdigit()

    def set(self, status: str, reason: str, lines: list[str] | None = None) -> None:
        self.status, self.reason, self.lines = status, reason, lines or []

    def text(self) -> str:
        kind = f"exercise {self.key}" if self.is_exercise else self.key
        title = f"{MARKS.get(self.status, '!')} {kind} {self.name}: {self.reason}"
        return "\n".join([title, *(f"  at  {line}" for line in self.lines)])


def check_in(source: str) -> tuple[str, str] | None:
    """("1.2", "name, name") of a cell with a check."""
    found = checks_in(source)
    return (found[0][0], ", ".join(found[0][1])) if found else None


def judge(
    exercise: tuple[str, str] | None, position: int, outcome: str, error: BaseException | None
) -> Row:
    """The row of a code cell that nbval has run; position counts from 1."""
    row = Row(*exercise, "solved") if exercise else Row("cell", f"[{position}]", "fine")
    if outcome == "skipped":
        row.set("not judged", "its cell was skipped")
    if outcome != "failed":
        return row
    trace = ANSI.sub("", str(getattr(error, "inner_traceback", None) or ""))
    verdict = VERDICT.search(trace)
    if exercise and verdict:
        status = next(status for status, mark in MARKS.items() if mark == verdict[1])
        row.set(status, verdict[2], LINE.findall(trace))
    else:
        reason = _reason(error, trace)
        row.set(_status_without_verdict(exercise, reason), reason, _lines(trace))
    return row


def _status_without_verdict(exercise: tuple[str, str] | None, reason: str) -> str:
    if reason == DEAD_BEFORE:
        return "not judged"
    if not exercise:
        return "broken"
    return "wrong" if reason in (DEAD, TIMED_OUT) else "not judged"


def _reason(error: BaseException | None, trace: str) -> str:
    message = " ".join(str(error).split())
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    if "Kernel dead" in message:
        return DEAD_BEFORE
    if message.startswith("Timeout"):
        return TIMED_OUT
    if message.startswith("Cell outputs differ"):
        return DIFFERS
    if not lines:
        return message or type(error).__name__
    at = CELL_LINE.search(trace)
    return (
        f"{lines[-1]} (line {at[1]} of its cell)"
        if "SyntaxError" in lines[-1] and at
        else lines[-1]
    )


def _lines(trace: str) -> list[str]:
    """The notebook's lines in a traceback, or what nbval says about differing output."""
    if "mismatch" in trace or "output fields" in trace:
        return [line.strip() for line in trace.splitlines() if line.strip()][:8]
    return [line.strip() for line in ARROW.findall(trace)]


def unreadable(path: Path) -> str:
    """Why a notebook cannot be collected, in words."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"{path.name} cannot be opened: {error.strerror}"
    except UnicodeDecodeError:
        return f"{path.name} is not a notebook: it is not UTF-8 text. Take a fresh copy of it."
    except (ValueError, RecursionError) as error:
        return f"{path.name} is not a notebook: it is not JSON ({error}). Take a fresh copy of it."
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        return f"{path.name} is not a notebook: it is JSON, but has no list of cells"
    return f"{path.name} is not a valid notebook. Open it in Jupyter, save it, and try again."


def table(rows: list[Row]) -> dict[str, list[Row]]:
    """{notebook: its rows}: every exercise, those whose check is gone, and broken cells."""
    lessons: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.notebook):
        if row.is_exercise or row.status == "broken":
            lessons.setdefault(row.notebook, []).append(row)
    for notebook, found in lessons.items():
        known = {row.key for row in found}
        for key, name in _exercises_of(found).items():
            if key not in known:
                found.append(Row(key, name, "not judged", NO_CHECK, [], notebook))
        found.sort(key=_order)
    return lessons


def _order(row: Row) -> tuple:
    return not row.is_exercise, [int(part) for part in row.key.split(".") if part.isdigit()]


def _exercises_of(rows: list[Row]) -> dict[str, str]:
    """The exercises that the course knows of this lesson: {"1.2": "name"}."""
    lesson = next((int(row.key.split(".")[0]) for row in rows if row.is_exercise), None)
    return {} if lesson is None else exercises(lesson)


def total(rows: list[Row]) -> str:
    """Such as "2 of 6 solved, 1 wrong, 3 not attempted"."""
    count = Counter(row.status if row.is_exercise else f"{row.key} broken" for row in rows)
    exercises = sum(row.is_exercise for row in rows)
    parts = [f"{count['solved']} of {exercises} solved"] if exercises else []
    for status in ("wrong", "not attempted", "not judged"):
        parts += [f"{count[status]} {status}"] if count[status] else []
    for key in ("cell", "notebook"):
        number = count[f"{key} broken"]
        parts += [f"{number} broken {key}{'s' * (number > 1)}"] if number else []
    return ", ".join(parts)
