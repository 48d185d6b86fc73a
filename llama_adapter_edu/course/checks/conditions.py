"""The conditions under which a check runs: the same for everyone, undone afterwards."""

import _thread
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

AGAIN = 0.5  # seconds after which an interrupt that was swallowed is sent again


@contextmanager
def standard_conditions() -> Iterator[None]:
    """Seed 0, float32, CPU, gradients on; random state and settings are put back at the end."""
    undo = [(setter, getter()) for setter, getter in _SETTINGS]
    device = _default_device()
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # the CPU's; a GPU's random state is not touched
    torch.set_default_dtype(torch.float32)
    _set_device(torch.device("cpu"))
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        _set_device(device)
        for setter, value in undo:
            setter(value)


_SETTINGS = [
    (random.setstate, random.getstate),
    (np.random.set_state, np.random.get_state),
    (torch.set_rng_state, torch.get_rng_state),
    (torch.set_default_dtype, torch.get_default_dtype),
    (torch.set_grad_enabled, torch.is_grad_enabled),
    (torch.set_num_threads, torch.get_num_threads),
]


def _default_device() -> torch.device:
    return torch.empty(0).device


def _set_device(device: torch.device) -> None:
    """Only where it changes something: an explicit default device slows every call of torch."""
    if device != _default_device():
        torch.set_default_device(None if device.type == "cpu" else device)
        try:
            torch.get_default_device()
        except AttributeError:  # torch 2.6 cannot tell after None, and transformers asks
            torch.set_default_device(device)


class TimeLimit:
    """Interrupts the main thread, as Ctrl-C does, when its block takes longer than `seconds`."""

    def __init__(self, seconds: float):
        self.seconds, self.reached, self.handler = seconds, False, None
        self.stopped, self.lock = threading.Event(), threading.Lock()

    def __enter__(self) -> "TimeLimit":
        if threading.current_thread() is threading.main_thread():
            # A script that was started in the background ignores interrupts.
            self.handler = signal.signal(signal.SIGINT, signal.default_int_handler)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        try:
            with self.lock:
                self.stopped.set()
        except KeyboardInterrupt:  # it came in this very moment
            self.stopped.set()
            if not self.reached:
                raise
        finally:
            if self.handler is not None:
                signal.signal(signal.SIGINT, self.handler)

    def _watch(self) -> None:
        wait = self.seconds
        while not self.stopped.wait(wait):
            with self.lock:
                if not self.stopped.is_set():
                    self.reached = True
                    _interrupt_main_thread()
            wait = AGAIN  # a bare `except:` in a loop may have swallowed it


def _interrupt_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):  # wakes it from a sleep
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    else:
        _thread.interrupt_main()
