# %% [markdown]
# # Lesson 03: Soft prompts
#
# *60 minutes. Needs lessons 01 and 02.*
#
# At the end you will have
#
# * prompts that are no tokens, and the attention that lets tokens read them,
# * a picture of what they would do to the tokens if both shared one softmax,
# * a number for what it costs that prompts have no position.
#
# Letters: `b` batch, `s` query position, `t` key position, `p` prompt slot, `h` query head, `g`
# key/value head, `r` query heads per key/value head (h = g · r), `d` head width, `m` model width.
#
# From here on we use the library's copies of the functions that you wrote in lessons 01 and 02.

# %%
import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    disable_adapter,
    load_llama,
)
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course import (
    assert_close,
    assert_gradients,
    assert_results,
    assert_shape,
    check,
    predict,
    unpacked,
)
from llama_adapter_edu.course.figures import BLUE, ORANGE, heatmap, mark_negative, use_style
from llama_adapter_edu.method.attention import (
    AttentionLayer,
    apply_rotary,
    attention_scores,
    causal_softmax,
    repeat_kv_heads,
    rotary_tables,
    split_heads,
)
from llama_adapter_edu.method.gated_prompts import Projection
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutput

use_style()
model, tokenizer = load_llama()
model.requires_grad_(False)
print(f"{len(model.model.layers)} layers, all frozen")

# %% [markdown]
# ## A sentence inside the Llama
#
# We stop the Llama at layer 10 of its layers 0 to 29, while it reads one sentence. `hidden` is what
# the attention of that layer is given: one vector per token. `layer` is your attention layer of
# lesson 02, with the Llama's own weights. It also hands back its rotated queries. They will read
# the prompts.

# %%
sentence = "Make it 80% for the lights of the upstairs office"
input_ids = tokenizer(sentence, return_tensors="pt").input_ids
tokens = [tokenizer.decode(token).strip() or "␣" for token in input_ids[0]]

block = model.model.layers[10]
layer = AttentionLayer.from_llama(block.self_attn)
with torch.no_grad():
    states = model(input_ids, output_hidden_states=True).hidden_states[10]
    hidden = block.input_layernorm(states)
    _, query = layer(hidden)

print(" | ".join(tokens))
print("hidden  b s m   ", tuple(hidden.shape))
print("query   b h s d ", tuple(query.shape))

# %% [markdown]
# ## A prompt that is no token
#
# You can steer a Llama with text: you put tokens in front of the question. What the Llama takes of
# a token is one row of a table with 49,152 rows. So text can only *choose* among these rows.
#
# The layers never see the text, though. They see vectors. So why not give them vectors that
# stand in no table, and *learn* them? Such a vector is a **soft prompt**. LLaMA-Adapter gives
# each adapted layer prompts of its own, straight to its attention: 10 in the paper.

# %%
torch.manual_seed(0)
prompts = torch.randn(10, 576)  # how the published implementations start: N(0, 1)

size = {"a token at layer 10": hidden, "a prompt": prompts}
for name, vectors in size.items():
    typical = vectors.square().mean().sqrt()
    print(f"{name}: {vectors.shape[-1]} numbers of typical size {typical:.2f}")
print(f"numbers to learn in this layer: {prompts.numel()}")

# %% [markdown]
# Random prompts mean nothing yet, and they are four times as large as tokens. Keep this in mind.
#
# A query can only read keys and values. Tokens get theirs from the layer's key layer and value
# layer. Prompts take the same two, and these stay frozen. So the prompts learn to speak a language
# that the layer already knows.
#
# The paper writes this down for one token, $t_l$: the one that asks in layer $l$. $T_l$ are the
# tokens before it, $P_l$ the prompts of the layer. $K$ prompts and $M$ tokens before it make scores
# for $K + M + 1$ keys.
#
# | eq. | in the paper | in our letters | in code |
# |---|---|---|---|
# | 2 | $Q_l = \mathrm{Linear}_q(t_l)$ | `b s m` → `b h s d` | `query_layer(hidden)`: only tokens ask |
# | 3 | $K_l = \mathrm{Linear}_k([P_l; T_l; t_l])$ | `p m` → `g p d` for the prompts | `key_layer(prompts)`, exercise 3.1 |
# | 4 | $V_l = \mathrm{Linear}_v([P_l; T_l; t_l])$ | `p m` → `g p d` for the prompts | `value_layer(prompts)`, exercise 3.1 |
# | 5 | $S_l = Q_l K_l^T / \sqrt{C} \in \mathbb{R}^{1 \times (K+M+1)}$ | `b h s p` and `b h s t` | `prompt_scores`, exercise 3.2, and `attention_scores` |
#
# Two things to know. The paper has one letter, $C$, for the width and leaves the heads out; with
# heads it is the width of one head, $\sqrt{d}$, by which all implementations divide. And it leaves
# out the rotation of queries and keys.
#
# In the exercise, `Projection` is the type of the two layers: anything that makes a tensor of a
# tensor, such as a linear layer.

# %% [markdown] tags=["card"]
# ### Exercise 3.1 · Prompts become keys and values
#
# *easy ●○○ · 8 minutes*
#
# Send the prompts through both layers. Split the results into key/value heads, heads first.
# No rotary embedding. Both layers are frozen, but gradients must still reach the prompts.
#
# ![Prompts p m go through the frozen key_layer and the frozen value_layer to p (g d), and are
# split into heads: prompt key and prompt value, g p d](figures/03_prompt_path.svg)
#
# <details><summary>Hint 1: direction</summary>
#
# It is what `split_heads` did with tokens in lesson 01, twice, and there is no batch axis.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `key_layer(prompts)` has the axes `p (g d)`. Move `g` to the front. You know `d`: `head_dim`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `key = rearrange(key_layer(_____), "p (_ _) -> _ p d", d=_____)`, and the same for the values
# with the other layer.
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.gated_prompts"
def prompt_keys_values(
    prompts: Float[Tensor, "p m"], key_layer: Projection, value_layer: Projection, head_dim: int
) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
    """Keys and values of the prompts, from the frozen key and value layer (eq. 3 and 4).

    `key_layer` and `value_layer` map vectors of width m to vectors of width g * d.
    """
    ### BEGIN SOLUTION
    # ~ key = ...
    # ~ value = ...
    key = rearrange(key_layer(prompts), "p (g d) -> g p d", d=head_dim)
    value = rearrange(value_layer(prompts), "p (g d) -> g p d", d=head_dim)
    return key, value
    ### END SOLUTION


# %% tags=["check"]
@check("3.1", "prompt_keys_values", p=[5, 7], g=[2, 3], d=[4, 6])
def _(p, g, d):
    prompts = torch.randn(p, 12)  # of width m = 12
    key_layer, value_layer = nn.Linear(12, g * d), nn.Linear(12, g * d)
    key_layer.requires_grad_(False), value_layer.requires_grad_(False)
    keys, values = key_layer(prompts), value_layer(prompts)
    right_key, right_value = (torch.stack(x.split(d, dim=-1)) for x in (keys, values))
    tables = rotary_tables(rearrange(torch.arange(p), "p -> 1 p"), d, 100_000.0)
    without_bias = (
        torch.stack(F.linear(prompts, x.weight).split(d, dim=-1)) for x in (key_layer, value_layer)
    )
    mistakes = {
        "prompts have no position: do not rotate their keys": (
            apply_rotary(right_key[None], *tables)[0],
            None,
        ),
        "call key_layer and value_layer: their weights alone leave out the bias": tuple(
            without_bias
        ),
        f"a head takes one number in {g}: write (g d), not (d g)": tuple(
            rearrange(x, "p (d g) -> g p d", d=d) for x in (keys, values)
        ),
        "the prompts are mixed: view cannot move the heads to the front, rearrange can": (
            keys.view(g, p, d),
            values.view(g, p, d),
        ),
        "they come from value_layer; the keys come from key_layer": (right_value, None),
        "they come from key_layer; the values come from value_layer": (None, right_key),
    }
    mine = prompt_keys_values(prompts, key_layer, value_layer, head_dim=d)
    right = {"the keys": right_key, "the values": right_value}
    assert_results(mine, right, "g p d", mistakes=mistakes)
    what = "both layers are frozen, the prompts are not"
    assert_gradients(prompt_keys_values, prompts, key_layer, value_layer, d, what=what)


# %% [raw] tags=["wrong"] says="write (g d), not (d g)"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    key = rearrange(key_layer(prompts), "p (d g) -> g p d", d=head_dim)
    value = rearrange(value_layer(prompts), "p (d g) -> g p d", d=head_dim)
    return key, value
"""

# %% [raw] tags=["wrong"] says="the values come from value_layer"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    key = value = rearrange(key_layer(prompts), "p (g d) -> g p d", d=head_dim)
    return key, value
"""

# %% [raw] tags=["wrong"] says="no gradient reaches `prompts`"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    with torch.no_grad():
        key = rearrange(key_layer(prompts), "p (g d) -> g p d", d=head_dim)
        value = rearrange(value_layer(prompts), "p (g d) -> g p d", d=head_dim)
    return key, value
"""

# %% [raw] tags=["wrong"] says="key/value heads and prompt slots look swapped"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    key = rearrange(key_layer(prompts), "p (g d) -> p g d", d=head_dim)
    value = rearrange(value_layer(prompts), "p (g d) -> p g d", d=head_dim)
    return key, value
"""

# %% [raw] tags=["wrong"] says="or a new Parameter cuts it"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    prompts = nn.Parameter(prompts)
    key = rearrange(key_layer(prompts), "p (g d) -> g p d", d=head_dim)
    value = rearrange(value_layer(prompts), "p (g d) -> g p d", d=head_dim)
    return key, value
"""

# %% [raw] tags=["wrong"] says="the keys and the values look swapped"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    both = torch.stack([value_layer(prompts), key_layer(prompts)])
    return rearrange(both, "two p (g d) -> two g p d", d=head_dim).unbind()
"""

# %% [raw] tags=["wrong"] says="the keys come from key_layer"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    key = rearrange(value_layer(prompts), "p (g d) -> g p d", d=head_dim)
    value = rearrange(value_layer(prompts), "p (g d) -> g p d", d=head_dim)
    return key, value
"""

# %% [raw] tags=["wrong"] says="the values come from value_layer"
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    key = rearrange(key_layer(prompts), "p (g d) -> g p d", d=head_dim)
    value = rearrange(key_layer(prompts), "p (g d) -> g p d", d=head_dim)
    return key, value
"""

# %% [raw] tags=["right"]
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    key, value = key_layer(prompts), value_layer(prompts)
    key = key.view(len(prompts), -1, head_dim).transpose(0, 1)
    value = value.view(len(prompts), -1, head_dim).transpose(0, 1)
    return key, value
"""

# %% [raw] tags=["right"]
"""
def prompt_keys_values(prompts, key_layer, value_layer, head_dim):
    both = torch.stack([key_layer(prompts), value_layer(prompts)])
    key, value = rearrange(both, "two p (g d) -> two g p d", d=head_dim)
    return key, value
"""

# %%
prompt_key, prompt_value = prompt_keys_values(
    prompts, layer.key_layer, layer.value_layer, layer.head_dim
)
print("prompt key    g p d ", tuple(prompt_key.shape))
print("prompt value  g p d ", tuple(prompt_value.shape))

# %% [markdown]
# There is no `b`: all rows of a batch share the prompts. And there are only 3 heads, as for the
# tokens: 9 query heads share 3 key/value heads.
#
# ## Tokens look at prompts
#
# Now each query meets each prompt's key. In lesson 01 you repeated the key/value heads so that
# each query head got one. There is a way without copies. Cut the query heads into groups,
# `(g r)`. Then `g` is an axis of both tensors, and einsum matches it.

# %% [markdown] tags=["card"]
# ### Exercise 3.2 · Scores of the prompts
#
# *medium ●●○ · 9 minutes*
#
# Score each query against each prompt key of its group: dot product over `d`, times `scale`. If
# `scale` is None, use 1 / √d. The query heads 0 to r − 1 share key/value head 0, the next r share
# head 1.
#
# <details><summary>Hint 1: direction</summary>
#
# Three steps: split the heads of the query into groups, one einsum, merge the groups again.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The query becomes `b g r s d`. The keys are `g p d`. The scores are `b g r s p`, and at the end
# `b (g r) s p`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `query = rearrange(query, "b (_ _) s d -> b g r s d", g=_____)`, then `scores = einsum(query,
# prompt_key, "b g r s d, _____ -> b g r s p") * scale`
#
# </details>


# %% tags=["exercise"] assemble="2134" library="llama_adapter_edu.method.gated_prompts"
def prompt_scores(
    query: Float[Tensor, "b h s d"], prompt_key: Float[Tensor, "g p d"], scale: float | None = None
) -> Float[Tensor, "b h s p"]:
    """Score each query against each prompt (the prompt part of eq. 5).

    `scale` multiplies the dot products; 1 / sqrt(d) unless the model has its own.
    """
    ### BEGIN SOLUTION
    # ~ scale = query.shape[-1] ** -0.5 if scale is None else scale
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = rearrange(query, "b (g r) s d -> b g r s d", g=prompt_key.shape[0])
    scores = einsum(query, prompt_key, "b g r s d, g p d -> b g r s p") * scale
    return rearrange(scores, "b g r s p -> b (g r) s p")
    ### END SOLUTION


# %% tags=["check"]
@check("3.2", "prompt_scores", b=[2, 3], g=[3, 2], r=[4, 5], d=[6, 10])
def _(b, g, r, d):
    query, key = torch.randn(b, g * r, 5, d), torch.randn(g, 7, d)  # 5 tokens, 7 prompts
    # lesson 01's way: copy the heads, then score them as if prompts were tokens
    copied = repeat_kv_heads(repeat(key, "g p d -> b g p d", b=b), r)
    dots = attention_scores(query, copied) * d**0.5
    other_groups = einsum(
        query, repeat(key, "g p d -> (r g) p d", r=r), "b h s d, h p d -> b h s p"
    )
    mixed_groups = rearrange(dots, "b (g r) s p -> b (r g) s p", g=g)
    for scale, given in ((None, "with scale=None"), (0.5, "with scale=0.5")):
        right = dots * (d**-0.5 if scale is None else scale)
        factor = right.norm() / dots.norm()
        mistakes = {
            "neighbouring heads should share a key: write (g r), not (r g)": other_groups * factor,
            "the heads come back in another order: merge them as you split them": (
                mixed_groups * factor
            ),
            "g is summed: a name that is missing on the right is. Split the query heads into (g r)": (
                einsum(query, key, "b h s d, g p d -> b h s p") * factor
            ),
            "the scale is missing: multiply by 1 / sqrt(d)": dots,
            "the dot products are divided by the scale: multiply": dots / factor,
            "all query heads read key head 0": right[:, :1] * 0
            + einsum(query, key[0], "b h s d, p d -> b h s p") * factor,
            "these are weights; the softmax comes in the next exercise": right.softmax(dim=-1),
            "prompts have no mask: each token sees each prompt": right.masked_fill(
                torch.ones(5, 7).triu(1) > 0, float("-inf")
            ),
        }
        if scale is None:
            mistakes["divide by the square root of the head width, not by the width"] = dots / d
            mistakes["d is the width of one head, not h * d"] = dots * (g * r * d) ** -0.5
            mistakes["take the root of the query's d, not of our Llama's 64"] = dots / 8
        else:
            mistakes["the argument `scale` is ignored"] = dots * d**-0.5
            mistakes["`scale` takes the place of 1 / sqrt(d)"] = right * d**-0.5
        mine = prompt_scores(query, key, scale)
        assert_close(mine, right, "b h s p", mistakes=mistakes, what=given)
    assert_gradients(prompt_scores, query, key)


# %% [raw] tags=["wrong"] says="write (g r), not (r g)"
"""
def prompt_scores(query, prompt_key, scale=None):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = rearrange(query, "b (r g) s d -> b g r s d", g=prompt_key.shape[0])
    scores = einsum(query, prompt_key, "b g r s d, g p d -> b g r s p") * scale
    return rearrange(scores, "b g r s p -> b (r g) s p")
"""

# %% [raw] tags=["wrong"] says="the scale is missing"
"""
def prompt_scores(query, prompt_key, scale=None):
    query = rearrange(query, "b (g r) s d -> b g r s d", g=prompt_key.shape[0])
    scores = einsum(query, prompt_key, "b g r s d, g p d -> b g r s p")
    return rearrange(scores, "b g r s p -> b (g r) s p")
"""

# %% [raw] tags=["wrong"] says="`scale` is ignored"
"""
def prompt_scores(query, prompt_key, scale=None):
    query = rearrange(query, "b (g r) s d -> b g r s d", g=prompt_key.shape[0])
    scores = einsum(query, prompt_key, "b g r s d, g p d -> b g r s p") / query.shape[-1] ** 0.5
    return rearrange(scores, "b g r s p -> b (g r) s p")
"""

# %% [raw] tags=["wrong"] says="not by the width"
"""
def prompt_scores(query, prompt_key, scale=None):
    scale = 1 / query.shape[-1] if scale is None else scale
    query = rearrange(query, "b (g r) s d -> b g r s d", g=prompt_key.shape[0])
    scores = einsum(query, prompt_key, "b g r s d, g p d -> b g r s p") * scale
    return rearrange(scores, "b g r s p -> b (g r) s p")
"""

# %% [raw] tags=["wrong"] says="divided by the scale"
"""
def prompt_scores(query, prompt_key, scale=None):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = rearrange(query, "b (g r) s d -> b g r s d", g=prompt_key.shape[0])
    scores = einsum(query, prompt_key, "b g r s d, g p d -> b g r s p") / scale
    return rearrange(scores, "b g r s p -> b (g r) s p")
"""

# %% [raw] tags=["right"]
"""
def prompt_scores(query, prompt_key, scale=None):
    if scale is None:
        scale = 1 / query.shape[-1] ** 0.5
    n_repeats = query.shape[1] // prompt_key.shape[0]
    key = repeat(prompt_key, "g p d -> (g r) p d", r=n_repeats)
    return einsum(query, key, "b h s d, h p d -> b h s p") * scale
"""

# %% [raw] tags=["right"]
"""
def prompt_scores(query, prompt_key, scale=None):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    n_repeats = query.shape[1] // prompt_key.shape[0]
    key = prompt_key.repeat_interleave(n_repeats, dim=0)
    return scale * query @ key.transpose(-2, -1)
"""

# %%
# alt: Two score maps of one head: tokens by tokens is a triangle, the later tokens are grey; tokens by prompts is a full rectangle with stronger colours. In both, many scores are below zero, marked with a minus sign.
with torch.no_grad():
    raw_query = split_heads(layer.query_layer(hidden), layer.head_dim)
    raw_key = split_heads(layer.key_layer(hidden), layer.head_dim)
    position = rearrange(torch.arange(len(tokens)), "s -> 1 s")
    token_key = apply_rotary(raw_key, *rotary_tables(position, layer.head_dim, layer.theta))
    token_scores = attention_scores(query, repeat_kv_heads(token_key, 3))
    scores_of_prompts = prompt_scores(query, prompt_key)

head = 3
seen = token_scores[0, head].masked_fill(causal_softmax(token_scores)[0, head] == 0, torch.nan)
limits = {"vmin": -20, "vmax": 20, "cmap": plt.get_cmap("PuOr").with_extremes(bad="silver")}
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), width_ratios=[14, 10])
heatmap(
    left,
    seen,
    rows="query",
    row_labels=tokens,
    column_labels=tokens,
    title="token scores",
    **limits,
)
heatmap(right, scores_of_prompts[0, head], columns="prompt", title="prompt scores", **limits)
right.set(xticks=range(10), yticks=[])
mark_negative(left), mark_negative(right)
fig.colorbar(right.images[0], ax=right, label="score")
plt.show()

# %% [markdown]
# Scores below 0 have a minus sign. On the left, grey is the causal mask of lesson 01: a token may
# not look at later tokens. On the right there is **no mask**. A prompt is not later than any token.
# It is not even text: it holds nothing of the answer that a token could peek at. So every token may
# see every prompt. The prompts themselves ask nothing: they have no queries (paper, eq. 2).
#
# You also see that the prompts' scores are the louder ones. Scores decide who is read. So what
# happens next depends on who competes with whom.
#
# LLaMA-Adapter lets the prompts compete among themselves only: **a softmax of their own**.

# %% [markdown] tags=["card"]
# ### Exercise 3.3 · Read the prompts
#
# *medium ●●○ · 8 minutes*
#
# Turn the scores into weights with a softmax over the prompts alone, in float32 as is usual, and
# mix the prompts' values with them, in the values' dtype. Use `prompt_scores`. (PyTorch's softmax
# of bfloat16 computes in float32 anyway: `.float()` only says so.)
#
# <details><summary>Hint 1: direction</summary>
#
# As in `causal_attention` of lesson 02: scores, softmax, weighted sum of values. Groups of heads
# as in exercise 3.2.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The softmax runs over `p`, the last axis. The weights `b g r s p` and the values `g p d` share
# `g` and `p`; only `p` is summed away.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `weights = prompt_scores(query, prompt_key, scale).float().softmax(dim=_____)`, then
# `einsum(weights.to(prompt_value.dtype), prompt_value, "b g r s p, _____ -> b g r s d")`
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.gated_prompts"
def prompt_attention(
    query: Float[Tensor, "b h s d"],
    prompt_key: Float[Tensor, "g p d"],
    prompt_value: Float[Tensor, "g p d"],
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """Attend to the prompts alone: a softmax of their own (in float32), then a weighted sum.

    This is the prompt half of eq. 7 and 8 before the gate. The tokens' softmax never sees it.
    """
    ### BEGIN SOLUTION
    # ~ weights = ...
    weights = prompt_scores(query, prompt_key, scale).float().softmax(dim=-1)
    weights = rearrange(weights, "b (g r) s p -> b g r s p", g=prompt_value.shape[0])
    attended = einsum(weights.to(prompt_value.dtype), prompt_value, "b g r s p, g p d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")
    ### END SOLUTION


# %% tags=["check"]
@check("3.3", "prompt_attention", b=[2, 3], g=[3, 2], r=[4, 5])
def _(b, g, r):
    # 5 tokens, 7 prompts, d = 8
    query, key, value = torch.randn(b, g * r, 5, 8), torch.randn(g, 7, 8), torch.randn(g, 7, 8)
    keys, values = (repeat(x, "g p d -> b (g r) p d", b=b, r=r) for x in (key, value))
    mixed = repeat(value, "g p d -> b (r g) p d", b=b, r=r)
    pytorchs = nn.functional.scaled_dot_product_attention  # without a mask, over copied heads
    for scale, given in ((None, "with scale=None"), (0.25, "with scale=0.25")):
        right = pytorchs(query, keys, values, scale=scale)
        scores = query @ keys.mT * (8**-0.5 if scale is None else scale)
        mistakes = {
            "the softmax runs over the queries; it should run over the prompts, the last axis": (
                scores.softmax(dim=-2) @ values
            ),
            "the softmax runs over the heads; it should run over the prompts, the last axis": (
                scores.softmax(dim=1) @ values
            ),
            "the softmax is missing": scores @ values,
            "prompts have no causal mask: use a plain softmax": causal_softmax(scores) @ values,
            "the values of head h are not those of its group: write (g r), not (r g)": (
                scores.softmax(dim=-1) @ mixed
            ),
            "the heads come back in another order: merge them as you split them": rearrange(
                right, "b (g r) s d -> b (r g) s d", g=g
            ),
            "g is summed: a name that is missing on the right is. Split the weights' heads into (g r)": (
                einsum(scores.softmax(-1), value, "b h s p, g p d -> b h s d")
            ),
            "these are weighted keys: the weights are for the values": pytorchs(
                query, keys, keys, scale=scale
            ),
            "prompt_scores divides by sqrt(d) already: do not divide again": pytorchs(
                query / 8**0.5, keys, values, scale=scale
            ),
        }
        best = F.one_hot(scores.argmax(dim=-1), 7).float()
        mistakes |= {
            "the scores are not used: this is a plain mean": values.mean(
                dim=2, keepdim=True
            ).expand_as(right),
            "this reads the best prompt only: take a softmax": best @ values,
            "the weights of a token add up to 1: take softmax, not sigmoid": scores.sigmoid()
            @ values,
            "the softmax runs over several axes: take the prompts, the last axis": (
                rearrange(
                    rearrange(scores, "b h s p -> b (h s p)").softmax(-1),
                    "b (h s p) -> b h s p",
                    s=5,
                    p=7,
                )
                @ values
            ),
        }
        if scale:
            mistakes["the argument `scale` is ignored"] = pytorchs(query, keys, values)
        mine = prompt_attention(query, key, value, scale)
        assert_close(mine, right, "b h s d", mistakes=mistakes, what=given)
    assert_gradients(prompt_attention, query, key, value)

    half = prompt_attention(*(x.bfloat16() for x in (query, key, value)))
    assert half.dtype == torch.bfloat16, (
        "the result of bfloat16 values should be bfloat16: bring the weights back to their dtype"
    )


# %% [raw] tags=["wrong"] says="it should run over the prompts"
"""
def prompt_attention(query, prompt_key, prompt_value, scale=None):
    weights = prompt_scores(query, prompt_key, scale).float().softmax(dim=-2)
    weights = rearrange(weights, "b (g r) s p -> b g r s p", g=prompt_value.shape[0])
    attended = einsum(weights.to(prompt_value.dtype), prompt_value, "b g r s p, g p d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")
"""

# %% [raw] tags=["wrong"] says="the softmax is missing"
"""
def prompt_attention(query, prompt_key, prompt_value, scale=None):
    weights = prompt_scores(query, prompt_key, scale)
    weights = rearrange(weights, "b (g r) s p -> b g r s p", g=prompt_value.shape[0])
    attended = einsum(weights, prompt_value, "b g r s p, g p d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")
"""

# %% [raw] tags=["wrong"] says="prompts have no causal mask"
"""
def prompt_attention(query, prompt_key, prompt_value, scale=None):
    weights = causal_softmax(prompt_scores(query, prompt_key, scale).float())
    weights = rearrange(weights, "b (g r) s p -> b g r s p", g=prompt_value.shape[0])
    attended = einsum(weights.to(prompt_value.dtype), prompt_value, "b g r s p, g p d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")
"""

# %% [raw] tags=["wrong"] says="with scale=0.25"
"""
def prompt_attention(query, prompt_key, prompt_value, scale=None):
    weights = prompt_scores(query, prompt_key).float().softmax(dim=-1)
    weights = rearrange(weights, "b (g r) s p -> b g r s p", g=prompt_value.shape[0])
    attended = einsum(weights.to(prompt_value.dtype), prompt_value, "b g r s p, g p d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")
"""

# %% [raw] tags=["wrong"] says="should be bfloat16"
"""
def prompt_attention(query, prompt_key, prompt_value, scale=None):
    weights = prompt_scores(query, prompt_key, scale).float().softmax(dim=-1)
    weights = rearrange(weights, "b (g r) s p -> b g r s p", g=prompt_value.shape[0])
    attended = einsum(weights, prompt_value.float(), "b g r s p, g p d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")
"""

# %% [raw] tags=["right"]
"""
def prompt_attention(query, prompt_key, prompt_value, scale=None):
    n_repeats = query.shape[1] // prompt_key.shape[0]
    key = prompt_key.repeat_interleave(n_repeats, dim=0)
    value = prompt_value.repeat_interleave(n_repeats, dim=0)
    key, value = key.expand(len(query), -1, -1, -1), value.expand(len(query), -1, -1, -1)
    return nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
"""

# %% [raw] tags=["right"]
"""
def prompt_attention(query, prompt_key, prompt_value, scale=None):
    scores = prompt_scores(query, prompt_key, scale)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(prompt_value.dtype)
    value = repeat(prompt_value, "g p d -> (g r) p d", r=query.shape[1] // prompt_value.shape[0])
    return weights @ value
"""

# %% [markdown]
# Now let the tokens of the sentence read: the prompts with your function, and each other as before.
# A random prompt's numbers were four times as large as a token's.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "How long is what a token reads from the prompts, next to what it reads from the tokens?",
    options=["about as long", "about 4 times", "more than 10 times"],
    mine=...,
)

# %%
with torch.no_grad():
    from_prompts = prompt_attention(query, prompt_key, prompt_value)
    token_value = repeat_kv_heads(split_heads(layer.value_layer(hidden), layer.head_dim), 3)
    from_tokens = einsum(causal_softmax(token_scores), token_value, "b h s t, b h t d -> b h s d")
length_of_tokens, length_of_prompts = (x.norm(dim=-1).mean() for x in (from_tokens, from_prompts))
print(f"mean length of what a token reads from the tokens:  {length_of_tokens:.1f}")
print(f"mean length of what a token reads from the prompts: {length_of_prompts:.1f}")

# %% tags=["nbval-ignore-output"]
times = length_of_prompts / length_of_tokens
guess.compare(
    "more than 10 times" if times > 10 else "about 4 times" if times > 2 else "about as long"
)

# %% [markdown]
# The prompts shout. Random ones would drown what the Llama knows. Lesson 04 gives them a volume
# knob that starts at zero. But a knob is of no use if the prompts can hurt the tokens in another
# way.
#
# ## Why not one softmax?
#
# There is an older way: put the prompts in front of the tokens and take one softmax over both
# (prefix tuning, arXiv 2101.00190). Then tokens and prompts compete for the same 100 %. Build it,
# and measure what is left for the tokens.

# %% [markdown] tags=["card"]
# ### Exercise 3.4 · One softmax for both
#
# *medium ●●○ · 8 minutes*
#
# Take one softmax over prompts and tokens together. A token sees all prompts, and the tokens up to
# itself. There may be fewer queries than tokens (s < t): they are the last ones. Return the
# prompts' weights, then the tokens' weights. `causal_softmax` knows what to do when there are more
# keys than queries.
#
# <details><summary>Hint 1: direction</summary>
#
# Lesson 02's cache put old tokens in front of new ones, and the new tokens could see all of them.
# Prompts can take the place of the old tokens.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Join the scores along the last axis, the prompts first: `b h s (p + t)`. Take the softmax. Cut
# the last axis again.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `weights = causal_softmax(torch.cat([_____, _____], dim=-1))`, then
# `weights.split([_____, _____], dim=-1)`
#
# </details>


# %% tags=["exercise"] assemble=true
def joint_attention_weights(
    scores_bhsp: Float[Tensor, "b h s p"], scores_bhst: Float[Tensor, "b h s t"]
) -> tuple[Float[Tensor, "b h s p"], Float[Tensor, "b h s t"]]:
    """Weights of prompts and tokens from one softmax over both; tokens are masked causally."""
    ### BEGIN SOLUTION
    # ~ joint = ...
    joint = torch.cat([scores_bhsp, scores_bhst], dim=-1)
    sizes = [scores_bhsp.shape[-1], scores_bhst.shape[-1]]
    weights_bhsp, weights_bhst = causal_softmax(joint).split(sizes, dim=-1)
    return weights_bhsp, weights_bhst
    ### END SOLUTION


# %% tags=["check"]
@check("3.4", "joint_attention_weights", b=[2, 3, 2], s=[5, 4, 1], t=[5, 6, 4], p=[7, 3, 5])
def _(b, s, t, p):
    for_prompts, for_tokens = torch.randn(b, 3, s, p), torch.randn(b, 3, s, t)

    # query after query: all prompts, and the tokens up to itself
    right_prompts, right_tokens = torch.zeros(b, 3, s, p), torch.zeros(b, 3, s, t)
    for i in range(s):
        seen = slice(t - s + i + 1)
        both = torch.cat([for_prompts[:, :, i], for_tokens[:, :, i, seen]], dim=-1).softmax(-1)
        right_prompts[:, :, i], right_tokens[:, :, i, seen] = both[..., :p], both[..., p:]

    joint = torch.cat([for_prompts, for_tokens], dim=-1)
    behind = causal_softmax(torch.cat([for_tokens, for_prompts], dim=-1))
    first = torch.cat([torch.ones(s, p), torch.ones(s, t).tril()], dim=-1)
    minus_infinity = float("-inf")
    apart = torch.cat([torch.ones(s, p), torch.ones(s, t).tril(t - s - 1)], dim=-1)
    mistakes = {
        "the tokens' weights are brought back to a sum of 1: leave them as they are": (
            None,
            causal_softmax(for_tokens),
        ),
        "a token may look at itself: the mask is one too wide": (
            joint.masked_fill(apart == 0, float("-inf")).softmax(-1).split([p, t], -1)
        ),
        "the tokens' weights go through a second softmax: join the scores": (
            torch.cat([for_prompts, causal_softmax(for_tokens)], -1).softmax(-1).split([p, t], -1)
        ),
        "these are two softmaxes, one for each; join the scores first": (
            for_prompts.softmax(-1),
            causal_softmax(for_tokens),
        ),
        "tokens see later tokens: use causal_softmax": joint.softmax(-1).split([p, t], -1),
        "put the prompts in front of the tokens: behind them, the mask hides them": (
            behind.split([t, p], -1)[::-1]
        ),
        "these are still scores: the softmax is missing": (for_prompts, for_tokens),
        "the softmax runs over the queries: take the last axis": joint.softmax(-2).split(
            [p, t], -1
        ),
        f"the {s} queries are the last of the {t} tokens, not the first": (
            joint.masked_fill(first == 0, minus_infinity).softmax(-1).split([p, t], -1)
        ),
        "cut the last axis where the prompts end": behind.split([p, t], -1),
        "the softmax is taken twice: join the scores, then one causal_softmax": (
            causal_softmax(torch.cat([for_prompts, causal_softmax(for_tokens)], -1)).split(
                [p, t], -1
            )
        ),
        "half for each is no competition: one softmax over the joined scores": (
            for_prompts.softmax(-1) / 2,
            causal_softmax(for_tokens) / 2,
        ),
    }
    mine = joint_attention_weights(for_prompts, for_tokens)
    right = {"the prompts' weights": right_prompts, "the tokens' weights": right_tokens}
    of_prompts, of_tokens = unpacked(mine, *right)
    if tuple(getattr(of_prompts, "shape", ())) != (b, 3, s, t):  # else swapped, perhaps
        assert_shape(of_prompts, "b h s p", b=b, h=3, s=s, p=p)
        assert_shape(of_tokens, "b h s t", b=b, h=3, s=s, t=t)
    assert_results(mine, right, "b h s n", mistakes=mistakes)
    assert_gradients(joint_attention_weights, for_prompts, for_tokens)


# %% [raw] tags=["wrong"] says="these are two softmaxes"
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    return scores_bhsp.softmax(dim=-1), causal_softmax(scores_bhst)
"""

# %% [raw] tags=["wrong"] says="tokens see later tokens"
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    weights = torch.cat([scores_bhsp, scores_bhst], dim=-1).softmax(dim=-1)
    n_prompts = scores_bhsp.shape[-1]
    return weights[..., :n_prompts], weights[..., n_prompts:]
"""

# %% [raw] tags=["wrong"] says="put the prompts in front"
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    weights = causal_softmax(torch.cat([scores_bhst, scores_bhsp], dim=-1))
    n_tokens = scores_bhst.shape[-1]
    return weights[..., n_tokens:], weights[..., :n_tokens]
"""

# %% [raw] tags=["wrong"] says="an axis of size 6 meets an axis of size 4"
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    n_tokens = scores_bhst.shape[-1]
    later = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    scores = torch.cat([scores_bhsp, scores_bhst.masked_fill(later, -torch.inf)], dim=-1)
    weights = scores.softmax(dim=-1)
    return weights[..., :-n_tokens], weights[..., -n_tokens:]
"""

# %% [raw] tags=["wrong"] says="tokens see later tokens"
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    joint = torch.cat([scores_bhsp, scores_bhst], dim=-1)
    sizes = [scores_bhsp.shape[-1], scores_bhst.shape[-1]]
    weights_bhsp, weights_bhst = joint.softmax(dim=-1).split(sizes, dim=-1)
    return weights_bhsp, weights_bhst
"""

# %% [raw] tags=["wrong"] says="cut the last axis where the prompts end"
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    joint = torch.cat([scores_bhst, scores_bhsp], dim=-1)
    sizes = [scores_bhsp.shape[-1], scores_bhst.shape[-1]]
    weights_bhsp, weights_bhst = causal_softmax(joint).split(sizes, dim=-1)
    return weights_bhsp, weights_bhst
"""

# %% [raw] tags=["right"]
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    n_tokens = scores_bhst.shape[-1]
    n_earlier = n_tokens - scores_bhst.shape[-2]
    later = torch.ones_like(scores_bhst).triu(n_earlier + 1).bool()
    scores = torch.cat([scores_bhsp, scores_bhst.masked_fill(later, -torch.inf)], dim=-1)
    weights = scores.softmax(dim=-1)
    return weights[..., :-n_tokens], weights[..., -n_tokens:]
"""

# %% [raw] tags=["right"]
"""
def joint_attention_weights(scores_bhsp, scores_bhst):
    visible = torch.ones_like(scores_bhst).tril(scores_bhst.shape[-1] - scores_bhst.shape[-2])
    prompts, tokens = scores_bhsp.exp(), scores_bhst.exp() * visible
    total = prompts.sum(dim=-1, keepdim=True) + tokens.sum(dim=-1, keepdim=True)
    return prompts / total, tokens / total
"""

# %% [markdown]
# Here are both ways, for the same head and the same scores as above. Look at the right half of
# each picture: the weights of the tokens.


# %%
# alt: Attention weights of prompts and tokens. One joint softmax: prompts take nearly all; only the tokens 0 and % clearly look at tokens still. Two softmaxes: the tokens keep their weights.
def draw_weights(ax, of_prompts, of_tokens, title):
    weights = torch.cat([of_prompts[0, head], of_tokens[0, head]], dim=-1)
    heatmap(ax, weights, row_labels=tokens, title=title, vmin=0, vmax=1)
    ax.axvline(9.5, color="white", lw=2)
    ax.set_xticks([4.5, 16.5], ["10 prompts", "14 tokens"])


two = scores_of_prompts.softmax(dim=-1), causal_softmax(token_scores)
joint = joint_attention_weights(scores_of_prompts, token_scores)
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), sharey=True)
draw_weights(left, *joint, "one softmax over both")
draw_weights(right, *two, "two softmaxes")
fig.colorbar(right.images[0], ax=right, label="weight")
plt.show()


# %% [markdown]
# On the left nearly all tokens have gone dark. That is one head. Now the mean over all heads and
# tokens of the layer, with prompts of three sizes: as drawn, as large as tokens, and all zero.
# Prompts of zeros have scores of zero and values of zero.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "One softmax, prompts of zeros: what share of their weight do the tokens keep?",
    options=["all of it", "about four fifths", "about half"],
    mine=...,
)

# %%
print("size of the prompts   what the tokens keep with one softmax")
for size in (1.0, 0.25, 0.0):
    key, _ = prompt_keys_values(size * prompts, layer.key_layer, layer.value_layer, layer.head_dim)
    _, of_tokens = joint_attention_weights(prompt_scores(query, key), token_scores)
    kept = of_tokens.sum(dim=-1).mean()
    print(f"{size:19.2f}   {kept:.1%}")

# %% tags=["nbval-ignore-output"]
shares = {"all of it": 1.0, "about four fifths": 0.8, "about half": 0.5}
guess.compare(min(shares, key=lambda name: abs(shares[name] - kept)))

# %% [markdown]
# With one softmax, random prompts leave the tokens a quarter of their weight. Prompts as large as
# tokens take a quarter for themselves. Even prompts of zeros take a fifth: their scores are 0, and
# exp(0) is 1. None of these starts leaves the Llama alone, and in exact numbers no other one does:
# exp(score) is more than 0 whatever the score, so **each prompt takes a share from the tokens**.
#
# With two softmaxes the tokens keep 100 %, whatever the prompts are: `causal_softmax(token_scores)`
# has no prompt in it. In the paper's words, the separate softmax keeps the tokens' term "irrelevant
# to our adaption prompts" (arXiv v1, section 3.2). And what the prompts add can be turned down to
# exactly nothing. That is lesson 04.
#
# ## No position, and what it costs
#
# Tokens carry their position in their keys: lesson 02's rotation. Prompts have no place in the
# sentence, so their keys are not rotated. The queries are, though. Take one pair of tokens and one
# prompt, and move the whole sentence to the right, as if more and more text stood before it.

# %%
# alt: Two lines over the shift of the sentence: the score of a token pair is flat, the score of a prompt goes up and down.
shifts = torch.arange(101)
last, lights = len(tokens) - 1, tokens.index("lights")


def rotated(x: Float[Tensor, "1 h s d"], token: int) -> Float[Tensor, "b h 1 d"]:
    """One token's queries or keys, in a batch with one row for each shift of its position."""
    one = repeat(x[:, :, token], "1 h d -> b h 1 d", b=len(shifts))
    position = rearrange(token + shifts, "b -> b 1")
    return apply_rotary(one, *rotary_tables(position, layer.head_dim, layer.theta))


moved_query = rotated(raw_query, last)
moved_key = repeat_kv_heads(rotated(raw_key, lights), 3)
pair_score = attention_scores(moved_query, moved_key)[:, head, 0, 0]
prompt_score = prompt_scores(moved_query, prompt_key)[:, head, 0, 0]

fig, ax = plt.subplots(figsize=(6.5, 2.8))
ax.plot(shifts, pair_score, color=BLUE, label='"office" looks at "lights"')
ax.plot(shifts, prompt_score, "--", color=ORANGE, label='"office" looks at prompt 0')
ax.set(xlabel="tokens before the sentence", ylabel="score")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The two tokens move together. Only their distance counts, so their score stays. The prompt stays
# where it is while the query turns. So the score tells *where* in the text the query stands.
#
# Does the whole Llama notice? A Llama without prompts should not: it knows distances only. Write
# the measurement. It is a useful test for any model.

# %% [markdown] tags=["card"]
# ### Exercise 3.5 · Does it matter where the text stands?
#
# *easy ●○○ · 6 minutes*
#
# Run the model twice: with the tokens at positions 0, 1, 2, ..., and with all positions moved by
# `shift`. Return the largest change of any logit, as a positive number.
#
# <details><summary>Hint 1: direction</summary>
#
# A transformers model takes `position_ids`, and its answer has `.logits`. No gradients are
# needed.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `position_ids` has the axes `b s`, and `b` may be 1. The logits are `b s v`. You want one
# number.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `moved = model(input_ids, position_ids=position + _____).logits`, and the largest change is
# `(moved - here)._____().max().item()`
#
# </details>


# %% tags=["exercise"]
def position_effect(model: nn.Module, input_ids: Int[Tensor, "b s"], shift: int) -> float:
    """The largest change of any logit when all tokens move `shift` positions to the right."""
    ### BEGIN SOLUTION
    # ~ position = ...
    position = rearrange(torch.arange(input_ids.shape[1]), "s -> 1 s")
    with torch.no_grad():
        here = model(input_ids, position_ids=position).logits
        moved = model(input_ids, position_ids=position + shift).logits
    return (moved - here).abs().max().item()
    ### END SOLUTION


# %% tags=["check"]
@check("3.5", "position_effect", b=[3, 2], n_tokens=[5, 7], shift=[6, 2])
def _(b, n_tokens, shift):
    class Squares(nn.Module):
        """A stand-in: each logit is a number of its own times the square of the position."""

        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.rand(b * n_tokens, 4) / 8)
            self.factor.data[n_tokens + 2, 1] = -8 - torch.rand(())  # row 1, token 2: a fall
            self.factor.data[n_tokens + 1, 2] = 7 + torch.rand(())  # row 1, token 1: a rise
            self.constant = torch.zeros(b * n_tokens, 4)
            self.constant[0, 3] = 4000.0  # the largest logit hardly moves

        @property
        def device(self):
            return self.factor.device

        def forward(self, input_ids, attention_mask=None, position_ids=None, **others):
            if position_ids is None:
                position_ids = torch.arange(input_ids.shape[1])[None]
            place = input_ids % len(self.factor)
            moving = self.factor[place] * position_ids[..., None] ** 2
            return CausalLMOutput(logits=moving + self.constant[place])

    tokens, position = torch.arange(b * n_tokens).reshape(b, n_tokens), torch.arange(n_tokens)
    for _ in range(2):
        model_of_squares = Squares()
        factor = model_of_squares.factor.detach().reshape(b, n_tokens, 4)

        def change_between(before, after, factor=factor):
            return factor * (after**2 - before**2)[:, None]

        change = change_between(position, position + shift)
        others = factor.flatten(0, 1).roll(-shift, 0).reshape(b, n_tokens, 4)
        others = others * (position + shift)[:, None] ** 2 - factor * position[:, None] ** 2
        constant = model_of_squares.constant.reshape(b, n_tokens, 4)
        others = others + constant.flatten(0, 1).roll(-shift, 0).reshape(constant.shape) - constant
        before, after = (
            factor * place[:, None] ** 2 + constant for place in (position, position + shift)
        )
        right = change.abs().max()
        mistakes = {
            "the largest change may be a fall: take .abs() before .max()": change.max(),
            "a change is a positive number: take its .abs()": -right,
            "this is the mean change; take the largest": change.abs().mean(),
            "this is the sum of all changes; take the largest": change.abs().sum(),
            "this is the length of all changes; take the largest": change.norm(),
            "all rows of the batch count, not the first one only": change[0].abs().max(),
            "all rows of the batch count, not the last one only": change[-1].abs().max(),
            "all tokens count, not the last one only": change[:, -1].abs().max(),
            "all tokens count, not the first one only": change[:, 0].abs().max(),
            "both runs have the same positions: write position + shift (+= changes both)": 0.0,
            "the ids stay as they are, not rolled: only the positions move": (
                (factor.roll(shift, 1) - factor) * position[:, None] ** 2
                + constant.roll(shift, 1)
                - constant
            )
            .abs()
            .max(),
            "the first run's positions start at 0": (
                change_between(position + 1, position + 1 + shift).abs().max()
            ),
            "compare logit by logit: this is the difference of two largest ones": (
                after.abs().max() - before.abs().max()
            ).abs(),
            "compare logit by logit, as they are, before taking the largest": (
                after.max() - before.max()
            ).abs(),
            "compare logits, not probabilities": (after.softmax(-1) - before.softmax(-1))
            .abs()
            .max(),
            "return the number as it is, not a whole one": right.floor(),
            "move the tokens by `shift`, not by shift - 1": (
                change_between(position, position + shift - 1).abs().max()
            ),
            "move the tokens by `shift`, not by 1": (
                change_between(position, position + 1).abs().max()
            ),
            "add `shift` to each position, do not multiply by it": (
                change_between(position, position * shift).abs().max()
            ),
            "give both runs the same ids: only the positions move": others.abs().max(),
        }
        mistakes = {sentence: x for sentence, x in mistakes.items() if x != right}
        effect = position_effect(model_of_squares, tokens, shift)
        shape = tuple(getattr(effect, "shape", ()))
        is_tensor = isinstance(effect, Tensor) and shape == ()
        assert not is_tensor, "return a Python number, not a tensor that holds one: take .item()"
        assert shape == (), f"return one number, the largest of all; this is a tensor {shape}"
        assert_close(effect, right, mistakes=mistakes)
    effect = position_effect(model, torch.tensor([[5, 17, 11]]), shift)
    assert effect < 1e-2, "the Llama without prompts should not notice: give both runs the same ids"


# %% [raw] tags=["wrong"] says="take .abs() before .max()"
"""
def position_effect(model, input_ids, shift):
    position = rearrange(torch.arange(input_ids.shape[1]), "s -> 1 s")
    here = model(input_ids, position_ids=position).logits
    moved = model(input_ids, position_ids=position + shift).logits
    return (moved - here).max().item()
"""

# %% [raw] tags=["wrong"] says="this is the mean change"
"""
def position_effect(model, input_ids, shift):
    position = rearrange(torch.arange(input_ids.shape[1]), "s -> 1 s")
    here = model(input_ids, position_ids=position).logits
    moved = model(input_ids, position_ids=position + shift).logits
    return (moved - here).abs().mean().item()
"""

# %% [raw] tags=["wrong"] says="give both runs the same ids"
"""
def position_effect(model, input_ids, shift):
    position = rearrange(torch.arange(input_ids.shape[1]), "s -> 1 s")
    here = model(input_ids, position_ids=position).logits
    moved = model(input_ids + shift, position_ids=position + shift).logits
    return (moved - here).abs().max().item()
"""

# %% [raw] tags=["wrong"] says="all rows of the batch count"
"""
def position_effect(model, input_ids, shift):
    position = rearrange(torch.arange(input_ids.shape[1]), "s -> 1 s")
    here = model(input_ids, position_ids=position).logits
    moved = model(input_ids, position_ids=position + shift).logits
    return (moved - here)[0].abs().max().item()
"""

# %% [raw] tags=["right"]
"""
def position_effect(model, input_ids, shift):
    largest, device = 0.0, next(model.parameters()).device
    position = torch.arange(input_ids.shape[1], device=device)[None]
    for row in input_ids:
        row = row[None].to(model.device)
        here = model(input_ids=row, use_cache=False)["logits"]
        moved = model(input_ids=row, position_ids=position + shift)[0]
        largest = max(largest, (moved - here).abs().max().item())
    return largest
"""

# %% [raw] tags=["right"]
"""
def position_effect(model, input_ids, shift):
    logits = []
    with torch.no_grad():
        for start in (0, shift):
            position = torch.arange(start, start + input_ids.shape[1]).unsqueeze(0)
            logits.append(model(input_ids, position_ids=position).logits)
    return float(torch.dist(*logits, p=float("inf")))
"""

# %% [raw] tags=["right"]
"""
@torch.no_grad()
def position_effect(model, input_ids, shift):
    position = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    change = model(input_ids, position_ids=position + shift).logits
    change = change - model(input_ids, position_ids=position).logits
    return max(change.max().item(), -change.min().item())
"""

# %% [markdown]
# Now the whole Llama, with random prompts in all 30 layers. `add_adaption_prompts` is the finished
# library; lesson 06 opens this box. It multiplies what the prompts add by a gate, which is 0 at
# the start. We open the gates a crack, to 0.003. `disable_adapter` gives the bare Llama back for
# comparison.

# %%
torch.manual_seed(0)
add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=10, adapter_layers=30))
for prompt in adapter_prompts(model, "default").values():
    nn.init.constant_(prompt.gate, 0.003)

moves = (1, 10, 50)
adapted = [position_effect(model, input_ids, shift) for shift in moves]
with disable_adapter(model):
    bare = [position_effect(model, input_ids, shift) for shift in moves]
print("largest change of a logit")
for shift, without, with_prompts in zip(moves, bare, adapted, strict=True):
    print(
        f"moved by {shift:2}: bare below 0.001: {without < 1e-3}, with prompts {with_prompts:.1g}"
    )

# %%
# alt: Bars of the largest logit change for shifts of 1, 10 and 50 tokens, on a log scale: about 0.00004 for the bare Llama, about 0.8 to 2 with prompts.
fig, ax = plt.subplots(figsize=(6.5, 2.8))
places = torch.arange(len(moves))
for x, effects, colour, name in (
    (places - 0.2, bare, BLUE, "bare Llama"),
    (places + 0.2, adapted, ORANGE, "with prompts"),
):
    bars = ax.bar(x, effects, width=0.38, color=colour, label=name, hatch="//" * (colour == ORANGE))
    ax.bar_label(bars, fmt="{:.1g}", fontsize=9)
ax.set(yscale="log", ylim=(1e-6, 1e3), ylabel="largest change of a logit")
ax.set_xticks(places, [f"moved by {shift}" for shift in moves])
ax.legend(frameon=False, ncols=2, loc="upper left")
plt.show()

# %% [markdown]
# The bare Llama does not notice: what is left is rounding. With prompts, even a move by one token
# changes a logit by about 2. **Adapters see absolute positions.** The paper does not mention it,
# but it holds for all implementations that we looked at. So whoever pads rows on the left, or packs
# several texts into one row, must pass the right `position_ids`.
#
# ## What you built
#
# * `prompt_keys_values`: prompts through the frozen key and value layer,
# * `prompt_scores` and `prompt_attention`: tokens read prompts, with a softmax of their own,
# * `joint_attention_weights`: the other way, to see what it takes from the tokens,
# * `position_effect`: a test that tells whether a model sees absolute positions.
#
# **Next, lesson 04:** the prompts still shout. A gate that starts at zero makes their start
# silent.
#
# ## To think about
#
# 1. A causal model must not let a token see later tokens. Prompts have no mask. Why is the model
#    still causal?
#
# <details><summary>Answer</summary>
#
# Prompts are the same whatever the text is. No token writes into them: they have no queries and
# read nothing. So nothing of a later token can reach an earlier one through them.
#
# </details>
#
# 2. Your prompts came through `key_layer` from vectors of width 576. Why not learn the keys and
#    values themselves?
#
# <details><summary>Answer</summary>
#
# One could; prefix tuning does it. Here, 3 heads of width 64 need 192 numbers for a key and 192
# for a value: 384 instead of 576. But prompts in the layer's input space are shaped by what the
# layer has learnt. And something else that lives in this space can be added to them: lesson 09
# adds a picture.
#
# </details>
#
# 3. Two rows of a batch are padded **on the left** to the same length. Which results change if
#    you forget `position_ids`: those of the bare Llama, or those of the adapted one?
#
# <details><summary>Answer</summary>
#
# Those of the adapted one. The padded row starts at a later position. The bare Llama only sees
# distances. The prompts' scores see the move.
#
# </details>
