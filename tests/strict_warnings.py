"""Deprecated calls in our own code are errors, wherever the warning claims to come from.

pytest's filters look at the line that a warning names. Often that is a line of the library itself.
Here the call stack decides: is it our code that called the library?
"""

import logging
import sys
import warnings
from types import FrameType

KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
OF_THE_COMPILER = "torch.jit", "should not be instantiated. Methods on autograd functions"
BETWEEN = {"torch", "functools", "contextlib", "typing_extensions", "warnings", "logging"}


def install() -> None:
    warn = warnings.warn

    def strict_warn(message, category=None, stacklevel=1, source=None, **options):
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        # torch's compiler uses parts of torch that torch itself deprecates.
        if any(part in str(message) for part in OF_THE_COMPILER):
            return warn(message, category, stacklevel + 1, source, **options)
        if issubclass(kind, KINDS) and called_by_us(sys._getframe(1)):
            raise kind(str(message))
        return warn(message, category, stacklevel + 1, source, **options)

    warnings.warn = strict_warn
    logging.getLogger("transformers").addHandler(_Strict())


class _Strict(logging.Handler):
    """transformers says many of them by its logger."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "deprecated" in text and called_by_us(sys._getframe(1)):
            raise FutureWarning(text)


def called_by_us(frame: FrameType | None) -> bool:
    """The library that warns, at the top of the stack, was called by `llama_adapter_edu`."""
    names = []
    while frame:
        names.append(frame.f_globals.get("__name__", "").partition(".")[0])
        frame = frame.f_back
    outer = [name for name in names if name not in BETWEEN]
    library = outer[0] if outer else ""
    return next((name for name in outer if name != library), "") == "llama_adapter_edu"
