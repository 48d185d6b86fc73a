"""Mutants that wrap a function of an exercise: what it does with its arguments and results.

The result is detached, cached by shapes or taken from the first call; an argument is changed in
place, ignored or read from the notebook.
"""

import ast
from collections.abc import Callable, Iterator

from tools import names

WRAPPER = """

def _wrap(_function):
    import inspect
    import functools
    import torch
    _state = {{}}

    def _each(_x, _do):
        if isinstance(_x, torch.Tensor):
            return _do(_x)
        if type(_x) in (list, tuple):
            return type(_x)(_each(_y, _do) for _y in _x)
        if type(_x) is dict:
            return {{_k: _each(_y, _do) for _k, _y in _x.items()}}
        return _x

    def _form(_x):
        if isinstance(_x, torch.Tensor):
            return tuple(_x.shape), _x.dtype
        if type(_x) in (list, tuple):
            return tuple(map(_form, _x))
        return _x if isinstance(_x, int | float | str | bool) else type(_x)

    @functools.wraps(_function)
    def _wrapper(*_args, **_kwargs):
        _bound = inspect.signature(_function).bind(*_args, **_kwargs)
        _bound.apply_defaults()
        _arguments = _bound.arguments
{body}

    return _wrapper


{target} = _wrap({target})
"""
CALL = "_function(*_bound.args, **_bound.kwargs)"
DETACHED = f"        return _each({CALL}, lambda _x: _x.detach())"
CACHED = f"""\
        _key = str([_form(_x) for _k, _x in _arguments.items() if _k != 'self'])
        if _key not in _state:
            _state[_key] = {CALL}
        return _state[_key]"""
FIRST = f"""\
        _arguments[{{name!r}}] = _state.setdefault("first", _arguments[{{name!r}}])
        return {CALL}"""
CHANGED = f"""\
        _result = {CALL}
        _each(_arguments[{{name!r}}], lambda _x: _x.data.add_(1) if not _x.is_meta else _x)
        return _result"""
GLOBAL = f"""\
        _arguments[{{name!r}}] = {{name}}
        return {CALL}"""
DEFAULT = f"""\
        _arguments[{{name!r}}] = inspect.signature(_function).parameters[{{name!r}}].default
        return {CALL}"""


def wrapped(solution: str, name: str, notebook: set[str]) -> Iterator[tuple[str, str]]:
    """(what was changed, the cell's source) for a function, or for each method of a class."""
    node = next(n for n in names.parse(solution).body if getattr(n, "name", "") == name)
    methods = [node] if isinstance(node, ast.FunctionDef) else _methods(node)
    for method in methods:
        target = name if method is node else f"{name}.{method.name}"
        result = ast.unparse(method.returns) if method.returns else ""

        def with_body(body: str, target: str = target) -> str:
            return solution + WRAPPER.format(body=body, target=target)

        if result != "None" and "Tensor" in ast.unparse(method.args):
            yield f"{target}: result cached by shapes", with_body(CACHED)
        if "Tensor" in result and "Int[" not in result:  # integers have no gradient
            yield f"{target}: result detached", with_body(DETACHED)
        count = len(method.args.defaults)
        optional = {a.arg for a in method.args.args[-count:]} if count else set()
        for argument in [*method.args.args, *method.args.kwonlyargs]:
            yield from _without_argument(target, argument, optional, notebook, with_body)


def _without_argument(
    target: str, argument: ast.arg, optional: set[str], notebook: set[str], with_body: Callable
) -> Iterator[tuple[str, str]]:
    name, kind = argument.arg, ast.unparse(argument.annotation) if argument.annotation else ""
    if name == "self":
        return
    yield f"{target}: {name} of the first call", with_body(FIRST.format(name=name))
    if "Tensor" in kind and "Callable" not in kind:
        yield f"{target}: {name} changed in place", with_body(CHANGED.format(name=name))
    if name in optional:
        yield f"{target}: {name} ignored", with_body(DEFAULT.format(name=name))
    if name in notebook:
        yield f"{target}: {name} read from the notebook", with_body(GLOBAL.format(name=name))


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    found = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    return [n for n in found if not n.decorator_list]
