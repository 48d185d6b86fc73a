"""Where things are in a transformers decoder: its layers, their attention, their projections."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from llama_adapter_edu.method.gated_prompts import Projection, prompt_keys_values


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


def check_uncut(layers: list[nn.Module]) -> None:
    """Raise ValueError if one of these attention layers holds only a part of its weights."""
    for number, attention in enumerate(layers):
        if any(hasattr(parameter, "placements") for parameter in attention.parameters()):
            raise ValueError(
                f"the weights of layer {number} are cut into pieces, one for each process. Load "
                "the model without a tensor-parallel plan (tp_plan), add the adapters to the whole "
                "model, and then call shard_base(model) if it must be spread over several GPUs."
            )


def compute_device(attention: nn.Module) -> torch.device:
    """Where this layer computes: where its weights are, or are brought to when they are needed."""
    for projection in attention.children():
        hook = getattr(projection, "_hf_hook", None)  # accelerate's, on offloaded weights
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(attention.parameters()).device
