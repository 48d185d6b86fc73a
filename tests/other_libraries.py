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


class V2Llama:
    """A Llama of V2 in float32, which finds its adapter by another library's names.

    Subclasses say what a linear layer and a norm are, and how queries and keys are rotated.
    """

    def __init__(self, base, tensors, meta):
        self.weights = {n: w.detach() for n, w in base.state_dict().items()}
        self.tensors, self.meta, self.used = tensors, meta, set()
        config = base.config
        self.h, self.g = config.num_attention_heads, config.num_key_value_heads
        self.layers, self.d = config.num_hidden_layers, base.model.layers[0].self_attn.head_dim
        self.theta, self.eps = rope_base(config), config.rms_norm_eps
        if meta:
            for name, n in (("q", self.h), ("k", self.g)):
                for i in range(self.layers):
                    key = f"model.layers.{i}.self_attn.{name}_proj.weight"
                    turned = "(n two half) m -> (n half two) m"
                    self.weights[key] = rearrange(self.weights[key], turned, n=n, two=2)

    def find(self, name):
        self.used.add(name)
        return self.tensors.get(name)

    def unused(self):
        return self.tensors.keys() - self.used

    def norm(self, x, own, theirs):
        weight = self.find(theirs)
        weight = self.weights[own] if weight is None else weight
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight

    def rotate(self, x):
        half = self.d // 2
        angle = torch.arange(x.shape[2])[:, None] * self.theta ** (-torch.arange(half) / half)
        pairs = "(half two)" if self.meta else "(two half)"
        a, b = rearrange(x, f"b n s {pairs} -> two b n s half", two=2)
        turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])
        return rearrange(turned, f"two b n s half -> b n s {pairs}")

    def attend(self, i, x, prompts, gate):
        def qkv(x):
            parts = zip(self.qkv(i, x), (self.h, self.g, self.g), strict=True)
            q, k, v = (rearrange(y, "b s (n d) -> b n s d", n=n) for y, n in parts)
            r = self.h // self.g
            return q, *(repeat(y, "b g s d -> b (g r) s d", r=r) for y in (k, v))

        q, k, v = qkv(x)
        q, k = self.rotate(q), self.rotate(k)
        out = softmax_attention(q, k, v, causal=True)
        if prompts is not None:
            _, k, v = qkv(prompts[None])
            out = out + gate * softmax_attention(q, k, v, causal=False)
        return rearrange(out, "b h s d -> b s (h d)")

    def __call__(self, ids):
        with torch.no_grad():
            return self.forward(ids)


class LitV2Llama(V2Llama):
    """litgpt's `scale * (linear(x) + bias)`, with its names; `meta` for those of lit-llama."""

    LITGPT = ("attn.qkv", "attn.proj", "mlp.fc_1", "mlp.fc_2", "mlp.proj", "norm_1", "norm_2")
    LIT_LLAMA = ("attn.c_attn", "attn.c_proj", "mlp.c_fc1", "mlp.c_fc2", "mlp.c_proj")
    LIT_LLAMA = (*LIT_LLAMA, "rms_1", "rms_2")

    def linear(self, x, weight, name):
        bias, scale = self.find(f"{name}.adapter_bias"), self.find(f"{name}.adapter_scale")
        y = x @ weight.T
        return y if bias is None else scale * (y + bias)

    def qkv(self, i, x):
        own = f"model.layers.{i}.self_attn"
        weights = [self.weights[f"{own}.{n}_proj.weight"] for n in "qkv"]
        y = self.linear(x, torch.cat(weights), f"transformer.h.{i}.{self.names[0]}")
        return y.split([len(w) for w in weights], dim=-1)

    @property
    def names(self):
        return self.LIT_LLAMA if self.meta else self.LITGPT

    def forward(self, ids):
        _, proj, fc_1, fc_2, down, norm_1, norm_2 = self.names
        kind = "scale" if self.meta else "weight"
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(self.layers):
            own, theirs = f"model.layers.{i}", f"transformer.h.{i}"
            prompts = self.find(f"{theirs}.attn.adapter_wte.weight")
            gate = self.find(f"{theirs}.attn.gating_factor")
            if gate is not None:
                gate = rearrange(gate, "1 h 1 1 -> h 1 1" if self.meta else "1 1 h 1 -> h 1 1")

            def mlp(x, n, name, own=own, theirs=theirs):
                return self.linear(
                    x, self.weights[f"{own}.mlp.{n}_proj.weight"], f"{theirs}.{name}"
                )

            y = self.norm(x, f"{own}.input_layernorm.weight", f"{theirs}.{norm_1}.{kind}")
            y = self.attend(i, y, prompts, gate)
            o = self.weights[f"{own}.self_attn.o_proj.weight"]
            x = x + self.linear(y, o, f"{theirs}.{proj}")
            y = self.norm(x, f"{own}.post_attention_layernorm.weight", f"{theirs}.{norm_2}.{kind}")
            y = torch.nn.functional.silu(mlp(y, "gate", fc_1)) * mlp(y, "up", fc_2)
            x = x + mlp(y, "down", down)
        x = self.norm(x, "model.norm.weight", f"transformer.ln_f.{kind}")
        return self.linear(x, self.weights["lm_head.weight"], "lm_head")


class MetaV2Llama(V2Llama):
    """The authors' `W (scale * x) + bias` on Meta's LLaMA, with random numbers of its own."""

    def __init__(self, base, adapter_len, n_adapted, has):
        super().__init__(base, {}, meta=True)
        torch.manual_seed(5)
        own = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj"}
        own |= {"wo": "self_attn.o_proj"}
        own |= {"w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}
        self.own, self.adapter_len, self.first = own, adapter_len, self.layers - n_adapted
        t = self.tensors
        for i in range(self.layers):
            t[f"layers.{i}.attention.gate"] = torch.zeros(1, self.h, 1, 1)
            if adapter_len and i >= self.first:
                t[f"layers.{i}.attention.gate"].normal_()
            for name, place in own.items():
                where = "attention" if place.startswith("self_attn") else "feed_forward"
                n_out, n_in = self.weights[f"model.layers.{i}.{place}.weight"].shape
                if "bias" in has:
                    t[f"layers.{i}.{where}.{name}_bias"] = 0.3 * torch.randn(n_out)
                if "scale" in has:
                    t[f"layers.{i}.{where}.{name}_scale"] = 1 + 0.3 * torch.randn(n_in)
            if "norm" in has:
                width = base.config.hidden_size
                t[f"layers.{i}.attention_norm.weight"] = torch.randn(width)
                t[f"layers.{i}.ffn_norm.weight"] = torch.randn(width)
        if "norm" in has:
            t["norm.weight"] = torch.randn(base.config.hidden_size)
        if adapter_len:
            rows = adapter_len * n_adapted
            t["adapter_query.weight"] = torch.randn(rows, base.config.hidden_size)

    def linear(self, x, i, name):
        where = f"layers.{i}.{'attention' if name in ('wq', 'wk', 'wv', 'wo') else 'feed_forward'}"
        scale, bias = self.find(f"{where}.{name}_scale"), self.find(f"{where}.{name}_bias")
        x = x if scale is None else x * scale
        y = x @ self.weights[f"model.layers.{i}.{self.own[name]}.weight"].T
        return y if bias is None else y + bias

    def qkv(self, i, x):
        return [self.linear(x, i, name) for name in ("wq", "wk", "wv")]

    def forward(self, ids):
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(self.layers):
            own, theirs, prompts, gate = f"model.layers.{i}", f"layers.{i}", None, None
            if self.adapter_len and i >= self.first:
                rows = self.tensors["adapter_query.weight"]
                start = (i - self.first) * self.adapter_len
                prompts = rows[start : start + self.adapter_len]
                gate = self.tensors[f"layers.{i}.attention.gate"][0].tanh()
            y = self.norm(x, f"{own}.input_layernorm.weight", f"{theirs}.attention_norm.weight")
            x = x + self.linear(self.attend(i, y, prompts, gate), i, "wo")
            y = self.norm(
                x, f"{own}.post_attention_layernorm.weight", f"layers.{i}.ffn_norm.weight"
            )
            y = torch.nn.functional.silu(self.linear(y, i, "w1")) * self.linear(y, i, "w3")
            x = x + self.linear(y, i, "w2")
        return self.norm(x, "model.norm.weight", "norm.weight") @ self.weights["lm_head.weight"].T
