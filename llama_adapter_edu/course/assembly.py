"""The assemble form of an exercise: its solution's lines, shuffled, to be put in order.

The pieces come from the build, in `reference/lesson_NN.py`; so do all orders that are right.
The site judges by the same data and words in JavaScript.
"""

import html
import re
import string

from llama_adapter_edu.course.boxes import marked, show
from llama_adapter_edu.course.progress.exercises import puzzle

SAYS = {  # {0}, {1}: letters, or words about a piece
    "start": "Two of the lines are mistakes. Write the letters of the others in order.",
    "unknown": "There is no line {0}: the letters are A to {1}.",
    "twice": "{0} stands twice; each line is used once.",
    "wrong": "{0} is a mistake: {1}.",
    "later": "{0} comes too early.",
    "so_far": "{0} is a right beginning.",
    "more": "{0} more lines are missing.",
    "one_more": "1 more line is missing.",
    "done": "Right.",
}
COPY = "Copy this into the exercise's cell, run it, and then its check:"


def assemble(exercise: str, order: str = "") -> None:
    """Show the lines of an exercise's solution with two wrong ones; judge an order of letters.

        assemble("1.1", "B A C")

    It says whether the order is right, which line comes too early, or why a line is a mistake; a
    right one is shown as the whole cell, to be copied. The exercise itself stays as it is. Nothing
    here raises.
    """
    found = puzzle(str(exercise))
    if found is None:
        _tell(f"Exercise {exercise} has no lines to put in order.")
        return
    letters = re.findall(r"[A-Z]", order.upper()) if isinstance(order, str) else ["?"]
    says, right = judge(found, letters)
    if right:
        texts = dict(_named(found))
        code = whole([texts[letter] for letter in letters], found["around"])
        show(f"{says} {COPY}\n\n{code}", f"<p>{says} {COPY}</p>{_code(code)}")
    else:
        show(*lines_and(says, exercise, found))


def lines_and(says: str, exercise: str, found: dict) -> tuple[str, str]:
    """The lettered lines and what there is to say, as text and as HTML."""
    lines = "\n".join(f"{letter}  {_beside(text)}" for letter, text in _named(found))
    title = f"Exercise {exercise}, lines to put in order:"
    return f"{title}\n{lines}\n{says}", f"<p>{title}</p>{_code(lines)}<p>{marked(says)}</p>"


def _named(found: dict) -> list[tuple[str, str]]:
    """(letter, piece) of all pieces."""
    texts = (text for text, _ in found["pieces"])
    return list(zip(string.ascii_uppercase, texts, strict=False))


def judge(found: dict, letters: list[str]) -> tuple[str, bool]:
    """What there is to say about an order, and whether it is right and whole."""
    pieces, orders = found["pieces"], found["orders"]
    known = dict(zip(string.ascii_uppercase, pieces, strict=False))
    if not letters:
        return SAYS["start"], False
    for letter in letters:
        if letter not in known:
            return SAYS["unknown"].format(letter, max(known)), False
        if letters.count(letter) > 1:
            return SAYS["twice"].format(letter), False
    for letter in letters:
        if mistake := known[letter][1]:
            return SAYS["wrong"].format(letter, mistake), False
    given = "".join(letters)
    if given in orders:
        return SAYS["done"], True
    n = max(len(_common(given, order)) for order in orders)
    begins = [SAYS["so_far"].format(" ".join(given[:n]))] if n else []
    if n < len(given):
        return " ".join([*begins, SAYS["later"].format(given[n])]), False
    missing = len(orders[0]) - n
    more = SAYS["one_more"] if missing == 1 else SAYS["more"].format(missing)
    return " ".join([*begins, more]), False


def _common(given: str, order: str) -> str:
    """The beginning that two orders share."""
    n = 0
    while n < min(len(given), len(order)) and given[n] == order[n]:
        n += 1
    return given[:n]


def whole(texts: list[str], around: tuple[str, str, str]) -> str:
    """The exercise's cell with these pieces in the place of YOUR CODE HERE."""
    before, after, indent = around
    body = [indent + line for text in texts for line in text.split("\n")]
    return "\n".join([before, *body, *([after] if after else [])])


def _beside(text: str) -> str:
    return text.replace("\n", "\n   ")


def _code(text: str) -> str:
    return f"<pre>{html.escape(text, quote=False)}</pre>"


def _tell(sentence: str) -> None:
    show(sentence, f"<p>{marked(sentence)}</p>")
