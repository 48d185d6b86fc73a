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
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from llama_adapter_edu.adaption_prompt import AdaptionPrompt, Projection, prompt_keys_values
from llama_adapter_edu.image_prompts import add_image, attend_row_by_row, image_keys_values

PREFIX = "adaption_prompt_"


@dataclass
class AdapterState:
    """What a model knows of its adapters. All its attention layers share this one object."""

    configs: dict = field(default_factory=dict)
    active: str | None = None


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The stack of decoder layers inside a model with a head, or inside a multi-modal one."""
    base = model.base_model
    return next(
        (getattr(base, n) for n in ("language_model", "decoder", "model") if hasattr(base, n)), base
    )


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The self-attention modules of a decoder, bottom layer first.

    Raises:
        ValueError: not a transformers decoder, or one whose attention cannot take prompts.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"expected a transformers model, got {type(model).__name__}. "
            "Unwrap it first (accelerator.unwrap_model, or .base_model of a PEFT model)."
        )
    name = type(model).__name__
    layers = getattr(decoder_of(model), "layers", None)
    if not layers:
        raise ValueError(
            f"{name} has no decoder with a list of layers: prompts need one per layer."
        )
    found = [getattr(layer, "self_attn", None) for layer in layers]
    if missing := [i for i, attention in enumerate(found) if attention is None]:
        raise ValueError(f"{name}: layers {missing} have no self_attn to add prompts to.")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(
            f"{name} does not use transformers' attention interface, so prompts cannot be added to "
            "its attention. Llama, Mistral, Qwen, Phi-3, Gemma and OLMo models do."
        )
    for attention in found:
        _check_head_layout(attention)
    return found


def _check_head_layout(attention: nn.Module) -> None:
    """Refuse attention whose keys and values are not plain projections of the hidden states."""
    name = type(attention).__name__
    separate = hasattr(attention, "k_proj") and hasattr(attention, "v_proj")
    if not (separate or hasattr(attention, "qkv_proj")) or not hasattr(attention, "head_dim"):
        raise ValueError(
            f"{name} has an unusual head layout: expected head_dim, and k_proj and v_proj, or "
            "qkv_proj. Latent attention (DeepSeek) and GPT-2's and NeoX's fused layouts differ."
        )
    if separate:
        widths = attention.k_proj.out_features, attention.v_proj.out_features
        if widths[0] != widths[1] or widths[0] % attention.head_dim:
            raise ValueError(
                f"{name} has an unusual head layout: keys are {widths[0]} wide and values "
                f"{widths[1]}, expected the same multiple of head_dim={attention.head_dim}."
            )


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
        prompts = prompt.prompts if image is None else add_image(prompt.prompts, image)
        prompt_key, prompt_value = _keys_values(module, prompts.to(query.dtype), kept)
        attend = prompt
        if prompt_key.ndim == 4:
            attend = partial(attend_row_by_row, prompt)
            _check_rows(len(prompt_key), len(query))
        added = attend(query, prompt_key, prompt_value, kwargs.get("scaling"))
        return output + rearrange(added, "b h s d -> b s h d").to(output.dtype), weights

    return adapted_attention


def _check_rows(n_images: int, n_texts: int) -> None:
    if n_images != n_texts:
        raise ValueError(f"{n_images} images for {n_texts} texts: show each text one image.")


def active_prompt(attention: nn.Module) -> AdaptionPrompt | None:
    """The prompt that this attention layer uses now, if any."""
    state = getattr(attention, "adapter_state", None)
    if state is None or state.active not in attention.adaption_prompts:
        return None
    return attention.adaption_prompts[state.active]


def layer_keys_values(
    attention: nn.Module, prompts: Float[Tensor, "p m"]
) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
    """Keys and values of prompts through one layer's frozen projections and key norm.

    Some models normalise keys: over all heads at once (OLMo 2) or head by head (Qwen3, Gemma 3).
    Prompts' keys meet the same queries, so they take the same norm.
    """
    head_dim, norm = attention.head_dim, getattr(attention, "k_norm", None)
    key_proj, value_proj = _projections(attention)
    if norm is not None and norm.weight.shape == (attention.k_proj.out_features,):
        key_proj, norm = nn.Sequential(key_proj, norm), None
    key, value = prompt_keys_values(prompts, key_proj, value_proj, head_dim)
    if norm is not None:
        key = rearrange(norm(rearrange(key, "g p d -> p g d")), "p g d -> g p d")
    return key, value


def _projections(attention: nn.Module) -> tuple[Projection, Projection]:
    """The layer's key and value projections, cut out of a fused one where need be (Phi-3)."""
    if not hasattr(attention, "qkv_proj"):
        return attention.k_proj, attention.v_proj
    n_heads, n_kv_heads = attention.config.num_attention_heads, attention.config.num_key_value_heads
    widths = [n * attention.head_dim for n in (n_heads, n_kv_heads, n_kv_heads)]
    return (
        lambda x: attention.qkv_proj(x).split(widths, dim=-1)[1],
        lambda x: attention.qkv_proj(x).split(widths, dim=-1)[2],
    )


def _keys_values(
    attention: nn.Module,
    prompts: Float[Tensor, "... p m"],
    kept: dict | None,
) -> tuple[Float[Tensor, "... g p d"], Float[Tensor, "... g p d"]]:
    """The prompts' keys and values, from `kept` if an earlier step of this generation has them.

    Prompts with a picture (b p m) have them for each row: (b g p d).
    """
    of_layer = partial(layer_keys_values, attention)
    compute = of_layer if prompts.ndim == 2 else partial(image_keys_values, keys_values=of_layer)
    if kept is None:
        return compute(prompts)
    key = attention.layer_idx, attention.adapter_state.active
    if key not in kept:
        kept[key] = compute(prompts)
    return kept[key]


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
