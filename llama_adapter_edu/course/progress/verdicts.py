"""What a run of `pytest --nbval` says about each exercise; `tables.py` writes it down."""

import json
import queue
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from llama_adapter_edu.course.progress.exercises import Check, checks_in, code_in, exercises

MARKS = {"solved": "✓", "wrong": "✗", "not attempted": "○", "not judged": "?", "broken": "!"}
IN_EXERCISE = "in exercise"  # a broken cell whose check tells about it
QUIET = ("wrong", "not attempted", "not judged", IN_EXERCISE)  # the table says it all

DEAD = "the kernel died: it ran out of memory, or the cell ended the process"
NO_ANSWER = (
    "the notebook's kernel did not answer in time. Is the machine very busy? With --cov, say what "
    "to measure: --cov=FOLDER"
)
DEAD_BEFORE = "the kernel had died in an earlier cell"
TIMED_OUT = "the cell ran out of time: an endless loop?"
DIFFERS = "it prints or shows something else than the output stored in the notebook"
CAUSES = {  # what nbval says of outputs that differ: what it may come from
    r"Missing output fields.*image/png": (
        ": its figure is missing. Does a cell of yours choose another backend (matplotlib.use)?"
    ),
    r"Unexpected output fields.*(?:stdout|stderr)": (
        ": there is more text than in the course's run. Is a print left in a function of yours?"
    ),
}
TYPES = "it waits for somebody to type (input()); nobody can, in a run of pytest"
NO_CHECK = "its check cell is not in this notebook"
NOT_RUN = "its check did not run: pytest stopped before it, or was told to leave it out"

VERDICT = re.compile(r"^([✗○]) exercise (\d+\.\d+) [\w, ]+: (.*)", re.M)
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


def judge(
    checks: list[Check], position: int, outcome: str, error: BaseException | None
) -> list[Row]:
    """The rows of a code cell that nbval has run: one a check; position counts from 1.

    Where a cell holds several checks, those before the one that failed are solved.
    """
    rows = [Row(key, ", ".join(names), "solved") for key, names in checks]
    rows = rows or [Row("cell", f"[{position}]", "fine")]
    if outcome == "skipped":
        for row in rows:
            row.set("not judged", "its cell was skipped")
    if outcome != "failed":
        return rows
    trace = ANSI.sub("", str(getattr(error, "inner_traceback", None) or ""))
    verdict = VERDICT.search(trace)
    failed = next((i for i, row in enumerate(rows) if verdict and row.key == verdict[2]), 0)
    if checks and verdict:
        status = next(status for status, mark in MARKS.items() if mark == verdict[1])
        rows[failed].set(status, verdict[3], LINE.findall(trace))
    else:
        reason = _reason(error, trace)
        rows[failed].set(
            _status_without_verdict(bool(checks), reason), reason, _lines(error, trace)
        )
    for row in rows[failed + 1 :]:
        row.set("not judged", "the check above it, in the same cell, stopped first")
    return rows


def _status_without_verdict(is_check: bool, reason: str) -> str:
    if reason == DEAD_BEFORE:
        return "not judged"
    if not is_check:
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
        causes = (cause for words, cause in CAUSES.items() if re.search(words, trace, re.S))
        return f"{DIFFERS}{next(causes, '')}"
    if "StdinNotImplementedError" in trace:
        return TYPES
    if isinstance(error, queue.Empty):
        return NO_ANSWER
    if not lines:
        return message or type(error).__name__
    at = CELL_LINE.search(trace)
    return (
        f"{lines[-1]} (line {at[1]} of its cell)"
        if "SyntaxError" in lines[-1] and at
        else lines[-1]
    )


def _lines(error: BaseException | None, trace: str) -> list[str]:
    """The notebook's lines in a traceback, or what nbval says about differing output."""
    if "Cell outputs differ" in str(error):
        return [line.strip() for line in trace.splitlines() if line.strip()][:8]
    return [line.strip() for line in ARROW.findall(trace)]


def unreadable(path: Path) -> str:
    """Why a notebook cannot be collected, in words."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        return f"{path.name} cannot be opened: {error.strerror}"
    except UnicodeDecodeError:
        return f"{path.name} is not a notebook: it is not UTF-8 text. Take a fresh copy of it."
    except (ValueError, RecursionError) as error:
        return f"{path.name} is not a notebook: it is not JSON ({error}). Take a fresh copy of it."
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        return f"{path.name} is not a notebook: it is JSON, but has no list of cells"
    return f"{path.name} is not a valid notebook. Open it in Jupyter, save it, and try again."


def table(rows: list[Row], folder: Path = Path()) -> dict[str, list[Row]]:
    """{notebook: its rows}: one an exercise, also of those that were not run, and broken cells.

    Where a check stands twice in a notebook, its last run counts. `folder` holds the notebooks.
    """
    lessons: dict[str, dict[tuple, Row]] = {}
    for row in sorted(rows, key=lambda row: row.notebook):
        if row.is_exercise or row.status == "broken":
            lessons.setdefault(row.notebook, {})[row.key, "" if row.is_exercise else row.name] = row
    for notebook, found in lessons.items():
        there = {key for source in code_in(folder / notebook) for key, _ in checks_in(source)}
        for key, name in _exercises_of(list(found.values())).items():
            if (key, "") not in found:
                reason = NOT_RUN if key in there else NO_CHECK
                found[key, ""] = Row(key, name, "not judged", reason, [], notebook)
    return {notebook: sorted(found.values(), key=_order) for notebook, found in lessons.items()}


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
