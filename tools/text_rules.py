"""Rules for the text of a lesson: exercise cards, pictures, headings."""

import re
from collections.abc import Iterator
from pathlib import Path

from tools.lesson import Lesson

LEVELS = ("easy ●○○", "medium ●●○", "hard ●●●")
HINTS = ("Hint 1: direction", "Hint 2: axes", "Hint 3: a line with blanks")
GOAL_WORDS = 60
CARD_TITLE = re.compile(r"### Exercise (?P<id>\d+\.\d+) · (?P<title>\S.*)")
EFFORT = re.compile(rf"\*({'|'.join(LEVELS)}) · (\d+) minutes\*")
HINT = re.compile(r"<details><summary>(.*?)</summary>\n(.*?)\n</details>", re.S)
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<target>[^)]*)\)")
PICTURE_KINDS = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}
CODE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$|`[^`\n]+`", re.M | re.S)


def card(source: str) -> str | None:
    """What is wrong with an exercise's card, if anything."""
    title, _, rest = source.partition("\n\n")
    effort, _, rest = rest.partition("\n\n")
    goal = IMAGE.sub("", rest.partition("<details>")[0]).split()
    if not CARD_TITLE.fullmatch(title):
        return "the card's first line is `### Exercise 1.2 · Title`"
    if not EFFORT.fullmatch(effort):
        return "the card's second paragraph is `*easy ●○○ · 5 minutes*` (medium ●●○, hard ●●●)"
    if not 0 < len(goal) <= GOAL_WORDS:
        return f"the goal has {len(goal)} words; write 1 to {GOAL_WORDS}"
    hints = HINT.findall(source)
    if tuple(summary for summary, _ in hints) != HINTS or source.count("<details") != len(HINTS):
        return f"the card ends with the hints {', '.join(HINTS)}"
    for summary, body in hints:
        if not body.strip() or not (body.startswith("\n") and body.endswith("\n")):
            return f"{summary} needs text with an empty line before and after it"
    return None


def images(source: str, folder: Path) -> str | None:
    """A picture without alt text, or one whose file is missing."""
    source = CODE.sub("", source)
    for image in IMAGE.finditer(source):
        if not image["alt"].strip():
            return f"the picture {image['target']} has no alt text"
        if "://" in image["target"]:
            return f"the picture {image['target']} is somewhere else; put it into figures/"
        if Path(image["target"]).suffix not in PICTURE_KINDS:
            return f"the picture {image['target']} is not one of {', '.join(PICTURE_KINDS)}"
        if not (folder / image["target"]).is_file():
            return f"the picture {image['target']} is not in {folder.name}/"
    for tag in re.findall(r"<img\b[^>]*>", source):
        if not re.search(r"""\balt=(["'])\s*\S.*?\1""", tag):
            return f"the picture {tag[:60]} has no alt text"
    return None


def headings(lesson: Lesson) -> Iterator[tuple]:
    """(cell, problem) where heading levels are skipped, or the lesson's title is not first."""
    level = 0
    for cell in lesson.cells:
        if cell.cell_type != "markdown":
            continue
        for marks, title in re.findall(r"^(#{1,6}) (.*)", CODE.sub("", cell.source), re.M):
            if level == 0 and len(marks) != 1:
                yield cell, "the lesson's first heading is its title, with one #"
            if level > 0 and len(marks) == 1:
                yield cell, f"a second title: {title}; only the first heading has one #"
            if len(marks) > level + 1:
                yield cell, f"the heading {title!r} skips a level: {level} to {len(marks)}"
            level = len(marks)
    if level == 0:
        yield (
            lesson.cells[0] if lesson.cells else None,
            "the lesson needs a title, a heading with one #",
        )
