"""What code in a check may do to Python and its libraries, and how it is undone.

Functions of torch and others that were replaced, figures that stay open, threads that go on: none
of them may change what the next check says.
"""

import ctypes
import math
import os
import random
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

import einops
import numpy as np
import torch

import llama_adapter_edu

PROJECT = os.path.dirname(llama_adapter_edu.__file__)
LIBRARIES = (PROJECT, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
MODULES = (torch, torch.nn, torch.nn.functional, torch.linalg, einops, np, np.random, random, math)
CLASSES = (torch.Tensor, torch.nn.Module, torch.nn.Linear, torch.nn.Embedding)
MADE_BY_PYTHON = ("<frozen", "<string>")  # file names of imports and of generated methods
AT_ONCE = 0.05  # seconds in which most threads are over
PATIENCE = 1.0  # seconds that threads get to end by themselves
LAST_LINE = 0.2  # seconds that a stopped thread gets to end its line
ABSENT = object()


def _functions() -> dict:
    """{(owner, name): value} of the functions and methods of the modules and classes above."""
    public = {(m, n): v for m in MODULES for n, v in vars(m).items() if not n.startswith("_")}
    functions = {key: value for key, value in public.items() if callable(value)}
    # An inherited method is absent in the class itself; whoever replaces it puts it there.
    return functions | {(c, n): vars(c).get(n, ABSENT) for c in CLASSES for n in dir(c)}


ORIGINALS = _functions()  # this module is imported before a learner's first cell runs
KNOWN = {id(function) for function in ORIGINALS.values()}


@contextmanager
def original_functions() -> Iterator[None]:
    """Inside, torch and others are as installed; afterwards they are as they were before."""
    before = _put_back()
    try:
        yield
    finally:
        _put_back()
        for (owner, name), value in before.items():
            _set(owner, name, value)


def _put_back() -> dict:
    """Undo all replacements; returns them."""
    replaced = {}
    for (owner, name), original in ORIGINALS.items():
        value = vars(owner).get(name, ABSENT)
        if value is not original and not _of_a_library(value):
            _set(owner, name, original)
            replaced[owner, name] = value
    return replaced


def _set(owner: object, name: str, value: object) -> None:
    if value is ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _of_a_library(function: object) -> bool:
    """torch.compile, for one, wraps functions of torch and relies on it."""
    code = getattr(function, "__code__", None)
    wrapper = id(function) not in KNOWN and code is not None
    return wrapper and code.co_filename.startswith(LIBRARIES)


@contextmanager
def no_figures_left() -> Iterator[None]:
    """Figures of matplotlib that the block opens and leaves open are closed at its end."""
    before = _figures()
    try:
        yield
    finally:
        for number in _figures() - before:
            sys.modules["matplotlib.pyplot"].close(number)


def _figures() -> set[int]:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return set(pyplot.get_fignums()) if pyplot else set()


@contextmanager
def no_threads_left() -> Iterator[None]:
    """Threads of the notebook that the block starts get a second to end; then they are stopped."""
    before = set(sys._current_frames())
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if thread.ident not in before and isinstance(thread, threading.Timer):
                thread.cancel()
        _wait(lambda: set(sys._current_frames()) - before, AT_ONCE)
        _wait(lambda: _threads_of_the_notebook() - before, PATIENCE)
        # Again and again: some code on the way may swallow it.
        _wait(lambda: _stop(_threads_of_the_notebook() - before), LAST_LINE)


def _threads_of_the_notebook() -> set[int]:
    """Not helpers of some library, such as the one that watches tqdm's bars."""
    found = set()
    for ident, frame in sys._current_frames().items():
        files = {f.f_code.co_filename for f, _ in traceback.walk_stack(frame)}
        if not all(file.startswith((*LIBRARIES, *MADE_BY_PYTHON)) for file in files):
            found.add(ident)
    return found


def _wait(going_on: Callable[[], set[int]], seconds: float) -> None:
    # Not `thread.join`: Python 3.11 loses threads whose `join` was interrupted.
    end = monotonic() + seconds
    while going_on() and monotonic() < end:
        sleep(0.005)


def _stop(idents: set[int]) -> set[int]:
    """End threads at their next line of Python; one that sleeps ends when it wakes up."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    for ident in idents:
        raise_in(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))
    return idents
