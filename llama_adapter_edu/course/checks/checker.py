"""Checks of the course's exercises: `with check("1.2", "causal_softmax"):` around visible asserts.

    passes   one green line; the learner's own object stays and is what later cells use
    fails    the name is bound to the course's reference, so that later cells run; then the check
             raises CheckFailed (under pytest and in scripts) or shows a red box (live Jupyter)

Every check starts from the same conditions (seed 0, float32, gradients on, CPU, functions of torch
as installed) and leaves random state and settings as it found them, and no thread or figure: see
`conditions.py`. During a check, a learner's function that changes one of its input tensors in
place is caught.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType, TracebackType

import torch

from llama_adapter_edu.course.checks import verdict
from llama_adapter_edu.course.checks.asserts import assert_close, assert_shape
from llama_adapter_edu.course.checks.conditions import TimeLimit, standard_conditions

__all__ = ["CheckFailed", "assert_close", "assert_shape", "check"]

REPLACED = "_replaced_by_reference"  # a notebook variable: {name: (the learner's, the reference)}
ABSENT = object()
IN_PLACE = (
    "{name} changes its input {key} in place; leave the inputs as they are and return a new tensor"
)


class CheckFailed(AssertionError):
    """An exercise is not solved. The message says what is wrong, in words."""

    def _render_traceback_(self) -> list[str]:
        """What IPython, JupyterLab and nbval show instead of a traceback."""
        return str(self).splitlines()


class check:
    """Check one exercise: `with check("1.2", "causal_softmax"):` and asserts in the block.

    exercise: its number; the first part is the lesson ("1.2" is in lesson 01).
    names: what the learner defines; a failed check binds them all to the reference.
    seconds: an endless loop is cut off after this time.
    in_place: the exercise is meant to change its input tensors.

    Raises CheckFailed where nobody watches (pytest, scripts); shows a red box in live Jupyter.
    """

    def __init__(self, exercise: str, *names: str, seconds: float = 60, in_place: bool = False):
        if not names:
            raise ValueError(f'check("{exercise}", ...) needs the name that the learner defines')
        self.names, self.in_place = names, in_place
        self.title = f"exercise {exercise} {', '.join(names)}"
        self.notebook = sys._getframe(1).f_globals
        self.reference = _reference(exercise)
        self.time_limit = TimeLimit(seconds)
        self.conditions = standard_conditions()

    def __enter__(self) -> "check":
        self._put_back_the_learners()
        self.given = {name: self.notebook.get(name, ABSENT) for name in self.names}
        self.problem = self._problem_of_definitions()
        self.conditions.__enter__()
        if not self.in_place:
            self._guard_inputs()
        self.time_limit.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.time_limit.stop()
        self._unguard_inputs()
        self.conditions.__exit__(None, None, None)
        if isinstance(error, KeyboardInterrupt) and not self.time_limit.reached:
            return False  # the learner pressed stop
        judged = verdict.judge(error, trace, self.problem, self.time_limit)
        if judged.status == "solved":
            verdict.show_passed(self.title)
            return False
        self._use_the_reference()
        text = judged.text(self.title, fallback=self.reference is not None)
        if verdict.in_live_notebook():
            verdict.show_box(text)
            return True
        raise CheckFailed(text) from None

    def _put_back_the_learners(self) -> None:
        """Run again after a failure: test the learner's object, not the reference."""
        replaced = self.notebook.setdefault(REPLACED, {})
        for name in self.names:
            theirs, reference = replaced.pop(name, (ABSENT, ABSENT))
            if reference is not ABSENT and self.notebook.get(name, ABSENT) is reference:
                _bind(self.notebook, name, theirs)

    def _problem_of_definitions(self) -> str | None:
        for name, theirs in self.given.items():
            right = getattr(self.reference, name, None)
            if theirs is ABSENT or theirs is right:
                return f"{name} is not defined. Run its cell; does it have a syntax error?"
            for kind, word in ((type, "a class"), (Callable, "a function")):
                if isinstance(right, kind) and not isinstance(theirs, kind):
                    return f"{name} should be {word}, but it is of type {type(theirs).__name__}"
        return None

    def _use_the_reference(self) -> None:
        for name in self.names:
            if hasattr(self.reference, name):
                right = getattr(self.reference, name)
                self.notebook[REPLACED][name] = (self.given[name], right)
                self.notebook[name] = right

    def _guard_inputs(self) -> None:
        for name, theirs in self.given.items():
            if inspect.isfunction(theirs):
                self.notebook[name] = _guarded(theirs, name)
            elif inspect.isclass(theirs) and inspect.isfunction(vars(theirs).get("forward")):
                theirs.forward = _guarded(theirs.forward, f"{name}.forward")

    def _unguard_inputs(self) -> None:
        for name, theirs in self.given.items():
            _bind(self.notebook, name, theirs)
            forward = vars(theirs).get("forward") if inspect.isclass(theirs) else None
            if hasattr(forward, "__guards__"):
                theirs.forward = forward.__guards__


def _bind(notebook: dict, name: str, value: object) -> None:
    if value is ABSENT:
        notebook.pop(name, None)
    else:
        notebook[name] = value


def _reference(exercise: str) -> ModuleType | None:
    """The course's solutions of this exercise's lesson; None where none have been built yet."""
    module = f"llama_adapter_edu.course.reference.lesson_{int(exercise.split('.')[0]):02d}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def _guarded(function: Callable, name: str) -> Callable:
    """The same function, which fails if it changes one of its input tensors in place."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        inputs = _named(function, args, kwargs)
        before = {key: _version(value) for key, value in inputs.items()}
        result = function(*args, **kwargs)
        for key, value in inputs.items():
            if _version(value) != before[key]:
                raise AssertionError(IN_PLACE.format(name=name, key=key))
        return result

    wrapper.__guards__ = function
    return wrapper


def _named(function: Callable, args: tuple, kwargs: dict) -> dict:
    try:
        return inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # the call itself will say what is wrong
        return {}


def _version(value: object) -> int | None:
    """Counts the in-place changes of a tensor (tensors of inference mode do not count)."""
    if isinstance(value, torch.Tensor) and not value.is_inference():
        return value._version
    return None
