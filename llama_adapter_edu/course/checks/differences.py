"""How a value differs from the expected one, in the words of the course's legend."""

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
NAN = (
    "{} of {} values are NaN: 0 times infinity, infinity minus infinity, or the softmax of a row "
    "that is -infinity throughout gives NaN"
)


def named(shape: tuple[int, ...], letters: list[str] | None) -> str:
    """(b=2, s=5) where there is a letter for each axis, else (2, 5)."""
    if not letters or len(letters) != len(shape):
        return str(tuple(shape))
    return "(" + ", ".join(f"{a}={n}" for a, n in zip(letters, shape, strict=True)) + ")"


def described(value: object, letters: list[str] | None = None) -> str:
    """A value in a few words: a tensor with its shape, a list with its length, a number itself."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {named(tuple(value.shape), letters)}" if value.ndim else "a single number"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def wrong_shape(got: tuple[int, ...], expected: tuple[int, ...], letters: list[str]) -> str:
    """What was expected, what was got, and the likely mistake behind it."""
    message = f"expected {named(expected, letters)}, got {got}"
    guess = _guess(got, dict(zip(letters, expected, strict=True))) if letters else None
    return f"{message}: {guess}" if guess else message


def _guess(got: tuple[int, ...], sizes: dict[str, int]) -> str | None:
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
    if len(got) == len(letters):
        return _wrong_sizes(got, sizes)
    return f"{len(letters)} axes are expected, not {len(got)}"


def _wrong_sizes(got: tuple[int, ...], sizes: dict[str, int]) -> str:
    wrong = [
        f"{_word(letter, list(sizes))} ({letter}) should be {size}, not {n}"
        for (letter, size), n in zip(sizes.items(), got, strict=True)
        if n != size
    ]
    return "; ".join(wrong)


def _word(letter: str, letters: list[str]) -> str:
    if letter == "s" and "t" in letters:
        return "query positions"
    if letter == "h" and "g" in letters:
        return "query heads"
    return LEGEND.get(letter, letter)


def comparable(value: Tensor) -> Tensor:
    """On the CPU, without gradient, in double precision."""
    return value.detach().cpu().to(torch.complex128 if value.is_complex() else torch.float64)


def difference(actual: Tensor, expected: Tensor, letters: list[str], tol: float) -> str | None:
    """What is wrong with the values; None if all are right."""
    got, right = comparable(actual), comparable(expected)
    lost = int((got.isnan() & ~right.isnan()).sum())
    if lost:
        return NAN.format(lost, got.numel())
    wrong = ~torch.isclose(got, right, rtol=tol, atol=tol, equal_nan=True)
    if not wrong.any():
        return None
    if not right.ndim:
        return f"expected {right.item():.4g}, got {got.item():.4g}"
    pattern = _pattern(got, right, tol)
    if pattern and bool(wrong.float().mean() > 0.5):
        return pattern
    first = _first_difference(got, right, wrong, letters)
    where = _place(wrong, letters) or pattern
    return f"{first}. {where[0].upper()}{where[1:]}" if where else first


def _pattern(got: Tensor, right: Tensor, tol: float) -> str | None:
    """What holds of all values at once: a factor, a shift, another order."""
    if got.numel() < 2 or got.is_complex() or not (got + right).isfinite().all():
        return None
    if not got.any():
        return "all values are 0"
    factor = float((got * right).sum() / right.square().sum().clamp(min=tol))
    if abs(factor) > tol and torch.allclose(got, factor * right, rtol=tol, atol=tol):
        return f"all values are {factor:.4g} times the expected ones"
    shift = float((got - right).mean())
    if torch.allclose(got - shift, right, rtol=tol, atol=tol):
        return f"all values are {abs(shift):.4g} too {'large' if shift > 0 else 'small'}"
    one_by_one = got.flatten().sort().values, right.flatten().sort().values
    if right.unique().numel() > right.numel() // 2 and torch.allclose(*one_by_one, tol, tol):
        return (
            "the numbers are the right ones, but in other places: an axis is cut, joined or "
            "moved in another order"
        )
    return None


def _place(wrong: Tensor, letters: list[str]) -> str | None:
    """Along which axis only some places are wrong."""
    if len(letters) != wrong.ndim or wrong.ndim < 2:
        return None
    for axis, letter in enumerate(letters):
        others = [other for other in range(wrong.ndim) if other != axis]
        bad = (
            wrong.any(dim=others[0])
            if len(others) == 1
            else wrong.movedim(axis, 0).flatten(1).any(1)
        )
        places = bad.nonzero().flatten().tolist()
        good = (~bad).nonzero().flatten().tolist()
        if len(places) == 1 and good:
            return f"only {letter}={places[0]} is wrong"
        if len(good) == 1:
            return f"only {letter}={good[0]} is right"
    return None


def _first_difference(got: Tensor, right: Tensor, wrong: Tensor, letters: list[str]) -> str:
    index = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} values differ; the first at "
        f"{named(index, letters)}: expected {right[index].item():.4g}, got {got[index].item():.4g}"
    )
