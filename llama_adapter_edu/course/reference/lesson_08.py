"""Solutions of lesson 08: what a failed check falls back to.

Generated from solutions/08_what_matters.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'8.1': 'mean_and_error', '8.2': 'paired_difference', '8.3': 'cheapest_good_cell', '8.4': 'share_unmoved'}
CHECKS = {'8.1': '0d6c0b219ec3', '8.2': 'eee2737522ad', '8.3': 'eeb5b9fb4a1b', '8.4': '368e6ebd39be'}

import torch
from jaxtyping import Float
from torch import Tensor


def mean_and_error(scores: Float[Tensor, "n"]) -> tuple[float, float]:
    """Mean of n scores, and its standard error s / sqrt(n). The error is NaN for n = 1."""
    mean = scores.mean().item()
    if len(scores) == 1:
        return mean, float("nan")
    return mean, scores.std().item() / len(scores) ** 0.5


def paired_difference(changed: dict[int, float], default: dict[int, float]) -> tuple[float, float]:
    """Mean and standard error of changed - default, over the seeds that both have.

    Both arguments: seed -> score (0 to 1).
    """
    differences = [changed[seed] - default[seed] for seed in changed.keys() & default.keys()]
    return mean_and_error(torch.tensor(differences))


def cheapest_good_cell(cells: dict[int, Float[Tensor, "n"]]) -> int:
    """Smallest cost whose mean is at least the best mean minus the standard error of the best.

    `cells`: cost (layers, prompts, ...) -> the scores of its runs.
    """
    best, error = max(mean_and_error(scores) for scores in cells.values())
    line = best - error
    return min(cost for cost, scores in cells.items() if mean_and_error(scores)[0] >= line)


def share_unmoved(numbers: Float[Tensor, "n"], step: float) -> float:
    """Share (0 to 1) of the numbers that, kept in bfloat16, a step of this size does not change."""
    before = numbers.to(torch.bfloat16)
    after = (before - step).to(torch.bfloat16)
    return (after == before).float().mean().item()
