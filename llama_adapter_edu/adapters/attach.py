"""How gated prompts get into a transformers model: an attention function of our own.

transformers models look up the function that computes attention by name. This module registers a
second name for each such function, "adaption_prompt_sdpa" for "sdpa", that calls the first and adds
what the active prompts of the layer contribute. Queries, rotary embedding, masks, grouped heads and
caches stay the model's own.
"""

import sys
from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from llama_adapter_edu.adapters.decoder import decoder_of, layer_keys_values
from llama_adapter_edu.adapters.generation import keep_in_generations
from llama_adapter_edu.method.gated_prompts import AdaptionPrompt, attend_to_heads
from llama_adapter_edu.method.image_prompts import add_image, attend_row_by_row, image_keys_values

PREFIX = "adaption_prompt_"
PROMPT_ARGUMENTS = "image_vector", "kept_prompts", "prompts_to_keep"


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
    keep_in_generations(decoder_of(model))


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
        of_prompts = {name: kwargs.pop(name, None) for name in PROMPT_ARGUMENTS}
        output, weights = frozen(module, query, key, value, attention_mask, **kwargs)
        added = _from_prompts(module, query, kwargs.get("scaling"), **of_prompts)
        if added is not None:
            # No `rearrange`: in decoding, reading its pattern would take longer than the addition.
            output = output + added.transpose(1, 2).to(output.dtype)
        return output, weights

    return adapted_attention


def _from_prompts(
    attention: nn.Module,
    query: Float[Tensor, "b h s d"],
    scale: float | None,
    image_vector: Float[Tensor, "b m"] | None,
    kept_prompts: dict[int, tuple[Tensor, Tensor]] | None,
    prompts_to_keep: dict[int, tuple[Tensor, Tensor]] | None,
) -> Float[Tensor, "b h s d"] | None:
    """What the active prompts of this layer add to its heads; None if it has none."""
    layer = attention.layer_idx
    if kept_prompts is not None and image_vector is None:
        heads = kept_prompts.get(layer)
        return None if heads is None else attend_to_heads(query, *heads, scale)
    prompt = active_prompt(attention)
    if prompt is None:
        return None
    if image_vector is None:
        pair = layer_keys_values(attention, prompt.prompts.to(query.dtype))
        if prompts_to_keep is None:
            return prompt(query, *pair, scale)
        pair = prompt.gated_heads(*pair, query.shape[1])
        added = attend_to_heads(query, *pair, scale)
    else:
        seen = kept_prompts is not None
        pair = kept_prompts[layer] if seen else _seeing(attention, prompt, query, image_vector)
        added = attend_row_by_row(prompt, query, *pair, scale)
    if prompts_to_keep is not None:
        prompts_to_keep[layer] = pair
    return added


def _seeing(
    attention: nn.Module,
    prompt: AdaptionPrompt,
    query: Float[Tensor, "b h s d"],
    image: Float[Tensor, "b m"],
) -> tuple[Float[Tensor, "b g p d"], Float[Tensor, "b g p d"]]:
    """Keys and values of the prompts with each row's picture."""
    if len(image) != len(query):
        raise ValueError(f"{len(image)} images for {len(query)} texts: show each text one image.")
    prompts = add_image(prompt.prompts, image).to(query.dtype)
    return image_keys_values(prompts, partial(layer_keys_values, attention))


def active_prompt(attention: nn.Module) -> AdaptionPrompt | None:
    """The prompt that this attention layer uses now, if any."""
    state = getattr(attention, "adapter_state", None)
    if state is None or state.active not in attention.adaption_prompts:
        return None
    return attention.adaption_prompts[state.active]
