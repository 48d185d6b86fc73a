"""Keys and values of prompts, made as an attention layer makes those of its own tokens."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llama_adapter_edu.method.gated_prompts import Projection, prompt_keys_values

KEY_NORMS = "k_norm", "k_layernorm", "key_layernorm", "qk_norm"
VALUE_NORMS = ("v_norm",)
# Keys, gated values and, if some rows have fewer prompts, a mask. With b: each row has its own.
Heads = tuple[Float[Tensor, "*b h p d"], Float[Tensor, "*b h p d"], Bool[Tensor, "b 1 1 p"] | None]


def layer_keys_values(
    attention: nn.Module, prompts: Float[Tensor, "p m"]
) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
    """Keys and values of prompts through one layer's frozen projections, norms and clips.

    What comes before and after the projections differs between models: biases, a norm over all
    heads at once (OLMo 2) or head by head (Qwen 3, Gemma 3), a norm of the values (Gemma 4), a
    clip (OLMo). Prompts' keys meet the same queries as tokens' keys, so they go the same way. Only
    the turn of the rotary embedding is left out: prompts have no position. Where it also scales
    (YaRN), an adapted layer knows by how much.
    """
    pair = prompt_keys_values(prompts, *_projections(attention), attention.head_dim)
    norms = _first(attention, KEY_NORMS), _first(attention, VALUE_NORMS)
    key, value = (_normed(x, norm) for x, norm in zip(pair, norms, strict=True))
    clip = getattr(attention.config, "clip_qkv", None)
    if clip is not None:
        key, value = key.clamp(-clip, clip), value.clamp(-clip, clip)
    scale = getattr(attention.config, "key_scale", 1.0)
    return (key, value) if scale == 1 else (scale * key, value)


def _first(attention: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((norm for n in names if (norm := getattr(attention, n, None)) is not None), None)


def _normed(x: Float[Tensor, "g p d"], norm: nn.Module | None) -> Float[Tensor, "g p d"]:
    if norm is None:
        return x
    n_groups, _, head_dim = x.shape
    weight = getattr(norm, "weight", None)
    if weight is not None and weight.shape == (n_groups * head_dim,):  # over all heads at once
        normed = norm(rearrange(x, "g p d -> p (g d)"))
        return rearrange(normed, "p (g d) -> g p d", g=n_groups)
    return rearrange(norm(rearrange(x, "g p d -> p g d")), "p g d -> g p d")


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


def heads_of_rows(found: Mapping[str | None, Heads], names: Sequence[str | None]) -> Heads:
    """The heads of the adapter of each row, from those of each adapter (h p d).

    Rows without one get values of zero. Adapters may differ in the number of prompts p. Shorter
    ones are filled up with slots that the mask hides from the softmax.
    """
    most = max(key.shape[1] for key, _, _ in found.values())
    nothing = torch.zeros_like(next(key for key, _, _ in found.values() if key.shape[1] == most))
    lengths = [found[n][0].shape[1] if n in found else most for n in names]

    def of_rows(part: int) -> Tensor:
        parts = (found[n][part] if n in found else nothing for n in names)
        fill = (most - length for length in lengths)
        return torch.stack([F.pad(x, (0, 0, 0, m)) for x, m in zip(parts, fill, strict=True)])

    mask = None
    if min(lengths) < most:
        slots = torch.arange(most, device=nothing.device)
        mask = slots < torch.tensor(lengths, device=nothing.device)[:, None, None, None]
    return of_rows(0), of_rows(1), mask
