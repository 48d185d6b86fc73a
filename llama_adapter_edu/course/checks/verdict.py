"""What a check says about an exercise, in one sentence, and how it is shown."""

import html
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from llama_adapter_edu.course.checks import errors, source

MARKS = {"solved": "✓", "wrong": "✗", "not attempted": "○"}
COLORS = {"✓": "#2e7d32", "✗": "#c62828", "○": "#b26a00"}
UNSOLVED = "not solved yet. Fill in YOUR CODE HERE above, run that cell, then this one."
DOTS = "not solved yet. `{}` is still there: write your code in place of the dots."
RAISE_LEFT = (
    "the line `raise NotImplementedError` is still in your answer, and is reached: remove it"
)
OF_NOTEBOOK = (
    "it reads `{0}` of the notebook, not its argument: use only what the function is given"
)
TOO_LONG = "it did not finish within {:g} seconds: an endless loop? (Or a very slow machine.)"
FALLBACK = "Until this check passes, the cells below use the reference solution."


@dataclass
class Verdict:
    """solved, wrong or not attempted; the reason; the notebook's lines that lead to the error.

    raw: the reason is in a library's own words.
    """

    status: str
    reason: str = ""
    lines: list[str] = field(default_factory=list)
    raw: bool = False

    def text(self, title: str, fallback: bool) -> str:
        text = [f"{MARKS[self.status]} {title}: {self.reason}"]
        text += [f"  at  {line}" for line in self.lines]
        return "\n".join([*text, f"  {FALLBACK}"] if fallback else text)


@dataclass
class Answer:
    """What a check judges: the learner's objects, the course's solutions and stubs, by name."""

    theirs: Mapping[str, object]
    references: Mapping[str, object]
    stub: str | None  # the digest of the exercise as it was given
    hidden: frozenset[str]  # names of the notebook's values

    def __post_init__(self) -> None:
        found = {name: source.definition_of(x, name) for name, x in self.theirs.items()}
        self.nodes = [node for node in found.values() if node is not None]
        self.digest = source.digest(self.nodes) if len(self.nodes) == len(self.theirs) else ""


def judge(error: BaseException | None, answer: Answer, seconds: float | None) -> Verdict:
    """The verdict on a check that ended with this error, or without one.

    seconds: the time limit, where it was reached.
    """
    if error is None and seconds is None:
        return Verdict("solved")
    lines = _lines(error)
    if seconds is not None:
        return Verdict("wrong", TOO_LONG.format(seconds), lines)
    if answer.digest and answer.digest == answer.stub:
        return Verdict("not attempted", UNSOLVED)
    if dots := [line for node in answer.nodes for line in source.open_lines(node)]:
        return Verdict("not attempted", DOTS.format(dots[0]))
    if isinstance(error, NotImplementedError) and not error.args:
        if answer.stub is None or not answer.digest:
            return Verdict("not attempted", UNSOLVED)
        return Verdict("wrong", RAISE_LEFT)
    if isinstance(error, NameError) and error.name in answer.hidden:
        return Verdict("wrong", OF_NOTEBOOK.format(error.name), lines)
    if isinstance(error, RecursionError):
        return Verdict("wrong", "endless recursion: it calls itself again and again", lines[:2])
    if isinstance(error, AssertionError):
        message = " ".join(str(error).split())
        return Verdict("wrong", message or f"this does not hold: {lines[-1]}", lines[1:])
    reason, raw = errors.explain(error, answer.references)
    return Verdict("wrong", reason, lines[:-1], raw)


def _lines(error: BaseException | None) -> list[str]:
    """The statements of the check and of the learner's code in a traceback, outermost first."""
    lines, trace = [], error.__traceback__ if error else None
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(errors.LIBRARIES):
            lines.append(source.statement_at(errors.text_of(trace.tb_frame), trace.tb_lineno))
        trace = trace.tb_next
    return list(dict.fromkeys(line for line in lines if line))


def in_live_notebook() -> bool:
    """A person is looking: a Jupyter kernel that neither pytest nor the build has started."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    return kernel is not None and "PYTEST_CURRENT_TEST" not in os.environ


def show_passed(title: str, judged: str = "") -> None:
    """One green line."""
    text = f"✓ {title}: solved"
    if in_live_notebook():
        show_box(text, judged)
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # some consoles know no ✓
    print(text.encode(encoding, "replace").decode(encoding))


def show_box(text: str, judged: str = "") -> None:
    """A coloured bar beside text in the reader's own colours, and the same as plain text.

    judged: the digest of the code that the text speaks of, kept in the box for `progress`.
    """
    from IPython.display import display

    style = f"border-left: 6px solid {COLORS[text[0]]}; padding: 0.4em 0.8em; white-space: pre-wrap"
    box = f'<div data-judged="{judged}" style="{style}">{html.escape(text)}</div>'
    display({"text/html": box, "text/plain": text}, raw=True)
