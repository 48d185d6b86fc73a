"""How two tensors of one shape differ, in words."""

import torch
from torch import Tensor

from llama_adapter_edu.course.checks.shapes import named

NAN = (
    "{} of {} values are NaN: 0 times infinity, infinity minus infinity, or the softmax of a row "
    "that is -infinity throughout gives NaN"
)


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
