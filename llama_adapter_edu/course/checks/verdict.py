"""What a check says about an exercise, in one sentence, and how it is shown."""

import html
import os
import sys
import traceback
from dataclasses import dataclass, field
from types import TracebackType

from llama_adapter_edu.course.checks.conditions import TimeLimit
from llama_adapter_edu.course.checks.side_effects import LIBRARIES

MARKS = {"solved": "✓", "wrong": "✗", "not attempted": "○"}
COLORS = {"✓": "#2e7d32", "✗": "#c62828", "○": "#b26a00"}
UNSOLVED = "not solved yet. Fill in YOUR CODE HERE above, run that cell, then this one."
FALLBACK = "Until this check passes, the cells below use the reference solution."


@dataclass
class Verdict:
    """solved, wrong or not attempted; the reason; the notebook's lines that lead to the error."""

    status: str
    reason: str = ""
    lines: list[str] = field(default_factory=list)

    def text(self, title: str, fallback: bool) -> str:
        text = [f"{MARKS[self.status]} {title}: {self.reason}"]
        text += [f"  at  {line}" for line in self.lines]
        return "\n".join([*text, f"  {FALLBACK}"] if fallback else text)


def judge(
    error: BaseException | None,
    trace: TracebackType | None,
    problem_of_definitions: str | None,
    limit: TimeLimit,
) -> Verdict:
    """The verdict on a check's block that ended with this error, or without one."""
    if problem_of_definitions:
        return Verdict("wrong", problem_of_definitions)
    lines = _notebook_lines(trace)
    if limit.reached:
        reason = f"it did not finish within {limit.seconds:g} seconds: an endless loop?"
        return Verdict("wrong", reason, lines)
    if error is None:
        return Verdict("solved")
    message = " ".join(str(error).split())
    if isinstance(error, NotImplementedError) and not error.args:
        return Verdict("not attempted", UNSOLVED)
    if isinstance(error, RecursionError):
        return Verdict("wrong", "endless recursion: it calls itself again and again", lines[:2])
    if isinstance(error, AssertionError):
        return Verdict("wrong", message or f"this does not hold: {lines[-1]}", lines[1:])
    return Verdict("wrong", f"{type(error).__name__}: {message}", lines)


def _notebook_lines(trace: TracebackType | None) -> list[str]:
    """The lines of the check and of the learner's code in a traceback, outermost first."""
    frames = traceback.extract_tb(trace)
    lines = [frame.line for frame in frames if not frame.filename.startswith(LIBRARIES)]
    return list(dict.fromkeys(line for line in lines if line))


def in_live_notebook() -> bool:
    """A person is looking: a Jupyter kernel that neither pytest nor the build has started."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    return kernel is not None and "PYTEST_CURRENT_TEST" not in os.environ


def show_passed(title: str) -> None:
    """One green line."""
    text = f"✓ {title}: solved"
    if in_live_notebook():
        show_box(text)
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # some consoles know no ✓
    print(text.encode(encoding, "replace").decode(encoding))


def show_box(text: str) -> None:
    """A coloured bar beside text in the reader's own colours, and the same as plain text."""
    from IPython.display import display

    style = f"border-left: 6px solid {COLORS[text[0]]}; padding: 0.4em 0.8em; white-space: pre-wrap"
    box = f'<div style="{style}">{html.escape(text)}</div>'
    display({"text/html": box, "text/plain": text}, raw=True)
