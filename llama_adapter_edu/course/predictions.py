"""Predict, then measure: a prediction is written down, kept, and shown beside what came out."""

import math
import numbers
from collections.abc import Iterator, Sequence

from llama_adapter_edu.course.boxes import marked, show

BLANK = "Write your prediction in place of `...`, then run this cell."
KEPT = "Kept. Now run on."
NONE = "not written down"
SAME = "As you predicted."
OTHER = "Not what you predicted. What makes the difference?"


class predict:
    """Ask for a prediction before a measurement; `compare` shows it beside the outcome.

        guess = predict("How high is the loss?", options=["about 3", "above 15"], mine=...)
        guess.compare("above 15")

    question: what is going to be measured.
    options: the answers to choose from, short texts; None where a number is to be written.
    mine: one of the options, or its place (1 is the first); or a number; `...` is the blank.

    Shows a box in a notebook and text elsewhere. A prediction of the wrong kind is told so in one
    sentence and not kept. Nothing here raises, so the cells below run whatever is written.
    """

    def __init__(self, question: str, options: Sequence | None = None, mine: object = ...):
        self.question = question
        self.options = [str(option) for option in options or ()]
        self.mine, says = None, BLANK
        if mine is not ...:
            self.mine = self._read(mine)
            says = KEPT if self.mine is not None else self._wanted(mine)
        rows = [("your prediction", _text(self.mine))] if self.mine is not None else []
        _show(question, self.options, rows, says)

    def compare(self, outcome: object) -> None:
        """Show the prediction beside the outcome: one of the options, or a number."""
        found, says = self._read(outcome), ""
        if found is None:
            says = f"The outcome {self._wanted(outcome)}"  # the build refuses this
        elif self.mine is not None:
            says = _compared(self.mine, found)
        kept = NONE if self.mine is None else _text(self.mine)
        rows = [("your prediction", kept), ("the outcome", _text(outcome, found))]
        _show(self.question, [], rows, says)

    def _read(self, value: object) -> str | float | None:
        """The option that is meant, or the number; None if it is neither."""
        number = _number(value)
        if not self.options:
            return number
        written = " ".join(str(value).casefold().split())
        for option in self.options:
            if written == " ".join(option.casefold().split()):
                return option
        places = range(1, len(self.options) + 1)
        return self.options[int(number) - 1] if number in places else None

    def _wanted(self, value: object) -> str:
        if self.options:
            listed = ", ".join(f'"{option}"' for option in self.options)
            return f"{value!r} is none of the options. Write one of {listed}."
        return f"{value!r} is no number. Write a number without quotes, such as 0.5."


def _number(value: object) -> float | None:
    """A finite float; of a number, or of a tensor or array that holds one."""
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) or hasattr(value, "item")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: object, number: object = None) -> str:
    number = _number(value if number is None else number)
    if isinstance(value, str) or number is None:
        return str(value)
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:.3g}" if abs(number) < 100 else f"{number:,.1f}"


def _compared(mine: str | float, outcome: str | float) -> str:
    """A sentence: the same or not; for numbers, how far apart, as a ratio or a difference."""
    if mine == outcome:
        return SAME
    if isinstance(mine, str):
        return OTHER
    if mine * outcome <= 0:
        return f"The outcome is {_text(abs(outcome - mine))} {_side(mine, outcome)}."
    ratio = abs(outcome / mine)
    if 0.9 <= ratio <= 1.1:
        return (
            f"Close: the outcome is {abs(ratio - 1) * 100:.1f} % {_side(abs(mine), abs(outcome))}."
        )
    larger, smaller = "the outcome", "your prediction"
    if ratio < 1:
        larger, smaller, ratio = smaller, larger, 1 / ratio
    return f"{larger[0].upper()}{larger[1:]} is {_text(ratio)} times {smaller}."


def _side(mine: float, outcome: float) -> str:
    return "above your prediction" if outcome > mine else "below your prediction"


def _show(question: str, options: list[str], rows: list[tuple[str, str]], says: str) -> None:
    text = "\n".join(_lines(question, options, rows, says))
    show(text, "".join(_box(question, options, rows, says)))


def _lines(question: str, options: list[str], rows: list, says: str) -> Iterator[str]:
    yield f"Prediction: {question}"
    yield from (f"  {place}  {option}" for place, option in enumerate(options, start=1))
    wide = max((len(name) for name, _ in rows), default=0)
    yield from (f"  {name + ':':<{wide + 1}} {value}" for name, value in rows)
    if says:
        yield f"  {says}"


def _box(question: str, options: list[str], rows: list, says: str) -> Iterator[str]:
    """The same as HTML: the options as a list, prediction and outcome side by side."""
    yield f"<p><strong>Prediction:</strong> {marked(question)}</p>"
    if options:
        yield f"<ol>{''.join(f'<li>{marked(option)}</li>' for option in options)}</ol>"
    if rows:
        names = "".join(f'<th scope="col">{name}</th>' for name, _ in rows)
        values = "".join(f"<td>{marked(value)}</td>" for _, value in rows)
        yield f"<table><tr>{names}</tr><tr>{values}</tr></table>"
    if says:
        yield f"<p>{marked(says)}</p>"
