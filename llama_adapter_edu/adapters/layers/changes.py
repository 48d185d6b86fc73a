"""What LLaMA-Adapter V2 changes at a linear layer or a norm, and the hooks through which it acts.

    decoder layer ── its `Call`, for this thread ──> hooks of its linear layers and norms

The head and the last norm lie outside of the layers. They ask which adapter acts now.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llama_adapter_edu.adapters.choice import AdapterState
from llama_adapter_edu.adapters.decoder import brought_here
from llama_adapter_edu.adapters.generation import Call, call_of, of_thread
from llama_adapter_edu.method.float32 import Float32Module


class Changes(nn.ModuleDict):
    """What the adapters change at one linear layer or norm: {adapter name: its part}."""

    def __init__(self, state: AdapterState) -> None:
        super().__init__()
        self.state = state


class NormWeights(Float32Module):
    """An adapter's own weights of a norm, at first those of the base."""

    def __init__(self, norm: nn.Module, device: torch.device | str) -> None:
        super().__init__()
        with brought_here(norm):
            for name, weight in norm.named_parameters(recurse=False):
                own = weight.detach().to(device, torch.float32, copy=True)
                self.register_parameter(name, nn.Parameter(own))


class SeenWith:
    """A module as a function sees it, with other weights or another config; it keeps its own."""

    def __init__(self, module: nn.Module, **others: Any) -> None:
        self.module = module
        for name, other in others.items():
            setattr(self, name, other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class _Remembering:
    """transformers' way to checkpoint a layer: what is computed again is so for the same `Call`."""

    def __init__(self, checkpoint: Callable) -> None:
        self.checkpoint = checkpoint

    def __call__(self, layer: Callable, *args: object) -> Any:
        call = of_thread.call
        return self.checkpoint(lambda *inputs: during(call, layer, *inputs), *args)


def hook_layer(layer: nn.Module, state: AdapterState) -> None:
    """Let a decoder layer tell its linear layers and norms for which call it computes."""
    layer.has_changes = state
    layer.register_forward_pre_hook(_enter, with_kwargs=True)
    layer.register_forward_hook(_leave, always_call=True)


def hook_norm(norm: nn.Module, state: AdapterState) -> None:
    """Make room for adapters' changes at a norm."""
    norm.changes = Changes(state)
    norm.register_forward_hook(_after_norm)


def hook_linear(linear: nn.Module, state: AdapterState) -> None:
    """Make room for adapters' changes at a linear layer."""
    linear.changes = Changes(state)
    linear.register_forward_pre_hook(_before_linear)
    linear.register_forward_hook(_after_linear)


def during(call: Call | None, function: Callable, *args: object) -> Any:
    """function(*args), in which linear layers and norms are those of this call."""
    before = of_thread.call
    of_thread.call = call
    try:
        return function(*args)
    finally:
        of_thread.call = before


def _enter(layer: nn.Module, args: tuple, kwargs: dict) -> None:
    hidden = args[0] if args else kwargs["hidden_states"]
    of_thread.call = kwargs.get("adapter_call") or call_of(layer.has_changes, len(hidden))
    checkpoint = vars(layer).get("_gradient_checkpointing_func")
    if checkpoint is not None and not isinstance(checkpoint, _Remembering):
        layer._gradient_checkpointing_func = _Remembering(checkpoint)


def _leave(layer: nn.Module, args: tuple, output: object) -> None:
    of_thread.call = None


def _before_linear(linear: nn.Module, args: tuple) -> tuple:
    if any(part.scaled == "input" for part in linear.changes.values()):
        return _of_rows(linear.changes, lambda part, x: part.before(x), args[0]), *args[1:]
    return args


def _after_linear(linear: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return _of_rows(linear.changes, lambda part, y: part.after(y), output)


def _after_norm(norm: nn.Module, args: tuple, output: Tensor) -> Tensor:
    forward = getattr(norm, "_old_forward", norm.forward)  # accelerate puts its own around it
    forward = getattr(forward, "__func__", type(norm).forward)

    def normed(part: NormWeights, x: Tensor, y: Tensor) -> Tensor:
        weights = {n: w.to(getattr(norm, n).dtype) for n, w in part.named_parameters()}
        return forward(SeenWith(norm, **weights), x)

    return _of_rows(norm.changes, normed, args[0], output)


def _of_rows(changes: Changes, change: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """change(part, *tensors) with the part of the adapter that acts; of each row, if rows differ.

    Where the adapter changes nothing here, the last of the tensors.
    """
    call = of_thread.call or call_of(changes.state, len(tensors[0]))
    if not isinstance(call.choice, tuple):
        part = changes[call.choice] if call.choice in changes else None  # noqa: SIM401  it has no get
        return tensors[-1] if part is None else _here(change, part, *tensors)
    if not any(name in changes for name in call.choice):
        return tensors[-1]
    if len(tensors[0]) != len(call.choice):
        raise ValueError(
            "a layer of this model lays the rows of a batch together, so rows cannot have biases, "
            "scales or norms of their own. Use one adapter at a time: use_adapter(model, name)."
        )
    order, results = [], []
    for name in dict.fromkeys(call.choice):
        rows = [row for row, of_row in enumerate(call.choice) if of_row == name]
        some = [tensor[rows] for tensor in tensors]
        results.append(_here(change, changes[name], *some) if name in changes else some[-1])
        order += rows
    return torch.cat(results)[[order.index(row) for row in range(len(order))]]


def _here(change: Callable[..., Tensor], part: nn.Module, *tensors: Tensor) -> Tensor:
    with brought_here(part):
        return change(part, *tensors)
