"""Solutions of lesson 08: what a failed check falls back to.

Generated from solutions/08_what_matters.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'8.1': 'mean_and_error', '8.2': 'paired_difference', '8.3': 'cheapest_good_cell', '8.4': 'share_unmoved'}
CHECKS = {'8.1': '4c8cd8b93661', '8.2': 'ecc11e3afba0', '8.3': '06d2253ebafa', '8.4': 'f58346287909'}
STUBS = {'8.1': '5a8614fda27b', '8.2': '38959677d956', '8.3': 'b94d15b9aaf9', '8.4': '5f45e4c4fe6d'}
GIVEN = ('MY_LAYERS', 'MY_SEED', '_', 'a', 'activation', 'answers', 'ax', 'axes', 'bars', 'best', 'cell', 'cells', 'changed', 'changes', 'clear', 'colour', 'commands', 'cost', 'costs', 'counts', 'default', 'default_setting', 'difference', 'differences', 'drawn', 'dtype', 'error', 'errors', 'exam_error', 'face', 'fig', 'g', 'gate', 'gates', 'handles', 'history', 'in_bfloat16', 'in_float32', 'k', 'key', 'kinds', 'layer_counts', 'left', 'lengths', 'lens', 'llama', 'longest', 'losses', 'loud', 'mark', 'mean', 'means', 'middle', 'missing', 'my_rooms', 'my_score', 'n', 'n_layers', 'n_rooms', 'n_runs', 'n_seeds', 'name', 'names', 'new_commands', 'other_data', 'pairs', 'paper_layers', 'path', 'place', 'planned', 'prompts', 'quiet', 'rate', 'rates', 'real_rate', 'results', 'right', 'right_answers', 'room_counts', 'row', 'rows', 'rows_here', 'rows_of_a_step', 'rows_of_figure', 'rule', 'run', 'runs_per_cell', 'score', 'scores', 'seed', 'seeds', 'several', 'shares', 'short', 'sizes', 'softmax', 'start', 'std', 'stds', 'step', 'steps', 'studies', 'study', 'tokenizer', 'trained', 'training', 'where', 'x')

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
