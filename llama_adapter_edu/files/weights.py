"""One adapter outside a model: what all file formats are read into and written from.

The formats differ in what they can hold:

                         gate                      softmax weight of a prompt is multiplied by
    this library         (h) or (1), and its kind  tanh(gate) or gate, as its settings say
    PEFT                 (1)                       gate
    litgpt, lit-llama    (h)                       gate
    the authors          (h), once (1)             tanh(gate) in training, gate in inference

So a tanh can be computed once and stored, one gate can be copied to every head, but different gates
of different heads cannot be put into one number.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import brought_here, decoder_of
from llama_adapter_edu.adapters.layers.v2 import all_changes, new_part, wanted_parts
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts, add_adaption_prompts
from llama_adapter_edu.files.safe_files import FLOATS, AdapterFileError, check_tensors, shown
from llama_adapter_edu.method.gated_prompts import GATE_ACTIVATIONS


class Layout(NamedTuple):
    """How a format names the two tensors of a layer, given its number, and their shapes there."""

    keys: Callable[[int], tuple[str, str]]
    prompts: tuple[int, ...]
    gate: tuple[int, ...]


@dataclass(frozen=True)
class AdapterWeights:
    """Settings of an adapter and, by layer number, its `prompts` (p m) and `gates` (h, or 1).

    `v2` holds what LLaMA-Adapter V2 has more, by its place in the model, as
    "layers.0.mlp.up_proj.bias", "layers.0.input_layernorm.weight" or "lm_head.scale".
    """

    config: AdaptionPromptConfig
    prompts: dict[int, Float[Tensor, "p m"]]
    gates: dict[int, Float[Tensor, "h"]]
    v2: dict[str, Float[Tensor, "n"]] = field(default_factory=dict)


def weights_of(model: PreTrainedModel, adapter_name: str) -> AdapterWeights:
    """A copy on the CPU of one of the model's adapters.

    Raises:
        ValueError: the model has no adapter of that name, or a part of it is no longer there.
    """
    config, prompts, gates = adapter_configs(model).get(adapter_name), {}, {}
    for number, prompt in adapter_prompts(model, adapter_name).items():
        with brought_here(prompt):
            prompts[number] = prompt.prompts.detach().cpu().clone()
            gates[number] = prompt.gate.detach().cpu().clone()
    v2 = {name: numbers.detach().cpu().clone() for name, numbers in _v2_of(model, adapter_name)}
    if missing := v2_shapes(model, config).keys() - v2.keys():
        raise ValueError(
            f"{len(missing)} parts of adapter {adapter_name!r} are no longer in the model, as "
            f"{min(missing)}. Has PEFT merged or unloaded what was around them? Do that before you "
            "add an adapter of V2."
        )
    if prompts:
        config = replace(config, adapter_layers=len(prompts))
    return AdapterWeights(config, prompts, gates, v2)


def _v2_of(model: PreTrainedModel, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """What an adapter has of LLaMA-Adapter V2, named as in `AdapterWeights.v2`."""
    for place, changes in all_changes(model):
        if adapter_name in changes:
            with brought_here(changes[adapter_name]):
                for name, numbers in changes[adapter_name].named_parameters():
                    yield f"{place}.{name}", numbers


def v2_shapes(model: PreTrainedModel, config: AdaptionPromptConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of `AdapterWeights.v2` in an adapter of these settings.

    Raises:
        ValueError: the model cannot have such an adapter.
    """
    parts = {n: new_part(m, config, "meta") for n, m in wanted_parts(model, config).items()}
    return {
        f"{name}.{own}": tuple(numbers.shape)
        for name, part in parts.items()
        for own, numbers in part.named_parameters()
    }


def put_into(model: PreTrainedModel, weights: AdapterWeights, adapter_name: str) -> PreTrainedModel:
    """Add the adapter to a model whose shape it fits, in place, and make it the active one.

    Raises:
        ValueError: the name is taken or malformed. The model is as it was.
    """
    add_adaption_prompts(model, weights.config, adapter_name)
    with torch.no_grad():
        for number, prompt in adapter_prompts(model, adapter_name).items():
            prompt.prompts.copy_(weights.prompts[number])
            prompt.gate.copy_(weights.gates[number])
        for name, numbers in _v2_of(model, adapter_name):
            numbers.copy_(weights.v2[name])
    return model


def as_tensors(weights: AdapterWeights, layout: Layout) -> dict[str, Tensor]:
    """Prompts and gates as tensors of a file, by name; -1 in the layout's shapes is filled in."""
    tensors = {}
    for number, prompts in weights.prompts.items():
        prompts_key, gate_key = layout.keys(number)
        tensors[prompts_key] = prompts.reshape(layout.prompts)
        tensors[gate_key] = weights.gates[number].reshape(layout.gate)
    return tensors


def from_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: AdaptionPromptConfig,
    top: int,
    layout: Layout,
    v2: Mapping[str, tuple[int, ...]] | None = None,
) -> AdapterWeights:
    """The adapter in the tensors of the file `path`, for a model of `top` layers.

    Args:
        v2: names and shapes of the tensors that a file of LLaMA-Adapter V2 has more.

    Raises:
        AdapterFileError: they are not exactly those of the layout, or not finite floats.
    """
    if config.adapter_layers > top:
        raise AdapterFileError(
            f"{path}: {config.adapter_layers} layers have prompts, but the model has {top}."
        )
    layers = range(top - config.adapter_layers, top) if config.adapter_len else ()
    shapes = dict(v2 or {})
    for number in layers:
        shapes |= zip(layout.keys(number), (layout.prompts, layout.gate), strict=True)
    check_tensors(path, tensors, shapes, FLOATS)
    prompts, gates = {}, {}
    for number in layers:
        prompts_key, gate_key = layout.keys(number)
        prompts[number] = tensors[prompts_key].float().reshape(layout.prompts[-2:])
        gates[number] = tensors[gate_key].float().flatten()
    return AdapterWeights(
        config, prompts, gates, {name: tensors[name].float() for name in v2 or {}}
    )


def without_tanh(weights: AdapterWeights, gate: str, n_heads: int, format: str) -> AdapterWeights:
    """The same adapter for a format that multiplies by the gate itself, "per_head" or "per_layer".

    Raises:
        ValueError: the format has one gate a layer, and the heads of a layer have different ones.
    """
    activation = GATE_ACTIVATIONS[weights.config.gate_activation]
    gates = {number: activation(gate).expand(n_heads) for number, gate in weights.gates.items()}
    if gate == "per_layer":
        for number, heads in gates.items():
            if (heads != heads[0]).any():
                raise ValueError(
                    f"{format} has one gate a layer, but the heads of layer {number} have gates "
                    f"from {heads.min():.3f} to {heads.max():.3f}: what each head learnt would be "
                    'lost. Train with AdaptionPromptConfig(gate="per_layer"), or save in another '
                    "format."
                )
        gates = {number: heads[:1] for number, heads in gates.items()}
    config = replace(weights.config, gate=gate, gate_activation="identity")
    return replace(weights, config=config, gates=gates)


def turned(
    weights: AdapterWeights, shape: Mapping[str, int], turn: Callable[[Tensor, int], Tensor]
) -> AdapterWeights:
    """The same adapter, its biases and scales of queries and keys by `from_meta_rotary` or back.

    A scale of their inputs has no heads, and stays.
    """
    heads = {"q_proj": shape["num_attention_heads"], "k_proj": shape["num_key_value_heads"]}
    v2 = dict(weights.v2)
    for name, numbers in v2.items():
        *_, part, kind = name.split(".")
        if part in heads and (kind == "bias" or weights.config.scaled == "output"):
            v2[name] = turn(numbers, heads[part])
    return replace(weights, v2=v2)


def refuse_more(path: Path, names: Iterable[str], known: re.Pattern) -> None:
    """Raise AdapterFileError if a file has other tensors than those of an adapter."""
    if more := sorted(name for name in names if not known.fullmatch(name)):
        raise AdapterFileError(
            f"{path} holds more than an adapter, as {shown(more[0])}, which would be lost here: it "
            "may be a whole model, or of a method that is not known here."
        )


def base_shape(model: PreTrainedModel) -> dict:
    """What of the base model an adapter depends on."""
    names = "model_type hidden_size num_hidden_layers num_attention_heads num_key_value_heads"
    return {name: getattr(decoder_of(model).config, name) for name in names.split()}


def from_meta_rotary(x: Float[Tensor, "hd"], n_heads: int) -> Float[Tensor, "hd"]:
    """What belongs to queries or keys, from Meta's order to that of transformers.

    Meta's LLaMA rotates neighbours of a head, (0, 1), (2, 3), ...; transformers rotates (0, d/2),
    (1, d/2 + 1), ...
    """
    return rearrange(x, "(h half two) -> (h two half)", h=n_heads, two=2)


def to_meta_rotary(x: Float[Tensor, "hd"], n_heads: int) -> Float[Tensor, "hd"]:
    """The way back of `from_meta_rotary`."""
    return rearrange(x, "(h two half) -> (h half two)", h=n_heads, two=2)
