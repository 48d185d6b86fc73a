"""The conditions under which a check runs: the same for everyone, undone afterwards."""

import _thread
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def standard_conditions() -> Iterator[None]:
    """Seed 0, float32, CPU, gradients on; random state and settings are put back at the end."""
    undo = [(setter, getter()) for setter, getter in _SETTINGS]
    device = torch.get_default_device()
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # the CPU's; a GPU's random state is not touched
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    _set_device(torch.device("cpu"))
    try:
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
    (torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode),
]


def _set_device(device: torch.device) -> None:
    """Only where it changes something: an explicit default device slows every call of torch."""
    if device != torch.get_default_device():
        torch.set_default_device(None if device.type == "cpu" else device)


class TimeLimit:
    """Interrupts the main thread, as Ctrl-C does, if `stop` is not called within some seconds."""

    def __init__(self, seconds: float):
        self.seconds, self.reached, self.stopped = seconds, False, False
        self.lock = threading.Lock()
        self.timer = threading.Timer(seconds, self._interrupt)
        self.timer.daemon = True

    def start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.timer.start()

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            self.timer.cancel()

    def _interrupt(self) -> None:
        with self.lock:
            if not self.stopped:
                self.reached = True
                _thread.interrupt_main()
