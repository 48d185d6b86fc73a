"""Adaption prompts in a transformers model: add, choose, take out.

Where they attach is in `attach.py`; what they compute is in `method/gated_prompts.py`.
"""

import re
from functools import partial

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.attach import LayerView, attach, detach
from llama_adapter_edu.adapters.choice import check_names, forget_blocks, state_of
from llama_adapter_edu.adapters.config import AdaptionPromptConfig, CartridgeConfig
from llama_adapter_edu.adapters.decoder import (
    attention_layers,
    check_uncut,
    compute_device,
    decoder_of,
    unwrapped,
)
from llama_adapter_edu.adapters.generation import (
    IN_THREADS,
    Generate,
    hand_calls_to_layers,
    in_thread_of_its_own,
)
from llama_adapter_edu.adapters.layers.v2 import add_changes, all_changes, wanted_parts
from llama_adapter_edu.adapters.probe import probe
from llama_adapter_edu.method.cartridge import Cartridge
from llama_adapter_edu.method.gated_prompts import AdaptionPrompt

ADAPTER_NAME = re.compile(r"[A-Za-z0-9_-]+")


def add_adaption_prompts(
    model: PreTrainedModel,
    config: AdaptionPromptConfig | None = None,
    adapter_name: str = "default",
    *,
    freeze: bool = True,
) -> PreTrainedModel:
    """Give the topmost `adapter_layers` layers gated prompts, in place, and freeze the base model.

    The new adapter is made the active one, the only one that trains. Its gates are zero, so the
    model computes exactly what it did before. With `bias_scale` and `norms` it is one of V2.

    Args:
        model: a transformers decoder whose layers hold `self_attn` and use the attention interface,
            or such a model inside PEFT's. Merge or unload a LoRA before you add an adapter of V2:
            merged, the LoRA would go through V2's scales, and unloading takes biases and scales
            along.
        config: the adapter's settings; the defaults of `AdaptionPromptConfig` if None.
        adapter_name: letters, digits, "-" and "_".
        freeze: False leaves the base as it is: what trains there, as PEFT's LoRA, goes on training
            beside the prompts.

    Raises:
        ValueError: the name is taken or malformed, the model has too few layers, or its attention
            cannot be adapted. The model is left as it was.
    """
    layers = attention_layers(model)
    config = (config or AdaptionPromptConfig()).for_depth(len(layers))
    if not isinstance(unwrapped(model), FSDPModule):  # its layers are whole while they compute
        check_uncut(layers)
    check_new_name(model, adapter_name)
    if config.adapter_layers > len(layers):
        raise ValueError(
            f"adapter_layers={config.adapter_layers}, but the model has {len(layers)} layers. "
            f"Choose 1 to {len(layers)}."
        )
    first = len(layers) - config.adapter_layers
    adapted = dict(list(enumerate(layers))[first:]) if config.adapter_len else {}
    wanted_parts(model, config)  # refuses what V2 cannot change
    prepare(model, adapted, freeze=freeze)
    for attention in adapted.values():
        attention.adaption_prompts[adapter_name] = AdaptionPrompt(
            config.adapter_len,
            attention.config.hidden_size,
            attention.config.n_query_heads,
            gate=config.gate,
            gate_activation=config.gate_activation,
            init_std=config.init_std,
            device=compute_device(attention),
        )
    add_changes(model, config, adapter_name)
    state_of(model).configs[adapter_name] = config
    set_adapter(model, adapter_name)
    return model


def prepare(model: PreTrainedModel, layers: dict[int, nn.Module], *, freeze: bool) -> None:
    """Make these attention layers ready for adapters; with the first adapter, freeze the base.

    Raises:
        ValueError: a layer cannot be adapted. The model is as it was.
    """
    inner, decoder, state = unwrapped(model), decoder_of(model), state_of(model)
    new = {n: a for n, a in layers.items() if not isinstance(a.config, LayerView)}
    for number, attention in new.items():
        attach(attention, state, number)
    try:
        if new:
            # What is sharded comes together only when the whole model is called.
            probe(inner if isinstance(inner, FSDPModule) else decoder, new)
    except BaseException:
        for attention in new.values():
            detach(attention)
        raise
    if not hasattr(decoder, "adapter_state"):
        decoder.adapter_state = state
        hand_calls_to_layers(decoder)
        inner.generate = Generate(inner, state)
        for name in filter(partial(hasattr, type(inner)), IN_THREADS):
            setattr(inner, name, partial(in_thread_of_its_own, inner, state, name))
        if freeze:
            model.requires_grad_(False)


def check_new_name(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError if a new adapter cannot have this name."""
    taken = adapter_configs(model)
    if not ADAPTER_NAME.fullmatch(name):
        raise ValueError(f"adapter_name may hold letters, digits, '-' and '_', got {name!r:.80}.")
    if hasattr(nn.ModuleDict, name) or name in vars(nn.ModuleDict()):
        raise ValueError(f"adapter_name {name!r} is a word that PyTorch uses. Choose another.")
    if name in taken:
        raise ValueError(
            f"the model already has an adapter named {name!r}: {taken[name]}. Choose another "
            "adapter_name, or take the old one out first with remove_adapter(model, name)."
        )


def adapter_configs(model: nn.Module) -> dict[str, AdaptionPromptConfig | CartridgeConfig]:
    """The model's adapters by name, with their settings; empty if it has none."""
    return dict(state_of(model).configs)


def adapter_prompts(
    model: PreTrainedModel, adapter_name: str
) -> dict[int, AdaptionPrompt | Cartridge]:
    """The adapter's prompts, or its cartridge, by layer number, 0 at the bottom.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    check_adapter_name(model, adapter_name)
    adapted = _adapted_layers(model).items()
    return {n: prompts[adapter_name] for n, prompts in adapted if adapter_name in prompts}


def _adapted_layers(model: nn.Module) -> dict[int, nn.ModuleDict]:
    """The prompts of each attached layer, by layer number: {adapter name: its prompts there}."""
    layers = enumerate(attention_layers(model))
    return {n: a.adaption_prompts for n, a in layers if hasattr(a, "adaption_prompts")}


def check_adapter_name(model: PreTrainedModel, adapter_name: str) -> None:
    """Raise ValueError if the model has no adapter of that name."""
    check_names(state_of(model), (adapter_name,))


def set_adapter(model: PreTrainedModel, adapter_name: str) -> None:
    """Make one adapter the active one, and the only one that trains. No weight is moved.

    Called inside a `use_adapter` or `disable_adapter` block of the same thread or task, it holds
    there too: what was asked last holds.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    check_adapter_name(model, adapter_name)
    state = state_of(model)
    state.active = adapter_name
    forget_blocks(state)
    for parts in _parts(model):
        for name, part in parts.items():
            part.requires_grad_(name == adapter_name)
    for name, vision in vision_of(model).items():
        vision.set_trains(name == adapter_name)


def remove_adapter(model: PreTrainedModel, adapter_name: str) -> None:
    """Take an adapter out, with its image encoder. If it was active, none is then.

    The base stays frozen. A block in which the adapter acts, in this thread or task, goes on with
    the model's own choice.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    check_adapter_name(model, adapter_name)
    state = state_of(model)
    for parts in (*_parts(model), vision_of(model)):
        if adapter_name in parts:
            del parts[adapter_name]
    del state.configs[adapter_name]
    if state.active == adapter_name:
        state.active = None
    forget_blocks(state, adapter_name)


def _parts(model: nn.Module) -> list[nn.ModuleDict]:
    """All places in the model where adapters hold something: {adapter name: what}."""
    return [*_adapted_layers(model).values(), *(changes for _, changes in all_changes(model))]


def vision_of(model: nn.Module) -> nn.ModuleDict:
    """The `ImagePrompt` of each adapter that sees, by adapter name (see `vision/attach.py`)."""
    return getattr(decoder_of(model), "vision", None) or nn.ModuleDict()
