"""The table of a class, student x exercise: for a terminal, a spreadsheet and a browser."""

import csv
import html
import re
from collections import Counter
from pathlib import Path

from llama_adapter_edu.course.progress.tables import PAGE, html_row, html_tables
from llama_adapter_edu.course.progress.verdicts import MARKS, Row

BEST = ("solved", "wrong", "not judged", "not attempted")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
Class = dict[str, dict[str, list[Row]]]  # {student: {notebook: rows}}


def table(students: Class) -> list[list[str]]:
    """A header, then rows: student, a status for each exercise, how many are solved or broken."""
    status = {student: _best(lessons) for student, lessons in students.items()}
    keys = sorted({key for found in status.values() for key in found}, key=_number)
    lines = [["student", *keys, "in all", "broken cells"]]
    for student, found in status.items():
        solved = sum(word == "solved" for word in found.values())
        rows = [row for rows in students[student].values() for row in rows]
        broken = str(sum(row.status == "broken" for row in rows) or "")
        words = [found.get(key, "") for key in keys]
        lines.append([student, *words, f"{solved} of {len(keys)}", broken])
    return lines


def _best(lessons: dict[str, list[Row]]) -> dict[str, str]:
    """{exercise: status}; the better one where a student has handed in a lesson twice."""
    found: dict[str, str] = {}
    for row in (row for rows in lessons.values() for row in rows if row.is_exercise):
        found[row.key] = min(row.status, found.get(row.key, BEST[-1]), key=BEST.index)
    return found


def _number(key: str) -> list[int]:
    return [int(part) for part in key.split(".")]


def as_text(lines: list[list[str]]) -> str:
    """The table with a sign for each status, and what the signs mean."""
    cells = [[MARKS.get(cell, cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    signs = ", ".join(f"{MARKS[status]} {status}" for status in BEST)
    return "\n".join([*text, "", f"{signs}; empty: not handed in"])


def write(students: Class, output: Path) -> list[Path]:
    """The files of a report, as they were written.

    output.csv: the table. output.html: the table, the mistakes, the reasons for each student.
    output-mistakes.csv: how often which message. output-students/: a page for each to hand back.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    mistakes = mistakes_table(students)
    return [
        _write_csv(output.with_name(f"{output.name}.csv"), table(students)),
        _write_page(output.with_name(f"{output.name}.html"), "Class report", _body(students)),
        _write_csv(output.with_name(f"{output.name}-mistakes.csv"), mistakes),
        _write_feedback(output.with_name(f"{output.name}-students"), students),
    ]


def mistakes_table(students: Class) -> list[list[str]]:
    """A header, then rows: exercise, how many students, what the check said to them.

    Sentences that differ in numbers alone count as one; the first one stands for them.
    """
    count: Counter = Counter()
    words: dict[tuple[str, str], str] = {}
    for lessons in students.values():
        wrong = [row for rows in lessons.values() for row in rows if row.status == "wrong"]
        for key, row in {(row.key, NUMBER.sub("#", row.reason)): row for row in wrong}.items():
            count[key] += 1
            words.setdefault(key, " ".join(row.reason.split()))
    order = sorted(count, key=lambda key: (_number(key[0]), -count[key], key[1]))
    rows = [[key[0], str(count[key]), words[key]] for key in order]
    return [["exercise", "students", "what the check said"], *rows]


def _body(students: Class) -> list[str]:
    page = ["<h1>Class report</h1>", *_html_table(table(students))]
    page += ["<h2>Mistakes</h2>", *_html_table(mistakes_table(students))]
    for student, lessons in students.items():
        page += [f"<h2>{html.escape(student)}</h2>", html_tables(lessons, level=3)]
    return page


def _html_table(lines: list[list[str]]) -> list[str]:
    header, *body = [[_marked(cell) for cell in line] for line in lines]
    rows = [html_row("td", "td", line) for line in body]
    return ["<table>", html_row('th scope="col"', "th", header), *rows, "</table>"]


def _write_csv(path: Path, lines: list[list[str]]) -> Path:
    # utf-8-sig: Excel takes a file without that mark for another encoding
    with path.open("w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file:
        csv.writer(file).writerows([_no_formula(cell) for cell in line] for line in lines)
    return path


def _write_page(path: Path, title: str, body: list[str]) -> Path:
    text = PAGE.format(title=html.escape(title), body="\n".join(body))
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character
    return path


def _write_feedback(folder: Path, students: Class) -> Path:
    folder.mkdir(exist_ok=True)
    used: Counter = Counter()
    for student, lessons in students.items():
        name = re.sub(r"[^\w .-]", "_", student).strip(" .") or "student"
        used[name.casefold()] += 1
        again = f"-{used[name.casefold()]}" if used[name.casefold()] > 1 else ""
        nothing = [] if lessons else ["<p>Nothing was handed in.</p>"]
        body = [f"<h1>{html.escape(student)}</h1>", *nothing, html_tables(lessons, level=2)]
        _write_page(folder / f"{name}{again}.html", student, body)
    return folder


def _no_formula(cell: str) -> str:
    """A spreadsheet would run a name that starts with one of these signs."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _marked(cell: str) -> str:
    return f"{MARKS[cell]} {cell}" if cell in MARKS else cell
