"""The table of exercises as text for a terminal, as Markdown, as HTML and as JSON."""

import html
import json
import textwrap
from itertools import chain
from pathlib import Path

from llama_adapter_edu.course.progress.verdicts import MARKS, Row, total

Lessons = dict[str, list[Row]]
COLUMNS = ("exercise", "name", "status", "reason")
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; color-scheme: light dark; margin: 2em; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.2em 1em 0.2em 0; }}
</style>
<body>
{body}
</body>
</html>
"""


def as_text(lessons: Lessons, width: int) -> str:
    """Rows wrapped to the terminal's width, totals of each notebook and of all."""
    every = list(chain.from_iterable(lessons.values()))
    keys, names = (max(len(getattr(row, a)) for row in every) for a in ("key", "name"))
    lines = []
    for notebook, rows in lessons.items():
        lines.append(notebook)
        for row in rows:
            head = f"  {row.key:<{keys}}  {row.name:<{names}}  {_status(row):<15}  "
            indent = " " * min(len(head), width // 3)
            text = textwrap.fill(head + row.reason, width, subsequent_indent=indent)
            lines += [text.rstrip(), *(f"{indent}at  {line}" for line in row.lines)]
        lines += [f"  {total(rows)}", ""]
    if len(lessons) > 1:
        lines.append(f"all {len(lessons)} notebooks: {total(every)}")
    return "\n".join(lines).rstrip()


ASCII = {"✓": "+", "✗": "x", "○": "o", "·": "-"}


def printable(text: str, encoding: str | None) -> str:
    """The text as a console of this encoding can show it: some know no ✓."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
        return text
    except (UnicodeEncodeError, LookupError):
        plain = text.translate(str.maketrans(ASCII))
        return plain.encode("ascii", "replace").decode("ascii")


def as_markdown(lessons: Lessons) -> str:
    lines = ["# Progress", ""]
    for notebook, rows in lessons.items():
        lines += [f"## {notebook}", "", f"{total(rows)}.", ""]
        lines += [_markdown_row(COLUMNS), _markdown_row(["---"] * len(COLUMNS))]
        lines += [_markdown_row(_cells(row)) for row in rows]
        lines.append("")
    return "\n".join([*lines, f"All notebooks: {_grand_total(lessons)}.", ""])


def _markdown_row(cells) -> str:
    safe = (html.escape(cell, quote=False).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(safe)} |"


def as_html(lessons: Lessons) -> str:
    body = ["<h1>Progress</h1>", html_tables(lessons, level=2)]
    body.append(f"<p>All notebooks: {_grand_total(lessons)}.</p>")
    return PAGE.format(title="Progress", body="\n".join(body))


def html_tables(lessons: Lessons, level: int) -> str:
    """A heading of this level and a table for each notebook."""
    body = []
    for notebook, rows in lessons.items():
        body += [f"<h{level}>{html.escape(notebook)}</h{level}>", f"<p>{total(rows)}.</p>"]
        body += ["<table>", html_row('th scope="col"', "th", COLUMNS)]
        body += [html_row("td", "td", _cells(row)) for row in rows]
        body.append("</table>")
    return "\n".join(body)


def html_row(opening: str, closing: str, cells) -> str:
    return f"<tr>{''.join(f'<{opening}>{html.escape(cell)}</{closing}>' for cell in cells)}</tr>"


def _cells(row: Row) -> tuple[str, ...]:
    return row.key, row.name, _status(row), " ".join(row.reason.split())


def _status(row: Row) -> str:
    return f"{MARKS[row.status]} {row.status}"


def _grand_total(lessons: Lessons) -> str:
    return total(list(chain.from_iterable(lessons.values())))


def as_json(lessons: Lessons) -> str:
    """A list with one object for each row, for programs."""
    return json.dumps([vars(row) for rows in lessons.values() for row in rows], indent=1)


WRITERS = {".md": as_markdown, ".html": as_html, ".json": as_json}


def write(lessons: Lessons, target: Path) -> None:
    """Write the table as Markdown, HTML or JSON, by the file's suffix."""
    target.parent.mkdir(parents=True, exist_ok=True)
    text = WRITERS[target.suffix](lessons)
    target.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a character
