"""Shapes in the words of the course's legend: what was got, what was expected, what looks wrong."""

from itertools import permutations
from math import prod

import torch

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
