"""Gated soft-prompt attention, the heart of LLaMA-Adapter (arXiv 2303.16199, section 3).

     prompts (p m)  learnt            query (b h s d)  from the frozen layer, rotated
          │ frozen key and value             │
          │ projections, no rotary           │
     key, value (g p d) ──── scores (b h s p) / sqrt(d)
                                   │ softmax over the p prompts alone
                                   │ x tanh(gate)   learnt, one per head, 0 at the start
                             weights (b h s p)
                                   │ weighted sum of the prompts' values
                             (b h s d)   added to the frozen attention, before o_proj

Shape legend: b batch, s query position, p prompt slot, h query head, g key/value head,
r query heads per key/value head (h = g * r), d head width, m model width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llama_adapter_edu.method.float32 import Float32Module

Projection = Callable[[Tensor], Tensor]


def prompt_keys_values(
    prompts: Float[Tensor, "p m"], key_layer: Projection, value_layer: Projection, head_dim: int
) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
    """Keys and values of the prompts, from the layer's own frozen projections (eq. 3 and 4).

    Prompts have no position, so no rotary embedding is applied.
    """
    key = rearrange(key_layer(prompts), "p (g d) -> g p d", d=head_dim)
    value = rearrange(value_layer(prompts), "p (g d) -> g p d", d=head_dim)
    return key, value


def prompt_scores(
    query: Float[Tensor, "b h s d"], prompt_key: Float[Tensor, "g p d"], scale: float | None = None
) -> Float[Tensor, "b h s p"]:
    """Score each query against each prompt (the prompt part of eq. 5).

    `scale` multiplies the dot products; 1 / sqrt(d) unless the model has its own.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = rearrange(query, "b (g r) s d -> b g r s d", g=prompt_key.shape[0])
    scores = einsum(query, prompt_key, "b g r s d, g p d -> b g r s p") * scale
    return rearrange(scores, "b g r s p -> b (g r) s p")


def prompt_attention(
    query: Float[Tensor, "b h s d"],
    prompt_key: Float[Tensor, "g p d"],
    prompt_value: Float[Tensor, "g p d"],
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """Attend to the prompts alone: a softmax of their own (in float32), then a weighted sum.

    This is the prompt half of eq. 7 and 8 before the gate. The tokens' softmax never sees it.
    """
    weights = prompt_scores(query, prompt_key, scale).float().softmax(dim=-1)
    weights = rearrange(weights, "b (g r) s p -> b g r s p", g=prompt_value.shape[0])
    attended = einsum(weights.to(prompt_value.dtype), prompt_value, "b g r s p, g p d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")


def gated_prompt_attention(
    query: Float[Tensor, "b h s d"],
    prompt_key: Float[Tensor, "g p d"],
    prompt_value: Float[Tensor, "g p d"],
    gate: Float[Tensor, "h"],
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """What the prompts add to each head: activation(gate) * prompt_attention (eq. 7).

    A gate of zero adds exactly nothing. A gate of one element serves all heads. `activation` is
    tanh, as printed in the ICLR 2024 edition, or the identity, as printed in arXiv v1. The result
    is added to the frozen attention's heads before o_proj (eq. 8).
    """
    opening = rearrange(activation(gate), "h -> h 1 1")
    attended = prompt_attention(query, prompt_key, prompt_value, scale)
    return (opening * attended).to(attended.dtype)


def attend_to_heads(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "*b h p d"],
    value: Float[Tensor, "*b h p d"],
    mask: Bool[Tensor, "b 1 1 p"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """Plain attention to the p keys of each head, in PyTorch's one kernel.

    Keys and values are the same for all rows (h p d), or each row has its own (b h p d). A slot
    where `mask` is False gets no attention.
    """
    if key.ndim == 3:
        key, value = (x.to(query.dtype).expand(len(query), -1, -1, -1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


GATE_ACTIVATIONS = {"tanh": torch.tanh, "identity": lambda gate: gate}


class AdaptionPrompt(Float32Module):
    """The learnt part of one adapted layer: `prompts` (p m) and `gate` (h, or 1 for "per_layer").

    Prompts start as N(0, init_std), the gate at exactly 0, so the model starts as the frozen one.
    Both stay float32 when the model is cast: in half precision small updates would be rounded away.
    """

    def __init__(
        self,
        adapter_len: int,
        model_width: int,
        n_heads: int,
        *,
        gate: str = "per_head",
        gate_activation: str = "tanh",
        init_std: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        n_gates = {"per_head": n_heads, "per_layer": 1}[gate]
        prompts = torch.empty(adapter_len, model_width, dtype=torch.float32, device=device)
        self.prompts = nn.Parameter(prompts.normal_(std=init_std))
        self.gate = nn.Parameter(torch.zeros(n_gates, dtype=torch.float32, device=device))
        self.gate_activation = gate_activation

    @property
    def gate_opening(self) -> Float[Tensor, "h"]:
        """How far each gate is open: activation(gate), 0 is closed."""
        return GATE_ACTIVATIONS[self.gate_activation](self.gate)

    def gated_heads(
        self,
        prompt_key: Float[Tensor, "*b g p d"],
        prompt_value: Float[Tensor, "*b g p d"],
        n_heads: int,
    ) -> tuple[Float[Tensor, "*b h p d"], Float[Tensor, "*b h p d"]]:
        """A key for each query head, and a value with the gate already in it.

        Rows may share keys and values, or have their own (b). The weighted sum of gated values is
        the gated weighted sum. So what is left of `gated_prompt_attention` is plain attention:
        `attend_to_heads`.
        """
        r = n_heads // prompt_key.shape[-3]
        pair = prompt_key, prompt_value
        key, value = (repeat(x, "... g p d -> ... (g r) p d", r=r) for x in pair)
        opening = rearrange(self.gate_opening, "h -> h 1 1")
        return key, (opening * value).to(value.dtype)

    def forward(
        self,
        query: Float[Tensor, "b h s d"],
        prompt_key: Float[Tensor, "g p d"],
        prompt_value: Float[Tensor, "g p d"],
        scale: float | None = None,
    ) -> Float[Tensor, "b h s d"]:
        """`gated_prompt_attention` with this layer's gate, the same up to rounding."""
        heads = self.gated_heads(prompt_key, prompt_value, query.shape[1])
        return attend_to_heads(query, *heads, scale=scale)
