"""Solutions of lesson 10: what a failed check falls back to.

Generated from solutions/10_finetune_on_a_gpu.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'10.1': 'real_learning_rate, learning_rate_factor', '10.2': 'accumulate', '10.3': 'update', '10.4': 'save_run, load_run'}
CHECKS = {'10.1': 'cfdf54b22040', '10.2': 'da7b42edde2c', '10.3': '422336ab159f', '10.4': 'a5a09d2758c3'}
STUBS = {'10.1': '11c76b2e0bc6', '10.2': 'a250b4a8a1ac', '10.3': 'cca67e888dd1', '10.4': 'e677068c04ed'}
GIVEN = ('_', 'accelerator', 'adapter', 'after', 'answer', 'ax', 'base', 'before', 'chat', 'colour', 'commands', 'conditions', 'count', 'counts', 'dtype', 'epoch', 'expert', 'folder', 'forget_at', 'four_rows', 'gates', 'gradient', 'history', 'ids', 'key', 'learnt', 'left', 'lengths', 'llama', 'llama_7b', 'logits', 'loss', 'losses', 'marker', 'mean', 'means', 'megabytes', 'memory', 'messages', 'method', 'methods', 'model', 'name', 'one', 'paper', 'paper_adapter', 'part', 'parts', 'path', 'peak', 'profile', 'pulled', 'right', 'row', 'runs', 'said', 'score', 'scores', 'seconds', 'seconds_of_three', 'sentence', 'share', 'shares', 'shown', 'size', 'sizes', 'speed', 'start', 'step', 'steps', 'stored', 'style', 'sums', 'swap', 'test_commands', 'test_messages', 'tokenizer', 'total', 'trainable', 'trained', 'training', 'update')

import os
from collections.abc import Sequence
from pathlib import Path
import torch
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.loss import answer_loss_sum
from torch import nn
from llama_adapter_edu.training.config import real_learning_rate, learning_rate_factor


def accumulate(
    model: nn.Module, micro_batches: Sequence[dict[str, torch.Tensor]], scale: float = 1.0
) -> float:
    """Forward and backward over a step's micro-batches; gradients add up in the parameters.

    Each micro-batch has `input_ids`, `attention_mask` and `labels`, all (b s). Returns the mean
    loss over the labelled tokens of all micro-batches. The gradients are `scale` times its own.
    """
    n_tokens = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        loss_sum, _ = answer_loss_sum(model, batch)
        loss = loss_sum / n_tokens
        (loss * scale).backward()
        total += loss.item()
    return total


def update(optimizer: torch.optim.Optimizer, max_grad_norm: float, scale: float = 1.0) -> bool:
    """Step with the gradients divided by `scale` and clipped; skip if one is not finite.

    Returns whether the optimiser stepped. All gradients are cleared.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad /= scale
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    finite = bool(norm.isfinite())
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite


def save_run(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write what trains, the optimiser's state and the steps done; a whole file or none."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".unfinished"))
    os.replace(path.with_suffix(".unfinished"), path)


def load_run(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved run into model and optimiser, in place. Returns the steps done."""
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
