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
    asked = threading.Event()
    if not caught or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(*signal_and_frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
