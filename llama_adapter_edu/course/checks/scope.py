"""What a learner's answer finds while a check runs: its arguments, functions, classes, imports.

Tensors and other values that the notebook's given cells have set are away meanwhile, and each
call is watched: an answer that changes one of its inputs in place is caught.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType

import numpy as np
import torch

from llama_adapter_edu.course.checks import source

IN_PLACE = (
    "{name} changes its input {key} in place; leave the inputs as they are and return a new tensor"
)


@contextmanager
def values_away(notebook: dict, given: Collection[str], own: Collection[str]) -> Iterator[None]:
    """Inside, the notebook lacks the values `given`, except those that the answer's cell sets."""
    away = {
        name: notebook.pop(name)
        for name in set(given) - set(own)
        if name in notebook and not _is_code(notebook[name])
    }
    try:
        yield
    finally:
        for name, value in away.items():
            notebook.setdefault(name, value)


def _is_code(value: object) -> bool:
    return inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, ModuleType)


def names_set_by(cell: str) -> set[str]:
    """The names that a cell assigns at its top level."""
    try:
        body = source.parse(cell).body
    except SyntaxError:
        return set()
    statements = [node for node in body if not isinstance(node, source.DEFINITIONS)]
    inner = (name for statement in statements for name in ast.walk(statement))
    return {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def in_scope_of(function: FunctionType, names: dict) -> FunctionType:
    """The same function, reading its global names from `names`."""
    code, defaults = function.__code__, function.__defaults__
    return FunctionType(code, names, function.__name__, defaults, function.__closure__)


def guarded(theirs: object, name: str, in_place: bool = False) -> object:
    """The learner's function or class, its calls watched for inputs changed in place."""
    if inspect.isfunction(theirs):
        return _guarded(theirs, name, in_place)
    if inspect.isclass(theirs):
        methods = {
            key: _guarded(method, f"{name}.{key}", in_place)
            for key, method in vars(theirs).items()
            if inspect.isfunction(method)
        }
        same = {key: getattr(theirs, key) for key in ("__module__", "__qualname__", "__doc__")}
        return type(theirs)(theirs.__name__, (theirs,), same | methods)
    return theirs


def _guarded(function: Callable, name: str, in_place: bool) -> Callable:
    @functools.wraps(function)
    def call(*args, **kwargs):
        before = {} if in_place else copied(_inputs(function, args, kwargs))
        result = function(*args, **kwargs)
        for key, value in ({} if in_place else _inputs(function, args, kwargs)).items():
            if not same(before[key], value):
                raise AssertionError(IN_PLACE.format(name=name, key=key))
        return result

    return call


WATCHED = "call"  # the frame below which a traceback is in the learner's code


def _inputs(function: Callable, args: tuple, kwargs: dict) -> dict:
    try:
        return dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except TypeError:  # the call itself will say what is wrong
        return {}


def copied(value: object) -> object:
    """A copy of the tensors, arrays and containers in a value; other objects as they are."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return set(value) if type(value) is set else value


def same(before: object, after: object) -> bool:
    """Whether a value is still what its copy was."""
    if isinstance(before, torch.Tensor | np.ndarray):
        before, after = torch.as_tensor(before), torch.as_tensor(after).detach()
        if before.shape != after.shape or before.dtype != after.dtype or before.is_meta:
            return before.shape == after.shape and before.dtype == after.dtype
        return bool(((before == after) | ((before != before) & (after != after))).all())
    if type(before) in (list, tuple):
        return len(before) == len(after) and all(map(same, before, after))
    if type(before) is dict:
        return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
    return before == after if type(before) is set else before is after
