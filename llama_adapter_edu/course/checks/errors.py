"""What went wrong in words, for an error that Python, torch or einops raised in an answer.

The sentence names the statement, says what does not fit, and lists the values in it, with the
letters of the exercise's signature: "`return x + y` stops: an axis of size 5 meets an axis of
size 4. There, x is a tensor (b=2, s=5), y is a tensor (b=2, t=4)".
"""

import inspect
import linecache
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType

import torch

import llama_adapter_edu
from llama_adapter_edu.course.checks import scope, source
from llama_adapter_edu.course.checks.differences import described
from llama_adapter_edu.course.checks.library_words import WORDS

PROJECT = str(Path(llama_adapter_edu.__file__).parent)
LIBRARIES = (PROJECT, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
LONGEST = 110  # characters of a quoted statement

SIGNATURE = re.compile(r"\w+\(\) (?:missing|got an unexpected|got multiple|takes)")


def explain(error: BaseException, references: Mapping[str, object]) -> tuple[str, bool]:
    """A sentence about an error in an answer, and whether a library's own words are left in it.

    references: the course's solutions by name; their signatures give the letters of the shapes.
    """
    watched, frames = learners_frames(error.__traceback__)
    words = translated(error)
    said = words or f"{type(error).__name__}: {_last_sentence(error)}"
    if frames:
        frame, line = frames[-1]
        statement = source.statement_at(text_of(frame), line)
        return (
            f"`{_short(statement)}` stops: {said}{_values(frame, statement, references)}",
            not words,
        )
    if watched and SIGNATURE.search(str(error)):
        return f"{said}: leave the first line, with its arguments, as it was given", False
    if "NoneType" in str(error):
        return "the result is None, or has None in it: is a `return` missing?", False
    return f"the result does not have the form that the exercise asks for: {said}", not words


def learners_frames(trace: TracebackType | None) -> tuple[bool, list[tuple[FrameType, int]]]:
    """Whether a traceback passes a call of the answer; (frame, line) below it, outermost first."""
    watched, frames = False, []
    while trace is not None:
        frame, code = trace.tb_frame, trace.tb_frame.f_code
        if code.co_name == scope.WATCHED and code.co_filename == scope.__file__:
            watched, frames = True, []
        elif watched and not code.co_filename.startswith(LIBRARIES):
            frames.append((frame, trace.tb_lineno))
        trace = trace.tb_next
    return watched, frames


def text_of(frame: FrameType) -> str:
    """The source of the cell that a frame runs."""
    return "".join(linecache.getlines(frame.f_code.co_filename))


def translated(error: BaseException) -> str | None:
    """What an error means, in words; None for one that is not in the table."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    for pattern, sentence in WORDS.items():
        if found := re.search(pattern, text):
            return sentence.format(*(group or "?" for group in found.groups()))
    return None


def _last_sentence(error: BaseException) -> str:
    """einops says the reason at the end."""
    message = " ".join(str(error).split())
    of_einops = type(error).__module__.startswith("einops")
    return str(error).strip().splitlines()[-1].strip() if of_einops else message


def _short(statement: str) -> str:
    return statement if len(statement) <= LONGEST else statement[: LONGEST - 4] + " ..."


def _values(frame: FrameType, statement: str, references: Mapping[str, object]) -> str:
    """ ". There, x is a tensor (b=2, s=5)" for the variables in a statement that fails."""
    letters = _letters(references.get(frame.f_code.co_name))
    names = dict.fromkeys(re.findall(r"(?<![\w.\"'])[A-Za-z_]\w*", statement))
    known = {name: frame.f_locals[name] for name in names if name in frame.f_locals}
    shown = [
        f"{name} is {described(value, letters.get(name))}"
        for name, value in known.items()
        if value is None or isinstance(value, torch.Tensor | int | float | str | list | tuple)
    ]
    return f". There, {', '.join(shown)}" if shown else ""


def _letters(reference: object) -> dict[str, list[str]]:
    """{argument: the letters of its axes} from types such as Float[Tensor, "b h s d"]."""
    function = getattr(reference, "forward", reference)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    axes = {name: getattr(p.annotation, "dim_str", "") for name, p in parameters.items()}
    return {name: text.split() for name, text in axes.items() if text}
