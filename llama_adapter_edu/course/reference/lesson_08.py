"""Solutions of lesson 08: what a failed check falls back to.

Generated from solutions/08_what_matters.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'8.1': 'mean_and_error', '8.2': 'paired_difference', '8.3': 'cheapest_good_cell', '8.4': 'share_unmoved'}
STUBS = {'8.1': '5a8614fda27b', '8.2': '38959677d956', '8.3': 'b94d15b9aaf9', '8.4': '5f45e4c4fe6d'}
GIVEN = ('MY_LAYERS', 'MY_SEED', '_', 'a', 'activation', 'answers', 'ax', 'axes', 'bars', 'best', 'cell', 'cells', 'changed', 'changes', 'clear', 'colour', 'commands', 'cost', 'costs', 'counts', 'default', 'default_setting', 'difference', 'differences', 'drawn', 'dtype', 'error', 'errors', 'exam_error', 'face', 'fig', 'g', 'gate', 'gates', 'handles', 'history', 'in_bfloat16', 'in_float32', 'k', 'key', 'kinds', 'layer_counts', 'left', 'lengths', 'lens', 'llama', 'longest', 'losses', 'loud', 'mark', 'mean', 'means', 'middle', 'missing', 'my_rooms', 'my_score', 'n', 'n_layers', 'n_rooms', 'n_runs', 'n_seeds', 'name', 'names', 'new_commands', 'other_data', 'pairs', 'paper_layers', 'path', 'place', 'planned', 'prompts', 'quiet', 'rate', 'rates', 'real_rate', 'results', 'right', 'right_answers', 'room_counts', 'row', 'rows', 'rows_here', 'rows_of_a_step', 'rows_of_figure', 'rule', 'run', 'runs_per_cell', 'score', 'scores', 'seed', 'seeds', 'several', 'shares', 'short', 'sizes', 'softmax', 'start', 'std', 'stds', 'step', 'steps', 'studies', 'study', 'tokenizer', 'trained', 'training', 'where', 'x')
CELLS = ('f4a19fe4029b', 'edd2523ebc7b', 'c8e52dd96c27', '0c80e0d5b911', '2428d07f5047', 'e6b4e9e6cb5e', '395da05507b1', '6e2bd6d6d416', '68198e590aa2', '5f1b28c14650', 'b7cd5267971d', '0810f66723d9', '38d4df8c1679', '8e2ee670101d', '3b9517dea792', '8771348b1387', '831660a44248', '08851f0d1053', 'ac54041ddd6d', '594d11a6b3dd', '5d2335b8677b', '6845343768b7', '40e0fc1b34e1', '8b041de13ba8', '579e8d2e88af', '016db616d8e6', 'be2a2ce2ace8', '24d0e06a7d1e')
CHECKS = {'8.1': '@check("8.1", "mean_and_error")\ndef _():\n    # 1, 2, 6: the mean is 3, the squared deviations are 4 + 1 + 9 = 14\n    pair = mean_and_error(torch.tensor([1.0, 2.0, 6.0]))\n    assert isinstance(pair, tuple) and len(pair) == 2, "return two numbers: mean, error"\n    mean, error = pair\n    assert_close(mean, 3.0, mistakes={"this is the median": 2.0}, what="the mean")\n    mistakes = {\n        "this is the spread of single runs; the mean of n runs is steadier: divide by sqrt(n)": (\n            (14 / 2) ** 0.5\n        ),\n        "divide the squares by n - 1, not by n: the mean was made from the same scores": (\n            (14 / 3 / 3) ** 0.5\n        ),\n        "divide by the square root of n, not by n": (14 / 2) ** 0.5 / 3,\n        "this is the variance of the mean; take its square root": 14 / 2 / 3,\n    }\n    assert_close(error, (14 / 2 / 3) ** 0.5, mistakes=mistakes, what="the error")\n    mean, error = mean_and_error(torch.tensor([4.0]))\n    assert mean == 4 and error != 0, "one run says nothing about the spread: its error is not 0"\n    assert math.isnan(error), "one run says nothing about the spread: return float(\'nan\')"', '8.2': '@check("8.2", "paired_difference")\ndef _():\n    # seed 7 ran with one setting only; the seeds stand in another order\n    some, others = {0: 0.5, 3: 0.9, 4: 0.3, 7: 0.0}, {4: 0.2, 0: 0.3, 3: 0.6}\n    pair = paired_difference(some, others)\n    assert isinstance(pair, tuple) and len(pair) == 2, "return two numbers: mean, error"\n    # the differences are 0.2, 0.3, 0.1\n    mistakes = {\n        "the sign: take changed - default": -0.2,\n        "seed 7 has no partner: leave it out": 1.7 / 4 - 1.1 / 3,\n    }\n    assert_close(pair[0], 0.2, mistakes=mistakes, what="the mean")\n    one_by_one = math.hypot(\n        torch.tensor([0.5, 0.9, 0.3]).std().item(), torch.tensor([0.2, 0.3, 0.6]).std().item()\n    )\n    mistakes = {\n        "pair by seed, not by place: the dictionaries stand in another order": (\n            torch.tensor([0.3, 0.6, -0.3]).std().item() / 3**0.5\n        ),\n        "these are the errors of both means, added; take the error of the differences": (\n            one_by_one / 3**0.5\n        ),\n        "this is the spread of the differences; their mean\'s error is smaller by sqrt(n)": 0.1,\n    }\n    assert_close(pair[1], 0.1 / 3**0.5, mistakes=mistakes, what="the error")', '8.3': '@check("8.3", "cheapest_good_cell")\ndef _():\n    # The best mean is 0.90, with an error of 0.03: the line is at 0.87.\n    cells = {\n        40: torch.tensor([0.88, 0.89, 0.90]),\n        8: torch.tensor([0.85, 0.86, 0.855]),\n        50: torch.tensor([0.84, 0.90, 0.96]),\n        1: torch.tensor([0.30, 0.31, 0.32]),\n        20: torch.tensor([0.87, 0.88, 0.89]),\n        10: torch.tensor([0.76, 0.86, 0.96]),\n    }\n    chosen = cheapest_good_cell(cells)\n    assert chosen != 50, "50 is the best cell, but a cheaper one is nearly as good"\n    assert chosen != 1, "1 is the cheapest of all, and far from good: its mean is below the line"\n    assert chosen != 10, "10 got the benefit of its own error; subtract the error of the best cell"\n    assert chosen != 8, "the line is too low: use the standard error, not the spread of the runs"\n    assert chosen != 40, "40 is good enough, and so is a cheaper one: look at all cells"\n    assert chosen == 20, f"the cheapest cell with a mean of at least 0.87 is 20, got {chosen!r}"', '8.4': '@check("8.4", "share_unmoved")\ndef _():\n    # Above 4 the neighbours in bfloat16 are 1/32 apart, above 1 it is 1/128, above 0.5 it is\n    # 1/256, around 0.1 it is 1/2048. A step of 0.003 is lost if it is below half of that.\n    numbers = torch.tensor([6.01, -1.51, 1.26, 0.76, 0.101, -0.123, 0.52])\n    share = share_unmoved(numbers, step=0.003)\n    assert isinstance(share, float), f"return a float, not {type(share).__name__}"\n    mistakes = {\n        "this is the share that moves": 4 / 7,\n        "nothing is lost here: round the numbers to bfloat16 first, then the result": 0.0,\n        "this is how many do not move; a share lies between 0 and 1: take the mean": 3.0,\n    }\n    assert_close(share, 3 / 7, mistakes=mistakes)\n    assert share_unmoved(torch.tensor([1.5, 3.0]), step=1.0) == 0, "a large step moves everything"\n    assert share_unmoved(torch.tensor([1.5, 3.0]), step=1e-6) == 1, "a tiny step moves nothing"'}

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
