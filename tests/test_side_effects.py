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
from llama_adapter_edu.course.checks import conditions, side_effects
from llama_adapter_edu.course.checks.checker import CheckFailed

pytestmark = [
    pytest.mark.filterwarnings("ignore:only a warning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

FIRST = """
with check("98.1", "double", seconds=SECONDS):
    x = torch.arange(3.0)
    assert torch.equal(double(x), torch.tensor([0.0, 2.0, 4.0])), "twice x"
"""
# Random numbers, dtypes, gradients, functions, methods, layers, files, warnings: all kinds of use.
SECOND = """
with check("98.2", "attend"):
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
    "no_grad not left": "torch.no_grad().__enter__()",
    "inference mode not left": "kept.append(torch.inference_mode()); kept[-1].__enter__()",
    "autocast not left": "torch.autocast('cpu', torch.bfloat16).__enter__()",
    "seeds": "torch.manual_seed(7), np.random.seed(7), random.seed(7)",
    "random numbers drawn": "torch.rand(9), np.random.rand(9), random.random()",
    "threads of torch": "torch.set_num_threads(2)",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "matmul precision": "torch.set_float32_matmul_precision('medium')",
    "anomaly detection": "torch.autograd.set_detect_anomaly(True)",
    "numpy raises": "np.seterr(all='raise')",
    "warnings raise": "warnings.simplefilter('error')",
    "softmax replaced": "F.softmax = torch.softmax = lambda x, dim=-1: x",
    "randn replaced": "torch.randn = torch.zeros",
    "allclose replaced": "torch.allclose = torch.equal = torch.isclose = lambda *a, **k: True",
    "partial": "import functools; torch.stack = functools.partial(torch.stack, dim=1)",
    "method replaced": "torch.Tensor.sum = torch.Tensor.exp = lambda self, *a: self",
    "method deleted": "del torch.Tensor.backward",
    "operator replaced": "torch.Tensor.__matmul__ = lambda self, other: self",
    "layer replaced": "nn.Linear.forward = nn.Module.__call__ = lambda self, x: x.double()",
    "class replaced": "nn.Parameter = torch.Tensor",
    "numpy replaced": "np.zeros = np.ones; np.random.rand = lambda: 4",
    "einops replaced": "einops.rearrange = lambda x, *a: x",
    "math replaced": "math.sqrt = abs",
    "prints": "[print('noise' * 20) for _ in range(100)]; print('x', file=sys.stderr)",
    "stdout replaced": "import io; sys.stdout = sys.stderr = io.StringIO()",
    "draws": "plt.figure(); plt.plot([1, 2])",
    "another folder": "os.chdir('/')",
    "recursion limit": "sys.setrecursionlimit(60 + len(__import__('inspect').stack()))",
    "sleeps": "time.sleep(0.2)",
    "a thread that ends": "threading.Thread(target=torch.manual_seed, args=(3,)).start()",
    "a thread in a loop": "threading.Thread(target=reseed, daemon=True).start()",
    "a thread that sleeps": "threading.Thread(target=wake_up, daemon=True).start()",
    "a timer": "threading.Timer(1.2, torch.set_default_dtype, [torch.float64]).start()",
}
HELPERS = """
def reseed():
    while True:
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)

def wake_up():
    time.sleep(1.2)
    torch.set_default_dtype(torch.float64)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(side_effects, "PATIENCE", 0.2)
    monkeypatch.setattr(conditions, "AGAIN", 0.05)


def notebook() -> dict:
    names = {"check": check, "assert_close": assert_close, "assert_shape": assert_shape}
    libraries = [torch, np, random, os, sys, time, threading, warnings, math, einops]
    names |= {module.__name__: module for module in libraries}
    own = {"np": np, "nn": nn, "F": F, "plt": plt, "seen": [], "kept": [], "here": os.curdir}
    cells = names | own | {"SECONDS": 60}
    course.execute(HELPERS, "<helpers>", cells)
    return cells


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
    if mess == MESSES["a thread that sleeps"]:
        time.sleep(1.5)  # it wakes up, and is gone
    assert torch.get_default_dtype() is torch.float32
    assert torch.nn.functional.softmax(torch.zeros(2), 0).tolist() == [0.5, 0.5]
    assert plt.get_fignums() == []


OUTSIDE = [
    "default dtype",
    "default device",
    "gradients off",
    "no_grad not left",
    "inference mode not left",
    "autocast not left",
    "seeds",
    "softmax replaced",
    "method replaced",
    "layer replaced",
    "math replaced",
]


@pytest.mark.parametrize("mess", OUTSIDE)
def test_a_mess_made_outside_of_checks_changes_no_check(mess, expected, state):
    cells = notebook()
    try:
        verdict(cells, MESSES[mess])
        assert verdicts(cells) == expected
    finally:
        for mode in cells["kept"]:
            mode.__exit__(None, None, None)


def test_outside_of_checks_a_learners_replacement_stays(state):
    cells = notebook()
    verdict(cells, "F.softmax = mine = lambda x, dim: x", ANSWERS["right"], SECOND)
    assert F.softmax is cells["mine"]


ENDLESS = {
    "loop": "while True:\n        pass",
    "sleep": "time.sleep(60)",
    "waiting for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "waiting for a thread": "t = threading.Thread(target=reseed, daemon=True); t.start(); t.join()",
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
