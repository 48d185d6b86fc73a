"""What the first page shows besides its text: the demo before and after, the dial, the lessons.

Each stands where docs/index.md has a comment of its name, as `<!-- gate dial -->`.
"""

import re

from llama_adapter_edu.course.figures.stored_dial import gate_dial, stored_stops

SHOWN = 3  # commands
LESSONS = "| lesson | minutes | exercises |\n|---|--:|--:|"
RAW = "``````{{raw}} html\n{}\n``````"


def front_page(text: str, lesson_rows: list[str]) -> str:
    """The first page's Markdown, with its comments filled in.

    Raises:
        ValueError: the page lacks one of the comments.
    """
    parts = {
        "before and after": before_and_after(),
        "gate dial": RAW.format(gate_dial().text),
        "lessons": "\n".join([LESSONS, *lesson_rows]),
    }
    for name, part in parts.items():
        comment = f"<!-- {name} -->"
        if comment not in text:
            raise ValueError(f"docs/index.md lacks the comment {comment}")
        text = text.replace(comment, part)
    return text


def before_and_after() -> str:
    """Answers to unseen commands with closed gates, which is the frozen Llama, and with trained."""
    stored = stored_stops()
    stops = {stop["factor"]: stop for stop in stored["stops"]["all gates"]}
    lines = ["| command | before | after |", "|---|---|---|"]
    for number, row in enumerate(stored["rows"][:SHOWN]):
        before, after = (stored["answers"][stops[factor]["answers"][number]] for factor in (0, 1))
        lines.append(f"| {_cell(row['instruction'])} | {_cell(before)} … | `{after}` |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text in a table, whatever marks it holds."""
    return re.sub(r"[\\`*_{}\[\]<>()#+\-!|$&~]", r"\\\g<0>", " ".join(text.split()))
