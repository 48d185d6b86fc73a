"""Asserts that say what is wrong in the words of the course's shape legend."""

from collections.abc import Mapping
from itertools import combinations
from numbers import Number

import torch
from torch import Tensor

from llama_adapter_edu.course.checks.differences import comparable, difference, named, wrong_shape

Mistakes = Mapping[str, Tensor | float]


def assert_shape(actual: object, axes: str, **sizes: int) -> None:
    """`assert_shape(query, "b h s d", b=2, h=3, s=5, d=4)`: a tensor with these axes."""
    letters = axes.split()
    if set(letters) != set(sizes):
        raise ValueError(f"the axes are {letters}, but sizes are given for {list(sizes)}")
    expected = tuple(sizes[letter] for letter in letters)
    if not isinstance(actual, Tensor):
        raise AssertionError(_wrong_type(actual, f"a tensor {named(expected, letters)}"))
    if tuple(actual.shape) != expected:
        raise AssertionError(wrong_shape(tuple(actual.shape), expected, letters))


def assert_close(
    actual: object,
    expected: Tensor | float,
    axes: str | None = None,
    *,
    tol: float = 1e-5,
    mistakes: Mistakes | None = None,
    what: str = "",
) -> None:
    """The learner's value equals the expected one: type, shape, dtype, NaN, then values.

    axes: the letters of the expected shape, "b h s d".
    tol: |actual - expected| may be tol + tol * |expected|. Compared on the CPU, never broadcast.
    mistakes: {sentence: what you get if you make that mistake}; the sentence becomes the message.
    what: the name of the value, if a check compares several.
    """
    problem = _problem(actual, expected, axes, tol, mistakes or {})
    if problem:  # an assert statement's message would be lengthened by pytest
        raise AssertionError(f"{what}: {problem}" if what else problem)


def assert_results(
    actual: object,
    expected: Mapping[str, Tensor | float],
    axes: str | None = None,
    *,
    tol: float = 1e-5,
    mistakes: Mapping[str, tuple] | None = None,
    what: str = "",
) -> None:
    """A function's several results, `{"the keys": key, "the values": value}` in their order.

    A list is as good as a tuple. Results that stand in each other's places are named. `mistakes`
    holds a tuple of results for each sentence; the first one that differs from the right ones and
    equals the learner's names the mistake. The other arguments are those of `assert_close`.
    """
    results = unpacked(actual, *expected, what=what)
    right, names = list(expected.values()), list(expected)
    for (i, first), (j, second) in combinations(enumerate(names), 2):
        swapped = _equal(results[i], right[j], tol) and _equal(results[j], right[i], tol)
        if swapped and not _equal(right[i], right[j], tol):
            raise AssertionError(f"{first} and {second} look swapped")
    for place, name in enumerate(names):
        own = {words: wrong[place] for words, wrong in (mistakes or {}).items()}
        own = {words: value for words, value in own.items() if value is not None}
        words = f"{name} {what}".strip()
        assert_close(results[place], right[place], axes, tol=tol, mistakes=own, what=words)


def unpacked(actual: object, *names: str, what: str = "") -> list:
    """The results of a function that returns several, as a tuple or a list; else a sentence."""
    wanted = f"{len(names)} results, {', '.join(names)}"
    if actual is None:
        problem = f"expected {wanted}, got None: is the `return` missing?"
    elif not isinstance(actual, tuple | list):
        problem = f"expected {wanted}, got one {_type(actual)}: return them with a comma between"
    elif len(actual) != len(names):
        problem = f"expected {wanted}, got {len(actual)}"
    else:
        return list(actual)
    raise AssertionError(f"{what}: {problem}" if what else problem)


def _problem(
    actual: object, expected: Tensor | float, axes: str | None, tol: float, mistakes: Mistakes
) -> str | None:
    expected = torch.as_tensor(expected)
    letters = [] if axes is None else axes.split()
    if axes is not None and len(letters) != expected.ndim:
        raise ValueError(f"axes {axes!r} do not fit an expected shape {tuple(expected.shape)}")
    return (
        _problem_of_type(actual, expected, letters)
        or _known_mistake(actual, expected, mistakes, tol)
        or _problem_of_form(torch.as_tensor(actual), expected, letters)
        or difference(torch.as_tensor(actual), expected, letters, tol)
    )


def _problem_of_type(actual: object, expected: Tensor, letters: list[str]) -> str | None:
    number = isinstance(actual, Number) and expected.ndim == 0
    if isinstance(actual, Tensor) or number:
        return None
    form = f"a tensor {named(tuple(expected.shape), letters)}" if expected.ndim else "a number"
    return _wrong_type(actual, form)


def _wrong_type(actual: object, form: str) -> str:
    if actual is None:
        return f"expected {form}, got None: is the `return` missing?"
    if actual is ...:
        return f"expected {form}, got the `...` of the exercise: write your code in its place"
    if isinstance(actual, tuple) and len(actual) == 1:
        return f"expected {form}, got a tuple of 1: is there a comma too many behind it?"
    return f"expected {form}, got {_type(actual)}"


def _type(value: object) -> str:
    return "tensor" if isinstance(value, Tensor) else type(value).__name__


def _known_mistake(actual: object, expected: Tensor, mistakes: Mistakes, tol: float) -> str | None:
    if _equal(actual, expected, tol):  # by chance a mistake may lead to the right value
        return None
    return next((words for words, wrong in mistakes.items() if _equal(actual, wrong, tol)), None)


def _equal(actual: object, other: object, tol: float) -> bool:
    try:
        got, right = comparable(torch.as_tensor(actual)), comparable(torch.as_tensor(other))
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == right.shape and torch.allclose(got, right, tol, tol, equal_nan=True)


def _problem_of_form(actual: Tensor, expected: Tensor, letters: list[str]) -> str | None:
    if actual.shape != expected.shape:
        return wrong_shape(tuple(actual.shape), tuple(expected.shape), letters)
    if actual.dtype != expected.dtype and expected.ndim:
        return f"expected dtype {_short(expected.dtype)}, got {_short(actual.dtype)}"
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
