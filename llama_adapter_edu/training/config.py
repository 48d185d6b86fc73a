"""Settings of a training run, and what follows from them: learning rate, optimiser, batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import nn

from llama_adapter_edu.data.batches import length_grouped_batches


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run.

    Args:
        steps: optimiser steps.
        batch_size: rows a step learns from, over all processes (the effective batch).
        learning_rate: its highest value, after `warmup_steps` of linear rise; from there it follows
            half a cosine to 0. A real rate, not one per 256 rows as in the authors' code.
        weight_decay: on prompts and cartridges; gates, biases, scales and norms are not decayed.
        max_grad_norm: gradients are scaled down to this norm.
        seed: of the order of the rows, and of whatever is random inside a step.
        micro_batch_size: rows that are in memory at once, in each process; None for all that the
            step gives it. It changes memory and speed, not what is learnt.

    Raises:
        ValueError: a number is out of range.
    """

    steps: int = 80
    batch_size: int = 8
    learning_rate: float = 3e-2
    warmup_steps: int = 5
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    seed: int = 0
    micro_batch_size: int | None = None

    def __post_init__(self) -> None:
        may_be_zero = ("warmup_steps", "weight_decay", "seed")
        for name, value in vars(self).items():
            if value is None and name == "micro_batch_size":
                continue
            if not (value >= 0 if name in may_be_zero else value > 0):
                least = "0 or more" if name in may_be_zero else "above 0"
                raise ValueError(f"{name} must be {least}, got {value!r}.")


def real_learning_rate(base_rate: float, batch_size: int) -> float:
    """The rate that runs where a base rate "per 256 rows" is given, as in the authors' code.

    `batch_size` is the effective one: the rows that a step learns from, over all processes.
    """
    return base_rate * batch_size / 256


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at `step`: linear warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW on what trains, with weight decay on matrices (prompts) and none on vectors (gates).

    Raises:
        ValueError: nothing trains, it is offloaded, or only a piece of it is in this process.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("nothing in this model trains: call add_adaption_prompts(model) first.")
    if any(hasattr(parameter, "placements") for parameter in trainable):
        raise ValueError("what trains is cut into pieces: freeze the base, adapters stay whole.")
    if any(parameter.is_meta for parameter in trainable):
        raise ValueError("what trains is offloaded: offload the base, and then add the adapters.")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    on_gpu = all(parameter.is_cuda for parameter in trainable)
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=on_gpu or None)


def training_batches(lengths: Sequence[int], config: TrainingConfig) -> list[list[int]]:
    """Row numbers of each step: as many passes over the data as `steps` need."""
    batches: list[list[int]] = []
    while len(batches) < config.steps:
        seed = config.seed + len(batches)
        batches += length_grouped_batches(lengths, config.batch_size, seed=seed)
    return batches[: config.steps]
