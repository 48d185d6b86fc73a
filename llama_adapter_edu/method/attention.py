"""A Llama's attention, written with einops.

                      hidden (b s m)
          ┌────────────────┼────────────────┐
     query_layer       key_layer       value_layer
          │                │                │
    (b s (h d))       (b s (g d))      (b s (g d))       split_heads
          │                │                │
    (b h s d)         (b g s d)        (b g s d)
          │ rotary         │ rotary         │
          │                └── cache ───────┤            + the t - s tokens before
          │           (b g t d)        (b g t d)
          └───── causal_attention ──────────┘            softmax over t, the tokens up to s
                      (b h s d)                          merge_heads
                      (b s (h d))
                      output_layer
                      (b s m)

Shape legend: b batch, s query position, t key position, h query head, g key/value head,
r query heads per key/value head (h = g * r), d head width, m model width.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn


def split_heads(x: Float[Tensor, "b s hd"], head_dim: int) -> Float[Tensor, "b h s d"]:
    """Cut the last axis into heads of width `head_dim` (d); put the head axis before the tokens."""
    return rearrange(x, "b s (h d) -> b h s d", d=head_dim)


def merge_heads(x: Float[Tensor, "b h s d"]) -> Float[Tensor, "b s hd"]:
    """Undo `split_heads`: lay the heads of each token side by side again."""
    return rearrange(x, "b h s d -> b s (h d)")


def repeat_kv_heads(x: Float[Tensor, "b g t d"], n_repeats: int) -> Float[Tensor, "b h t d"]:
    """Give each key/value head to `n_repeats` (r) neighbouring query heads: h reads g = h // r."""
    return repeat(x, "b g t d -> b (g r) t d", r=n_repeats)


def attention_scores(
    query: Float[Tensor, "b h s d"], key: Float[Tensor, "b h t d"]
) -> Float[Tensor, "b h s t"]:
    """Score each query against each key: dot product over d, divided by sqrt(d) (paper eq. 5)."""
    return einsum(query, key, "b h s d, b h t d -> b h s t") * query.shape[-1] ** -0.5


def causal_softmax(scores: Float[Tensor, "b h s t"]) -> Float[Tensor, "b h s t"]:
    """Turn scores into weights over the tokens up to each query; later tokens get weight 0.

    With a cache there are fewer queries than keys: the s queries are the last s of the t positions.
    """
    n_queries, n_keys = scores.shape[-2:]
    query_position = torch.arange(n_keys - n_queries, n_keys, device=scores.device)
    key_position = torch.arange(n_keys, device=scores.device)
    is_later = rearrange(key_position, "t -> 1 t") > rearrange(query_position, "s -> s 1")
    return scores.masked_fill(is_later, float("-inf")).softmax(dim=-1)


def causal_attention(
    query: Float[Tensor, "b h s d"], key: Float[Tensor, "b g t d"], value: Float[Tensor, "b g t d"]
) -> Float[Tensor, "b h s d"]:
    """Causal grouped-query attention: each query reads a weighted mean of the values before it."""
    n_repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv_heads(key, n_repeats), repeat_kv_heads(value, n_repeats)
    weights = causal_softmax(attention_scores(query, key))
    return einsum(weights, value, "b h s t, b h t d -> b h s d")


def rotary_tables(
    position: Int[Tensor, "b s"], head_dim: int, theta: float
) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b s d"]]:
    """Cosine and sine of the rotary angles (radians): position * theta^(-2i/d) for pair i of d/2.

    Pair i is made of the entries i and i + d/2 (the layout of transformers' Llama), so each angle
    stands twice. Source: RoPE, arXiv 2104.09864, eq. 15.
    """
    pair = torch.arange(0, head_dim, 2, device=position.device).float()
    frequency = theta ** (-pair / head_dim)
    angle = einsum(position.float(), frequency, "b s, i -> b s i")
    angle = repeat(angle, "b s i -> b s (two i)", two=2)
    return angle.cos(), angle.sin()


def apply_rotary(
    x: Float[Tensor, "b h s d"], cos: Float[Tensor, "b s d"], sin: Float[Tensor, "b s d"]
) -> Float[Tensor, "b h s d"]:
    """Turn each pair of entries (i, i + d/2) by its token's angle; lengths stay as they are."""
    first, second = rearrange(x, "b h s (two i) -> two b h s i", two=2)
    quarter_turn = rearrange([-second, first], "two b h s i -> b h s (two i)")
    cos, sin = rearrange(cos, "b s d -> b 1 s d"), rearrange(sin, "b s d -> b 1 s d")
    return x * cos + quarter_turn * sin


@dataclass
class KeyValueCache:
    """The keys and values (b g t d) of the tokens read so far, empty at first."""

    key: Float[Tensor, "b g t d"] | None = None
    value: Float[Tensor, "b g t d"] | None = None

    def __len__(self) -> int:
        return 0 if self.key is None else self.key.shape[2]

    def append(
        self, key: Float[Tensor, "b g s d"], value: Float[Tensor, "b g s d"]
    ) -> tuple[Float[Tensor, "b g t d"], Float[Tensor, "b g t d"]]:
        """Add the keys and values of s new tokens; return those of all t tokens."""
        if self.key is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        self.key, self.value = key, value
        return key, value


class AttentionLayer(nn.Module):
    """One attention layer of a Llama, with the contract that `wrapped_layer.py` wraps.

    It has `head_dim`, `key_layer` and `value_layer`, and its forward returns
    `(hidden_state, query_states)`. There is no padding mask: rows are taken as unpadded.

    Args:
        query_layer, key_layer, value_layer, output_layer: linear layers m -> h*d, m -> g*d,
            m -> g*d and h*d -> m.
        head_dim: width d of one head.
        theta: base of the rotary frequencies.
    """

    def __init__(
        self,
        query_layer: nn.Module,
        key_layer: nn.Module,
        value_layer: nn.Module,
        output_layer: nn.Module,
        head_dim: int,
        theta: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.query_layer, self.key_layer = query_layer, key_layer
        self.value_layer, self.output_layer = value_layer, output_layer
        self.head_dim, self.theta = head_dim, theta

    @classmethod
    def from_llama(cls, attention: nn.Module) -> "AttentionLayer":
        """Share the weights of a transformers `LlamaAttention` (nothing is copied).

        Raises:
            ValueError: the model uses a scaled rotary embedding (Llama 3.1 and later), which this
                teaching layer does not compute.
        """
        config = attention.config
        # transformers 5 moved the rotary settings into one dictionary.
        rope = (
            getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        )
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(
                f"AttentionLayer knows the plain rotary embedding, this model has {kind!r}. "
                "Use the transformers layer itself, with add_adaption_prompts."
            )
        theta = rope.get("rope_theta") or config.rope_theta
        projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        return cls(*projections, attention.head_dim, theta)

    def forward(
        self, hidden_states: Float[Tensor, "b s m"], cache: KeyValueCache | None = None
    ) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
        """Attend causally; `cache` holds the earlier tokens and is extended in place.

        Returns:
            the layer's output, after `output_layer`, and the rotated queries.
        """
        query = split_heads(self.query_layer(hidden_states), self.head_dim)
        key = split_heads(self.key_layer(hidden_states), self.head_dim)
        value = split_heads(self.value_layer(hidden_states), self.head_dim)

        start = 0 if cache is None else len(cache)
        end = start + hidden_states.shape[1]
        position = torch.arange(start, end, device=hidden_states.device)
        cos, sin = rotary_tables(rearrange(position, "s -> 1 s"), self.head_dim, self.theta)
        cos, sin = cos.to(query.dtype), sin.to(query.dtype)
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

        if cache is not None:
            key, value = cache.append(key, value)
        attended = causal_attention(query, key, value)
        return self.output_layer(merge_heads(attended)), query
