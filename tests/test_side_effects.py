"""Learners' code that makes a mess: what one exercise does never changes the verdict on another."""

import math
import os
import random
import signal
import sys
import threading
import time
import warnings

import course
import einops
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llama_adapter_edu.course import assert_close, assert_shape, check
from llama_adapter_edu.course.checks import conditions
from llama_adapter_edu.course.checks.checker import CheckFailed

pytestmark = [
    pytest.mark.filterwarnings("ignore:only a warning"),
]

FIRST = """
@check("98.1", "double", seconds=SECONDS)
def _():
    x = torch.arange(3.0)
    assert torch.equal(double(x), torch.tensor([0.0, 2.0, 4.0])), "twice x"
"""
# Random numbers, dtypes, gradients, functions, methods, layers, files, warnings: all kinds of use.
SECOND = """
@check("98.2", "attend")
def _():
    scores = torch.randn(2, 3, 4)
    weight = nn.Parameter(torch.rand(4, 4))
    out = attend(scores, weight)
    assert_shape(out, "b s t", b=2, s=3, t=4)
    seen.append((out.sum().item(), random.random(), np.random.rand(), np.zeros(1) / 1))
    rows = [(row @ weight).exp() for row in scores]
    right = torch.stack([row / row.sum(-1, True) for row in rows])
    assert_close(out, right, "b s t", mistakes={"no softmax": scores @ weight})
    (out * torch.arange(4)).sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all()
    assert nn.Linear(4, 2)(scores).dtype is torch.float32
    assert einops.rearrange(scores, "b s t -> (b s) t").shape == (6, 4)
    assert math.sqrt(4) == 2 and os.path.exists(here)
    warnings.warn("only a warning", stacklevel=1)
    print("still here")
"""
ANSWERS = {
    "right": "def attend(scores, weight):\n    return F.softmax(scores @ weight, dim=-1)",
    "wrong": "def attend(scores, weight):\n    return scores @ weight",
    "open": "def attend(scores, weight):\n    raise NotImplementedError",
}
MESSES = {
    "nothing": "pass",
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "default device": "torch.set_default_device('meta')",
    "gradients off": "torch.set_grad_enabled(False)",
    "seeds": "torch.manual_seed(7), np.random.seed(7), random.seed(7)",
    "random numbers drawn": "torch.rand(9), np.random.rand(9), random.random()",
    "threads of torch": "torch.set_num_threads(2)",
    "warnings raise": "warnings.simplefilter('error')",
    "prints": "[print('noise' * 20) for _ in range(100)]; print('x', file=sys.stderr)",
    "sleeps": "time.sleep(0.2)",
    "a thread that ends": "threading.Thread(target=torch.manual_seed, args=(3,)).start()",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(conditions, "AGAIN", 0.05)


def notebook() -> dict:
    names = {"check": check, "assert_close": assert_close, "assert_shape": assert_shape}
    libraries = [torch, np, random, os, sys, time, threading, warnings, math, einops]
    names |= {module.__name__: module for module in libraries}
    own = {"np": np, "nn": nn, "F": F, "plt": plt, "seen": [], "here": os.curdir}
    return names | own | {"SECONDS": 60}


def verdict(cells: dict, *sources: str) -> str:
    try:
        for number, source in enumerate(sources):
            course.execute(source, f"<cell {number} of {abs(hash(source))}>", cells)
    except CheckFailed as error:
        return str(error)
    return "solved"


def verdicts(cells: dict) -> list:
    """What the second check says to right, wrong and open answers, and the numbers it saw."""
    said = [verdict(cells, answer, SECOND) for answer in ANSWERS.values()]
    return [*said, repr(cells["seen"])]


@pytest.fixture(scope="module")
def expected():
    said = verdicts(notebook())
    assert said[0] == "solved" and "no softmax" in said[1] and "not solved yet" in said[2]
    return said


@pytest.fixture
def state():
    """Everything is put back by the check itself; this only protects the other tests."""
    outer = conditions.standard_conditions()
    with outer:
        yield


@pytest.mark.parametrize("mess", MESSES.values(), ids=MESSES)
def test_a_mess_made_in_one_check_leaves_the_next_as_it_is(mess, expected, state):
    cells = notebook()
    answer = f"def double(x):\n    twice = 2 * x\n    {mess}\n    return twice"
    verdict(cells, answer, FIRST)
    assert verdicts(cells) == expected
    assert torch.get_default_dtype() is torch.float32


OUTSIDE = ["default dtype", "default device", "gradients off", "seeds"]


@pytest.mark.parametrize("mess", OUTSIDE)
def test_a_mess_made_outside_of_checks_changes_no_check(mess, expected, state):
    cells = notebook()
    verdict(cells, MESSES[mess])
    assert verdicts(cells) == expected


ENDLESS = {
    "loop": "while True:\n        pass",
    "sleep": "time.sleep(60)",
    "waiting for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "prints": "while True:\n        print('and on')",
    "every error is swallowed": """while True:
        try:
            x = x + 0
        except:
            pass""",
    "in torch": "while x.sum() > -1:\n        x = torch.relu(x)",
}


@pytest.mark.skipif(sys.platform == "win32", reason="a sleep cannot be interrupted on Windows")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("body", ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_is_cut_off_and_the_next_check_is_as_always(body, expected, state):
    cells = notebook() | {"SECONDS": 0.3}
    said = verdict(cells, f"def double(x):\n    {body}", FIRST)
    assert "it did not finish within 0.3 seconds: an endless loop?" in said
    assert verdicts(cells) == expected


@pytest.mark.timeout(30)
@pytest.mark.skipif(sys.platform == "win32", reason="a sleep cannot be interrupted on Windows")
def test_it_is_cut_off_where_interrupts_are_ignored_too(state):
    """As in a script that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cells = notebook() | {"SECONDS": 0.3}
        said = verdict(cells, "def double(x):\n    time.sleep(60)", FIRST)
        assert "did not finish" in said
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
