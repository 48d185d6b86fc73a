# %% [markdown]
# # Lesson 02: A Llama's attention
#
# *85 minutes*
#
# At the end, the attention that you wrote runs in all 30 layers of our Llama. The Llama answers
# with the same tokens as before. It also remembers what it has read, so that each new token costs
# the work of one token.
#
# Letters: `b` batch, `s` query position, `t` key position, `h` query head, `g` key/value head, `r`
# query heads per key/value head, `d` head width, `m` model width, `v` vocabulary.
#
# This is the map of the lesson. Come back to it whenever you are lost.
#
# ![The hidden states go through query, key and value layer, each result is split into heads;
# queries and keys are rotated by position; a cache adds the keys and values of earlier tokens;
# causal attention, merged heads, output layer](figures/02_layer.svg)

# %%
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from llama_adapter_edu import load_llama
from llama_adapter_edu.course import (
    assert_close,
    assert_gradients,
    assert_results,
    assert_shape,
    check,
    predict,
    unpacked,
)
from llama_adapter_edu.course.figures import heatmap, use_style
from llama_adapter_edu.data.encoding import encode_prompt
from llama_adapter_edu.method.attention import (
    AttentionLayer,
    attention_scores,
    causal_softmax,
    merge_heads,
    repeat_kv_heads,
    split_heads,
)
from torch import Tensor, nn

model, tokenizer = load_llama()
model.requires_grad_(False)  # this lesson trains nothing
use_style()

# %% [markdown]
# `split_heads`, `attention_scores` and the others are what you wrote in lesson 01. From here on you
# use the library's copy of your functions.
#
# First, a question to the untouched Llama. We keep its answer: at the end, your attention has to
# give the same one.

# %%
question = "What is the capital of France?"
token_ids = torch.tensor([encode_prompt(tokenizer, question)])  # b s
everything = model.generate(
    token_ids, attention_mask=torch.ones_like(token_ids), max_new_tokens=7, do_sample=False
)
answer = everything[:, token_ids.shape[1] :]

print("tokens read:", token_ids.shape[1], "- tokens written:", answer.shape[1])
print(tokenizer.decode(answer[0], skip_special_tokens=True))

# %% [markdown]
# ## 1. Where is each token?
#
# Take the attention of lesson 01, and five tokens. Look at what the last query reads. Then mix up
# the order of the five.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "Five tokens in another order. Does the last query still read the same?",
    options=["exactly the same", "something else"],
    mine=...,
)

# %%
torch.manual_seed(0)
query = torch.randn(1, 1, 1, 8)  # b h s d: the last token's query
key, value = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8)  # b h t d


def what_the_query_reads(key, value):
    weights = causal_softmax(attention_scores(query, key))
    return einsum(weights, value, "b h s t, b h t d -> b h s d")


mixed = [3, 0, 4, 2, 1]
in_order = what_the_query_reads(key, value)
out_of_order = what_the_query_reads(key[:, :, mixed], value[:, :, mixed])
same = torch.allclose(in_order, out_of_order, atol=1e-6)
print("the same after mixing the tokens:", same)

# %% tags=["nbval-ignore-output"]
guess.compare("exactly the same" if same else "something else")

# %% [markdown]
# For this query, "the dog bites the man" and "the man bites the dog" are the same. Somebody has to
# tell attention where each token stands.
#
# Here is the way out. Take two of the `d` numbers of a query or key, and draw them as an arrow.
# Rotate the arrow by an angle that grows with the token's position. Do so with every pair of
# numbers, some fast, some slow.
#
# ![Two rows of four circles, each with an arrow. In the first row the arrow rotates by 1 radian for
# each token, in the second by a quarter of a radian](figures/02_turning.svg)
#
# The score of a query and a key is a dot product. A dot product depends on the angle *between* the
# arrows. Both were rotated by their own position, so what is left is the *difference* of the
# positions: how far apart the tokens are.
#
# This is called **rotary position embedding**, or RoPE. Two details for the code:
#
# * There are `d/2` pairs. Pair `i` is made of the entries `i` and `i + d/2`.
# * Pair `i` rotates by `theta^(-2i/d)` radians for each token. `theta` is a fixed number of the
#   model. For `d = 4` and `theta = 16`, as in the picture: pair 0 rotates by `16^0 = 1`, pair 1 by
#   `16^(-1/2) = 1/4`.
#
# In patterns, `i` is the pair and `two` are its two entries: the axis `d` is `(two i)`.

# %% [markdown] tags=["card"]
# ### Exercise 2.1 · The angles
#
# *medium ●●○ · 8 minutes*
#
# Compute the cosine and the sine of all angles. Pair `i` of the token at position `n` is rotated by
# `n * theta^(-2i/d)`. Both entries of a pair need the angle, so each angle stands twice along `d`:
# first all pairs, then all pairs again.
#
# <details><summary>Hint 1: direction</summary>
#
# `torch.arange(0, head_dim, 2)` gives the numbers `2i`. Compute one frequency for each pair,
# multiply each position with each frequency, put the result twice behind itself. Take cosine and
# sine at the very end.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Positions `b s` and frequencies `i` give angles `b s i`. `repeat` makes `b s (two i)` of them:
# `two` is the outer axis, since the entries of a pair are `d/2` apart.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# angle = einsum(position.float(), frequency, "b s, i -> _____")
# angle = repeat(angle, "b s i -> b s (_____)", two=2)
# ```
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.method.attention"
def rotary_tables(
    position: Int[Tensor, "b s"], head_dim: int, theta: float
) -> tuple[Float[Tensor, "b s d"], Float[Tensor, "b s d"]]:
    """Cosine and sine of the angles (radians): position * theta^(-2i/d) for pair i of d/2.

    Pair i is made of the entries i and i + d/2, so each angle stands twice.
    """
    ### BEGIN SOLUTION
    # ~ frequency = ...  # i
    # ~ angle = ...  # b s i, then b s d
    pair = torch.arange(0, head_dim, 2, device=position.device).float()
    frequency = theta ** (-pair / head_dim)
    angle = einsum(position.float(), frequency, "b s, i -> b s i")
    angle = repeat(angle, "b s i -> b s (two i)", two=2)
    return angle.cos(), angle.sin()
    ### END SOLUTION


# %% tags=["check"]
@check("2.1", "rotary_tables", b=[2, 3], d=[8, 6], theta=[16.0, 9.0])
def _(b, d, theta):
    pair = torch.arange(d) % (d // 2)  # the pair that each of the d entries belongs to

    def tables(position, frequency):
        angle = rearrange(position, "b s -> b s 1") * frequency
        return angle.cos(), angle.sin()

    for position in torch.randint(0, 20, (2, b, 5)):
        frequency = theta ** (-2 * pair / d)
        angle = rearrange(position, "b s -> b s 1") * frequency
        half_and_half = torch.cat([angle.cos()[..., : d // 2], angle.sin()[..., : d // 2]], dim=-1)
        mistakes = {
            "each angle should stand twice along d, once for each entry of the pair": tables(
                position, frequency[: d // 2]
            ),
            "write (two i), not (i two): pair i is i and i + d/2": tables(
                position, frequency.sort(descending=True).values
            ),
            "the frequencies grow: the exponent needs a minus": tables(position, 1 / frequency),
            "the exponent is -2i/d; yours is -i/d": tables(position, theta ** (-pair / d)),
            "the exponent is -2i/d; yours is -2i": tables(position, theta ** (-2.0 * pair)),
            "the exponent is -2i/d; yours is -4i/d: torch.arange(0, d, 2) is 2i already": tables(
                position, frequency**2
            ),
            "use the argument theta": tables(position, 10_000.0 ** (-2 * pair / d)),
            "the two entries of a pair share one angle: i runs over d/2 pairs": tables(
                position, theta ** (-2.0 * torch.arange(d) / d)
            ),
            "the angles are radians, not degrees": tables(position, frequency * torch.pi / 180),
            "the angles are radians: do not turn them into degrees": tables(
                position, frequency * 180 / torch.pi
            ),
            "the exponent -2i/d is no whole number: divide with /": tables(position, torch.ones(d)),
            "the frequencies are rounded to whole numbers: keep them as they are": tables(
                position, frequency.long()
            ),
            "cosines and sines each fill a table of their own": (half_and_half, half_and_half),
            "both entries of a pair are rotated the same way": (
                None,
                angle.sin() * (1.0 - 2.0 * (torch.arange(d) >= d // 2)),
            ),
            "use the argument position": tables(torch.arange(5).expand(b, 5), frequency),
            "the two entries of a pair should share one angle": tables(
                position, theta ** (-torch.arange(d) / d)
            ),
            "the frequency is a power of theta: write **, not *": tables(
                position, theta * -2 * pair / d
            ),
            "add the position and you shift the angle; multiply by it": (
                (angle / frequency + frequency).cos(),
                (angle / frequency + frequency).sin(),
            ),
            "these are the angles: take their cosine and their sine": (angle, angle),
            "these are cosines again": (None, angle.cos()),
            "these are sines again": (angle.sin(), None),
        }
        cos, sin = tables(position, frequency)
        mine = rotary_tables(position, head_dim=d, theta=theta)
        assert_results(mine, {"the cosines": cos, "the sines": sin}, "b s d", mistakes=mistakes)

    cos, sin = model.model.rotary_emb(torch.zeros(1), position)
    mine = rotary_tables(position, head_dim=64, theta=100_000.0)
    what = "of the real Llama"
    assert_results(mine, {"the cosines": cos, "the sines": sin}, "b s d", what=what)


# %% [raw] tags=["wrong"] says="each angle should stand twice along d"
"""
def rotary_tables(position, head_dim, theta):
    frequency = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = einsum(position.float(), frequency, "b s, i -> b s i")
    return angle.cos(), angle.sin()
"""

# %% [raw] tags=["wrong"] says="write (two i), not (i two)"
"""
def rotary_tables(position, head_dim, theta):
    frequency = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = einsum(position.float(), frequency, "b s, i -> b s i")
    angle = repeat(angle, "b s i -> b s (i two)", two=2)
    return angle.cos(), angle.sin()
"""

# %% [raw] tags=["wrong"] says="the exponent needs a minus"
"""
def rotary_tables(position, head_dim, theta):
    frequency = theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angle = einsum(position.float(), frequency, "b s, i -> b s i")
    angle = repeat(angle, "b s i -> b s (two i)", two=2)
    return angle.cos(), angle.sin()
"""

# %% [raw] tags=["wrong"] says="the exponent is -2i/d"
"""
def rotary_tables(position, head_dim, theta):
    frequency = theta ** (-torch.arange(head_dim // 2).float() / head_dim)
    angle = einsum(position.float(), frequency, "b s, i -> b s i")
    angle = repeat(angle, "b s i -> b s (two i)", two=2)
    return angle.cos(), angle.sin()
"""

# %% [raw] tags=["wrong"] says="the sines"
"""
def rotary_tables(position, head_dim, theta):
    frequency = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = einsum(position.float(), frequency, "b s, i -> b s i")
    angle = repeat(angle, "b s i -> b s (two i)", two=2)
    return angle.cos(), angle.cos()
"""

# %% [raw] tags=["wrong"] says="use the argument position"
"""
def rotary_tables(position, head_dim, theta):
    frequency = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = einsum(torch.arange(position.shape[1]).float(), frequency, "s, i -> s i")
    angle = repeat(angle, "s i -> b s (two i)", two=2, b=position.shape[0])
    return angle.cos(), angle.sin()
"""

# %% [raw] tags=["right"]
"""
def rotary_tables(position, head_dim, theta):
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2) / head_dim)
    angle = position[:, :, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return torch.cos(angle), torch.sin(angle)
"""

# %% [raw] tags=["right"]
"""
def rotary_tables(position, head_dim, theta):
    half = head_dim // 2
    frequency = torch.tensor([theta ** (-2 * (d % half) / head_dim) for d in range(head_dim)])
    turned = torch.polar(torch.ones(1), rearrange(position, "b s -> b s 1") * frequency)
    return turned.real, turned.imag
"""

# %% [markdown]
# The pairs are like the hands of a clock. In our Llama, `d = 64` and `theta = 100000`. Here is the
# cosine of each pair at the first 128 positions.

# %%
# alt: 32 rows of stripes over 128 positions: narrow at the top, ever wider, then no change at all
positions = rearrange(torch.arange(128), "s -> 1 s")
cos, sin = rotary_tables(positions, head_dim=64, theta=100_000.0)

fig, ax = plt.subplots(figsize=(6.5, 3))
heatmap(ax, rearrange(cos[0, :, :32], "s i -> i s"), rows="i, pair", columns="s, position")
fig.colorbar(ax.images[0], label="cosine of the angle")
plt.show()

# %% [markdown]
# Fast hands tell neighbours apart, slow ones tell near from far. Now rotate the arrows.
#
# An arrow `(first, second)`, rotated by an angle, becomes
#
# ```
# first  * cos  -  second * sin
# second * cos  +  first  * sin
# ```
#
# Read it by columns. The cosine meets the arrow itself, `(first, second)`. The sine meets
# `(-second, first)`: the arrow after a quarter turn.

# %% [markdown] tags=["card"]
# ### Exercise 2.2 · Rotate the pairs
#
# *medium ●●○ · 8 minutes*
#
# Rotate each pair of entries `(i, i + d/2)` of `x` by its token's angle. All heads of a token are
# rotated alike. `x` may be queries or keys. The batch axis of the tables may be 1: then all rows of
# `x` share them.
#
# <details><summary>Hint 1: direction</summary>
#
# Cut `x` into its first and its second half. Build the quarter-turned `x` from them. The rest is
# one line with `cos` and `sin`.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `rearrange` with `two` as first axis on the right gives two tensors `b h s i` to unpack. It also
# takes a list of tensors: the list is the first axis. The tables `b s d` need an axis for the
# heads, of size 1.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# first, second = rearrange(x, "b h s (two i) -> _____", two=2)
# quarter_turn = rearrange([_____, _____], "two b h s i -> b h s (_____)")
# cos = rearrange(cos, "b s d -> b _ s d")
# ```
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.attention"
def apply_rotary(
    x: Float[Tensor, "b h s d"], cos: Float[Tensor, "b s d"], sin: Float[Tensor, "b s d"]
) -> Float[Tensor, "b h s d"]:
    """Rotate each pair of entries (i, i + d/2) by its token's angle; lengths stay as they are."""
    ### BEGIN SOLUTION
    # ~ quarter_turn = ...  # b h s d
    first, second = rearrange(x, "b h s (two i) -> two b h s i", two=2)
    quarter_turn = rearrange([-second, first], "two b h s i -> b h s (two i)")
    cos, sin = rearrange(cos, "b s d -> b 1 s d"), rearrange(sin, "b s d -> b 1 s d")
    return x * cos + quarter_turn * sin
    ### END SOLUTION


# %% tags=["check"]
@check("2.2", "apply_rotary", b=[2, 3], h=[3, 2], d=[8, 10])
def _(b, h, d):
    x, angle = torch.randn(b, h, 5, d), torch.randn(b, 5, d // 2)
    first, second = x.chunk(2, dim=-1)

    def turned(first, second, angle):
        """Complex numbers rotate, too: one pair is one complex number."""
        turn = torch.polar(torch.ones(()), rearrange(angle, "b s i -> b 1 s i"))
        result = torch.complex(first, second) * turn
        return result.real, result.imag

    cos, sin = (
        repeat(table, "b s i -> b s (two i)", two=2) for table in (angle.cos(), angle.sin())
    )
    wide_cos, wide_sin = rearrange([cos, sin], "two b s d -> two b 1 s d")
    neighbours = rearrange([-x[..., 1::2], x[..., 0::2]], "two b h s i -> b h s (i two)")
    quarter_turn, half = torch.cat([-second, first], dim=-1), x * wide_cos
    mistakes = {
        "the arrow rotates backwards: (first, second) becomes (-second, first)": (
            half - quarter_turn * wide_sin
        ),
        "the quarter turn of (first, second) is (-second, first): its minus is missing": (
            half + torch.cat([second, first], dim=-1) * wide_sin
        ),
        "entry i belongs to entry i + d/2, not to its neighbour: write (two i), not (i two)": (
            half + neighbours * wide_sin
        ),
        "the partner's part is missing: add the quarter turn times sin": half,
        "the arrow's own part is missing: add x times cos": quarter_turn * wide_sin,
        "the sine meets the quarter turn, not x": half + x * wide_sin,
        "the halves of the quarter turn are swapped: -second comes first": (
            half + torch.cat([first, -second], dim=-1) * wide_sin
        ),
        "cos and sin are swapped: x meets the cosine": x * wide_sin + quarter_turn * wide_cos,
    }
    rotated_first, rotated_second = turned(first, second, angle)
    right = torch.cat([rotated_first, rotated_second], dim=-1)
    mistakes |= {
        "the second half is not rotated": torch.cat([rotated_first, second], dim=-1),
        "the first half is not rotated": torch.cat([first, rotated_second], dim=-1),
        "the second half needs the first one as it was, not rotated": torch.cat(
            [
                rotated_first,
                (second * wide_cos.chunk(2, -1)[0] + rotated_first * wide_sin.chunk(2, -1)[0]),
            ],
            dim=-1,
        ),
        "the halves are swapped in the result: the first one comes first": torch.cat(
            [rotated_second, rotated_first], dim=-1
        ),
        "the result keeps the places of x: join with (two i), not (i two)": rearrange(
            [rotated_first, rotated_second], "two b h s i -> b h s (i two)"
        ),
    }
    assert_close(apply_rotary(x, cos, sin), right, "b h s d", mistakes=mistakes)
    push = torch.randn_like(x)
    moved = x.clone().requires_grad_()
    result = apply_rotary(moved, cos, sin)
    if result.requires_grad:  # else assert_gradients says so
        (back,) = torch.autograd.grad((result * push).sum(), moved)
        expected = torch.cat(turned(*push.chunk(2, dim=-1), -angle), dim=-1)
        mistakes = {"a part of it is cut: no detach, no_grad or .data": push * wide_cos}
        mistakes |= {"a part of it is cut, detach or no_grad": expected - push * wide_cos}
        what = "the gradient that reaches x"
        assert_close(back, expected, "b h s d", mistakes=mistakes, what=what)

    right = torch.cat(turned(first, second, angle[:1]), dim=-1)
    what = "with tables of batch 1, shared by all rows"
    assert_close(apply_rotary(x, cos[:1], sin[:1]), right, "b h s d", what=what)
    assert_gradients(apply_rotary, x, cos, sin)


# %% [raw] tags=["wrong"] says="the arrow rotates backwards"
"""
def apply_rotary(x, cos, sin):
    first, second = rearrange(x, "b h s (two i) -> two b h s i", two=2)
    quarter_turn = rearrange([second, -first], "two b h s i -> b h s (two i)")
    cos, sin = rearrange(cos, "b s d -> b 1 s d"), rearrange(sin, "b s d -> b 1 s d")
    return x * cos + quarter_turn * sin
"""

# %% [raw] tags=["wrong"] says="entry i belongs to entry i + d/2, not to its neighbour"
"""
def apply_rotary(x, cos, sin):
    first, second = rearrange(x, "b h s (i two) -> two b h s i", two=2)
    quarter_turn = rearrange([-second, first], "two b h s i -> b h s (i two)")
    cos, sin = rearrange(cos, "b s d -> b 1 s d"), rearrange(sin, "b s d -> b 1 s d")
    return x * cos + quarter_turn * sin
"""

# %% [raw] tags=["wrong"] says="an axis of size 3 meets an axis of size 2"
"""
def apply_rotary(x, cos, sin):
    first, second = rearrange(x, "b h s (two i) -> two b h s i", two=2)
    quarter_turn = rearrange([-second, first], "two b h s i -> b h s (two i)")
    return x * cos + quarter_turn * sin
"""

# %% [raw] tags=["wrong"] says="changes its input x in place"
"""
def apply_rotary(x, cos, sin):
    first, second = rearrange(x, "b h s (two i) -> two b h s i", two=2)
    quarter_turn = rearrange([-second, first], "two b h s i -> b h s (two i)")
    cos, sin = rearrange(cos, "b s d -> b 1 s d"), rearrange(sin, "b s d -> b 1 s d")
    x *= cos
    return x + quarter_turn * sin
"""

# %% [raw] tags=["wrong"] says="there is no index 1 on axis 0"
"""
def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    quarter_turn = torch.cat([-second, first], dim=-1)
    rows = [x[b] * cos[b] + quarter_turn[b] * sin[b] for b in range(len(x))]
    return torch.stack(rows)
"""

# %% [raw] tags=["wrong"] says="cos and sin are swapped"
"""
def apply_rotary(x, cos, sin):
    first, second = rearrange(x, "b h s (two i) -> two b h s i", two=2)
    quarter_turn = rearrange([-second, first], "two b h s i -> b h s (two i)")
    cos, sin = rearrange(cos, "b s d -> b 1 s d"), rearrange(sin, "b s d -> b 1 s d")
    return x * sin + quarter_turn * cos
"""

# %% [raw] tags=["right"]
"""
def apply_rotary(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    quarter_turn = torch.cat([-second, first], dim=-1)
    return x * cos.unsqueeze(1) + quarter_turn * sin.unsqueeze(1)
"""

# %% [raw] tags=["right"]
"""
def apply_rotary(x, cos, sin):
    turned = torch.empty_like(x)
    half = x.shape[-1] // 2
    for i in range(half):
        c, s = cos[:, None, :, i], sin[:, None, :, i]
        turned[..., i] = x[..., i] * c - x[..., i + half] * s
        turned[..., i + half] = x[..., i + half] * c + x[..., i] * s
    return turned
"""

# %% [markdown]
# Is it true that only the distance counts? Take one query and one key of the real Llama, of head 0
# in layer 16. Put them at positions of our choice.

# %%
block = model.model.layers[16]
hidden_of_layers = model.model(token_ids, output_hidden_states=True).hidden_states
hidden = block.input_layernorm(hidden_of_layers[16])  # b s m, what its attention gets
query = split_heads(block.self_attn.q_proj(hidden), head_dim=64)[:, :1, 29:30]  # head 0, token 29
key = split_heads(block.self_attn.k_proj(hidden), head_dim=64)[:, :1, 28:29]  # head 0, token 28
token_before, token = (tokenizer.decode(token) for token in token_ids[0, 28:30])
print(f"query of {token!r}, key of {token_before!r}")


def scores_at(query_positions, key_positions):
    """The score of the one query and the one key, at each pair of positions."""
    tables = [
        rotary_tables(torch.tensor([positions]), head_dim=64, theta=100_000.0)
        for positions in (query_positions, key_positions)
    ]
    queries = repeat(query, "b h 1 d -> b h s d", s=len(query_positions))
    keys = repeat(key, "b h 1 d -> b h t d", t=len(key_positions))
    return attention_scores(apply_rotary(queries, *tables[0]), apply_rotary(keys, *tables[1]))[0, 0]


for positions in ((5, 4), (105, 104), (1005, 1004), (5, 2)):
    score = scores_at(positions[:1], positions[1:]).item()
    print(f"query at {positions[0]:4}, key at {positions[1]:4}: score {score:.1f}")

# %% [markdown]
# One token apart is one token apart, here and a thousand tokens later. In the picture, the same
# query stands at every `s` and the same key at every `t`. Each diagonal has one colour: one
# distance, one score. Of the tokens before it (`t < s`), this query likes the nearest one best. The
# later tokens, above the diagonal, will be masked.

# %%
# alt: Scores of 24 query and 24 key positions. All cells of a diagonal have the same colour
fig, ax = plt.subplots(figsize=(4.6, 3.6))
heatmap(ax, scores_at(range(24), range(24)), rows="s, query position", columns="t, key position")
fig.colorbar(ax.images[0], label="score")
plt.show()

# %% [markdown]
# ## 2. What a query reads
#
# An attention layer holds four linear layers. This course calls them **query, key, value and output
# layer**; transformers calls them `q_proj`, `k_proj`, `v_proj` and `o_proj`, for *projection*.

# %%
print(model.model.layers[0].self_attn)

# %% [markdown]
# The queries are 9 heads of 64, keys and values only 3 heads of 64: **grouped-query attention**, as
# in lesson 01. You have the parts for it. One step is new: each query takes the mean of the values
# `b h t d`, weighted by its weights `b h s t`.

# %% [markdown] tags=["card"]
# ### Exercise 2.3 · Causal attention
#
# *easy ●○○ · 6 minutes*
#
# Put the parts together: give each query head its key and value head, score, make weights, take the
# weighted mean of the values. There may be more keys than queries: then the queries are the last
# tokens, as `causal_softmax` expects.
#
# <details><summary>Hint 1: direction</summary>
#
# Four steps, one line each. How many query heads share a key head? Ask the shapes.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The heads are axis 1: `query.shape[1]` is `h`, `key.shape[1]` is `g`, and `r` is `h` divided by
# `g`. The weights are `b h s t`, the values `b h t d`; the sum runs over `t`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# weights = causal_softmax(_____)
# einsum(weights, value, "b h s t, _____ -> b h s d")
# ```
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.attention"
def causal_attention(
    query: Float[Tensor, "b h s d"], key: Float[Tensor, "b g t d"], value: Float[Tensor, "b g t d"]
) -> Float[Tensor, "b h s d"]:
    """Causal grouped-query attention: each query reads a weighted mean of the values before it."""
    ### BEGIN SOLUTION
    # ~ n_repeats = ...
    n_repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv_heads(key, n_repeats), repeat_kv_heads(value, n_repeats)
    weights = causal_softmax(attention_scores(query, key))
    return einsum(weights, value, "b h s t, b h t d -> b h s d")
    ### END SOLUTION


# %% tags=["check"]
@check("2.3", "causal_attention", b=[2, 3], g=[3, 2], r=[4, 5])
def _(b, g, r):
    query, key, value = (
        torch.randn(b, g * r, 7, 6),
        torch.randn(b, g, 7, 6),
        torch.randn(b, g, 7, 6),
    )
    pytorchs = partial(F.scaled_dot_product_attention, enable_gqa=True)
    right = pytorchs(query, key, value, is_causal=True)
    mixed_key, mixed_value = (repeat(x, "b g t d -> b (r g) t d", r=r) for x in (key, value))
    wide_key, wide_value = (repeat_kv_heads(x, r) for x in (key, value))
    scores = attention_scores(query, wide_key)
    mistakes = {
        "a query sees later tokens: use causal_softmax": pytorchs(query, key, value),
        "query heads read the wrong key/value heads: (g r), not (r g)": pytorchs(
            query, mixed_key, mixed_value, is_causal=True
        ),
        "the values of head h are not those of its group: (g r), not (r g)": pytorchs(
            query, wide_key, mixed_value, is_causal=True
        ),
        "the keys of head h are not those of its group: (g r), not (r g)": pytorchs(
            query, mixed_key, wide_value, is_causal=True
        ),
        "these are weighted keys: the weights are for the values": pytorchs(
            query, key, key, is_causal=True
        ),
        "the scores come from query and key, not from query and value": pytorchs(
            query, value, value, is_causal=True
        ),
        "key and value are swapped": pytorchs(query, value, key, is_causal=True),
        "attention_scores divides by sqrt(d) already: do not divide again": pytorchs(
            query / 6**0.5, key, value, is_causal=True
        ),
        "the softmax is missing: scores are no weights": scores @ wide_value,
        "a score of 0 still gets weight: use causal_softmax": scores.tril().softmax(-1)
        @ wide_value,
        "these are the weights: take the weighted sum of the values with them": causal_softmax(
            scores
        ),
        "the weights are applied the wrong way round: sum over t, the keys": (
            causal_softmax(scores).mT @ wide_value
        ),
        "the scores are not divided by sqrt(d): use attention_scores": pytorchs(
            query, key, value, is_causal=True, scale=1.0
        ),
        "causal_softmax gives weights: no second softmax": causal_softmax(scores).softmax(-1)
        @ wide_value,
        "the weights are not used: this is a plain mean": wide_value.mean(
            dim=2, keepdim=True
        ).expand_as(right),
        "the values are summed on their own: write t in weights and values": wide_value.sum(
            dim=2, keepdim=True
        ).expand_as(right),
        "all query heads read key/value head 0": pytorchs(
            query, key[:, :1], value[:, :1], is_causal=True
        ),
    }
    assert_close(causal_attention(query, key, value), right, "b h s d", mistakes=mistakes)

    from_the_start = pytorchs(query[:, :, -2:], key, value, is_causal=True)
    mistakes = {
        "2 queries and 7 keys: the queries are the last tokens, not the first": from_the_start,
        "2 queries and 7 keys: all 7 are read, not the last 2 only": pytorchs(
            query[:, :, -2:], key[:, :, -2:], value[:, :, -2:], is_causal=True
        ),
    }
    newest = causal_attention(query[:, :, -2:], key, value)
    assert_close(newest, right[:, :, -2:], "b h s d", mistakes=mistakes, what="2 queries")
    assert_gradients(causal_attention, query[:, :, -2:], key, value)


# %% [raw] tags=["wrong"] says="query heads read the wrong key/value heads"
"""
def causal_attention(query, key, value):
    n_repeats = query.shape[1] // key.shape[1]
    key = repeat(key, "b g t d -> b (r g) t d", r=n_repeats)
    value = repeat(value, "b g t d -> b (r g) t d", r=n_repeats)
    weights = causal_softmax(attention_scores(query, key))
    return einsum(weights, value, "b h s t, b h t d -> b h s d")
"""

# %% [raw] tags=["wrong"] says="a query sees later tokens"
"""
def causal_attention(query, key, value):
    n_repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv_heads(key, n_repeats), repeat_kv_heads(value, n_repeats)
    weights = attention_scores(query, key).softmax(dim=-1)
    return einsum(weights, value, "b h s t, b h t d -> b h s d")
"""

# %% [raw] tags=["wrong"] says="the queries are the last tokens, not the first"
"""
def causal_attention(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
"""

# %% [raw] tags=["wrong"] says="one letter of the pattern has size 12 in one tensor and size 3 in another"
"""
def causal_attention(query, key, value):
    weights = causal_softmax(attention_scores(query, key))
    return einsum(weights, value, "b h s t, b h t d -> b h s d")
"""

# %% [raw] tags=["wrong"] says="a query sees later tokens"
"""
def causal_attention(query, key, value):
    n_repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv_heads(key, n_repeats), repeat_kv_heads(value, n_repeats)
    weights = attention_scores(query, key).softmax(dim=-1)
    return einsum(weights, value, "b h s t, b h t d -> b h s d")
"""

# %% [raw] tags=["wrong"] says="the softmax is missing"
"""
def causal_attention(query, key, value):
    n_repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv_heads(key, n_repeats), repeat_kv_heads(value, n_repeats)
    weights = attention_scores(query, key)
    return einsum(weights, value, "b h s t, b h t d -> b h s d")
"""

# %% [raw] tags=["right"]
"""
def causal_attention(query, key, value):
    query = rearrange(query, "b (g r) s d -> b g r s d", g=key.shape[1])
    scores = einsum(query, key, "b g r s d, b g t d -> b g r s t") / query.shape[-1] ** 0.5
    scores = rearrange(scores, "b g r s t -> b (g r) s t")
    weights = rearrange(causal_softmax(scores), "b (g r) s t -> b g r s t", g=key.shape[1])
    attended = einsum(weights, value, "b g r s t, b g t d -> b g r s d")
    return rearrange(attended, "b g r s d -> b (g r) s d")
"""

# %% [raw] tags=["right"]
"""
def causal_attention(query, key, value):
    s, t = query.shape[2], key.shape[2]
    allowed = torch.ones(s, t, dtype=torch.bool).tril(diagonal=t - s)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, enable_gqa=True)
"""

# %% [markdown]
# What do trained heads look at? Here are the weights of two of the 270 heads of our Llama, while it
# reads "The red fox met the blue fox, and the red fox". Read a row: which tokens does this token
# look at? One of the two heads looks at the token before. The other one is cleverer.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "At which token does the second 'red' look most, in the cleverer head?",
    options=["The", "the first red", "fox", "blue"],
    mine=...,
)

# %%
# alt: Attention weights of two heads. Left: on the token before. Right: mostly on the first token; the second red and blue are nearly all on the first fox, the second fox on met.
sentence = "The red fox met the blue fox, and the red fox"
ids = torch.tensor([tokenizer(sentence).input_ids])
tokens = [tokenizer.decode(token) for token in ids[0]]
hidden_of_layers = model.model(ids, output_hidden_states=True).hidden_states
cos, sin = rotary_tables(rearrange(torch.arange(len(tokens)), "s -> 1 s"), 64, 100_000.0)


def attention_weights(layer):
    """The weights b h s t of a real layer while it reads the sentence."""
    block = model.model.layers[layer]
    hidden = block.input_layernorm(hidden_of_layers[layer])
    query = apply_rotary(split_heads(block.self_attn.q_proj(hidden), 64), cos, sin)
    key = apply_rotary(split_heads(block.self_attn.k_proj(hidden), 64), cos, sin)
    return causal_softmax(attention_scores(query, repeat_kv_heads(key, 3)))


fig, axes = plt.subplots(ncols=2, figsize=(7, 3.9), sharey=True)
for ax, layer, head in ((axes[0], 16, 0), (axes[1], 17, 5)):
    weights, title = attention_weights(layer)[0, head], f"layer {layer}, head {head}"
    heatmap(ax, weights, row_labels=tokens, column_labels=tokens, title=title, vmin=0, vmax=1)
    ax.set_xlabel("t, token looked at")
axes[0].set_ylabel("s, token that looks")
fig.colorbar(axes[1].images[0], ax=axes, label="weight")
plt.show()

# %% tags=["nbval-ignore-output"]
second_red = len(tokens) - 2
looked_at = tokens[weights[second_red].argmax()].strip()
guess.compare("the first red" if looked_at == "red" else looked_at)

# %% [markdown]
# The left head looks one token back. Without positions it could not. The right head remembers: at
# the second "red" it looks at what followed the first one, "fox"; at the second "fox", at "met". It
# is not strict about it: no "blue" came before, but at "blue" it looks at "fox", too, which
# followed another colour. Where it finds nothing, it puts most of its weight on the first token.

# %% [markdown]
# ## 3. Remember what was read
#
# The answer above has 7 tokens, the question 37. Suppose the Llama kept nothing. Then it would read
# all of them again for each new token: question and answer so far.

# %% tags=["nbval-ignore-output"]
guess = predict("How many tokens does the Llama read, in all, to write the 7?", mine=...)

# %%
n_read, n_written = token_ids.shape[1], answer.shape[1]
read_again = sum(n_read + n for n in range(n_written))
print("reading everything again for each token:", read_again)
print("reading each token once:                ", n_read + n_written - 1)

# %% tags=["nbval-ignore-output"]
guess.compare(read_again)

# %% [markdown]
# What would change if the Llama read the old tokens again? Nothing: a token sees only the tokens
# before it. So its keys and values stay the same. Keep them. For a new token, compute its own
# query, key and value, and no other.
#
# ![Reading a prompt of 4 tokens computes 4 keys and values. Reading the next token takes these from
# the cache and computes one more, with one query. The next token again one
# more](figures/02_cache.svg)
#
# The store is called **key/value cache**, the steps with one new token **decoding**. Queries are
# not kept: no later token looks at them.

# %% [markdown] tags=["card"]
# ### Exercise 2.4 · A cache
#
# *easy ●○○ · 6 minutes*
#
# Write `append`: put the keys and values of the new tokens behind those of the earlier ones, keep
# the result, and return it. At first the cache is empty: `key` and `value` are `None`.
#
# <details><summary>Hint 1: direction</summary>
#
# Join old and new with `torch.cat`, if there is anything old. Then store both in `self`, and return
# both.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# In `b g s d` the tokens are axis 2. The old ones come first.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# if self.key is not None:
#     key = torch.cat([_____, _____], dim=_)  # and the same for value
# ```
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.attention"
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
        ### BEGIN SOLUTION
        if self.key is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        self.key, self.value = key, value
        return key, value
        ### END SOLUTION


# %% tags=["check"]
@check("2.4", "KeyValueCache", b=[2, 3], g=[3, 2], parts=[[3, 1, 1], [1, 4, 2]])
def _(b, g, parts):
    key, value = torch.randn(b, g, sum(parts), 4), torch.randn(b, g, sum(parts), 4)

    def fill(cache, key, value):
        """The tokens come in parts; what the last append returns."""
        old_key, old_value, n_tokens = key[:, :, :0], value[:, :, :0], 0
        for new_key, new_value in zip(key.split(parts, 2), value.split(parts, 2), strict=True):
            returned = cache.append(new_key, new_value)
            n_tokens += new_key.shape[2]
            every = key[:, :, :n_tokens], value[:, :, :n_tokens]
            mistakes = {
                "the new tokens should stand behind the old ones, not before them": (
                    torch.cat([new_key, old_key], 2),
                    torch.cat([new_value, old_value], 2),
                ),
                "append should return those of all tokens, not of the new ones only": (
                    new_key,
                    new_value,
                ),
                "append should return those of all tokens; the new ones are missing": (
                    old_key,
                    old_value,
                ),
                "these are the values: key and value are mixed up": (every[1], None),
                "these are the keys: key and value are mixed up": (None, every[0]),
                "keys are joined with keys, values with values": (
                    torch.cat([old_value, new_key], 2),
                    torch.cat([old_key, new_value], 2),
                ),
                "new values are joined with old values, not with old keys": (
                    None,
                    torch.cat([old_key, new_value], 2),
                ),
            }
            names = dict(zip(("the keys", "the values"), every, strict=True))
            what = f"of the first {n_tokens} tokens"
            assert_results(returned, names, "b g t d", mistakes=mistakes, what=what)
            held = len(cache)
            assert held == n_tokens, f"the cache should hold {n_tokens} tokens now, it holds {held}"
            old_key, old_value = every
        return returned

    cache, other = KeyValueCache(), KeyValueCache()
    fill(cache, key, value)
    assert len(other) == 0, "a new cache should be empty: store the tokens in self"
    fill(other, value, key)
    assert len(cache) == sum(parts), "two caches share their tokens: store them in self"
    assert_gradients(lambda key, value: fill(KeyValueCache(), key, value), key, value)


# %% [raw] tags=["wrong"] says="the cache should hold 3 tokens now, it holds 0"
"""
@dataclass
class KeyValueCache:
    key: Tensor | None = None
    value: Tensor | None = None

    def __len__(self):
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key, value):
        if self.key is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        return key, value
"""

# %% [raw] tags=["wrong"] says="the new tokens should stand behind the old ones"
"""
@dataclass
class KeyValueCache:
    key: Tensor | None = None
    value: Tensor | None = None

    def __len__(self):
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key, value):
        if self.key is not None:
            key, value = torch.cat([key, self.key], dim=2), torch.cat([value, self.value], dim=2)
        self.key, self.value = key, value
        return key, value
"""

# %% [raw] tags=["wrong"] says="not of the new ones only"
"""
@dataclass
class KeyValueCache:
    key: Tensor | None = None
    value: Tensor | None = None

    def __len__(self):
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key, value):
        if self.key is None:
            self.key, self.value = key, value
        else:
            self.key = torch.cat([self.key, key], dim=2)
            self.value = torch.cat([self.value, value], dim=2)
        return key, value
"""

# %% [raw] tags=["wrong"] says="torch.cat along axis 1 needs all other sizes equal"
"""
@dataclass
class KeyValueCache:
    key: Tensor | None = None
    value: Tensor | None = None

    def __len__(self):
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key, value):
        if self.key is not None:
            key, value = torch.cat([self.key, key], dim=1), torch.cat([self.value, value], dim=1)
        self.key, self.value = key, value
        return key, value
"""

# %% [raw] tags=["wrong"] says="these are the keys: key and value are mixed up"
"""
@dataclass
class KeyValueCache:
    key: Tensor | None = None
    value: Tensor | None = None

    def __len__(self):
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key, value):
        if self.key is not None:
            key = torch.cat([self.key, key], dim=2)
        self.key, self.value = key, key
        return self.key, self.value
"""

# %% [raw] tags=["wrong"] says="the gradient of `key`"
"""
@dataclass
class KeyValueCache:
    key: Tensor | None = None
    value: Tensor | None = None

    def __len__(self):
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key, value):
        if self.key is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        self.key, self.value = key.detach(), value.detach()
        return key, value
"""

# %% [raw] tags=["right"]
"""
@dataclass
class KeyValueCache:
    key: Tensor | None = None
    value: Tensor | None = None

    def __len__(self):
        return 0 if self.key is None else self.key.shape[2]

    def append(self, key, value):
        if len(self) == 0:
            self.key, self.value = key, value
        else:
            self.key = torch.cat((self.key, key), 2)
            self.value = torch.cat((self.value, value), 2)
        return self.key, self.value
"""

# %% [raw] tags=["right"]
"""
class KeyValueCache:
    def __init__(self):
        self.keys, self.values = [], []

    def __len__(self):
        return sum(key.shape[2] for key in self.keys)

    def append(self, key, value):
        self.keys.append(key)
        self.values.append(value)
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)
"""

# %% [markdown]
# ## 4. The whole layer
#
# The library's `AttentionLayer` holds the parts of one attention layer: four linear layers, the
# head width and theta. `from_llama` takes them from a layer of the Llama; the weights are shared,
# not copied.

# %%
layer = AttentionLayer.from_llama(model.model.layers[0].self_attn)
print(layer)
print("head_dim:", layer.head_dim, " theta:", layer.theta)

# %% [markdown]
# You write what happens to the hidden states. Follow the map at the top of the lesson. Three things
# to watch:
#
# * The tokens' positions. Without a cache they are 0, 1, 2, ... With one they go on where it ends:
#   `len(cache)` tokens came before.
# * Queries and keys are rotated, values are not. Keys go into the cache *after* they were rotated:
#   a token's position does not change.
# * Return the rotated queries as well. In lesson 03, the soft prompts will be scored against them.

# %% [markdown] tags=["card"]
# ### Exercise 2.5 · An attention layer
#
# *hard ●●● · 15 minutes*
#
# Go from hidden states to the output of the layer, as on the map: project, split, rotate, remember
# (if there is a cache), attend, merge, project. Use `layer.query_layer` and the other three,
# `layer.head_dim`, `layer.theta`, and your functions.
#
# <details><summary>Hint 1: direction</summary>
#
# Write the lines in the order of the map, from top to bottom. Each box is one call, rotating is
# two. `causal_attention` repeats the key/value heads itself.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Projected `b s (h d)`, split `b h s d`; keys and values `b g s d`, and `b g t d` after the cache.
# The positions are needed as `b s`; `1 s` will do, all rows of the batch have the same ones.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# position = torch.arange(_____, _____ + hidden_states.shape[1])
# cos, sin = rotary_tables(rearrange(position, "s -> 1 s"), _____, _____)
# key, value = cache._____(key, value)
# ```
#
# </details>


# %% tags=["exercise"]
def attend(
    layer: AttentionLayer,
    hidden_states: Float[Tensor, "b s m"],
    cache: KeyValueCache | None = None,
) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
    """The output of an attention layer, and its rotated queries.

    `cache` holds the keys and values of the earlier tokens; those of the s new tokens are appended.
    """
    ### BEGIN SOLUTION
    # ~ query = ...  # b h s d; key and value b g s d
    # ~ position = ...  # s
    query = split_heads(layer.query_layer(hidden_states), layer.head_dim)
    key = split_heads(layer.key_layer(hidden_states), layer.head_dim)
    value = split_heads(layer.value_layer(hidden_states), layer.head_dim)

    start = 0 if cache is None else len(cache)
    position = torch.arange(start, start + hidden_states.shape[1])
    cos, sin = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

    if cache is not None:
        key, value = cache.append(key, value)
    attended = causal_attention(query, key, value)
    return layer.output_layer(merge_heads(attended)), query
    ### END SOLUTION


# %% tags=["check"]
@check("2.5", "attend", b=[2, 3], g=[3, 2], r=[1, 4], theta=[16.0, 9.0])
def _(b, g, r, theta):
    h, d, m, parts = g * r, 6, 10, [4, 1, 2]
    kv = nn.Linear(m, g * d), nn.Linear(m, g * d)
    layer = AttentionLayer(nn.Linear(m, h * d), *kv, nn.Linear(h * d, m), head_dim=d, theta=theta)
    hidden, position = torch.randn(b, 7, m), torch.arange(7)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    part = torch.tensor([0, 0, 0, 0, 1, 2, 2])  # the part that each token comes with

    def by_hand(
        turn="qk", position=position, theta=theta, allowed=causal, swap=1, merge=merge_heads
    ):
        """Output and queries, also of layers with mistakes: `turn` names what is rotated."""
        pair = layer.key_layer, layer.value_layer if swap else layer.key_layer
        layers = layer.query_layer, *pair[:: swap or 1]
        tables = rotary_tables(rearrange(position, "s -> 1 s"), d, theta)
        heads = [split_heads(project(hidden), d) for project in layers]
        q, k, v = (
            apply_rotary(x, *tables) if name in turn else x
            for name, x in zip("qkv", heads, strict=True)
        )
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
        return layer.output_layer(merge(read)), q

    right = dict(zip(("the output", "the rotated queries"), by_hand(), strict=True))
    output, query = unpacked(attend(layer, hidden), *right)
    axes = [getattr(x, "ndim", 0) for x in (output, query)]
    assert axes != [4, 3], "the output and the rotated queries look swapped"
    width = output.shape[-1] if axes[0] else 0
    assert width != h * d, "the output is h*d wide: output_layer comes last"
    assert_shape(output, "b s m", b=b, s=7, m=m)
    assert_shape(query, "b h s d", b=b, h=h, s=7, d=d)
    mistakes = {
        "the second result should be the queries after apply_rotary": (None, by_hand("")[1]),
        "the order of the earlier tokens makes no difference: rotate queries and keys": by_hand(""),
        "values are not rotated": by_hand("qkv"),
        "the keys are not rotated": by_hand("q"),
        "the queries that are scored are not rotated": by_hand("k"),
        "the keys are to be rotated, not the values": by_hand("qv"),
        "the frequencies are not this layer's: use layer.theta": by_hand(theta=10_000.0),
        "the first token has position 0": by_hand(position=position + 1),
        "key_layer and value_layer are swapped": by_hand(swap=-1),
        "the values come from value_layer, not from key_layer": by_hand(swap=None),
        "a token sees later tokens: use causal_attention": by_hand(allowed=None),
        "the heads of a token are not side by side: use merge_heads": by_hand(
            merge=lambda read: read.reshape(b, 7, h * d)
        ),
    }
    assert_results((output, query), right, mistakes=mistakes)

    class Watched(KeyValueCache):
        def append(self, key, value):
            appended.append(key)
            return super().append(key, value)

    cache, appended = Watched(), []
    pieces = [unpacked(attend(layer, x, cache), *right) for x in hidden.split(parts, dim=1)]
    assert len(cache) == 7, (
        f"after 7 tokens the cache holds {len(cache)}: use cache.append. (An empty cache counts as "
        "False: ask `if cache is not None`, not `if cache`)"
    )
    assert len(appended) == 3, f"in 3 calls, cache.append was called {len(appended)} times"
    heads = appended[0].shape[1]
    assert heads == g, f"the cache gets {heads} heads, not g={g}: causal_attention repeats them"
    mistakes = {
        "positions start at len(cache)": by_hand(position=torch.tensor([0, 1, 2, 3, 0, 0, 1])),
        "ask for len(cache) before cache.append: the positions are too large": by_hand(
            position=position + torch.tensor([4, 4, 4, 4, 1, 2, 2])
        ),
        "the new tokens' first position is len(cache), not len(cache) + 1": by_hand(
            position=position + (position > 3)
        ),
        "the earlier tokens are not read: go on with what cache.append returns": by_hand(
            allowed=causal & (part[:, None] == part)
        ),
    }
    mine = torch.cat([x for x, _ in pieces], dim=1), torch.cat([q for _, q in pieces], dim=2)
    what = "in parts, with a cache (positions start at len(cache); keys are kept rotated)"
    assert_results(mine, right, mistakes=mistakes, what=what)
    key = split_heads(layer.key_layer(hidden), d)
    turned = apply_rotary(key, *rotary_tables(rearrange(position, "s -> 1 s"), d, theta))
    mistakes = {"keys go into the cache after they were rotated": key}
    what = "the keys in the cache"
    assert_close(torch.cat(appended, dim=2), turned, "b g t d", mistakes=mistakes, what=what)

    block, real = model.model.layers[10], torch.randn(1, 7, 576)
    tables = model.model.rotary_emb(real, rearrange(position, "s -> 1 s"))
    theirs, _ = block.self_attn(real, position_embeddings=tables, attention_mask=None)
    output, _ = attend(AttentionLayer.from_llama(block.self_attn), real)
    assert_close(output, theirs, "b s m", tol=1e-4, what="layer 10 of the real Llama")

    def in_parts(hidden_states):
        cache = KeyValueCache()
        return [attend(layer, x, cache)[0] for x in hidden_states.split(parts, dim=1)]

    assert_gradients(attend, layer, hidden)
    assert_gradients(in_parts, hidden, what="with a cache")


# %% [raw] tags=["wrong"] says="the order of the earlier tokens makes no difference"
"""
def attend(layer, hidden_states, cache=None):
    query = split_heads(layer.query_layer(hidden_states), layer.head_dim)
    key = split_heads(layer.key_layer(hidden_states), layer.head_dim)
    value = split_heads(layer.value_layer(hidden_states), layer.head_dim)
    if cache is not None:
        key, value = cache.append(key, value)
    return layer.output_layer(merge_heads(causal_attention(query, key, value))), query
"""

# %% [raw] tags=["wrong"] says="the output is h*d wide: output_layer comes last"
"""
def attend(layer, hidden_states, cache=None):
    query, key, value = (
        split_heads(project(hidden_states), layer.head_dim)
        for project in (layer.query_layer, layer.key_layer, layer.value_layer)
    )
    start = 0 if cache is None else len(cache)
    position = torch.arange(start, start + hidden_states.shape[1])
    tables = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, *tables), apply_rotary(key, *tables)
    if cache is not None:
        key, value = cache.append(key, value)
    return merge_heads(causal_attention(query, key, value)), query
"""

# %% [raw] tags=["wrong"] says="values are not rotated"
"""
def attend(layer, hidden_states, cache=None):
    query, key, value = (
        split_heads(project(hidden_states), layer.head_dim)
        for project in (layer.query_layer, layer.key_layer, layer.value_layer)
    )
    start = 0 if cache is None else len(cache)
    position = torch.arange(start, start + hidden_states.shape[1])
    tables = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key, value = (apply_rotary(x, *tables) for x in (query, key, value))
    if cache is not None:
        key, value = cache.append(key, value)
    return layer.output_layer(merge_heads(causal_attention(query, key, value))), query
"""

# %% [raw] tags=["wrong"] says="positions start at len(cache)"
"""
def attend(layer, hidden_states, cache=None):
    query, key, value = (
        split_heads(project(hidden_states), layer.head_dim)
        for project in (layer.query_layer, layer.key_layer, layer.value_layer)
    )
    position = torch.arange(hidden_states.shape[1])
    tables = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, *tables), apply_rotary(key, *tables)
    if cache is not None:
        key, value = cache.append(key, value)
    return layer.output_layer(merge_heads(causal_attention(query, key, value))), query
"""

# %% [raw] tags=["wrong"] says="after 7 tokens the cache holds 0"
"""
def attend(layer, hidden_states, cache=None):
    query, key, value = (
        split_heads(project(hidden_states), layer.head_dim)
        for project in (layer.query_layer, layer.key_layer, layer.value_layer)
    )
    position = torch.arange(hidden_states.shape[1])
    tables = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, *tables), apply_rotary(key, *tables)
    return layer.output_layer(merge_heads(causal_attention(query, key, value))), query
"""

# %% [raw] tags=["wrong"] says="the second result should be the queries after apply_rotary"
"""
def attend(layer, hidden_states, cache=None):
    query, key, value = (
        split_heads(project(hidden_states), layer.head_dim)
        for project in (layer.query_layer, layer.key_layer, layer.value_layer)
    )
    start = 0 if cache is None else len(cache)
    position = torch.arange(start, start + hidden_states.shape[1])
    tables = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    turned, key = apply_rotary(query, *tables), apply_rotary(key, *tables)
    if cache is not None:
        key, value = cache.append(key, value)
    return layer.output_layer(merge_heads(causal_attention(turned, key, value))), query
"""

# %% [raw] tags=["wrong"] says="An empty cache counts as False"
"""
def attend(layer, hidden_states, cache=None):
    query, key, value = (
        split_heads(project(hidden_states), layer.head_dim)
        for project in (layer.query_layer, layer.key_layer, layer.value_layer)
    )
    start = len(cache) if cache else 0
    position = torch.arange(start, start + hidden_states.shape[1])
    tables = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, *tables), apply_rotary(key, *tables)
    if cache:
        key, value = cache.append(key, value)
    return layer.output_layer(merge_heads(causal_attention(query, key, value))), query
"""

# %% [raw] tags=["wrong"] says="causal_attention repeats them"
"""
def attend(layer, hidden_states, cache=None):
    query, key, value = (
        split_heads(project(hidden_states), layer.head_dim)
        for project in (layer.query_layer, layer.key_layer, layer.value_layer)
    )
    start = 0 if cache is None else len(cache)
    position = torch.arange(start, start + hidden_states.shape[1])
    tables = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, *tables), apply_rotary(key, *tables)
    n_repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv_heads(key, n_repeats), repeat_kv_heads(value, n_repeats)
    if cache is not None:
        key, value = cache.append(key, value)
    return layer.output_layer(merge_heads(causal_attention(query, key, value))), query
"""

# %% [raw] tags=["right"]
"""
def attend(layer, hidden_states, cache=None):
    return layer(hidden_states, cache)
"""

# %% [raw] tags=["right"]
"""
def attend(layer, hidden_states, cache=None):
    s, d = hidden_states.shape[1], layer.head_dim
    cache = KeyValueCache() if cache is None else cache
    position = rearrange(len(cache) + torch.arange(s), "s -> 1 s")
    tables = rotary_tables(position, d, layer.theta)
    query = apply_rotary(split_heads(layer.query_layer(hidden_states), d), *tables)
    key, value = cache.append(
        apply_rotary(split_heads(layer.key_layer(hidden_states), d), *tables),
        split_heads(layer.value_layer(hidden_states), d),
    )
    return layer.output_layer(merge_heads(causal_attention(query, key, value))), query
"""

# %% [markdown]
# The library's `AttentionLayer.forward` is your `attend`, plus a line for lower precision. Now
# compare all 30 layers with transformers' own, on the hidden states of the question.

# %%
hidden_of_layers = model.model(token_ids, output_hidden_states=True).hidden_states
position = rearrange(torch.arange(token_ids.shape[1]), "s -> 1 s")
tables = model.model.rotary_emb(hidden_of_layers[0], position)

equal = []
for block, hidden in zip(model.model.layers, hidden_of_layers[:-1], strict=True):
    hidden = block.input_layernorm(hidden)
    theirs, _ = block.self_attn(hidden, position_embeddings=tables, attention_mask=None)
    mine, _ = attend(AttentionLayer.from_llama(block.self_attn), hidden)
    equal.append(bool((mine - theirs).abs().max() < 1e-5 * theirs.abs().max()))
print(f"equal to 5 digits: {sum(equal)} of {len(equal)} layers")

# %% [markdown]
# ## 5. Inside the Llama
#
# Load the Llama a second time, take its attention out, and put yours in. transformers calls an
# attention layer with more arguments (masks, its own cache), and expects two results. A small
# module translates.


# %%
class MyAttention(nn.Module):
    """`attend`, with the arguments and the results that transformers expects."""

    def __init__(self, layer: AttentionLayer):
        super().__init__()
        self.layer, self.cache = layer, None

    def forward(self, hidden_states: Tensor, **others) -> tuple[Tensor, None]:
        output, _ = attend(self.layer, hidden_states, self.cache)
        return output, None


mine, _ = load_llama()
mine.requires_grad_(False)
for block in mine.model.layers:
    block.self_attn = MyAttention(AttentionLayer.from_llama(block.self_attn))

# Greedy: at each step the most likely token. First the slow way: read everything again.
tokens = token_ids
for _ in range(answer.shape[1]):
    scores = mine(tokens, use_cache=False).logits  # b s v
    tokens = torch.cat([tokens, scores[:, -1:].argmax(dim=-1)], dim=1)

mine_answer = tokens[:, token_ids.shape[1] :]
print(tokenizer.decode(mine_answer[0], skip_special_tokens=True))
print("the same as the untouched Llama:", torch.equal(mine_answer, answer))

# %% [markdown]
# Your attention runs in all 30 layers, and the answer is right. Now with the caches: one for each
# layer. `read` below takes *new* tokens only. It gives the scores `b s v` of what may follow each
# of them, and remembers the tokens.


# %%
def forget() -> None:
    """Give each layer of your Llama an empty cache."""
    for block in mine.model.layers:
        block.self_attn.cache = KeyValueCache()


def read(new_tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b s v"]:
    """Read new tokens after those in the caches; score every token that may come next."""
    return mine(new_tokens, use_cache=False).logits


# %% [markdown] tags=["card"]
# ### Exercise 2.6 · Write, one token at a time
#
# *medium ●●○ · 8 minutes*
#
# Read the prompt once. Take the token with the best score after the *last* token, for each row of
# the batch. Read only this token, take the next, and so on, until `n_tokens` are written: one read
# for each of them. Return the new tokens, without the prompt.
#
# <details><summary>Hint 1: direction</summary>
#
# The loop of the cell above, with one change: what is read next is the new token alone. Collect the
# new tokens in a list.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `read` gives `b s v`. Keep the last position as an axis of size 1, and take `argmax` over `v`:
# this gives `b 1`, as `read` wants it.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# token_ids = read(token_ids)[:, _____].argmax(dim=__)  # in a loop
# torch.cat(_____, dim=_)  # at the end
# ```
#
# </details>


# %% tags=["exercise"] assemble=true
def decode_greedily(
    read: Callable[[Tensor], Tensor], token_ids: Int[Tensor, "b s"], n_tokens: int
) -> Int[Tensor, "b n"]:
    """Read the prompt `token_ids`, then write n_tokens, each the most likely one.

    `read` takes new tokens (b s), gives scores (b s v), and remembers the tokens it has read.
    """
    ### BEGIN SOLUTION
    # ~ written = []
    written = []
    for _ in range(n_tokens):
        token_ids = read(token_ids)[:, -1:].argmax(dim=-1)
        written.append(token_ids)
    return torch.cat(written, dim=1)
    ### END SOLUTION


# %% tags=["check"]
@check("2.6", "decode_greedily", b=[2, 3, 1], n=[5, 4, 1], n_read=[4, 6, 3])
def _(b, n, n_read):
    table = torch.randn(11, 11)  # v v: the score of each token after each token
    sizes = []  # how many tokens are read in each step

    def read_and_note(tokens):
        shape = tuple(getattr(tokens, "shape", ()))
        assert len(shape) == 2, f"read takes tokens b s, got the shape {shape}"
        sizes.append(tokens.shape[1])
        return table[tokens]

    def followers(token, table=table):
        """The n tokens after a token of each row, by the table: b -> b s."""
        tokens = [token]
        for _ in range(n):
            tokens.append(table[tokens[-1]].argmax(dim=-1))
        return torch.stack(tokens[1:], dim=1)

    for prompt in torch.randint(0, 11, (2, b, n_read)):
        sizes.clear()
        right = followers(prompt[:, -1])
        written = decode_greedily(read_and_note, prompt, n)
        what = f"tokens read in the steps: {sizes}"
        assert sizes, "nothing is read: call read(token_ids)"
        assert sizes[0] == n_read, f"{what}: the first step reads the whole prompt, {n_read} tokens"
        assert n == 1 or len(sizes) > 1, f"{what}: read again after each new token"
        says = f"{what}: argmax over the positions gives a number per token of the vocabulary, 11"
        assert set(sizes[1:]) != {11}, f"{says}: take dim=-1"
        assert set(sizes[1:]) <= {1}, f"{what}: after the prompt, read the new token only"
        mistakes = {
            "return the new tokens only, without the prompt": torch.cat([prompt, right], dim=1),
            "take the scores after the last token, not after the first": followers(prompt[:, 0]),
            "take the best score, not the worst": followers(prompt[:, -1], -table),
            "join the tokens along the axis of the tokens, dim=1": right.T.reshape(-1, 1),
            "only the last new token is returned: collect them all": right[:, -1:],
        }
        mistakes = {sentence: value for sentence, value in mistakes.items() if n > 1}
        scores = isinstance(written, Tensor) and written.is_floating_point()
        assert not scores, "return the numbers of the tokens (integers), not scores"
        assert_close(written, right, "b s", mistakes=mistakes)
        assert len(sizes) == n, f"{what}: {n} new tokens take {n} reads, one for each"


# %% [raw] tags=["wrong"] says="after the prompt, read the new token only"
"""
def decode_greedily(read, token_ids, n_tokens):
    n_read = token_ids.shape[1]
    for _ in range(n_tokens):
        new = read(token_ids)[:, -1:].argmax(dim=-1)
        token_ids = torch.cat([token_ids, new], dim=1)
    return token_ids[:, n_read:]
"""

# %% [raw] tags=["wrong"] says="not after the first"
"""
def decode_greedily(read, token_ids, n_tokens):
    written = []
    for _ in range(n_tokens):
        token_ids = read(token_ids)[:, :1].argmax(dim=-1)
        written.append(token_ids)
    return torch.cat(written, dim=1)
"""

# %% [raw] tags=["wrong"] says="without the prompt"
"""
def decode_greedily(read, token_ids, n_tokens):
    written = [token_ids]
    for _ in range(n_tokens):
        written.append(read(written[-1])[:, -1:].argmax(dim=-1))
    return torch.cat(written, dim=1)
"""

# %% [raw] tags=["wrong"] says="the first step reads the whole prompt"
"""
def decode_greedily(read, token_ids, n_tokens):
    written = [token_ids[:, -1:]]
    for _ in range(n_tokens):
        written.append(read(written[-1])[:, -1:].argmax(dim=-1))
    return torch.cat(written[1:], dim=1)
"""

# %% [raw] tags=["wrong"] says="read takes tokens b s"
"""
def decode_greedily(read, token_ids, n_tokens):
    written = []
    for _ in range(n_tokens):
        token_ids = read(token_ids)[:, -1].argmax(dim=-1)
        written.append(token_ids)
    return torch.stack(written, dim=1)
"""

# %% [raw] tags=["wrong"] says="5 new tokens take 5 reads"
"""
def decode_greedily(read, token_ids, n_tokens):
    new, written = read(token_ids)[:, -1:].argmax(dim=-1), []
    for _ in range(n_tokens):
        written.append(new)
        new = read(new)[:, -1:].argmax(dim=-1)
    return torch.cat(written, dim=1)
"""

# %% [raw] tags=["wrong"] says="read takes tokens b s"
"""
def decode_greedily(read, token_ids, n_tokens):
    written = []
    for _ in range(n_tokens):
        token_ids = read(token_ids)[:, -1].argmax(dim=-1)
        written.append(token_ids)
    return torch.cat(written, dim=1)
"""

# %% [raw] tags=["right"]
"""
def decode_greedily(read, token_ids, n_tokens):
    new = read(token_ids)[:, -1].argmax(dim=-1, keepdim=True)
    if n_tokens == 1:
        return new
    return torch.cat([new, decode_greedily(read, new, n_tokens - 1)], dim=1)
"""

# %% [raw] tags=["right"]
"""
def decode_greedily(read, token_ids, n_tokens):
    written = torch.empty(token_ids.shape[0], n_tokens, dtype=torch.long)
    for n in range(n_tokens):
        token_ids = read(token_ids)[:, [-1]].topk(1).indices[..., 0]
        written[:, n] = token_ids[:, 0]
    return written
"""

# %% [markdown]
# The same question, with caches, through your functions alone:

# %%
forget()
with_caches = decode_greedily(read, token_ids, answer.shape[1])
print(tokenizer.decode(with_caches[0], skip_special_tokens=True))
print("the same as the untouched Llama:", torch.equal(with_caches, answer))
print("tokens in the cache of layer 0:", len(mine.model.layers[0].self_attn.cache))

# %% [markdown]
# And one step under the lens. Your Llama reads a single token, with the caches behind it. The
# untouched Llama reads question and answer from the start. Compare the scores of all 49,152 tokens
# of the vocabulary.

# %%
forget()
read(everything[:, :-1])  # all but the last token
one_step = read(everything[:, -1:])  # b 1 v: one query
from_the_start = model(everything).logits[:, -1:]

print("tokens read in this step:", one_step.shape[1])
print(f"best score: {from_the_start.max().item():.1f}")
print("no score differs by 0.001:", bool((one_step - from_the_start).abs().max() < 1e-3))

# %% [markdown]
# ## What you built
#
# All the attention of a Llama, from hidden states to output: positions as angles, shared key/value
# heads, a cache, and the loop that writes. It is equal to transformers' own, on real weights, in
# every layer.
#
# Next, lesson 03 adds tokens that nobody wrote: soft prompts. They get keys and values from the
# frozen layers that you have just used, and your queries read them.
#
# ### To think about
#
# **Why are the values not rotated?**
#
# <details><summary>Answer</summary>
#
# The angle of a query and the angle of a key cancel out in the dot product: only the distance is
# left. A value meets no partner. It would be added up as it was rotated, and mean something else at
# each position.
#
# </details>
#
# **The cache of our Llama holds the tokens of a text. How many numbers does it hold for each token?
# How many without shared key/value heads?**
#
# <details><summary>Answer</summary>
#
# A key and a value of 3 heads of 64 in 30 layers: 2 · 3 · 64 · 30 = 11,520. With 9 heads of their
# own, three times as many.
#
# </details>
#
# **A soft prompt has no place in the sentence. Would you rotate its keys?**
#
# <details><summary>Answer</summary>
#
# LLaMA-Adapter does not. A key that is not rotated is one at position 0, and the score still depends
# on where the query stands. Lesson 03 looks at this.
#
# </details>
