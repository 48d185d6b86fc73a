"""Adaption prompts in a transformers model: add, swap, switch off, count.

Where they attach is in `attach.py`; what they compute is in `method/gated_prompts.py`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.attach import switch_attention
from llama_adapter_edu.adapters.config import AdapterState, AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers, check_uncut, compute_device
from llama_adapter_edu.method.gated_prompts import AdaptionPrompt

ADAPTER_NAME = re.compile(r"[A-Za-z0-9_-]+")


def add_adaption_prompts(
    model: PreTrainedModel,
    config: AdaptionPromptConfig | None = None,
    adapter_name: str = "default",
) -> PreTrainedModel:
    """Give the topmost `adapter_layers` layers gated prompts, in place, and freeze the base model.

    The new adapter is made the active one, the only one that trains. Its gates are zero, so the
    model computes exactly what it did before.

    Args:
        model: a transformers decoder whose layers hold `self_attn` and use the attention interface.
        config: the adapter's settings; the defaults of `AdaptionPromptConfig` if None.
        adapter_name: letters, digits, "-" and "_".

    Returns:
        the same model.

    Raises:
        ValueError: the name is taken or malformed, the model has too few layers, or its attention
            cannot be adapted. The model is left as it was.
    """
    config = config or AdaptionPromptConfig()
    layers = attention_layers(model)
    if not isinstance(model, FSDPModule):  # its layers are whole while they compute
        check_uncut(layers)
    check_new_adapter(adapter_name, config, adapter_configs(model), len(layers))

    if not hasattr(model, "adapter_state"):
        switch_attention(model)
        model.requires_grad_(False)
        model.adapter_state = AdapterState()
        for attention in layers:
            attention.adapter_state, attention.adaption_prompts = (
                model.adapter_state,
                nn.ModuleDict(),
            )
    for attention in layers[len(layers) - config.adapter_layers :]:
        attention.adaption_prompts[adapter_name] = AdaptionPrompt(
            config.adapter_len,
            attention.config.hidden_size,
            attention.config.num_attention_heads,
            gate=config.gate,
            gate_activation=config.gate_activation,
            init_std=config.init_std,
            device=compute_device(attention),
        )
    model.adapter_state.configs[adapter_name] = config
    set_adapter(model, adapter_name)
    return model


def check_new_adapter(name: str, config: AdaptionPromptConfig, taken: dict, n_layers: int) -> None:
    """Raise ValueError if the model cannot take this adapter under this name."""
    if not ADAPTER_NAME.fullmatch(name):
        raise ValueError(f"adapter_name may hold letters, digits, '-' and '_', got {name!r:.80}.")
    if hasattr(nn.ModuleDict, name) or name in vars(nn.ModuleDict()):
        raise ValueError(f"adapter_name {name!r} is a word that PyTorch uses. Choose another.")
    if name in taken:
        raise ValueError(
            f"the model already has an adapter named {name!r}: {taken[name]}. Choose another "
            "adapter_name, or take the old one out first with remove_adapter(model, name)."
        )
    if config.adapter_layers > n_layers:
        raise ValueError(
            f"adapter_layers={config.adapter_layers}, but the model has {n_layers} layers. "
            f"Choose 1 to {n_layers}."
        )


def adapter_configs(model: nn.Module) -> dict[str, AdaptionPromptConfig]:
    """The model's adapters by name, with their settings; empty if it has none."""
    return dict(model.adapter_state.configs) if hasattr(model, "adapter_state") else {}


def adapter_prompts(model: PreTrainedModel, adapter_name: str) -> dict[int, AdaptionPrompt]:
    """The adapter's prompts by layer number, 0 at the bottom.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    check_adapter_name(model, adapter_name)
    return {
        number: attention.adaption_prompts[adapter_name]
        for number, attention in enumerate(attention_layers(model))
        if adapter_name in attention.adaption_prompts
    }


def check_adapter_name(model: PreTrainedModel, adapter_name: str) -> None:
    """Raise ValueError if the model has no adapter of that name."""
    configs = adapter_configs(model)
    if adapter_name not in configs:
        raise ValueError(f"no adapter named {adapter_name!r}; the model has {sorted(configs)}.")


def set_adapter(model: PreTrainedModel, adapter_name: str) -> None:
    """Make one adapter the active one, and the only one that trains. No weight is moved.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    check_adapter_name(model, adapter_name)
    model.adapter_state.active = adapter_name
    for attention in attention_layers(model):
        for name, prompt in attention.adaption_prompts.items():
            prompt.requires_grad_(name == adapter_name)


@contextmanager
def disable_adapter(model: PreTrainedModel) -> Iterator[None]:
    """Inside the `with` block the model is the base model again, bit for bit."""
    state = getattr(model, "adapter_state", AdapterState())
    active, state.active = state.active, None
    try:
        yield
    finally:
        state.active = active


def remove_adapter(model: PreTrainedModel, adapter_name: str) -> None:
    """Take an adapter out. The base stays frozen; if the adapter was active, none is then.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    check_adapter_name(model, adapter_name)
    for attention in attention_layers(model):
        if adapter_name in attention.adaption_prompts:
            del attention.adaption_prompts[adapter_name]
    del model.adapter_state.configs[adapter_name]
    if model.adapter_state.active == adapter_name:
        model.adapter_state.active = None
