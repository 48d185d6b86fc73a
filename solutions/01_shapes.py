# %% [markdown]
# # Lesson 01: Shapes with einops
#
# *60 minutes*
#
# At the end you have written the steps of attention that move and compare numbers: splitting and
# merging heads, sharing keys between heads, scores, and the causal softmax. You run them on what
# our Llama computes.
#
# Letters: `b` batch, `s` query position, `t` key position, `h` query head, `g` key/value head, `r`
# query heads per key/value head, `d` head width, `m` model width.

# %% tags=["nbval-ignore-output"]
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from llama_adapter_edu import load_llama
from llama_adapter_edu.course import (
    assert_close,
    assert_gradients,
    assert_shape,
    check,
    predict,
)
from llama_adapter_edu.course.figures import draw_tensors, heatmap, use_style
from torch import Tensor

use_style()

# %% [markdown]
# ## Reading a pattern
#
# Here are two tokens of six numbers each. We cut each token into pairs.

# %%
# alt: Left, 2 tokens of 6 numbers, 0 to 11. Right, 3 pairs for each token: 0 1, 2 3, 4 5 and 6 7, 8 9, 10 11.
tokens = torch.arange(12).reshape(2, 6)
pairs = rearrange(tokens, "s (pair two) -> s pair two", two=2)
draw_tensors(tokens=(tokens, "s (pair two)"), pairs=(pairs, "s pair two"))
plt.show()

# %% [markdown]
# `rearrange` moves numbers and changes none. Its pattern has the axes before the arrow and the axes
# after it:
#
# * each name is one axis; you choose the names, and the order after the arrow is the new order of
#   the axes;
# * brackets join axes into one. `(pair two)` is an axis of 6, made of `pair` and `two`. The
#   **last** name in the brackets runs fastest: neighbours differ in `two`;
# * one size in the brackets is given (`two=2`), the other one follows.
#
# The pattern is also a test: if `tokens` had three axes, or 7 numbers per token, this line would
# fail at once.
#
# What is joined can be split, and what is split can be joined. Each of these is a line:

# %%
print(rearrange(tokens, "s n -> n s").shape)  # axes swapped
print(rearrange(tokens, "s n -> (s n)").shape)  # one long row, token after token
print(rearrange(tokens, "s n -> 1 s n").shape)  # a new axis of size 1

# %% [markdown]
# ## Heads
#
# A Llama's attention reads a token not once but several times in parallel, with several **heads**.
# Each head gets its own part of the token's numbers. Our Llama cuts 576 numbers into 9 heads of 64.
# Below, 12 numbers become 3 heads of 4.
#
# First what we want, as a plain loop. `np.ndindex` counts through all indices of the result; the
# last line says where each number comes from.


# %%
# alt: Left, 2 tokens of 12 numbers, 0 to 23. Right, 3 heads with a grid for each: head 0 has 0 to 3 of token 0 and 12 to 15 of token 1, head 1 has 4 to 7 and 16 to 19, head 2 has 8 to 11 and 20 to 23.
def split_heads_loop(x: Tensor, head_dim: int) -> Tensor:
    batch, n_tokens, width = x.shape
    heads = torch.zeros(batch, width // head_dim, n_tokens, head_dim, dtype=x.dtype)
    for b, h, s, d in np.ndindex(*heads.shape):
        heads[b, h, s, d] = x[b, s, h * head_dim + d]
    return heads


x = torch.arange(24).reshape(1, 2, 12)
draw_tensors(x=(x[0], "s (h d)"), target=(split_heads_loop(x, head_dim=4)[0], "h s d"))
plt.show()

# %% [markdown]
# Look at the order of the letters. In the target, `h` stands before `s`. Then each head is a table
# of its own, and all heads are treated alike.
#
# The types of a function tell its shapes: `Float[Tensor, "b s hd"]` is a tensor with the axes `b`,
# `s` and `hd`, which is `h` and `d` joined. They are for you to read; Python does not check them.

# %% [markdown] tags=["card"]
# ### Exercise 1.1 · Split the heads
#
# *easy ●○○ · 5 minutes*
#
# Get from the left picture to the right one with one `rearrange`. A head takes `head_dim`
# neighbouring numbers of each token. There is a batch axis in front.
#
# <details><summary>Hint 1: direction</summary>
#
# It is the example with the pairs, and the axes change their order, too.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The last axis holds `h` and `d`. Neighbours belong to the same head, so `d` runs fastest. Its size
# is given: `head_dim`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return rearrange(x, "b s (_ _) -> b _ s d", d=_____)`
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.attention"
def split_heads(x: Float[Tensor, "b s hd"], head_dim: int) -> Float[Tensor, "b h s d"]:
    """Cut the last axis into heads of width `head_dim` (d); put the head axis before the tokens."""
    ### BEGIN SOLUTION
    return rearrange(x, "b s (h d) -> b h s d", d=head_dim)
    ### END SOLUTION


# %% tags=["check"]
@check("1.1", "split_heads", b=[2, 1], h=[3, 2], d=[4, 6])
def _(b, h, d):
    x = torch.randn(b, 5, h * d)
    heads = split_heads(x, head_dim=d)
    assert_shape(heads, "b h s d", b=b, h=h, s=5, d=d)

    right = torch.stack(x.split(d, dim=-1), dim=1)  # head after head
    every_third = rearrange(x, "b s (d h) -> b h s d", d=d)
    mistakes = {
        f"a head takes one number in {h}: write (h d), not (d h)": every_third,
        "the tokens are mixed: reshape cannot move the head axis, rearrange can": x.reshape(
            b, h, 5, d
        ),
    }
    assert_close(heads, right, "b h s d", mistakes=mistakes)
    what = "of float64 numbers"
    assert_close(split_heads(x.double(), d), right.double(), "b h s d", what=what)
    assert_gradients(split_heads, x, d)


# %% [raw] tags=["wrong"] says="heads and positions look swapped"
"""
def split_heads(x, head_dim):
    return rearrange(x, "b s (h d) -> b s h d", d=head_dim)
"""

# %% [raw] tags=["wrong"] says="write (h d), not (d h)"
"""
def split_heads(x, head_dim):
    return rearrange(x, "b s (d h) -> b h s d", d=head_dim)
"""

# %% [raw] tags=["wrong"] says="heads and head width look swapped"
"""
def split_heads(x, head_dim):
    return rearrange(x, "b s (h d) -> b h s d", h=head_dim)
"""

# %% [raw] tags=["wrong"] says="the tokens are mixed"
"""
def split_heads(x, head_dim):
    b, s, width = x.shape
    return x.reshape(b, width // head_dim, s, head_dim)
"""

# %% [raw] tags=["right"]
"""
def split_heads(x, head_dim):
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)
"""

# %% [raw] tags=["right"]
"""
def split_heads(x, head_dim):
    return torch.stack(x.split(head_dim, dim=-1), dim=1)
"""

# %% [markdown]
# ## And back
#
# After attention the heads of a token are laid side by side again.

# %%
# alt: Left, 3 heads with 2 tokens of 4 numbers each. Right, the 2 tokens with 12 numbers each, 0 to 11 and 12 to 23.
x = torch.arange(24).reshape(1, 2, 12)
heads = split_heads(x, head_dim=4)
draw_tensors(heads=(heads[0], "h s d"), target=(x[0], "s (h d)"))
plt.show()

# %% [markdown] tags=["card"]
# ### Exercise 1.2 · Merge the heads
#
# *easy ●○○ · 3 minutes*
#
# Undo `split_heads`: each token gets its heads back, side by side.
#
# <details><summary>Hint 1: direction</summary>
#
# Swap the two sides of your pattern from 1.1.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `b` and `s` stay axes of their own. `h` and `d` are joined, `d` runs fastest. No size is needed:
# all are known.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return rearrange(x, "b h s d -> b _ (_ _)")`
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.attention"
def merge_heads(x: Float[Tensor, "b h s d"]) -> Float[Tensor, "b s hd"]:
    """Undo `split_heads`: lay the heads of each token side by side again."""
    ### BEGIN SOLUTION
    return rearrange(x, "b h s d -> b s (h d)")
    ### END SOLUTION


# %% tags=["check"]
@check("1.2", "merge_heads", b=[2, 3], h=[3, 2])
def _(b, h):
    heads = torch.randn(b, h, 5, 4)
    merged = merge_heads(heads)
    kind = "None: is the `return` missing?" if merged is None else type(merged).__name__
    assert isinstance(merged, Tensor), f"expected the merged tensor, got {kind}"
    shape = tuple(merged.shape)
    assert shape != (b, h, 5, 4), f"nothing is merged: the shape is still {shape}"
    assert shape != (b, h, 20), "s and d are merged; merge h and d"
    assert shape != (b, h * 5, 4), "s and h are merged; merge h and d"
    assert shape[-1:] == (h * 4,), f"the last axis holds h * d = {h * 4} numbers, not {shape[-1:]}"
    assert shape == (b, 5, h * 4), (
        f"expected the axes b, s and h * d merged, {(b, 5, h * 4)}, got {shape}"
    )

    right = torch.cat(heads.unbind(dim=1), dim=-1)  # side by side
    mistakes = {
        "the heads are interleaved: write (h d), not (d h)": rearrange(
            heads, "b h s d -> b s (d h)"
        ),
        "the shape is right, but the tokens are mixed: "
        "reshape cannot move the head axis, rearrange can": heads.reshape(b, 5, h * 4),
        "the heads stand in reverse order": torch.cat(heads.flip(1).unbind(dim=1), dim=-1),
    }
    assert_close(merged, right, mistakes=mistakes)
    assert_close(merge_heads(heads.double()), right.double(), what="of float64 numbers")
    assert_gradients(merge_heads, heads)


# %% [raw] tags=["wrong"] says="write (h d), not (d h)"
"""
def merge_heads(x):
    return rearrange(x, "b h s d -> b s (d h)")
"""

# %% [raw] tags=["wrong"] says="the shape is right, but the tokens are mixed"
"""
def merge_heads(x):
    b, h, s, d = x.shape
    return x.reshape(b, s, h * d)
"""

# %% [raw] tags=["wrong"] says="s and d are merged; merge h and d"
"""
def merge_heads(x):
    return rearrange(x, "b h s d -> b h (s d)")
"""

# %% [raw] tags=["right"]
"""
def merge_heads(x):
    return x.transpose(1, 2).flatten(2)
"""

# %% [raw] tags=["right"]
"""
def merge_heads(x):
    return torch.cat(x.unbind(dim=1), dim=-1)
"""

# %% [markdown]
# ## Few keys for many queries
#
# Each head looks for something with its **query**, and compares it with the **key** of each token.
# What it takes from there is the token's **value**.
#
# Our Llama has 9 query heads, but only 3 heads of keys and values: query heads 0, 1, 2 share the
# first, 3, 4, 5 the second, 6, 7, 8 the third. This saves memory (grouped-query attention). Before
# we compare, we give each query head a copy of its keys.
#
# `repeat` is like `rearrange`, but the right side may have a name that is new. With the copies
# last, `repeat(three, "g -> (g r)", r=2)` makes `[0, 0, 1, 1, 2, 2]` of `[0, 1, 2]`. And with the
# two names swapped?

# %% tags=["nbval-ignore-output"]
guess = predict(
    'What does repeat(three, "g -> (r g)", r=2) make of [0, 1, 2]?',
    options=["[0, 0, 1, 1, 2, 2]", "[0, 1, 2, 0, 1, 2]", "[0, 2, 1, 0, 2, 1]"],
    mine=...,
)

# %% tags=["nbval-ignore-output"]
three = torch.tensor([0, 1, 2])
guess.compare(str(repeat(three, "g -> (r g)", r=2).tolist()))

# %% [markdown]
# The last name in the brackets runs fastest, again. Which of the two do our query heads need? The
# loop and the picture know.


# %%
# alt: Left, 2 key heads, each with 2 tokens of 3 numbers: head 0 has 0 to 5, head 1 has 6 to 11. Right, 6 heads: the first three are all key head 0, the last three are all key head 1.
def repeat_kv_heads_loop(x: Tensor, n_repeats: int) -> Tensor:
    batch, n_kv_heads, n_tokens, head_dim = x.shape
    repeated = torch.zeros(batch, n_kv_heads * n_repeats, n_tokens, head_dim, dtype=x.dtype)
    for b, h, t, d in np.ndindex(*repeated.shape):
        repeated[b, h, t, d] = x[b, h // n_repeats, t, d]
    return repeated


x = torch.arange(12).reshape(1, 2, 2, 3)
draw_tensors(x=(x[0], "g t d"), target=(repeat_kv_heads_loop(x, n_repeats=3)[0], "h t d"))
plt.show()

# %% [markdown] tags=["card"]
# ### Exercise 1.3 · Repeat the key/value heads
#
# *medium ●●○ · 5 minutes*
#
# Give each of the `g` key/value heads to `n_repeats` **neighbouring** query heads, with one
# `repeat`.
#
# <details><summary>Hint 1: direction</summary>
#
# The new axis of heads is made of `g` and of the copies `r`. Which of them changes between
# neighbours?
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Neighbouring query heads share a key head: `g` stays, and `r` runs fastest.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return repeat(x, "b g t d -> b (_ _) t d", r=_____)`
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.attention"
def repeat_kv_heads(x: Float[Tensor, "b g t d"], n_repeats: int) -> Float[Tensor, "b h t d"]:
    """Give each key/value head to `n_repeats` (r) neighbouring query heads: h reads g = h // r."""
    ### BEGIN SOLUTION
    return repeat(x, "b g t d -> b (g r) t d", r=n_repeats)
    ### END SOLUTION


# %% tags=["check"]
@check("1.3", "repeat_kv_heads", g=[4, 2], r=[3, 5])
def _(g, r):
    key = torch.randn(2, g, 7, 6)
    repeated = repeat_kv_heads(key, n_repeats=r)
    assert_shape(repeated, "b h t d", b=2, h=g * r, t=7, d=6)

    right = key.repeat_interleave(r, dim=1)
    mistakes = {
        "query heads 0 and 1 read different key heads: write (g r), not (r g)": torch.cat(
            [key] * r, dim=1
        ),
        "all query heads read key head 0": key[:, :1].expand_as(right),
    }
    assert_close(repeated, right, "b h t d", mistakes=mistakes)
    what = "of float64 numbers"
    assert_close(repeat_kv_heads(key.double(), r), right.double(), "b h t d", what=what)
    assert_gradients(repeat_kv_heads, key, r)


# %% [raw] tags=["wrong"] says="write (g r), not (r g)"
"""
def repeat_kv_heads(x, n_repeats):
    return repeat(x, "b g t d -> b (r g) t d", r=n_repeats)
"""

# %% [raw] tags=["wrong"] says="write (g r), not (r g)"
"""
def repeat_kv_heads(x, n_repeats):
    return x.repeat(1, n_repeats, 1, 1)
"""

# %% [raw] tags=["wrong"] says="4 axes are expected, not 5"
"""
def repeat_kv_heads(x, n_repeats):
    return repeat(x, "b g t d -> b g r t d", r=n_repeats)
"""

# %% [raw] tags=["wrong"] says="heads (h) should be 12, not 4"
"""
def repeat_kv_heads(x, n_repeats):
    return repeat(x, "b g t d -> b g (t r) d", r=n_repeats)
"""

# %% [raw] tags=["right"]
"""
def repeat_kv_heads(x, n_repeats):
    return torch.repeat_interleave(x, n_repeats, dim=1)
"""

# %% [raw] tags=["right"]
"""
def repeat_kv_heads(x, n_repeats):
    b, g, t, d = x.shape
    return x[:, :, None].expand(b, g, n_repeats, t, d).reshape(b, g * n_repeats, t, d)
"""

# %% [markdown]
# ## Scores
#
# How well does a query fit a key? Multiply them number by number, and add up. With one query and
# one key:

# %%
query = torch.tensor([1.0, 2.0, 0.0])
key = torch.tensor([3.0, 1.0, 5.0])
print(einsum(query, key, "d, d ->").item())  # 1*3 + 2*1 + 0*5

# %% [markdown]
# `einsum` takes the axes of both tensors, a comma between them, and the axes of the result. It
# multiplies, and **sums over each name that is missing on the right**. Here `d` is missing, so it
# is summed. With several queries and keys we get all scores at once:

# %%
# alt: 2 queries of 3 numbers, 4 keys of 3 numbers, and a table of 2 by 4 scores. The score of query 0 and key 0 is 5.
queries = torch.tensor([[1, 2, 0], [0, 1, 1]])
keys = torch.tensor([[3, 1, 5], [0, 2, 1], [1, 0, 0], [2, 2, 2]])
scores = einsum(queries, keys, "s d, t d -> s t")
draw_tensors(queries=(queries, "s d"), keys=(keys, "t d"), scores=(scores, "s t"))
plt.show()

# %% [markdown]
# The wider a head, the more products are added, and the larger the scores get. We measure how much,
# with random numbers. By "spread" we mean their standard deviation.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "Heads of 1024 numbers in place of 4: how much more do the scores spread?",
    options=["not at all", "16 times as much", "256 times as much"],
    mine=...,
)

# %%
torch.manual_seed(0)
spread = {}
for d in (4, 64, 1024):
    wide = einsum(torch.randn(500, d), torch.randn(500, d), "s d, t d -> s t")
    spread[d] = wide.std()
    print(f"d = {d:4}: scores spread by {spread[d]:.1f}, the root of d is {d**0.5:.1f}")

# %% tags=["nbval-ignore-output"]
times = {"not at all": 1, "16 times as much": 16, "256 times as much": 256}
guess.compare(min(times, key=lambda name: abs(times[name] - spread[1024] / spread[4])))

# %% [markdown]
# So we divide the scores by $\sqrt{d}$. They then spread by about 1 for any width, and the softmax
# that follows is neither flat nor decided by one token alone.
#
# With batch and heads, the loop is this. Batch and head are the same on both sides: each head
# compares its own queries with its own keys.


# %%
# alt: A query head of 2 by 4 numbers, keys of 3 by 4, and the scores: a table of 2 queries by 3 keys, each the dot product divided by 2.
def attention_scores_loop(query: Tensor, key: Tensor) -> Tensor:
    batch, n_heads, n_queries, head_dim = query.shape
    scores = torch.zeros(batch, n_heads, n_queries, key.shape[2])
    for b, h, s, t in np.ndindex(*scores.shape):
        scores[b, h, s, t] = torch.dot(query[b, h, s], key[b, h, t]) / head_dim**0.5
    return scores


query = torch.tensor([[2.0, 0, 1, 1], [0, 2, 2, 0]]).reshape(1, 1, 2, 4)
key = torch.tensor([[1.0, 1, 0, 0], [0, 0, 2, 2], [1, 3, 1, 1]]).reshape(1, 1, 3, 4)
target = attention_scores_loop(query, key)
draw_tensors(query=(query[0, 0], "s d"), key=(key[0, 0], "t d"), target=(target[0, 0], "s t"))
plt.show()

# %% [markdown] tags=["card"]
# ### Exercise 1.4 · Attention scores
#
# *medium ●●○ · 6 minutes*
#
# Score each query against each key of its head: the dot product over `d`, divided by the root of
# `d`. Use `einsum`.
#
# <details><summary>Hint 1: direction</summary>
#
# The example `"s d, t d -> s t"` plus two axes that stay on both sides. Then scale.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `b` and `h` stand in both inputs and in the result. `d` stands in both inputs only. Its size is
# `query.shape[-1]`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return einsum(query, key, "b h s d, b h t d -> _ _ _ _") * query.shape[-1] ** ____`
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.attention"
def attention_scores(
    query: Float[Tensor, "b h s d"], key: Float[Tensor, "b h t d"]
) -> Float[Tensor, "b h s t"]:
    """Score each query against each key: dot product over d, divided by sqrt(d) (paper eq. 5)."""
    ### BEGIN SOLUTION
    return einsum(query, key, "b h s d, b h t d -> b h s t") * query.shape[-1] ** -0.5
    ### END SOLUTION


# %% tags=["check"]
@check("1.4", "attention_scores", d=[7, 6], t=[5, 3])
def _(d, t):
    query, key = torch.randn(2, 3, 8, d), torch.randn(2, 3, t, d)
    scores = attention_scores(query, key)
    assert_shape(scores, "b h s t", b=2, h=3, s=8, t=t)

    right = attention_scores_loop(query, key)
    sums = query.sum(-1)[..., :, None] * key.sum(-1)[..., None, :]
    mistakes = {
        "the division by the root of d is missing": right * d**0.5,
        "divide by the root of d, not by d": right / d**0.5,
        "multiply by d ** -0.5; this is d ** 0.5": right * d,
        "divide by the root of the head width d, not of the number of keys": right * (d / t) ** 0.5,
        "divide by the root of the head width d, not of the number of queries": (
            right * (d / 8) ** 0.5
        ),
        "d is summed on its own in query and key: write the same letter in both": sums / d**0.5,
        "divide by the root of the head width d, not of h * d": right / 3**0.5,
        "divide by the root of query.shape[-1]; 64 is the width in our Llama": right
        * (d / 64) ** 0.5,
        "these are scores after a softmax; the softmax comes later": right.softmax(dim=-1),
        "the softmax comes later, and the division by the root of d is missing": (
            right * d**0.5
        ).softmax(dim=-1),
        "the heads are summed: h stands in both inputs and in the result": right.sum(
            dim=1, keepdim=True
        ).expand_as(right),
        "these are cosines: take the dot products of query and key as they are": (
            right * d**0.5 / query.norm(dim=-1)[..., :, None] / key.norm(dim=-1)[..., None, :]
        ),
        "reshape does not swap the axes t and d of the keys: name them in einsum": (
            query @ key.reshape(2, 3, d, t) / d**0.5
        ),
        "only query 0 meets key 0, and so on: each query meets each key": (right * torch.eye(8, t)),
    }
    assert_close(scores, right, "b h s t", mistakes=mistakes)
    assert_gradients(attention_scores, query, key)


# %% [raw] tags=["wrong"] says="the division by the root of d is missing"
"""
def attention_scores(query, key):
    return einsum(query, key, "b h s d, b h t d -> b h s t")
"""

# %% [raw] tags=["wrong"] says="divide by the root of d, not by d"
"""
def attention_scores(query, key):
    return einsum(query, key, "b h s d, b h t d -> b h s t") / query.shape[-1]
"""

# %% [raw] tags=["wrong"] says="not of the number of keys"
"""
def attention_scores(query, key):
    scores = einsum(query, key, "b h s d, b h t d -> b h s t")
    return scores / scores.shape[-1] ** 0.5
"""

# %% [raw] tags=["wrong"] says="query positions and key positions look swapped"
"""
def attention_scores(query, key):
    return einsum(query, key, "b h s d, b h t d -> b h t s") / query.shape[-1] ** 0.5
"""

# %% [raw] tags=["wrong"] says="d is summed on its own in query and key"
"""
def attention_scores(query, key):
    return einsum(query, key, "b h s d, b h t dd -> b h s t") / query.shape[-1] ** 0.5
"""

# %% [raw] tags=["right"]
"""
def attention_scores(query, key):
    return query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
"""

# %% [raw] tags=["right"]
"""
def attention_scores(query, key):
    b, h, s, d = query.shape
    return torch.einsum("bhsd,bhtd->bhst", query / d**0.5, key)
"""

# %% [markdown]
# ## A typo
#
# Below, the second pattern has a typo: `dd` for `d`. What will happen?

# %% tags=["nbval-ignore-output"]
guess = predict(
    'What does einsum(queries, keys, "s d, t dd -> s t") give?',
    options=["an error", "another shape", "the right shape, other numbers"],
    mine=...,
)

# %%
# alt: Left, the right scores of 2 queries and 4 keys: 5, 4, 1, 6 and 6, 3, 0, 4. Right, the scores of the typo: 27, 9, 3, 18 and 18, 6, 2, 12.
queries = torch.tensor([[1, 2, 0], [0, 1, 1]])
keys = torch.tensor([[3, 1, 5], [0, 2, 1], [1, 0, 0], [2, 2, 2]])
scores = einsum(queries, keys, "s d, t d -> s t")
typo = einsum(queries, keys, "s d, t dd -> s t")
draw_tensors(scores=(scores, "s t"), typo=(typo, "s t"))
plt.show()

# %% tags=["nbval-ignore-output"]
same_shape = typo.shape == scores.shape
guess.compare("the right shape, other numbers" if same_shape else "another shape")

# %% [markdown]
# To einops, `d` and `dd` are two axes. Each is missing on the right, so each is summed **on its
# own**: 27 is (1 + 2 + 0) × (3 + 1 + 5). No error, no warning (it is a known trap: issue 379 of
# arogozhnikov/einops).
#
# But such a name gives itself away. An axis that is multiplied and summed stands in **two** inputs;
# an axis that is kept stands on the right. A name that stands in one input only, and not on the
# right, is lonely. We write a function that finds lonely names.

# %% [markdown] tags=["card"]
# ### Exercise 1.5 · Lonely axes
#
# *medium ●●○ · 8 minutes*
#
# Return the names that occur once among the inputs of an einsum pattern and not in its output, in
# alphabetical order. A name may have several letters.
#
# <details><summary>Hint 1: direction</summary>
#
# Cut the pattern into text before the arrow and text after it, and both into lists of names. Then
# count.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The names of all inputs go into one list; the comma only separates. `"s d, t dd"` gives `["s",
# "d", "t", "dd"]`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return sorted(name for name in names if names.count(name) == __ and name not in ____)`
#
# </details>


# %% tags=["exercise"]
def lonely_axes(pattern: str) -> list[str]:
    """The axes of an einsum pattern that are summed on their own, sorted: nearly always a typo.

    "s d, t dd -> s t" gives ["d", "dd"]; "s d, t d -> s t" gives [].
    """
    ### BEGIN SOLUTION
    inputs, output = pattern.split("->")
    # ~ names = ...
    names = inputs.replace(",", " ").split()
    return sorted(name for name in names if names.count(name) == 1 and name not in output.split())
    ### END SOLUTION


# %% tags=["check"]
@check("1.5", "lonely_axes")
def _():
    def expect(pattern, right, otherwise):
        found = lonely_axes(pattern)
        assert isinstance(found, list | tuple), (
            f"return a list of names, not {'None' if found is None else type(found).__name__}"
        )
        if sorted(found) == right:
            otherwise = "The names are right: sort them by the alphabet."
        assert list(found) == right, (
            f"{pattern!r}: expected {right}, got {list(found)}. {otherwise}"
        )

    expect("s d, t d -> s t", [], "s and t are kept in the output; d stands in two inputs.")
    expect("s d, t dd -> s t", ["d", "dd"], "Both d and dd are summed on their own.")
    expect("b h s d, b h t d -> b h s t", [], "No axis is lonely here.")
    expect("head token, head key -> head", ["key", "token"], "Compare whole names, not letters.")
    expect("zeta, alpha ->", ["alpha", "zeta"], "An empty output keeps nothing; sort the names.")
    expect("p, po -> po", ["p"], "p is not in the output, although po contains a p.")
    expect("b i, b j, b k -> i j k", [], "b stands in three inputs: it is not lonely.")
    expect("s d,t d->s", ["t"], "Blanks beside the comma and the arrow may be missing.")


# %% [raw] tags=["wrong"] says="s and t are kept in the output"
"""
def lonely_axes(pattern):
    inputs, output = pattern.split("->")
    names = inputs.replace(",", " ").split()
    return sorted(name for name in names if names.count(name) == 1)
"""

# %% [raw] tags=["wrong"] says="d stands in two inputs"
"""
def lonely_axes(pattern):
    inputs, output = pattern.split("->")
    names = set(inputs.replace(",", " ").split())
    return sorted(names - set(output.split()))
"""

# %% [raw] tags=["wrong"] says="Both d and dd are summed on their own"
"""
def lonely_axes(pattern):
    inputs, output = pattern.replace(" ", "").split("->")
    names = list(inputs.replace(",", ""))
    return sorted(name for name in names if names.count(name) == 1 and name not in output)
"""

# %% [raw] tags=["wrong"] says="although po contains a p"
"""
def lonely_axes(pattern):
    inputs, output = pattern.split("->")
    names = inputs.replace(",", " ").split()
    return sorted(name for name in names if names.count(name) == 1 and name not in output)
"""

# %% [raw] tags=["wrong"] says="sort them by the alphabet"
"""
def lonely_axes(pattern):
    inputs, output = pattern.split("->")
    names = inputs.replace(",", " ").split()
    found = [name for name in names if names.count(name) == 1 and name not in output.split()]
    return sorted(found, key=len)
"""

# %% [raw] tags=["right"]
"""
from collections import Counter

def lonely_axes(pattern: str) -> list[str]:
    inputs, output = pattern.split("->")
    seen = Counter(axis for operand in inputs.split(",") for axis in operand.split())
    return sorted(axis for axis, n in seen.items() if n == 1 and axis not in output.split())
"""

# %% [raw] tags=["right"]
"""
def lonely_axes(pattern):
    once, twice = set(), set()
    for name in pattern.partition("->")[0].replace(",", " ").split():
        (twice if name in once else once).add(name)
    return sorted(once - twice - set(pattern.partition("->")[2].split()))
"""

# %% [markdown]
# Use it whenever an einsum looks suspicious:

# %%
print(lonely_axes("b h s d, b h t d -> b h s t"))
print(lonely_axes("b h s d, b h t dim -> b h s t"))

# %% [markdown]
# ## Looking back only
#
# A Llama writes from left to right. So a token may look at itself and at the tokens before it,
# never at later ones. A softmax turns its scores into **weights**: positive numbers that add up to
# 1. Later tokens get weight 0. Such a softmax is called *causal*.


# %%
# alt: Left, scores of 4 tokens with each other. Right, weights: row 0 has weight 1 on token 0; row 1 has weights on tokens 0 and 1; row 3 on all four. Above the diagonal all weights are 0.
def causal_softmax_loop(scores: Tensor) -> Tensor:
    batch, n_heads, n_queries, n_keys = scores.shape
    weights = torch.zeros_like(scores)
    for b, h, s in np.ndindex(batch, n_heads, n_queries):
        n_seen = n_keys - n_queries + s + 1
        weights[b, h, s, :n_seen] = scores[b, h, s, :n_seen].softmax(dim=0)
    return weights


def draw_scores_and_weights(scores: Tensor, weights: Tensor) -> None:
    """Two tables `s t` side by side. The weights have colours of their own, from 0 to 1."""
    _, (left, right) = plt.subplots(1, 2, figsize=(6, 0.5 + 0.5 * len(scores)))
    letters = {"rows": "s", "columns": "t", "values": True}
    heatmap(left, scores, title="scores", **letters)
    heatmap(right, weights, title="target", vmin=0, vmax=1, **letters)
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
    plt.show()


rows = [[0.0, 2, 1, 1], [1, 1, 3, 0], [2, 0, 1, 2], [0, 1, 0, 1]]
scores = torch.tensor(rows).reshape(1, 1, 4, 4)
weights = causal_softmax_loop(scores)
draw_scores_and_weights(scores[0, 0], weights[0, 0])

# %% [markdown]
# What is `n_seen`? With as many queries as keys, query 0 sees 1 token, query 1 sees 2, and so on.
#
# Later, when the Llama writes, most tokens are already done, and only the newest ones ask. Then
# there are fewer queries than keys, and **the queries are the last positions**. Of 5 tokens, 2
# queries are the tokens 3 and 4: they see 4 and 5 tokens.

# %%
# alt: Left, scores of 2 queries with 5 keys. Right, weights: the first query has weights on the keys 0 to 3 and 0 on key 4, the second one on all five.
scores = torch.tensor([[0.0, 2, 1, 1, 3], [1, 1, 3, 0, 2]]).reshape(1, 1, 2, 5)
weights = causal_softmax_loop(scores)
draw_scores_and_weights(scores[0, 0], weights[0, 0])

# %% [markdown]
# Without a loop we need a table that says for each pair of positions whether it is allowed. Tables
# come from **axes of size 1**: a column `s 1` and a row `1 t` meet as a table `s t`. Here, a times
# table:

# %%
column = rearrange(torch.tensor([1, 2, 3]), "s -> s 1")
row = rearrange(torch.tensor([1, 2, 3, 4]), "t -> 1 t")
print((row * column).tolist())
print((row == column).tolist())

# %% [markdown]
# And how does a softmax give weight 0? With a score of minus infinity, since $e^{-\infty} = 0$. The
# other weights still add up to 1:

# %%
minus_infinity = float("-inf")
scores = torch.tensor([1.0, 1.0, 5.0])
forbidden = torch.tensor([False, False, True])
print(scores.masked_fill(forbidden, minus_infinity).softmax(dim=-1).tolist())

# %% [markdown] tags=["card"]
# ### Exercise 1.6 · The causal softmax
#
# *hard ●●● · 12 minutes*
#
# Turn scores into weights; keys after the query get weight 0. The `s` queries are the **last** `s`
# of the `t` positions.
#
# <details><summary>Hint 1: direction</summary>
#
# Give queries and keys their positions, compare them in a table, fill what is later with minus
# infinity, then take the softmax.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Keys have the positions 0 to `t - 1`, queries `t - s` to `t - 1`: `torch.arange` takes a start.
# Keys are a row `1 t`, queries a column `s 1`. The softmax is over `t`, the last axis.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `is_later = rearrange(key_position, "t -> __ __") > rearrange(query_position, "s -> __ __")`
#
# `return scores.masked_fill(is_later, ____).softmax(dim=__)`
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.method.attention"
def causal_softmax(scores: Float[Tensor, "b h s t"]) -> Float[Tensor, "b h s t"]:
    """Turn scores into weights over the tokens up to each query; later tokens get weight 0.

    With a cache there are fewer queries than keys: the s queries are the last s of the t positions.
    """
    ### BEGIN SOLUTION
    # ~ n_queries, n_keys = scores.shape[-2:]
    # ~ query_position = ...
    # ~ key_position = ...
    # ~ is_later = ...
    n_queries, n_keys = scores.shape[-2:]
    query_position = torch.arange(n_keys - n_queries, n_keys, device=scores.device)
    key_position = torch.arange(n_keys, device=scores.device)
    is_later = rearrange(key_position, "t -> 1 t") > rearrange(query_position, "s -> s 1")
    return scores.masked_fill(is_later, float("-inf")).softmax(dim=-1)
    ### END SOLUTION


# %% tags=["check"]
@check("1.6", "causal_softmax", b=[2, 3], h=[3, 2], s=[4, 5])
def _(b, h, s):
    square = torch.randn(b, h, s, s)
    weights = causal_softmax(square)
    assert_shape(weights, "b h s t", b=b, h=h, s=s, t=s)
    right = causal_softmax_loop(square)
    minus_infinity, lower = float("-inf"), torch.ones(s, s).tril()
    masked = square.masked_fill(lower == 0, minus_infinity)
    nothing = square.softmax(dim=-1)
    mistakes = {
        "later tokens have weight: nothing is masked": nothing,
        "the softmax is missing": masked,
        "the softmax runs over the queries: take dim=-1, the keys": masked.softmax(dim=-2),
        "the softmax runs over the queries, and nothing is masked": square.softmax(dim=-2),
        "the softmax runs over the batch: take dim=-1, the keys": masked.softmax(dim=0),
        "the softmax runs over the heads: take dim=-1, the keys": masked.softmax(dim=1),
        "a token may look at itself: use > and not >=": square.masked_fill(
            lower.tril(-1) == 0, minus_infinity
        ).softmax(dim=-1),
        "0 times minus infinity is NaN: fill with masked_fill, do not multiply": square * torch.nan,
        "the weights of a query must add up to 1: mask before the softmax": nothing * lower,
        "fill with minus infinity before the softmax, not after it": nothing.masked_fill(
            lower == 0, minus_infinity
        ),
        "fill with minus infinity: a score of 0 still gets weight": (square * lower).softmax(-1),
        "tokens look ahead only: swap the two sides of the comparison (s are rows, t columns)": square.masked_fill(
            lower.tril(-1) > 0, minus_infinity
        ).softmax(dim=-1),
    }
    mistakes |= {
        "each token sees one token too many": square.masked_fill(
            torch.ones(s, s).tril(1) == 0, minus_infinity
        ).softmax(dim=-1),
        "fill with minus infinity: after another number later tokens keep some weight": (
            square.masked_fill(lower == 0, -10.0).softmax(dim=-1)
        ),
        "these are logarithms of weights: take softmax": masked.log_softmax(dim=-1),
        "the softmax runs over the whole table s t: take dim=-1, the keys": masked.flatten(2)
        .softmax(dim=-1)
        .reshape(square.shape),
    }
    assert_close(weights, right, "b h s t", mistakes=mistakes)
    mistakes = {
        "exp of a large score is too large: take .softmax, which avoids it": right * torch.nan
    }
    what = "with scores 300 times as large"
    large = causal_softmax(square * 300), causal_softmax_loop(square * 300)
    assert_close(*large, "b h s t", mistakes=mistakes, what=what)

    newest = torch.randn(b, h, s, 7)
    first = newest.masked_fill(torch.ones(s, 7).triu(1) > 0, minus_infinity).softmax(dim=-1)
    mistakes = {f"the queries are the last {s} of 7 positions, not the first {s}": first}
    what = "with fewer queries than keys"
    right = causal_softmax_loop(newest)
    assert_close(causal_softmax(newest), right, "b h s t", mistakes=mistakes, what=what)
    assert_gradients(causal_softmax, newest)


# %% [raw] tags=["wrong"] says="later tokens have weight: nothing is masked"
"""
def causal_softmax(scores):
    return scores.softmax(dim=-1)
"""

# %% [raw] tags=["wrong"] says="a token may look at itself"
"""
def causal_softmax(scores):
    n_queries, n_keys = scores.shape[-2:]
    query_position = torch.arange(n_keys - n_queries, n_keys)
    key_position = torch.arange(n_keys)
    is_later = rearrange(key_position, "t -> 1 t") >= rearrange(query_position, "s -> s 1")
    return scores.masked_fill(is_later, float("-inf")).softmax(dim=-1)
"""

# %% [raw] tags=["wrong"] says="the queries are the last 4 of 7 positions"
"""
def causal_softmax(scores):
    query_position, key_position = torch.arange(scores.shape[-2]), torch.arange(scores.shape[-1])
    is_later = rearrange(key_position, "t -> 1 t") > rearrange(query_position, "s -> s 1")
    return scores.masked_fill(is_later, float("-inf")).softmax(dim=-1)
"""

# %% [raw] tags=["wrong"] says="mask before the softmax"
"""
def causal_softmax(scores):
    n_queries, n_keys = scores.shape[-2:]
    return scores.softmax(dim=-1) * torch.ones(n_queries, n_keys).tril(n_keys - n_queries)
"""

# %% [raw] tags=["wrong"] says="fill with minus infinity"
"""
def causal_softmax(scores):
    n_queries, n_keys = scores.shape[-2:]
    return scores.tril(n_keys - n_queries).softmax(dim=-1)
"""

# %% [raw] tags=["wrong"] says="swap the two sides of the comparison"
"""
def causal_softmax(scores):
    n_queries, n_keys = scores.shape[-2:]
    query_position = torch.arange(n_keys - n_queries, n_keys)
    is_later = rearrange(torch.arange(n_keys), "t -> 1 t") < rearrange(query_position, "s -> s 1")
    return scores.masked_fill(is_later, float("-inf")).softmax(dim=-1)
"""

# %% [raw] tags=["wrong"] says="causal_softmax changes its input scores in place"
"""
def causal_softmax(scores):
    n_queries, n_keys = scores.shape[-2:]
    is_later = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(n_keys - n_queries + 1)
    return scores.masked_fill_(is_later, float("-inf")).softmax(dim=-1)
"""

# %% [raw] tags=["right"]
"""
def causal_softmax(scores):
    n_queries, n_keys = scores.shape[-2:]
    allowed = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(diagonal=n_keys - n_queries)
    return torch.where(allowed, scores, float("-inf")).softmax(dim=-1)
"""

# %% [raw] tags=["right"]
"""
def causal_softmax(scores):
    n_queries, n_keys = scores.shape[-2:]
    mask = torch.full((n_queries, n_keys), float("-inf")).triu(n_keys - n_queries + 1)
    return torch.nn.functional.softmax(scores + mask, dim=-1)
"""

# %% [markdown]
# ## Your functions on the Llama
#
# Now the Llama of lesson 00. `hidden` is what the tokens look like to its layer 13, 576 numbers per
# token. Two linear layers of it, `q_proj` and `k_proj`, make queries and keys of them: the query
# and key *projections*. The rest is yours.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_llama()

# %%
sentence = tokenizer("The dog chased the cat because it was hungry.", return_tensors="pt")
tokens = [tokenizer.decode(token) for token in sentence.input_ids[0]]

layer = model.model.layers[13]
with torch.no_grad():
    states = model(**sentence, output_hidden_states=True).hidden_states[13]
    hidden = layer.input_layernorm(states)
    query = split_heads(layer.self_attn.q_proj(hidden), head_dim=64)
    key = split_heads(layer.self_attn.k_proj(hidden), head_dim=64)
    scores = attention_scores(query, repeat_kv_heads(key, n_repeats=3))
    weights = causal_softmax(scores)

for name, tensor in {"hidden": hidden, "query": query, "key": key, "weights": weights}.items():
    print(f"{name:8}{tuple(tensor.shape)}")

# %% [markdown]
# Read the shapes with the letters: `b s m`, `b h s d`, `b g t d`, `b h s t`. The dot is a token of
# its own, so there are 10 tokens.
#
# We look at one of the 9 heads, head 8. Each row of the picture is a token that asks; its colours
# say where it looks. Who was hungry?

# %% tags=["nbval-ignore-output"]
guess = predict(
    "At which token does 'it' look most in this head?",
    options=["dog", "cat", "it", "because"],
    mine=...,
)

# %%
# alt: Two heatmaps of 10 by 10 tokens, scores on the left and causal weights on the right. In the weights, all later tokens are 0, and six of the eight tokens from "chased" on look most at the token dog.
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.8))
labels = {"row_labels": tokens, "column_labels": tokens, "columns": "t, the token looked at"}
heatmap(left, scores[0, 8], title="scores", rows="s, the token that asks", **labels)
heatmap(right, weights[0, 8], title="causal weights", vmin=0, vmax=1, **labels)
fig.colorbar(left.images[0], ax=left)
fig.colorbar(right.images[0], ax=right)
plt.show()

# %%
dog, it = tokens.index(" dog"), tokens.index(" it")
print(f"head 8: 'it' gives 'dog' the weight {weights[0, 8, it, dog]:.2f}")

# %% tags=["nbval-ignore-output"]
guess.compare(tokens[weights[0, 8, it].argmax()].strip())

# %% [markdown]
# This head likes the first noun of the sentence: other tokens than "it" look there, too. Nobody
# told it so: the weights were learnt, and your four functions made it visible.
#
# But one step is missing. Reorder the keys, and the scores are reordered, nothing else: your
# functions do not know how far apart two tokens are. The Llama first rotates each query and key by
# an angle that depends on its position. So these are not yet the weights that it uses. That is
# where lesson 02 starts.
#
# ## What you have
#
# `split_heads`, `merge_heads`, `repeat_kv_heads`, `attention_scores`, `causal_softmax`, and
# `lonely_axes` to catch a typo. The library has the first five, with the same code, in
# `llama_adapter_edu/method/attention.py`. **Lesson 02** builds a whole attention layer from them.
#
# Three questions to think about:
#
# <details><summary>`merge_heads` on a tensor with the axes `b s h d`, by mistake: does einops complain?</summary>
#
# No. It sees four axes and joins the second with the fourth. Names in a pattern are yours; einops
# checks the number of axes and the sizes, not the meaning. So the letters in names and signatures
# are worth their keystrokes.
#
# </details>
# <details><summary>The pattern `b s -> b` sums over `s`. What does `lonely_axes` say, and is it right?</summary>
#
# It says `["s"]`: a sum that is meant looks like a typo. Write a sum that is meant with `reduce(x,
# "b s -> b", "sum")`: then it is in sight.
#
# </details>
# <details><summary>Query 0 sees one token, itself. What is its weight, and does its score matter?</summary>
#
# The weight is 1, whatever the score: a softmax over one number is 1.
#
# </details>
