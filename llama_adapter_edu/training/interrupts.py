"""Ctrl-C that waits until the work in hand is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def caught_interrupts(caught: bool = True) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C makes the yielded function return True; a second one interrupts as usual.

    With `caught` False, and outside the main thread, Ctrl-C does what it always does.
    """
    asked, before = threading.Event(), signal.getsignal(signal.SIGINT)
    catches = caught and threading.current_thread() is threading.main_thread()

    def ask(*signal_and_frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    if catches:
        signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        if catches:
            signal.signal(signal.SIGINT, before)
