"""What litgpt and the authors compute in an adapted attention layer, derived anew in a few lines.

Each layer takes the place of a transformers attention layer and has the other library's names of
parameters, its order of axes, and its rotary embedding. Facts are theirs, the code is ours.
"""

import torch
from einops import einsum, rearrange, repeat
from torch import nn


def rope_base(config):
    """The base of the rotary embedding; transformers 4 kept it elsewhere."""
    parameters = getattr(config, "rope_parameters", None)
    return parameters["rope_theta"] if parameters else config.rope_theta


def softmax_attention(query, key, value, causal):
    """(b h s d) from queries (b h s d), keys and values (1 or b, h, t, d)."""
    scores = einsum(query, key.expand(len(query), -1, -1, -1), "b h s d, b h t d -> b h s t")
    scores = scores / query.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).tril() == 0, -torch.inf)
    weights = scores.softmax(-1)
    return einsum(weights, value.expand(len(query), -1, -1, -1), "b h s t, b h t d -> b h s d")


class LitAttention(nn.Module):
    """litgpt: one fused projection, queries first; rotates (0, d/2), (1, d/2 + 1), ..."""

    def __init__(self, attention, adapter_len, gate_shape):
        super().__init__()
        config, projections = attention.config, (attention.q_proj, attention.k_proj)
        projections = (*projections, attention.v_proj)
        self.fused = torch.cat([projection.weight for projection in projections]).detach()
        self.proj = attention.o_proj
        self.h, self.g = config.num_attention_heads, config.num_key_value_heads
        self.d, self.theta = attention.head_dim, rope_base(config)
        self.adapter_wte = nn.Embedding(adapter_len, config.hidden_size)
        self.gating_factor = nn.Parameter(torch.zeros(gate_shape))

    def split(self, x):
        widths = [n * self.d for n in (self.h, self.g, self.g)]
        parts = (x @ self.fused.T).split(widths, dim=-1)
        q, k, v = (rearrange(part, "b s (n d) -> b n s d", d=self.d) for part in parts)
        k, v = (repeat(part, "b g s d -> b (g r) s d", r=self.h // self.g) for part in (k, v))
        return q, k, v

    def rotate(self, x):
        half = self.d // 2
        frequency = self.theta ** (-torch.arange(half) / half)
        angle = torch.arange(x.shape[2])[:, None] * frequency
        first, second = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def forward(self, hidden_states, **_):
        q, k, v = self.split(hidden_states)
        q, k = self.rotate(q), self.rotate(k)
        y = rearrange(softmax_attention(q, k, v, causal=True), "b h s d -> b s h d")
        _, ak, av = self.split(self.adapter_wte.weight[None])
        ay = rearrange(softmax_attention(q, ak, av, causal=False), "b h s d -> b s h d")
        gate = self.gating_factor
        if gate.shape[1] == self.h:  # lit-llama's axes
            gate = rearrange(gate, "1 h 1 1 -> 1 1 h 1")
        return self.proj(rearrange(y + gate * ay, "b s h d -> b s (h d)")), None


class OfficialAttention(nn.Module):
    """The authors, on Meta's LLaMA: rotates (0, 1), (2, 3), ..., so its q and k are permuted."""

    def __init__(self, attention, prompts, gate, tanh):
        super().__init__()
        config = attention.config
        self.h, self.d = config.num_attention_heads, attention.head_dim
        self.wq, self.wk = (self.to_meta(p.weight) for p in (attention.q_proj, attention.k_proj))
        self.wv, self.wo = attention.v_proj.weight, attention.o_proj.weight
        self.theta = rope_base(config)
        self.prompts, self.gate, self.tanh = prompts, gate, tanh

    def to_meta(self, weight):
        return rearrange(weight, "(h two half) m -> (h half two) m", h=self.h, two=2)

    def heads(self, x, weight):
        return rearrange(x @ weight.T, "b s (h d) -> b h s d", d=self.d)

    def rotate(self, x):
        pairs = torch.view_as_complex(rearrange(x, "... (half two) -> ... half two", two=2))
        half = self.d // 2
        frequency = self.theta ** (-torch.arange(half) / half)
        angle = torch.arange(x.shape[2])[:, None] * frequency
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle))
        return rearrange(turned, "... half two -> ... (half two)")

    def forward(self, hidden_states, **_):
        q, k = (self.rotate(self.heads(hidden_states, w)) for w in (self.wq, self.wk))
        v = self.heads(hidden_states, self.wv)
        key, value = (self.heads(self.prompts[None], w) for w in (self.wk, self.wv))
        gate = self.gate.tanh() if self.tanh else self.gate
        out = softmax_attention(q, k, v, causal=True)
        out = out + gate * softmax_attention(q, key, value, causal=False)
        return rearrange(out, "b h s d -> b s (h d)") @ self.wo.T, None
