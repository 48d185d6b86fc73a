"""Cartridges in a transformers model: trained caches (arXiv 2506.06266), as adapters among others.

    document ── the model reads it once ── its cache: keys and values of every layer
                                              │ of the first p tokens
                                           Cartridge, which trains

Positions of a text begin behind the cartridge, as they would behind the document. So a cartridge
that is a document's whole cache computes what the model computes with the document before the text.
There is one difference: a document slides out of a layer's sliding window, a cartridge stays.
What is learnt, answers or a distribution, is up to the loss: see `training/distillation.py`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llama_adapter_edu.adapters.choice import disable_adapter, state_of
from llama_adapter_edu.adapters.config import CartridgeConfig
from llama_adapter_edu.adapters.decoder import (
    attention_layers,
    compute_device,
    evaluation,
    unwrapped,
)
from llama_adapter_edu.adapters.layers.prefix import heads_of
from llama_adapter_edu.adapters.manage import (
    adapter_configs,
    adapter_prompts,
    check_adapter_name,
    check_new_name,
    prepare,
    set_adapter,
)
from llama_adapter_edu.adapters.positions import CACHES
from llama_adapter_edu.method.cartridge import Cartridge

KeysValues = tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]


def add_cartridge(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "1 t"],
    config: CartridgeConfig | None = None,
    adapter_name: str = "default",
    *,
    freeze: bool = True,
) -> PreTrainedModel:
    """Give every layer a cartridge, in place, and freeze the base model.

    The cartridge starts as the cache of the document's first tokens. It is made the active adapter,
    the only one that trains. The model's attention has to be "sdpa" or "eager" while it acts.

    Args:
        model: as in `add_adaption_prompts`.
        input_ids: the document's tokens. The base model reads them once.
        config: how many tokens, and how many of them frozen; the defaults of `CartridgeConfig` if
            None.
        adapter_name: letters, digits, "-" and "_".
        freeze: False leaves the base as it is.

    Raises:
        ValueError: the name is taken or malformed, the document is shorter than the cartridge or
            not one row of tokens, or the model's cache has no place for it. The model is as it was.
    """
    check_new_name(model, adapter_name)
    config = _fitting(config or CartridgeConfig(), input_ids)
    layers = attention_layers(model)
    _check_whole(layers)
    cache = document_cache(model, input_ids[:, : config.num_virtual_tokens])
    if [*cache] != [*range(len(layers))]:
        raise ValueError(
            f"{type(unwrapped(model)).__name__} keeps a cache of keys and values for {len(cache)} "
            f"of its {len(layers)} layers. A cartridge needs one for each."
        )
    return put_cartridge(model, config, cache, adapter_name, freeze=freeze)


def document_cache(model: PreTrainedModel, input_ids: Int[Tensor, "1 t"]) -> dict[int, KeysValues]:
    """Keys and values of a document's tokens in the base model, by layer number."""
    base = unwrapped(model)
    cache, takes = DynamicCache(), inspect.signature(type(base).forward).parameters
    name = next((n for n in CACHES if n in takes), CACHES[-1])
    ids = input_ids.to(compute_device(base.get_input_embeddings()))
    with torch.no_grad(), evaluation(base), disable_adapter(model):
        base(input_ids=ids, use_cache=True, **{name: cache})
    kept = ((n, layer.keys, layer.values) for n, layer in enumerate(cache.layers))
    return {n: (key[0], value[0]) for n, key, value in kept if key is not None and key.ndim == 4}


def put_cartridge(
    model: PreTrainedModel,
    config: CartridgeConfig,
    cache: Mapping[int, KeysValues],
    adapter_name: str,
    *,
    freeze: bool = True,
) -> PreTrainedModel:
    """Add a cartridge of these keys and values, and make it the active adapter.

    Raises:
        ValueError: the name is taken or malformed, or a layer cannot be adapted.
    """
    layers = attention_layers(model)
    check_new_name(model, adapter_name)
    _check_whole(layers)
    prepare(model, dict(enumerate(layers)), freeze=freeze)
    for number, attention in enumerate(layers):
        key, value = (x.to(compute_device(attention)) for x in cache[number])
        part = Cartridge(key, value, config.num_frozen_tokens)
        attention.adaption_prompts[adapter_name] = part
    state_of(model).configs[adapter_name] = config
    set_adapter(model, adapter_name)
    return model


def compose_cartridges(
    model: PreTrainedModel, names: Sequence[str], adapter_name: str
) -> PreTrainedModel:
    """Make a new cartridge of several: one after the other, as if all documents had been read.

    Each keeps the positions that it was made at, as in PEFT. What is frozen of the first one stays
    frozen, all else trains. The new adapter is the active one; the old ones stay as they are.

    Raises:
        ValueError: fewer than two names, one of them is not a cartridge of the model, or the new
            name is taken or malformed.
    """
    for name in names:
        check_adapter_name(model, name)
    configs = [adapter_configs(model)[name] for name in names]
    if len(names) < 2 or not all(isinstance(config, CartridgeConfig) for config in configs):
        raise ValueError(f"compose_cartridges needs two cartridges or more, got {list(names)}.")
    check_new_name(model, adapter_name)
    parts = [cartridge_cache(model, name) for name in names]
    cache = {
        number: tuple(torch.cat(several, dim=1) for several in zip(*pairs, strict=True))
        for number, pairs in {n: [part[n] for part in parts] for n in parts[0]}.items()
    }
    length = sum(config.num_virtual_tokens for config in configs)
    return put_cartridge(model, replace(configs[0], num_virtual_tokens=length), cache, adapter_name)


def cartridge_cache(model: PreTrainedModel, adapter_name: str) -> dict[int, KeysValues]:
    """A copy on the CPU of a cartridge's keys and values, by layer number."""
    found = adapter_prompts(model, adapter_name).items()
    return {n: tuple(x.detach().cpu() for x in heads_of(part)) for n, part in found}


def _check_whole(layers: Sequence[nn.Module]) -> None:
    if any(hasattr(p, "placements") for attention in layers for p in attention.parameters()):
        raise ValueError(
            "the model's weights are spread over several processes, where a cartridge has not been "
            "tried. Load it whole, or take prompts."
        )


def _fitting(config: CartridgeConfig, input_ids: Tensor) -> CartridgeConfig:
    """The settings with `num_virtual_tokens` as a number that this document has."""
    if input_ids.ndim != 2 or len(input_ids) != 1 or input_ids.is_floating_point():
        raise ValueError(
            f"expected a document's token ids of shape (1, t), got {tuple(input_ids.shape)} of "
            f"{input_ids.dtype}: tokenizer(text, return_tensors='pt').input_ids makes them."
        )
    length = input_ids.shape[1]
    wanted = length if config.num_virtual_tokens is None else config.num_virtual_tokens
    if not 1 <= wanted <= length:
        raise ValueError(
            f"the document has {length} tokens, too few for a cartridge of {wanted}. Lower "
            "num_virtual_tokens, or pass more of the document."
        )
    return replace(config, num_virtual_tokens=wanted)
