"""Trials of small numbers: which modules of a model compute what `fused.py` can fuse.

Model files differ under the same names: a norm may add 1 to its weight, an MLP may have a limit or
dropout. So what counts is what comes out.
"""

import copy
import inspect
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama_adapter_edu.method.attention import apply_rotary


def eps_of(norm: nn.Module) -> float:
    """What a norm adds under its root, as model files call it."""
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _agree(compute: Callable[[], Tensor], expected: Callable[[], Tensor]) -> bool:
    """Whether a trial on the CPU gives these numbers. A module of another kind may fail anyhow."""
    try:
        with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return torch.allclose(compute(), expected(), atol=1e-5, rtol=1e-4)
    except Exception:
        return False


def _takes_one(module: nn.Module) -> bool:
    """Whether its forward takes hidden states and nothing else."""
    return len(inspect.signature(type(module).forward).parameters) == 2


def is_plain_norm(module: nn.Module) -> bool:
    """Whether this is x / rms(x) * weight, over the last axis."""
    weights = dict(module.named_parameters(recurse=False))
    if "RMSNorm" not in type(module).__name__ or [*weights] != ["weight"]:
        return False
    if weights["weight"].ndim != 1 or not _takes_one(module):
        return False
    x = torch.linspace(-3, 2, 24, device="cpu").reshape(3, 8)
    weight = torch.linspace(0.5, 1.5, 8, device="cpu")
    trial = copy.copy(module)
    trial._parameters = {"weight": nn.Parameter(weight)}

    def expected() -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps_of(module)).sqrt() * weight

    return _agree(lambda: type(module).forward(trial, x), expected)


def is_gated_mlp(module: nn.Module) -> bool:
    """Whether this is down(silu(gate(x)) * up(x)), for large numbers and in training, too."""
    parts = dict(module.named_children())
    if parts.keys() != {"gate_proj", "up_proj", "down_proj", "act_fn"} or not _takes_one(module):
        return False
    # Far from zero, some MLPs have a limit. In training, some have dropout.
    x = torch.linspace(-200, 300, 256, device="cpu").reshape(64, 4)
    weights = torch.linspace(-1, 1, 48, device="cpu").reshape(3, 4, 4)
    gate, up, down = (partial(F.linear, weight=weight) for weight in weights)

    def in_mode(training: bool) -> Tensor:
        trial = copy.copy(module)
        trial._modules = {"act_fn": module.act_fn}
        vars(trial).update(gate_proj=gate, up_proj=up, down_proj=down, training=training)
        return type(module).forward(trial, x)

    return _agree(
        lambda: torch.stack([in_mode(True), in_mode(False)]),
        lambda: down(F.silu(gate(x)) * up(x)).expand(2, -1, -1),
    )


@cache
def is_rotary(function: Callable) -> bool:
    """Whether this function of q, k, cos and sin turns both as a Llama's does."""
    x = torch.linspace(-1, 1, 64, device="cpu").reshape(1, 2, 4, 8)
    angle = torch.tensor([1.0, 0.7, 0.3, 0.1] * 2, device="cpu")
    angle = torch.arange(4.0, device="cpu")[None, :, None] * angle
    cos, sin = angle.cos(), angle.sin()
    return _agree(
        lambda: torch.stack(function(x, -x, cos, sin)),
        lambda: torch.stack([apply_rotary(x, cos, sin), apply_rotary(-x, cos, sin)]),
    )
