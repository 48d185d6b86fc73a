"""Asserts that say what is wrong in the words of the course's shape legend."""

from itertools import permutations
from math import prod

import torch
from torch import Tensor

LEGEND = {
    "b": "batch",
    "s": "positions",
    "t": "key positions",
    "p": "prompt slots",
    "h": "heads",
    "g": "key/value heads",
    "r": "query heads per key/value head",
    "d": "head width",
    "m": "model width",
    "v": "vocabulary",
}


def assert_shape(actual: object, axes: str, **sizes: int) -> None:
    """`assert_shape(query, "b h s d", b=2, h=3, s=5, d=4)`: a tensor with these axes."""
    letters = axes.split()
    if set(letters) != set(sizes):
        raise ValueError(f"the axes are {letters}, but sizes are given for {list(sizes)}")
    expected = tuple(sizes[letter] for letter in letters)
    if not isinstance(actual, Tensor):
        raise AssertionError(_wrong_type(actual, f"a tensor {_named(expected, letters)}"))
    if tuple(actual.shape) != expected:
        raise AssertionError(_wrong_shape(tuple(actual.shape), expected, letters))


def assert_close(
    actual: object,
    expected: Tensor | float,
    axes: str | None = None,
    *,
    tol: float = 1e-5,
    mistakes: dict[str, Tensor | float] | None = None,
    what: str = "",
) -> None:
    """The learner's value equals the expected one: type, shape, dtype, NaN, then values.

    axes: the letters of the expected shape, "b h s d".
    tol: |actual - expected| may be tol + tol * |expected|. Compared on the CPU, never broadcast.
    mistakes: {sentence: what you get if you make that mistake}; the sentence becomes the message.
    what: the name of the value, if a check compares several.
    """
    expected = torch.as_tensor(expected)
    letters = _letters(axes, expected)
    problem = (
        _problem_of_type(actual, expected, letters)
        or _known_mistake(actual, mistakes or {}, tol)
        or _problem_of_form(torch.as_tensor(actual), expected, letters)
        or _problem_of_values(torch.as_tensor(actual), expected, letters, tol)
    )
    if problem:  # an assert statement's message would be lengthened by pytest
        raise AssertionError(f"{what}: {problem}" if what else problem)


def _letters(axes: str | None, expected: Tensor) -> list[str]:
    letters = [] if axes is None else axes.split()
    if axes is not None and len(letters) != expected.ndim:
        raise ValueError(f"axes {axes!r} do not fit an expected shape {tuple(expected.shape)}")
    return letters


def _problem_of_type(actual: object, expected: Tensor, letters: list[str]) -> str | None:
    number = isinstance(actual, bool | int | float) and expected.ndim == 0
    if isinstance(actual, Tensor) or number:
        return None
    form = f"a tensor {_named(tuple(expected.shape), letters)}" if expected.ndim else "a number"
    return _wrong_type(actual, form)


def _wrong_type(actual: object, form: str) -> str:
    if actual is None:
        return f"expected {form}, got None: is the `return` missing?"
    return f"expected {form}, got {type(actual).__name__}"


def _known_mistake(actual: object, mistakes: dict[str, Tensor | float], tol: float) -> str | None:
    got = _comparable(torch.as_tensor(actual))
    for sentence, value in mistakes.items():
        wrong = _comparable(torch.as_tensor(value))
        if wrong.shape == got.shape and torch.allclose(got, wrong, tol, tol, equal_nan=True):
            return sentence
    return None


def _comparable(value: Tensor) -> Tensor:
    return value.detach().cpu().to(torch.complex128 if value.is_complex() else torch.float64)


def _problem_of_form(actual: Tensor, expected: Tensor, letters: list[str]) -> str | None:
    if actual.shape != expected.shape:
        return _wrong_shape(tuple(actual.shape), tuple(expected.shape), letters)
    if actual.dtype != expected.dtype and expected.ndim:
        return f"expected dtype {_short(expected.dtype)}, got {_short(actual.dtype)}"
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named(shape: tuple[int, ...], letters: list[str]) -> str:
    if not letters:
        return str(shape)
    return "(" + ", ".join(f"{a}={n}" for a, n in zip(letters, shape, strict=True)) + ")"


def _wrong_shape(got: tuple[int, ...], expected: tuple[int, ...], letters: list[str]) -> str:
    message = f"expected {_named(expected, letters)}, got {got}"
    guess = _guess(got, dict(zip(letters, expected, strict=True))) if letters else None
    return f"{message}: {guess}" if guess else message


def _guess(got: tuple[int, ...], sizes: dict[str, int]) -> str | None:
    """The likely mistake behind a wrong shape, in words."""
    letters = list(sizes)
    for order in permutations(letters) if len(got) == len(letters) else ():
        if tuple(sizes[a] for a in order) == got:
            moved = [a for a, b in zip(letters, order, strict=True) if a != b]
            if len(moved) == 2:
                return f"{_word(moved[0], letters)} and {_word(moved[1], letters)} look swapped"
            return f"the axes look ordered {' '.join(order)}, not {' '.join(letters)}"
    for letter in letters:
        rest = tuple(n for a, n in sizes.items() if a != letter)
        if got == rest:
            return f"the axis of {_word(letter, letters)} ({letter}) is missing"
        if got == tuple(1 if a == letter else n for a, n in sizes.items()):
            return f"{_word(letter, letters)} ({letter}) should be {sizes[letter]}, not 1"
    shape = tuple(sizes.values())
    for i in range(len(letters) - 1):
        if got == (*shape[:i], prod(shape[i : i + 2]), *shape[i + 2 :]):
            return f"{_word(letters[i], letters)} and {_word(letters[i + 1], letters)} look merged"
    if tuple(n for n in got if n != 1) == tuple(n for n in sizes.values() if n != 1):
        return "there is an axis of size 1 too many or too few"
    return None


def _word(letter: str, letters: list[str]) -> str:
    if letter == "s" and "t" in letters:
        return "query positions"
    if letter == "h" and "g" in letters:
        return "query heads"
    return LEGEND.get(letter, letter)


def _problem_of_values(
    actual: Tensor, expected: Tensor, letters: list[str], tol: float
) -> str | None:
    got, right = _comparable(actual), _comparable(expected)
    lost = int((got.isnan() & ~right.isnan()).sum())
    if lost:
        return f"{lost} of {got.numel()} values are NaN"
    wrong = ~torch.isclose(got, right, rtol=tol, atol=tol, equal_nan=True)
    if not wrong.any():
        return None
    return _constant_factor(got, right, tol) or _first_difference(got, right, wrong, letters)


def _constant_factor(got: Tensor, right: Tensor, tol: float) -> str | None:
    """Every value is the same multiple of the right one: a scale is missing or wrong."""
    if got.numel() < 2 or got.is_complex() or not (got + right).isfinite().all():
        return None
    norm = right.square().sum().clamp(min=tol)
    factor = float((got * right).sum() / norm)
    if abs(factor) > tol and torch.allclose(got, factor * right, rtol=tol, atol=tol):
        return f"all values are {factor:.4g} times the expected ones"
    return None


def _first_difference(got: Tensor, right: Tensor, wrong: Tensor, letters: list[str]) -> str:
    if not right.ndim:
        return f"expected {right.item():.4g}, got {got.item():.4g}"
    index = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} values differ; the first at "
        f"{_named(index, letters)}: expected {right[index].item():.4g}, got {got[index].item():.4g}"
    )
