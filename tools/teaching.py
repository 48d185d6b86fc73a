"""Notes for the teacher of a lesson, `docs/teaching/NN.md`, from the lesson's master."""

import re
from pathlib import Path

from tools import text_rules
from tools.lesson import Exercise, Lesson

POINTS = {"easy": 1, "medium": 2, "hard": 3}
MINUTES = re.compile(r"^\*(\d+) minutes\b", re.M)
NEEDS = re.compile(r"^\*\d+ minutes\. (Needs .*?)\.?\*$", re.M)
DISCUSSION = re.compile(r"^.*\bthink about\b.*\n", re.M | re.I)
PAGE = """\
<!-- Generated from solutions/{file} by tools/build.py; edit that file, not this one. -->

# Teaching notes · {title}

[Notebook](../../notebooks/{name}.ipynb) · [solution](../../solutions/{file}) ·
[how to teach with this course](index.md)

{time}
{goals}
## Exercises

{exercises}

## Mistakes to expect

{mistakes}

## For discussion

{discussion}

## Marking

{marking}
"""
MARKING = """\
The check decides: {points} in all, 1 for an easy exercise, 2 for a medium one, 3 for a hard
one. `python -m llama_adapter_edu report FOLDER` runs the checks of a whole class.

A check accepts every right answer, however it is written. To see who understood it, ask why each
mistake above is a mistake, or let two learners explain their answers to each other. These were
written differently from the solution, and pass:

{answers}"""


def teaching_path(root: Path, lesson: Lesson) -> Path:
    return root / "docs" / "teaching" / f"{lesson.number:02d}.md"


def teaching_text(lesson: Lesson) -> str:
    """The page: time, goals, exercises, mistakes with the check's words, questions, marking."""
    first = lesson.cells[0].source
    return PAGE.format(
        file=lesson.path.name,
        name=lesson.name,
        title=first.partition("\n")[0].lstrip("# "),
        time=_time(lesson, first),
        goals=_goals(first),
        exercises="\n".join(_rows(lesson)) or "None.",
        mistakes="\n\n".join(_mistakes(lesson, e) for e in lesson.exercises) or "None.",
        discussion=_discussion(lesson),
        marking=_marking(lesson),
    )


def _card(lesson: Lesson, exercise: Exercise) -> tuple[str, str, int]:
    """(title, difficulty, minutes) from the card."""
    card = lesson.cells[exercise.card].source
    level, minutes = text_rules.EFFORT.search(card).groups()
    return text_rules.CARD_TITLE.match(card)["title"], level, int(minutes)


def _points(lesson: Lesson, exercise: Exercise) -> int:
    return POINTS[_card(lesson, exercise)[1].split()[0]]


def _time(lesson: Lesson, first: str) -> str:
    at_work = sum(_card(lesson, exercise)[2] for exercise in lesson.exercises)
    count = len(lesson.exercises)
    exercises = f"{count} exercise{'s' * (count != 1)}"
    stated, needs = MINUTES.search(first), NEEDS.search(first)
    whole = (
        f"{stated[1]} minutes in all, {at_work} of them for {exercises}; the rest is reading and "
        "running."
        if stated
        else f"{at_work} minutes for {exercises}."
    )
    return f"{whole} {needs[1]}." if needs else whole


def _goals(first: str) -> str:
    """What the lesson promises at its top, quoted."""
    blocks = first.split("\n\n")
    start = next((i for i, text in enumerate(blocks) if text.startswith("At the end")), None)
    if start is None:
        return ""
    goals = blocks[start : start + 1]
    goals += [text for text in blocks[start + 1 : start + 2] if text.startswith("* ")]
    return "\n" + "\n\n".join(goals) + "\n"


def _rows(lesson: Lesson) -> list[str]:
    rows = ["| exercise | title | difficulty | minutes | points |", "|---|---|---|---|---|"]
    for exercise in lesson.exercises:
        title, level, minutes = _card(lesson, exercise)
        points = _points(lesson, exercise)
        rows.append(f"| {exercise.id} | {title} | {level} | {minutes} | {points} |")
    return rows if lesson.exercises else []


def _mistakes(lesson: Lesson, exercise: Exercise) -> str:
    title = _card(lesson, exercise)[0]
    parts = [f"### {exercise.id} · {title}", "The check's words, and code that they answer:"]
    return "\n\n".join([*parts, *(_folded(says, code) for says, code in exercise.wrong)])


def _folded(summary: str, code: str) -> str:
    escaped = summary.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<details><summary>{escaped}</summary>\n\n```python\n{code.strip()}\n```\n\n</details>"


def _discussion(lesson: Lesson) -> str:
    """The questions with their answers from the end of the lesson."""
    texts = [cell.source for cell in lesson.cells if cell.cell_type == "markdown"]
    found = [match for text in texts for match in DISCUSSION.finditer(text + "\n")]
    if not found:
        return "None."
    return found[-1].string[found[-1].end() :].strip()


def _marking(lesson: Lesson) -> str:
    points = sum(_points(lesson, exercise) for exercise in lesson.exercises)
    answers = [
        _folded(f"{e.id} {', '.join(e.names)}", "\n\n\n".join(code.strip() for code in e.right))
        for e in lesson.exercises
    ]
    total = f"{points} point{'s' * (points != 1)}"
    return MARKING.format(points=total, answers="\n\n".join(answers))
