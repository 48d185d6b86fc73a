"""The table of a class, student x exercise: for a terminal, a spreadsheet and a browser."""

import csv
import html
from pathlib import Path

from llama_adapter_edu.course.progress.tables import PAGE, html_row, html_tables
from llama_adapter_edu.course.progress.verdicts import MARKS, Row

BEST = ("solved", "wrong", "not judged", "not attempted")
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


def write(students: Class, output: Path) -> None:
    """output.csv: the table. output.html: the table, and the reasons for each student."""
    lines = table(students)
    output.parent.mkdir(parents=True, exist_ok=True)
    # utf-8-sig: Excel takes a file without that mark for another encoding
    with output.with_name(f"{output.name}.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([_no_formula(cell) for cell in line] for line in lines)
    header, *body = [[_marked(cell) for cell in line] for line in lines]
    page = ["<h1>Class report</h1>", "<table>", html_row('th scope="col"', "th", header)]
    page += [*(html_row("td", "td", line) for line in body), "</table>"]
    for student, lessons in students.items():
        page += [f"<h2>{html.escape(student)}</h2>", html_tables(lessons, level=3)]
    text = PAGE.format(title="Class report", body="\n".join(page))
    target = output.with_name(f"{output.name}.html")
    target.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character


def _no_formula(cell: str) -> str:
    """A spreadsheet would run a name that starts with one of these signs."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _marked(cell: str) -> str:
    return f"{MARKS[cell]} {cell}" if cell in MARKS else cell
