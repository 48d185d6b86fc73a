"""How gated prompts get into a transformers model: an attention function of our own.

transformers models look up the function that computes attention by name. This module registers a
second name for each such function, "adaption_prompt_sdpa" for "sdpa", that calls the first and adds
what the active prompts of the layer contribute. Queries, rotary embedding, masks, grouped heads and
caches stay the model's own.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from llama_adapter_edu.adaption_prompt import AdaptionPrompt, attend_to_heads
from llama_adapter_edu.decoder import decoder_of, layer_keys_values
from llama_adapter_edu.image_prompts import add_image, attend_row_by_row, image_keys_values

PREFIX = "adaption_prompt_"


@dataclass
class AdapterState:
    """What a model knows of its adapters. All its attention layers share this one object."""

    configs: dict = field(default_factory=dict)
    active: str | None = None


def switch_attention(model: PreTrainedModel) -> None:
    """Register the adapted twin of the model's attention function and switch the model to it.

    A model that already runs such a twin (its config is shared with an adapted one) keeps it.
    """
    base = decoder_of(model).config._attn_implementation.removeprefix(PREFIX)
    name = PREFIX + base
    AttentionInterface.register(name, _adapted(base))
    if base in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    model.set_attn_implementation(name)
    decoder_of(model).register_forward_pre_hook(_keep_with_words, with_kwargs=True)


def _adapted(base: str) -> Callable:
    """The attention function `base` plus the layer's active prompts."""

    def adapted_attention(
        module: nn.Module,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b g t d"],
        value: Float[Tensor, "b g t d"],
        attention_mask: Tensor | None,
        **kwargs,
    ) -> tuple[Float[Tensor, "b s h d"], Tensor | None]:
        # "eager" is not in the registry: each model file has its own.
        model_file = sys.modules[type(module).__module__]
        frozen = (
            model_file.eager_attention_forward
            if base == "eager"
            else model_file.ALL_ATTENTION_FUNCTIONS[base]
        )
        kept = kwargs.pop("prompt_keys_values", None)
        image = kwargs.pop("image_vector", None)
        output, weights = frozen(module, query, key, value, attention_mask, **kwargs)
        prompt = active_prompt(module)
        if prompt is None:
            return output, weights
        scale = kwargs.get("scaling")
        if image is not None:
            keys_values = _image_keys_values(module, prompt, query, image, kept)
            added = attend_row_by_row(prompt, query, *keys_values, scale)
        elif kept is not None:
            added = attend_to_heads(query, *_kept_heads(module, prompt, query, kept), scale)
        else:
            keys_values = layer_keys_values(module, prompt.prompts.to(query.dtype))
            added = prompt(query, *keys_values, scale)
        # No `rearrange` here: in decoding, reading its pattern would take longer than the addition.
        return output + added.transpose(1, 2).to(output.dtype), weights

    return adapted_attention


def _kept_heads(
    attention: nn.Module, prompt: AdaptionPrompt, query: Float[Tensor, "b h s d"], kept: dict
) -> tuple[Float[Tensor, "h p d"], Float[Tensor, "h p d"]]:
    """The layer's prompts as heads to attend to, computed once in a generation."""
    name = attention.layer_idx, attention.adapter_state.active
    if name in kept and prompt.kept_heads[0].dtype == query.dtype:
        return prompt.kept_heads
    keys_values = layer_keys_values(attention, prompt.prompts.to(query.dtype))
    heads = prompt.gated_heads(*keys_values, query.shape[1])
    if not torch.compiler.is_compiling():
        _keep_in_place(prompt, heads)
        kept[name] = True
    return heads


def _keep_in_place(prompt: AdaptionPrompt, heads: tuple[Tensor, Tensor]) -> None:
    """Copy heads to `prompt.kept_heads`, whose memory stays the same from then on.

    The CUDA graphs of a compiled model read a module's tensors where they are. All others they copy
    in every step, and for two a layer that takes longer than the attention to prompts itself.
    """
    old = prompt.kept_heads
    if old is None or (old[0].dtype, old[0].device) != (heads[0].dtype, heads[0].device):
        with torch.inference_mode(False):  # the next generation may write from outside of it
            prompt.kept_heads = tuple(
                torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in heads
            )
    for kept, new in zip(prompt.kept_heads, heads, strict=True):
        kept.copy_(new)


def _image_keys_values(
    attention: nn.Module,
    prompt: AdaptionPrompt,
    query: Float[Tensor, "b h s d"],
    image: Float[Tensor, "b m"],
    kept: dict | None,
) -> tuple[Float[Tensor, "b g p d"], Float[Tensor, "b g p d"]]:
    """Keys and values of the prompts with each row's picture; computed once in a generation."""
    if len(image) != len(query):
        raise ValueError(f"{len(image)} images for {len(query)} texts: show each text one image.")
    name = None if kept is None else (attention.layer_idx, attention.adapter_state.active)
    if name is not None and name in kept:
        return kept[name]
    prompts = add_image(prompt.prompts, image).to(query.dtype)
    keys_values = image_keys_values(prompts, partial(layer_keys_values, attention))
    if name is not None:
        kept[name] = keys_values
    return keys_values


def active_prompt(attention: nn.Module) -> AdaptionPrompt | None:
    """The prompt that this attention layer uses now, if any."""
    state = getattr(attention, "adapter_state", None)
    if state is None or state.active not in attention.adaption_prompts:
        return None
    return attention.adaption_prompts[state.active]


def _keep_with_words(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Keep the prompts' keys and values exactly as long as the words': in the same cache object.

    Never with gradients: keys kept in training would stop the prompts from learning (litgpt #1287).
    Those with a picture are kept until another picture, or none, comes with the next words.
    """
    words = kwargs.get("cache", kwargs.get("past_key_values"))  # renamed in transformers 5.24
    if isinstance(words, Cache) and not torch.is_grad_enabled():
        # The length of a static cache is a tensor, which a compiled graph cannot branch on.
        if not torch.compiler.is_compiling() and words.get_seq_length() == 0:
            words.prompt_keys_values = {}
        kept = kwargs["prompt_keys_values"] = getattr(words, "prompt_keys_values", None)
        image = kwargs.get("image_vector")
        if kept is not None and kept.get("image") is not image:
            kept.clear()
            kept["image"] = image
    return args, kwargs
