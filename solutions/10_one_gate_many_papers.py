# %% [markdown]
# # Lesson 10: One gate, many papers
#
# *75 minutes. Needs lessons 03, 04 and 06.*
#
# At the end you will have
#
# * predicted, and measured, what six published gates learn in their first steps,
# * a bias and a scale on each of the Llama's 210 linear layers: LLaMA-Adapter V2,
# * a document inside 16 trained keys and values, learnt from the Llama that reads it,
# * five ways side by side: what each costs, and what it reaches.
#
# Shapes: `b` batch, `s` query position, `t` key position, `p` prompt slot, `h` query head, `g`
# key/value head, `d` head width, `m` model width, `v` vocabulary.

# %%
import json
import math
from collections.abc import Callable
from importlib import resources

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama
from llama_adapter_edu.course import (
    assert_close,
    assert_gradients,
    assert_results,
    assert_shape,
    check,
    predict,
)
from llama_adapter_edu.course.figures import BLUE, ORANGE, use_style
from llama_adapter_edu.course.tasks.document import document, question_rows, questions
from llama_adapter_edu.method.attention import (
    attention_scores,
    causal_attention,
    causal_softmax,
    merge_heads,
    split_heads,
)
from llama_adapter_edu.method.gated_prompts import gated_prompt_attention
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

use_style()

# %% [markdown]
# ## The same idea, six times
#
# A gate that starts at zero was not new in 2023, and it did not end there. Here are six papers and
# models, written in our letters. `branch` stands for whatever is trained behind the gate.
#
# | | what comes out | the gate |
# |---|---|---|
# | ReZero, 2020 | x + gate · branch(x) | one number |
# | Flamingo, 2022 | x + tanh(gate) · branch(x, image) | one number |
# | ControlNet, 2023 | F(x) + last(copy(x + first(control))) | first and last, whole matrices |
# | LLaMA-Adapter, 2023 | attention + tanh(gate) · attention to the prompts | one number for each head |
# | gated attention, 2025 | sigmoid(gate(x)) · attention | a matrix, for one number per head and token |
# | gpt-oss, 2025 | softmax over [sink, tokens], the sink's weight is thrown away | one sink for each head |
#
# Sources: arXiv 2003.04887, 2204.14198, 2302.05543, 2303.16199, 2505.06708, and the code of gpt-oss
# (`sdpa` in `gpt_oss/torch/model.py`). Flamingo puts whole new layers between the frozen ones, which
# look at an image; each has two such gates, here is one. ControlNet copies a block F of a frozen
# image model. `first` and `last` are its "zero convolutions"; at one pixel such a convolution is a
# linear layer, and we leave its bias out.
#
# In code, each is a few lines. `side` is the image, or the control. Where the paper has a large
# network, a small one does: how a gradient meets a zero does not depend on the size. Here m is 24,
# with 3 heads of width 8, and ControlNet's frozen block F is a plain tanh.


# %%
def small_network(x: Float[Tensor, "b s m"], weight: Float[Tensor, "m n"]) -> Tensor:
    """Any network with parameters will do."""
    return einsum(x, weight, "b s m, m n -> b s n").tanh()


def rezero(x, side, gate, branch):
    return x + gate * small_network(x, branch)


def flamingo(x, side, gate, branch):
    return x + torch.tanh(gate) * small_network(x + side, branch)


def controlnet(x, side, first, copy, last):
    inside = small_network(x + einsum(side, first, "b s m, m n -> b s n"), copy)
    return x.tanh() + einsum(inside, last, "b s m, m n -> b s n")


def llama_adapter(x, side, gate, prompts):
    query = key = value = split_heads(x, prompts.shape[-1])
    added = gated_prompt_attention(query, prompts, prompts, gate)
    return merge_heads(causal_attention(query, key, value) + added)


def gated_attention(x, side, gate, branch):
    head_dim = x.shape[-1] // gate.shape[-1]
    query = key = split_heads(x, head_dim)
    value = split_heads(small_network(x, branch), head_dim)
    opening = einsum(x, gate, "b s m, m h -> b h s").sigmoid()
    read = causal_attention(query, key, value)
    return merge_heads(einsum(opening, read, "b h s, b h s d -> b h s d"))


def gpt_oss(x, side, sink, branch):
    head_dim = x.shape[-1] // len(sink)
    query = key = split_heads(x, head_dim)
    value = split_heads(small_network(x, branch), head_dim)
    scores = attention_scores(query, key)
    of_sink = repeat(sink, "h -> b h s 1", b=len(x), s=x.shape[1])
    weights = causal_softmax(torch.cat([of_sink, scores], dim=-1))[..., 1:]
    return merge_heads(einsum(weights, value, "b h s t, b h t d -> b h s d"))


# %% [markdown]
# And here is how each of them starts. "Without" is what would come out if the paper's part were not
# there: `x` alone, the frozen block alone, the plain attention.


# %%
def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def gate_and_start(name: str, m=24, h=3, d=8) -> tuple[Callable, dict[str, Tensor]]:
    """One of the six gates as a function, and its parameters as they start."""
    return {
        "ReZero": (rezero, {"gate": zeros(1), "branch": noise(m, m)}),
        "Flamingo": (flamingo, {"gate": zeros(1), "branch": noise(m, m)}),
        "ControlNet": (
            controlnet,
            {"first": zeros(m, m), "copy": noise(m, m), "last": zeros(m, m)},
        ),
        "LLaMA-Adapter": (llama_adapter, {"gate": zeros(h), "prompts": noise(h, 5, d)}),
        "gated attention": (gated_attention, {"gate": noise(m, h), "branch": noise(m, m)}),
        "gpt-oss": (gpt_oss, {"sink": noise(h), "branch": noise(m, m)}),
    }[name]


NAMES = ("ReZero", "Flamingo", "ControlNet", "LLaMA-Adapter", "gated attention", "gpt-oss")


def without(name: str, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """What comes out if the paper's part is not there."""
    if name in ("ReZero", "Flamingo"):
        return x
    if name == "ControlNet":
        return x.tanh()
    query = key = value = split_heads(x, 8)
    if "branch" in parameters:
        value = split_heads(small_network(x, parameters["branch"]), 8)
    return merge_heads(causal_attention(query, key, value))


# %% [markdown]
# Before you run on: how many of the six start silent, so that what comes out is exactly what comes
# out without them?

# %% tags=["nbval-ignore-output"]
guess = predict("How many of the six start as exactly the model without them?", mine=...)

# %%
torch.manual_seed(0)
x, side = torch.randn(2, 7, 24), torch.randn(2, 7, 24)
silent_gates = []
for name in NAMES:
    gate_function, parameters = gate_and_start(name)
    same = torch.equal(gate_function(x, side, **parameters), without(name, x, parameters))
    silent_gates += [name] * same
    print(f"{name:16} exactly the same at the start: {same}")

# %% tags=["nbval-ignore-output"]
guess.compare(len(silent_gates))

# %% [markdown]
# Four add something to a network that is there already, and start silent: their gate is zero, in
# ControlNet `first` and `last`. The last two multiply what
# the attention reads. Both were trained from the beginning, together with everything else: there was
# no model to protect, so they may start anywhere.
#
# ## Who learns first?
#
# Lesson 04 found it for one of them: with the gate at zero, the gate learns at step 0, and the
# prompts wait until step 1. Now all six. The derivative of a product by one factor is multiplied by
# the other one. And ControlNet has *two* zeros in a row. Does it need three steps?
#
# `measured_gradients` will tell, once you have predicted it.


# %%
def measured_gradients(name: str, steps: int = 2) -> list[dict[str, float]]:
    """The length of each parameter's gradient at step 0, step 1, ...; each step is along it."""
    gate_function, parameters = gate_and_start(name)
    x, side, push = torch.randn(3, 2, 7, 24)
    lengths = []
    for _ in range(steps):
        loss = (push * gate_function(x, side, **parameters)).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        lengths.append({n: g.norm().item() for n, g in zip(parameters, gradients, strict=True)})
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.data -= 0.01 * gradient
    return lengths


# %% [markdown] tags=["card"]
# ### Exercise 10.1 · Predict six first steps
#
# *medium ●●○ · 10 minutes*
#
# For each gate, return the names of the parameters whose gradient is exactly zero at `step` 0, and
# at `step` 1, after every parameter has moved along its first gradient. Names are those in
# `gate_and_start`; an empty set if all learn. The check does not know the answer: it measures.
#
# <details><summary>Hint 1: direction</summary>
#
# Walk from the output back to a parameter. Is there a factor on the way that is zero? Then nothing
# arrives. What the parameter itself is does not matter.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# No axes here. In ControlNet, what reaches `first` and `copy` comes through `last`. What reaches
# `last` is multiplied by what `copy` gives, which is not zero. A sigmoid is never zero.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `at_start = {"ReZero": {"branch"}, "Flamingo": {_____}, "ControlNet": {_____, _____}, ...}`, and
# after one step no factor is zero any more
#
# </details>


# %% tags=["exercise"]
def silent_parameters(gate: str, step: int) -> set[str]:
    """Names of the parameters whose gradient is exactly zero at step 0 or 1, for one of NAMES."""
    ### BEGIN SOLUTION
    # ~ at_start = {"ReZero": {"branch"}}  # and so on
    at_start = {
        "ReZero": {"branch"},
        "Flamingo": {"branch"},
        "ControlNet": {"first", "copy"},
        "LLaMA-Adapter": {"prompts"},
    }
    return at_start.get(gate, set()) if step == 0 else set()
    ### END SOLUTION


# %% tags=["check"]
@check("10.1", "silent_parameters", step=[0, 1])
def _(step):
    for name in NAMES:
        lengths = measured_gradients(name)[step]
        measured = {parameter for parameter, length in lengths.items() if length == 0}
        mine = silent_parameters(name, step)
        assert isinstance(mine, (set, frozenset)), (
            f'{name}, step {step}: expected a set of names like {{"branch"}}, or the empty set(), '
            f"got the {type(mine).__name__} {mine!r}"
        )
        assert mine <= set(lengths), (
            f"{name}, step {step}: its parameters are {sorted(lengths)}, got {sorted(mine)}"
        )
        for parameter in sorted(measured - mine):
            raise AssertionError(
                f"{name}, step {step}: the measured gradient of `{parameter}` is exactly zero. "
                "Which factor on the way from the output to it is zero?"
            )
        for parameter in sorted(mine - measured):
            reason = "The step before moved what was zero" if step else "Nothing on its way is zero"
            raise AssertionError(
                f"{name}, step {step}: the measured gradient of `{parameter}` is not zero. {reason}"
            )


# %% [raw] tags=["wrong"] says="of `first` is exactly zero"
"""
def silent_parameters(gate, step):
    at_start = {
        "ReZero": {"branch"},
        "Flamingo": {"branch"},
        "ControlNet": {"copy"},
        "LLaMA-Adapter": {"prompts"},
    }
    return at_start.get(gate, set()) if step == 0 else set()
"""

# %% [raw] tags=["wrong"] says="Which factor on the way from the output"
"""
def silent_parameters(gate, step):
    at_start = {
        "ReZero": {"gate"},
        "Flamingo": {"gate"},
        "ControlNet": {"first", "last"},
        "LLaMA-Adapter": {"gate"},
    }
    return at_start.get(gate, set()) if step == 0 else set()
"""

# %% [raw] tags=["wrong"] says="The step before moved what was zero"
"""
def silent_parameters(gate, step):
    at_start = {
        "ReZero": {"branch"},
        "Flamingo": {"branch"},
        "ControlNet": {"first", "copy"},
        "LLaMA-Adapter": {"prompts"},
    }
    if step == 1:
        return {"first"} if gate == "ControlNet" else set()
    return at_start.get(gate, set())
"""

# %% [raw] tags=["right"]
"""
def silent_parameters(gate, step):
    if step == 1 or gate in ("gated attention", "gpt-oss"):
        return set()
    if gate == "ControlNet":
        return {"copy", "first"}
    return {"prompts"} if gate == "LLaMA-Adapter" else {"branch"}
"""

# %% [raw] tags=["right"]
"""
def silent_parameters(gate, step):
    behind = dict.fromkeys(["ReZero", "Flamingo"], "branch")
    behind |= {"ControlNet": "first copy", "LLaMA-Adapter": "prompts"}
    return frozenset(behind.get(gate, "").split() * (1 - step))
"""

# %%
# alt: A table of the six gates and their parameters. At step 0 an empty circle, a gradient of exactly zero, stands at the branches of ReZero and Flamingo, at first and copy of ControlNet, and at the prompts. At step 1 all circles are full.
torch.manual_seed(0)
rows = [
    (f"{name}: {parameter}", [step[parameter] > 0 for step in lengths])
    for name in NAMES
    for lengths in [measured_gradients(name)]
    for parameter in lengths[0]
]
fig, ax = plt.subplots(figsize=(5.2, 4))
for place, (_, learns) in enumerate(rows):
    for step, yes in enumerate(learns):
        colour = BLUE if yes else "white"
        ax.plot(step, place, "o", ms=11, mfc=colour, mec=BLUE if yes else ORANGE, mew=2)
ax.set_yticks(range(len(rows)), [label for label, _ in rows])
ax.set_xticks((0, 1), ("step 0", "step 1"))
ax.set(xlim=(-0.5, 1.5), ylim=(len(rows) - 0.5, -0.5), title="full: learns    empty: exactly zero")
plt.show()

# %% [markdown]
# One step opens everything, in ControlNet as well: `first` is a zero, but nothing has to pass
# *through* it on the way back to it. Its authors answer this very question in their FAQ ("If the
# weight of a conv layer is zero, the gradient will also be zero").
#
# So what is LLaMA-Adapter's own among these? Flamingo's gate looks the same, but stands before whole
# new layers, with projections of their own. Here the prompts go through the layer's own frozen
# projections, meet its own queries, and each *head* has a gate.
#
# ## The sink is a gate, too
#
# gpt-oss has no gate in its formula, only one learnt number more in the denominator. But how much of
# the softmax is left for the tokens? Let L be the logarithm of the sum of e^score over the tokens.
# The tokens get e^L / (e^L + e^sink), and that is sigmoid(L − sink).

# %%
query = split_heads(x, 8)
sink, branch = noise(3), noise(24, 24)
value = split_heads(small_network(x, branch), 8)
seen = torch.ones(7, 7).tril() > 0
scores = attention_scores(query, query).masked_fill(~seen, float("-inf"))
log_sum = scores.logsumexp(dim=-1)  # b h s
opening = torch.sigmoid(log_sum - rearrange(sink, "h -> 1 h 1"))
read = causal_attention(query, query, value)
as_gate = merge_heads(einsum(opening, read, "b h s, b h s d -> b h s d"))
print("attention with a sink = sigmoid(L - sink) * attention:", end=" ")
print(torch.allclose(gpt_oss(x, side, sink, branch), as_gate, atol=1e-6))

# %% [markdown]
# So a head whose scores are all low closes by itself: there was nothing to read. In gated attention
# a small matrix decides the same from the token. Why do models want this? You will see a reason in
# our Llama, below.
#
# ## V2: a bias and a scale everywhere
#
# LLaMA-Adapter V2 (arXiv 2304.15010, section 4.1) trains more than prompts. Each linear layer W of
# the frozen Llama gets two vectors:
#
# y = scale · (W x + bias),   bias starts at 0, scale starts at 1
#
# and the norms of the layers train, too. The prompts keep their gate. Bias and scale have none: the
# neutral numbers do its work. Adding 0 and multiplying by 1 changes no bit.

# %% [markdown] tags=["card"]
# ### Exercise 10.2 · Bias and scale
#
# *easy ●○○ · 6 minutes*
#
# `y` is what the frozen linear layer gave: W x. Add `bias`, and multiply the sum by `scale`. Both have
# one number for each output of the layer. A Llama in half precision still has float32 vectors: give
# the result the dtype of `y`.
#
# <details><summary>Hint 1: direction</summary>
#
# It is plain arithmetic. Mind the brackets in the formula.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `y` is `... m`: any axes, and last the outputs. `bias` and `scale` are `m`, so torch fits them to
# the last axis by itself.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return (scale * (_____ + _____)).to(_____)`
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.method.bias_scale"
def biased_and_scaled(
    y: Float[Tensor, "... m"], bias: Float[Tensor, "m"], scale: Float[Tensor, "m"]
) -> Float[Tensor, "... m"]:
    """scale * (y + bias): V2's eq. 1 around the output y = W x of a frozen linear layer.

    Computed in the wider of the two number formats, returned in that of y.
    """
    ### BEGIN SOLUTION
    return (scale * (y + bias)).to(y.dtype)
    ### END SOLUTION


# %% tags=["check"]
@check("10.2", "biased_and_scaled", b=[2, 3], s=[5, 4], m=[6, 7])
def _(b, s, m):
    y, bias, scale = torch.randn(b, s, m), torch.randn(m), torch.randn(m)
    right = torch.empty(b, s, m)
    for out in range(m):
        right[..., out] = scale[out] * y[..., out] + scale[out] * bias[out]

    mistakes = {
        "the scale multiplies the sum, bias and all: scale * (W x + bias)": scale * y + bias,
        "the scale is not used": y + bias,
        "the bias is not used": scale * y,
        "the scale starts at 1 by itself: scale, not 1 + scale": (1 + scale) * (y + bias),
        "this is the layer without bias and scale": y,
        "bias and scale have changed places": bias * (y + scale),
    }
    assert_close(biased_and_scaled(y, bias, scale), right, "b s m", mistakes=mistakes)
    one_token = biased_and_scaled(y[0, 0], bias, scale)
    assert_close(one_token, right[0, 0], "m", what="for a single token, which has no b and no s")
    assert_gradients(biased_and_scaled, y, bias, scale)
    start = biased_and_scaled(y, torch.zeros(m), torch.ones(m))
    assert torch.equal(start, y), "with bias 0 and scale 1 not one bit should change"
    half = biased_and_scaled(y.bfloat16(), bias, scale)
    assert half.dtype == torch.bfloat16, f"y has the dtype bfloat16, the result has {half.dtype}"
    wide = scale * (y.bfloat16().float() + bias)
    assert torch.allclose(half.float(), wide, rtol=2**-8, atol=1e-6), (
        "for a bfloat16 y, calculate in float32, the dtype of bias and scale, and round at the end"
    )


# %% [raw] tags=["wrong"] says="the scale multiplies the sum"
"""
def biased_and_scaled(y, bias, scale):
    return (scale * y + bias).to(y.dtype)
"""

# %% [raw] tags=["wrong"] says="not 1 + scale"
"""
def biased_and_scaled(y, bias, scale):
    return ((1 + scale) * (y + bias)).to(y.dtype)
"""

# %% [raw] tags=["wrong"] says="y has the dtype bfloat16"
"""
def biased_and_scaled(y, bias, scale):
    return scale * (y + bias)
"""

# %% [raw] tags=["wrong"] says="no gradient reaches"
"""
def biased_and_scaled(y, bias, scale):
    bias, scale = nn.Parameter(bias), nn.Parameter(scale)
    return (scale * (y + bias)).to(y.dtype)
"""

# %% [raw] tags=["right"]
"""
def biased_and_scaled(y, bias, scale):
    shifted = torch.add(y, bias)
    return torch.mul(scale, shifted).type_as(y)
"""

# %% [raw] tags=["right"]
"""
def biased_and_scaled(y, bias, scale):
    shifted = bias + y.to(bias.dtype)
    return einsum(shifted, scale, "... m, m -> ... m").to(y.dtype)
"""

# %% [markdown]
# Now your function goes around all linear layers of the real Llama: four in each attention, three in
# each feed-forward block. A **forward hook** is called with what a layer was given and what it gave,
# and may put something else in its place.

# %%
model, tokenizer = load_llama()
model.requires_grad_(False)
learn = question_rows(tokenizer, "train")
inputs = {"input_ids": learn.input_ids, "attention_mask": learn.attention_mask}
with torch.no_grad():
    bare = model(**inputs).logits

added, hooks = {}, []
for layer_name, linear in model.model.layers.named_modules():
    if isinstance(linear, nn.Linear):
        two = zeros(linear.out_features), torch.ones(linear.out_features, requires_grad=True)
        added[layer_name] = two

        def around(layer, given, gave, two=two):
            return biased_and_scaled(gave, *two)

        hooks.append(linear.register_forward_hook(around))

tuned = model(**inputs).logits
n_norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
n_added = sum(part.numel() for two in added.values() for part in two)
print(f"{len(added)} linear layers, {n_added:,} new numbers, and {n_norms:,} of the norms")
print("all logits equal to the bare Llama's, bit for bit:", torch.equal(tuned, bare))

# %%
tuned[learn.predicts].logsumexp(dim=-1).sum().backward()
for what, place in (("biases", 0), ("scales", 1)):
    learning = sum(bool(two[place].grad.any()) for two in added.values())
    print(f"{what} with a gradient other than zero at step 0: {learning} of {len(added)}")
for hook in hooks:
    hook.remove()
del tuned

# %% [markdown]
# The same bits, and everything learns from the first step on. What makes the difference to a gate of
# zero? Nothing here stands behind a zero. What reaches the bias is multiplied by the scale, which is 1.
# What reaches the scale is multiplied by W x + bias.
#
# **Three formulas, one name.** The authors' code for the 65B chat model multiplies what goes *into*
# the layer by the scale, not what comes out (`llama_adapter_v2_chat65b`). Their multimodal code has
# biases and no scales. litgpt's `adapter_v2` is the paper's formula, around the output head as well.
# All three start as the frozen Llama, so the start cannot tell them apart. In this library:
# `AdaptionPromptConfig(bias_scale=True, norms=True)`, and `scaled="input"` for the authors' code.
#
# ## A document in the cache
#
# Now something that LLaMA-Adapter was not made for: facts. Here is a document.

# %%
document_ids = tokenizer(document(), return_tensors="pt").input_ids
print(document())
print(f"{document_ids.shape[1]} tokens")
print(questions("train")[0])
print(questions("test")[0])

# %% [markdown]
# Each fact has a question, and a second one in other words. We train with the first kind, and look
# at the second. A question brings the first words of its answer along, so that only the words that
# matter are left to say.
#
# How good is the Llama itself, with the document before the question, and without?


# %%
def with_context(context_ids: Int[Tensor, "1 t"], rows) -> Float[Tensor, "b s v"]:
    """Logits at the question's and the answer's tokens, with other tokens before them."""
    context = repeat(context_ids, "1 t -> b t", b=len(rows.input_ids))
    mask = torch.cat([torch.ones_like(context), rows.attention_mask], dim=1)
    with torch.no_grad():
        ids = torch.cat([context, rows.input_ids], dim=1)
        return model(ids, attention_mask=mask).logits[:, context.shape[1] :]


def right_answers(logits: Float[Tensor, "b s v"], rows) -> int:
    """How many answers greedy decoding gets: each of their tokens is the likeliest one."""
    hit = logits.argmax(dim=-1)[:, :-1] == rows.input_ids[:, 1:]
    return int((hit | ~rows.predicts[:, :-1]).all(dim=1).sum())


other = question_rows(tokenizer, "test")
teacher = {
    "trained words": with_context(document_ids, learn),
    "other words": with_context(document_ids, other),
}
with torch.no_grad():
    bare_other = model(other.input_ids, attention_mask=other.attention_mask).logits
print("right of 8       with the document  without it")
for name, rows, alone in (("trained words", learn, bare), ("other words", other, bare_other)):
    print(f"{name:17}{right_answers(teacher[name], rows):17}{right_answers(alone, rows):12}")

# %% [markdown]
# Without the document it knows nothing, of course. With it, it copies well when the question repeats
# the document's words, and badly when it does not. A Llama of 135 million parameters is a weak
# reader. So "right answers" will not be our measure: the most that a document in *any* form can do is
# to make the Llama behave as if it stood there.
#
# A long document has a price, too. Its keys and values stay in the cache, and each new token looks at
# all of them. But why should the keys and values come from tokens at all? Prompts did not. So take
# **16 keys and values for each layer, and train them**, right where the document's would be: in the
# cache, in the same softmax as the question's tokens, without gate. Its authors call such a trained
# cache a **cartridge** (arXiv 2506.06266, section 3).
#
# ![Three rows. LLaMA-Adapter: five learnt prompts in a softmax of their own, times tanh of the gate,
# plus the softmax over the question's tokens. Cartridge: slot 0, frozen, four learnt slots and the
# question's tokens in one softmax. Below, the whole document before the question, in one
# softmax](figures/10_cartridge.svg)
#
# Two things keep it from shouting, in place of a gate. It starts as the keys and values of the
# document's first 16 tokens. And its first slot never changes. Why that one? Look at where our Llama
# looks while it reads the document. On average, what share of their attention do the document's
# tokens 8 to 67 give to its very first token, over all layers and heads?

# %% tags=["nbval-ignore-output"]
guess = predict("How many percent of its attention does a token give to the first one?", mine=...)

# %%
model.set_attn_implementation("eager")  # the one that hands out its weights
with torch.no_grad():
    attentions = model(document_ids, output_attentions=True).attentions
model.set_attn_implementation("sdpa")
to_first = torch.stack([weights[0, :, 8:, 0].mean() for weights in attentions])
equal_share = (1 / (1 + torch.arange(8.0, document_ids.shape[1]))).mean()
print(f"to the first token: {to_first.mean():.0%}; if all tokens got the same: {equal_share:.0%}")

# %% tags=["nbval-ignore-output"]
guess.compare(100 * to_first.mean())

# %%
# alt: Bars for 30 layers: the share of attention that goes to the first token. In the layers below 12 it is at most a fifth; above, about half, up to three quarters.
fig, ax = plt.subplots(figsize=(7, 2.8))
ax.bar(range(30), to_first.tolist(), color=BLUE)
ax.axhline(equal_share, color=ORANGE, ls="--")
ax.text(-0.5, 0.85, "dashed: if all tokens got the same", color=ORANGE)
ax.set(xlabel="layer", ylabel="to the first token", ylim=(0, 1))
plt.show()

# %% [markdown]
# Weights of a softmax must go somewhere. A head that finds nothing parks them on the first token,
# an **attention sink**. The gates of the papers above give it another way out: with gated attention
# the first token's share falls from 46.7 % to 4.8 % in that paper. Our Llama has no such gate. Move
# its first slot, and you move what many heads lean on. The cartridge paper found that training is
# unstable then, and freezes it.

# %% [markdown] tags=["card"]
# ### Exercise 10.3 · A cartridge
#
# *medium ●●○ · 10 minutes*
#
# One layer's part of a cartridge, begun as a copy of `key` and `value`. The first `num_frozen_tokens`
# slots go into the buffers `frozen_key` and `frozen_value`, the others into the parameters `key` and
# `value`. `keys_values` joins them again.
#
# <details><summary>Hint 1: direction</summary>
#
# `self.register_buffer(name, tensor)` stores what moves with the module and does not train. The
# optimizer changes parameters in place, so `clone` what you are given.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Slots are axis 1 of `g p d`: `key[:, :num_frozen_tokens]` are the frozen ones. Join them along the
# same axis.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `self.key = nn.Parameter(key[:, _____].clone())`, then in `keys_values`
# `torch.cat([self.frozen_key, _____], dim=_____)`
#
# </details>


# %% tags=["exercise"]
class Cartridge(nn.Module):
    """Keys and values of one layer that train, begun at `key` and `value` (g p d).

    The first `num_frozen_tokens` (f) slots stay as they are: buffers `frozen_key`, `frozen_value`
    (g f d). The other slots are the parameters `key`, `value` (g p-f d).
    """

    def __init__(
        self,
        key: Float[Tensor, "g p d"],
        value: Float[Tensor, "g p d"],
        num_frozen_tokens: int = 1,
    ) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        # ~ self.register_buffer("frozen_key", ...)
        # ~ self.register_buffer("frozen_value", ...)
        # ~ self.key = ...
        # ~ self.value = ...
        self.register_buffer("frozen_key", key[:, :num_frozen_tokens].clone())
        self.register_buffer("frozen_value", value[:, :num_frozen_tokens].clone())
        self.key = nn.Parameter(key[:, num_frozen_tokens:].clone())
        self.value = nn.Parameter(value[:, num_frozen_tokens:].clone())
        ### END SOLUTION

    def keys_values(self) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
        """Keys and values of all slots, the frozen ones first."""
        ### BEGIN SOLUTION
        # ~ key = ...
        # ~ value = ...
        key = torch.cat([self.frozen_key, self.key], dim=1)
        value = torch.cat([self.frozen_value, self.value], dim=1)
        return key, value
        ### END SOLUTION


# %% tags=["check"]
@check("10.3", "Cartridge", g=[3, 2], p=[4, 7], d=[6, 8], f=[1, 3])
def _(g, p, d, f):
    start = torch.randn(g, p, d), torch.randn(g, p, d)
    begun = tuple(x.clone() for x in start)
    module = Cartridge(*start, num_frozen_tokens=f)
    learnt, kept = dict(module.named_parameters()), dict(module.named_buffers())
    assert set(learnt) == {"key", "value"}, (
        f"expected the parameters key and value, found {sorted(learnt)}: the frozen slots belong "
        "into buffers, the others into nn.Parameter"
    )
    assert set(kept) == {"frozen_key", "frozen_value"}, (
        f"expected the buffers frozen_key and frozen_value, found {sorted(kept)}: "
        "register_buffer keeps the frozen slots with the module"
    )
    for name in ("key", "value"):
        assert_shape(kept[f"frozen_{name}"], "g n d", g=g, n=f, d=d)
        assert_shape(learnt[name], "g n d", g=g, n=p - f, d=d)

    right = {"the keys": begun[0], "the values": begun[1]}
    mistakes = {
        "the frozen slots come first: there is the attention sink": tuple(
            torch.cat([x[:, f:], x[:, :f]], dim=1) for x in begun
        ),
        "these are the keys again; values have a start of their own": (None, begun[0]),
    }
    assert_results(module.keys_values(), right, "g p d", mistakes=mistakes)
    by_itself = Cartridge(*start).key.shape[1]
    assert by_itself == p - 1, f"by default 1 slot is frozen and {p - 1} train, not {by_itself}"

    push = torch.randn(2, g, p, d)
    for result, weight in zip(module.keys_values(), push, strict=True):
        assert result.requires_grad, (
            "no gradient reaches the trained slots: was something detached?"
        )
        (result * weight).sum().backward()
    for name, weight in zip(("key", "value"), push, strict=True):
        assert learnt[name].grad is not None, f"no gradient reaches `{name}`: was it detached?"
        what = f"the gradient of `{name}`"
        assert_close(learnt[name].grad, weight[:, f:], "g n d", what=what)

    with torch.no_grad():
        for parameter in learnt.values():
            parameter += 1
    assert all(torch.equal(x, before) for x, before in zip(start, begun, strict=True)), (
        "training changes the tensors that the cartridge was begun with: store a clone of them"
    )
    moved = [torch.cat([x[:, :f], x[:, f:] + 1], dim=1) for x in begun]
    named = {"the keys": moved[0], "the values": moved[1]}
    stale = {"this is still the start: join the parameters as they are now": begun}
    assert_results(module.keys_values(), named, "g p d", mistakes=stale, what="after a step")
    for tensor in start:
        tensor += 1
    assert_results(
        module.keys_values(),
        named,
        "g p d",
        what="after a change of the tensors it was begun with: store a clone of them",
    )


# %% [raw] tags=["wrong"] says="the frozen slots belong into buffers"
"""
class Cartridge(nn.Module):
    def __init__(self, key, value, num_frozen_tokens=1):
        super().__init__()
        self.frozen_key = nn.Parameter(key[:, :num_frozen_tokens].clone())
        self.frozen_value = nn.Parameter(value[:, :num_frozen_tokens].clone())
        self.key = nn.Parameter(key[:, num_frozen_tokens:].clone())
        self.value = nn.Parameter(value[:, num_frozen_tokens:].clone())

    def keys_values(self):
        key = torch.cat([self.frozen_key, self.key], dim=1)
        return key, torch.cat([self.frozen_value, self.value], dim=1)
"""

# %% [raw] tags=["wrong"] says="training changes the tensors"
"""
class Cartridge(nn.Module):
    def __init__(self, key, value, num_frozen_tokens=1):
        super().__init__()
        self.register_buffer("frozen_key", key[:, :num_frozen_tokens])
        self.register_buffer("frozen_value", value[:, :num_frozen_tokens])
        self.key = nn.Parameter(key[:, num_frozen_tokens:])
        self.value = nn.Parameter(value[:, num_frozen_tokens:])

    def keys_values(self):
        key = torch.cat([self.frozen_key, self.key], dim=1)
        return key, torch.cat([self.frozen_value, self.value], dim=1)
"""

# %% [raw] tags=["wrong"] says="the frozen slots come first"
"""
class Cartridge(nn.Module):
    def __init__(self, key, value, num_frozen_tokens=1):
        super().__init__()
        self.register_buffer("frozen_key", key[:, :num_frozen_tokens].clone())
        self.register_buffer("frozen_value", value[:, :num_frozen_tokens].clone())
        self.key = nn.Parameter(key[:, num_frozen_tokens:].clone())
        self.value = nn.Parameter(value[:, num_frozen_tokens:].clone())

    def keys_values(self):
        key = torch.cat([self.key, self.frozen_key], dim=1)
        return key, torch.cat([self.value, self.frozen_value], dim=1)
"""

# %% [raw] tags=["right"]
"""
class Cartridge(nn.Module):
    def __init__(self, key, value, num_frozen_tokens=1):
        super().__init__()
        for name, begin in (("key", key), ("value", value)):
            frozen, rest = begin.tensor_split([num_frozen_tokens], dim=1)
            self.register_buffer(f"frozen_{name}", frozen.detach().clone())
            setattr(self, name, nn.Parameter(rest.detach().clone()))

    def keys_values(self):
        pairs = (self.frozen_key, self.key), (self.frozen_value, self.value)
        return tuple(torch.cat(pair, dim=1) for pair in pairs)
"""

# %% [raw] tags=["right"]
"""
class Cartridge(nn.Module):
    def __init__(self, key, value, num_frozen_tokens=1):
        super().__init__()
        f = num_frozen_tokens
        self.register_buffer("frozen_key", torch.empty_like(key[:, :f]).copy_(key[:, :f]))
        self.register_buffer("frozen_value", torch.empty_like(value[:, :f]).copy_(value[:, :f]))
        self.key = nn.Parameter(torch.tensor(key[:, f:].tolist()))
        self.value = nn.Parameter(torch.tensor(value[:, f:].tolist()))

    def keys_values(self):
        both = torch.stack([self.frozen_key, self.frozen_value])
        return torch.cat([both, torch.stack([self.key, self.value])], dim=2).unbind()
"""

# %% [markdown]
# Thirty of them, one for each layer, make a cartridge. They go into transformers' own cache, and the
# Llama takes it for 16 tokens that it has read. Is that so? A fresh cartridge must then give the same
# logits as the document's first 16 tokens in front of the question.

# %%
N_SLOTS = 16


def fresh_cartridge() -> nn.ModuleList:
    """A Cartridge for each layer, begun at the document's first N_SLOTS tokens."""
    cache = DynamicCache()
    with torch.no_grad():
        model(document_ids[:, :N_SLOTS], None, None, cache)  # puts keys and values into the cache
    return nn.ModuleList(Cartridge(layer.keys[0], layer.values[0]) for layer in cache.layers)


def with_cartridge(cartridge: nn.ModuleList, rows) -> Float[Tensor, "b s v"]:
    """Logits at the tokens of the rows; the cartridge stands before them, in the cache."""
    n_rows, cache = len(rows.input_ids), DynamicCache()
    for index, of_layer in enumerate(cartridge):
        rows_of_both = (repeat(x, "g p d -> b g p d", b=n_rows) for x in of_layer.keys_values())
        cache.update(*rows_of_both, index)
    slots = rows.attention_mask.new_ones(n_rows, N_SLOTS)
    mask = torch.cat([slots, rows.attention_mask], dim=1)
    return model(rows.input_ids, mask, None, cache).logits


cartridge = fresh_cartridge()
with torch.no_grad():
    from_slots = with_cartridge(cartridge, learn)[learn.predicts]
from_tokens = with_context(document_ids[:, :N_SLOTS], learn)[learn.predicts]
n_learnt = sum(p.numel() for p in cartridge.parameters())
print("same logits to 0.001:", torch.allclose(from_slots, from_tokens, atol=1e-3))
print(f"numbers to learn: {n_learnt:,}")

# %% [markdown]
# ## Learn from the one who reads
#
# What should the cartridge be trained on? The right answers are one possibility. The cartridge paper's
# better one: let the **teacher**, the same Llama with the whole document, say how likely *every* token of
# the vocabulary is, and train the **student**, the Llama with the cartridge, to say the same. That is
# **distillation**. How far the student is from it, at one position:
#
# KL = Σ over v of teacher · (log teacher − log student)
#
# where teacher and student are the softmax of their logits. It is 0 only if both agree. We decide:
# the direction is KL(teacher ‖ student), as in that paper; the temperature is 1, so the logits are
# taken as they are; the unit is the nat. Teacher and student read the question and its right answer, and
# the loss will be the mean over the positions that predict a token of the answer. (The cartridge paper
# sums over all tokens of conversations that the model wrote itself. PEFT's example takes the teacher's
# 20 likeliest tokens only.)

# %% [markdown] tags=["card"]
# ### Exercise 10.4 · How far from the teacher
#
# *medium ●●○ · 8 minutes*
#
# Return KL(teacher ‖ student) at each of n positions, from the logits of both. Logits may be large, so
# use `log_softmax`; those of a Llama in half precision are made float32 first.
#
# <details><summary>Hint 1: direction</summary>
#
# First the log-probabilities of both. Then the formula above. `exp` makes a probability of a
# log-probability.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Both have the axes `n v`. `log_softmax` and the sum go over `v`, the last axis. `n` stays.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return (theirs.exp() * (_____ - _____)).sum(dim=_____)`
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.training.distillation"
def kl_divergence(
    student: Float[Tensor, "n v"], teacher: Float[Tensor, "n v"]
) -> Float[Tensor, "n"]:
    """How far the student's distribution is from the teacher's at n positions, from their logits.

    KL(teacher || student) = sum over v of p_teacher * (log p_teacher - log p_student), in nats,
    computed in float32. 0 where they are the same.
    """
    ### BEGIN SOLUTION
    # ~ ours, theirs = ...
    ours, theirs = (logits.float().log_softmax(dim=-1) for logits in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(dim=-1)
    ### END SOLUTION


# %% tags=["check"]
@check("10.4", "kl_divergence", n=[5, 4], v=[7, 11], size=[1.0, 60.0])
def _(n, v, size):
    student, teacher = size * torch.randn(n, v), size * torch.randn(n, v)

    def kl(of, to):
        log_p, log_q = of.double().log_softmax(-1), to.double().log_softmax(-1)
        terms = [
            [math.exp(log_p[i, j]) * (log_p[i, j] - log_q[i, j]).item() for j in range(v)]
            for i in range(n)
        ]
        return torch.tensor([sum(row) for row in terms], dtype=torch.float32)

    right = kl(teacher, student)
    ours, theirs = student.log_softmax(0), teacher.log_softmax(0)
    over_positions = (theirs.exp() * (theirs - ours)).sum(dim=-1)
    crossed = nn.functional.cross_entropy(student, teacher.softmax(-1), reduction="none")
    mistakes = {
        "this is KL(student || teacher): the probabilities in front are the teacher's": kl(
            student, teacher
        ),
        "the mean is over the vocabulary: sum over v": right / v,
        "one number for each position, please: the mean over n comes later": right.mean(),
        "one number for each position, please: do not sum over n": right.sum(),
        "the sign is turned: log teacher - log student": -right,
        "the softmax runs over the vocabulary, the last axis": over_positions,
        "this is the cross-entropy; KL takes the teacher's own uncertainty away": crossed,
        "nats, please: the natural logarithm, not the one of base 2": right / math.log(2),
    }
    mistakes = {
        k: x
        for k, x in mistakes.items()
        if x.shape != right.shape or not torch.allclose(x, right, rtol=1e-4)
    }
    assert_close(kl_divergence(student, teacher), right, "n", tol=1e-4, mistakes=mistakes)
    nothing = kl_divergence(teacher, teacher)
    assert nothing.abs().max() < 1e-5, "two that agree are 0 apart: KL(teacher || teacher)"
    if size == 1:
        assert_gradients(kl_divergence, student, teacher)
    half = student.bfloat16(), teacher.bfloat16()
    what = "for logits in bfloat16, made float32 first"
    assert_close(
        kl_divergence(*half), kl(half[1].float(), half[0].float()), "n", tol=1e-4, what=what
    )


# %% [raw] tags=["wrong"] says="this is KL(student || teacher)"
"""
def kl_divergence(student, teacher):
    ours, theirs = student.float().log_softmax(dim=-1), teacher.float().log_softmax(dim=-1)
    return (ours.exp() * (ours - theirs)).sum(dim=-1)
"""

# %% [raw] tags=["wrong"] says="one number for each position"
"""
def kl_divergence(student, teacher):
    ours, theirs = student.float().log_softmax(dim=-1), teacher.float().log_softmax(dim=-1)
    return nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
"""

# %% [raw] tags=["wrong"] says="this is the cross-entropy"
"""
def kl_divergence(student, teacher):
    return -(teacher.float().softmax(dim=-1) * student.float().log_softmax(dim=-1)).sum(dim=-1)
"""

# %% [raw] tags=["wrong"] says="values are NaN"
"""
def kl_divergence(student, teacher):
    ours, theirs = student.float().softmax(dim=-1), teacher.float().softmax(dim=-1)
    return (theirs * (theirs / ours).log()).sum(dim=-1)
"""

# %% [raw] tags=["right"]
"""
def kl_divergence(student, teacher):
    ours, theirs = student.float().log_softmax(dim=-1), teacher.float().log_softmax(dim=-1)
    return nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
"""

# %% [raw] tags=["right"]
"""
def kl_divergence(student, teacher):
    log_q, log_p = (x.float() - x.float().logsumexp(-1, keepdim=True) for x in (student, teacher))
    return einsum(log_p.exp(), log_p - log_q, "n v, n v -> n")
"""

# %% [markdown]
# The loss is the mean of it over all tokens of all answers.


# %%
questions_of = {"trained words": learn, "other words": other}


def distance(name: str, logits: Float[Tensor, "b s v"]) -> Float[Tensor, ""]:
    """Mean KL to the teacher over the answers' tokens, in trained or in other words."""
    predicts = questions_of[name].predicts
    return kl_divergence(logits[predicts], teacher[name][predicts]).mean()


with torch.no_grad():
    for name, alone in (("trained words", bare), ("other words", bare_other)):
        far = distance(name, alone)
        near = distance(name, with_cartridge(cartridge, questions_of[name]))
        print(
            f"{name:14} KL to the teacher: without anything {far:.2f}, fresh cartridge {near:.2f}"
        )

# %% [markdown]
# The fresh cartridge knows the document's first 16 tokens, and no more. Now train it. Adam, 12 steps,
# all eight questions in each.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "After 12 steps, where is the KL lower?",
    options=["trained words", "other words", "the same to 0.05"],
    mine=...,
)

# %%
# alt: Two curves of KL over 12 steps. Both fall; the one of the trained words falls further than the one of the other words.
optimizer = torch.optim.Adam(cartridge.parameters(), lr=3e-2)
history = {"trained words": [], "other words": []}
for step in range(13):
    loss = distance("trained words", with_cartridge(cartridge, learn))
    history["trained words"].append(loss.item())
    if step % 4 == 0:
        with torch.no_grad():
            elsewhere = distance("other words", with_cartridge(cartridge, other))
        history["other words"].append(elsewhere.item())
    if step < 12:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

fig, ax = plt.subplots(figsize=(6.5, 3))
ax.plot(range(13), history["trained words"], color=BLUE, label="trained words")
ax.plot(range(0, 13, 4), history["other words"], "o--", color=ORANGE, label="other words")
ax.set(xlabel="step", ylabel="KL to the teacher (nats)", ylim=(0, None))
ax.legend(frameon=False)
plt.show()

# %% tags=["nbval-ignore-output"]
last = {name: values[-1] for name, values in history.items()}
print(", ".join(f"{name} {kl:.2f}" for name, kl in last.items()))
apart = abs(last["trained words"] - last["other words"])
guess.compare("the same to 0.05" if apart <= 0.05 else min(last, key=last.get))

# %% [markdown]
# The Llama answers the questions it was trained with nearly as if the document stood there, from 16
# slots in place of 68 tokens. Asked in other words, it is not as close. Eight questions are few: the
# cartridge paper lets the model write conversations about the document, begun in five different ways,
# and trains on these. It calls that **self-study**.
#
# The library's `add_cartridge(model, document_ids, CartridgeConfig(num_virtual_tokens=16))` does what
# you did here, with names, swapping and files as for prompts. `finetune(..., document_ids=...)` trains
# with this loss, and `save_adapter(..., format="peft")` writes what PEFT reads.
#
# ## Five ways, one task
#
# A trained cache is prefix tuning (Li and Liang 2021, arXiv 2101.00190) with a better start. So here
# are five ways to teach a frozen Llama this document:
#
# | way | what trains in each layer | where it acts |
# |---|---|---|
# | prompts | p prompts and h gates (lesson 04) | beside the tokens, in a softmax of its own |
# | V2 | bias and scale of seven linear layers, two norms | inside the layer |
# | cartridge | keys and values of p − 1 slots | among the tokens, in their softmax |
# | LoRA | two thin matrices at the query and at the value projection | inside the layer |
# | prefix | keys and values of p slots, begun at random | among the tokens, in their softmax |
#
# (V2 in its paper has the prompts as well. Here it stands alone, so that each way is one idea.)

# %% [markdown] tags=["card"]
# ### Exercise 10.5 · What each way costs
#
# *medium ●●○ · 10 minutes*
#
# Return how many numbers each way trains, for all layers of `config`. `n_slots` is p. V2 also trains
# the one norm after the last layer. LoRA's rank is 8: for a projection from m to o, one matrix m × 8
# and one 8 × o.
#
# <details><summary>Hint 1: direction</summary>
#
# Write down the shapes from the table, multiply, and add. Keys and values count both.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Outputs of the seven linear layers: query h·d, key g·d, value g·d, output m, and in the feed-forward
# block twice the inner width and once m. A norm has m numbers.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `{"prompts": p * m + h, "V2": 2 * (_____) + 2 * m, "cartridge": 2 * g * _____ * d, ...}`, all times
# the number of layers; V2 gets `m` on top
#
# </details>


# %% tags=["exercise"]
def numbers_to_learn(way: str, config: LlamaConfig, n_slots: int) -> int:
    """How many numbers a way trains: "prompts", "V2", "cartridge", "LoRA" or "prefix"."""
    ### BEGIN SOLUTION
    # ~ m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    # ~ d, inner, p = config.head_dim, config.intermediate_size, n_slots
    # ~ in_each_layer = {"prompts": p * m + h}  # and so on
    m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    d, inner, p = config.head_dim, config.intermediate_size, n_slots
    outputs = (h + 2 * g) * d + m + 2 * inner + m
    in_each_layer = {
        "prompts": p * m + h,
        "V2": 2 * outputs + 2 * m,
        "cartridge": 2 * g * (p - 1) * d,
        "LoRA": 8 * (m + h * d) + 8 * (m + g * d),
        "prefix": 2 * g * p * d,
    }
    last_norm = m if way == "V2" else 0
    return config.num_hidden_layers * in_each_layer[way] + last_norm
    ### END SOLUTION


# %% tags=["check"]
@check("10.5", "numbers_to_learn", layers=[2, 3], g=[2, 3], r=[3, 1], d=[4, 8], p=[5, 7])
def _(layers, g, r, d, p):
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=18,
        intermediate_size=28,
        num_hidden_layers=layers,
        num_attention_heads=g * r,
        num_key_value_heads=g,
        head_dim=d,
    )
    small = LlamaForCausalLM(config).requires_grad_(False)

    def count(tensors):
        return sum(tensor.numel() for tensor in tensors)

    linears = [part for part in small.model.modules() if isinstance(part, nn.Linear)]
    norms = [x for name, x in small.named_parameters() if "norm" in name]
    thin = [
        nn.Linear(a, b, bias=False).weight
        for name, part in small.named_modules()
        if name.endswith(("q_proj", "v_proj"))
        for a, b in ((part.in_features, 8), (8, part.out_features))
    ]
    cache = DynamicCache()
    with torch.no_grad():
        small(torch.ones(1, p, dtype=torch.long), None, None, cache)
    slots = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    right = {
        "V2": 2 * sum(part.out_features for part in linears) + count(norms),
        "LoRA": count(thin),
        "cartridge": count(part[:, :, 1:] for part in slots),
        "prefix": count(slots),
    }
    adapted = add_adaption_prompts(small, AdaptionPromptConfig(p, layers))
    right["prompts"] = count(x for x in adapted.parameters() if x.requires_grad)
    for way, expected in right.items():
        mine = numbers_to_learn(way, config, p)
        known = {
            ("V2", expected - count(norms)): "the norms train, too",
            ("V2", expected - 18): "the norm after the last layer trains, too",
            ("V2", (expected + count(norms)) // 2): "bias and scale: two vectors for each layer",
            ("cartridge", right["prefix"]): "the first slot is frozen",
            ("cartridge", expected // 2): "keys and values: both train",
            ("prefix", expected // 2): "keys and values: both train",
            ("prompts", expected - layers * g * r): "each head has a gate",
            ("prompts", expected - layers * (g * r - 1)): "each head has a gate of its own",
            ("LoRA", 2 * layers * 8 * (18 + g * r * d)): "values have g heads, not h",
        }
        if mine * layers in (expected, expected + 18 * (layers - 1) * (way == "V2")):
            known[way, mine] = "this is one layer: multiply by config.num_hidden_layers"
        reason = known.get((way, mine), "count the shapes in the table and in hint 2")
        assert mine == expected, f"{way}: the real tensors have {expected} numbers: {reason}"


# %% [raw] tags=["wrong"] says="the first slot is frozen"
"""
def numbers_to_learn(way, config, n_slots):
    m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    d, inner, p = config.head_dim, config.intermediate_size, n_slots
    outputs = (h + 2 * g) * d + m + 2 * inner + m
    in_each_layer = {
        "prompts": p * m + h,
        "V2": 2 * outputs + 2 * m,
        "cartridge": 2 * g * p * d,
        "LoRA": 8 * (m + h * d) + 8 * (m + g * d),
        "prefix": 2 * g * p * d,
    }
    return config.num_hidden_layers * in_each_layer[way] + (m if way == "V2" else 0)
"""

# %% [raw] tags=["wrong"] says="values have g heads, not h"
"""
def numbers_to_learn(way, config, n_slots):
    m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    d, inner, p = config.head_dim, config.intermediate_size, n_slots
    outputs = (h + 2 * g) * d + m + 2 * inner + m
    in_each_layer = {
        "prompts": p * m + h,
        "V2": 2 * outputs + 2 * m,
        "cartridge": 2 * g * (p - 1) * d,
        "LoRA": 2 * 8 * (m + h * d),
        "prefix": 2 * g * p * d,
    }
    return config.num_hidden_layers * in_each_layer[way] + (m if way == "V2" else 0)
"""

# %% [raw] tags=["wrong"] says="the norm after the last layer trains, too"
"""
def numbers_to_learn(way, config, n_slots):
    m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    d, inner, p = config.head_dim, config.intermediate_size, n_slots
    outputs = (h + 2 * g) * d + m + 2 * inner + m
    return config.num_hidden_layers * {
        "prompts": p * m + h,
        "V2": 2 * outputs + 2 * m,
        "cartridge": 2 * g * (p - 1) * d,
        "LoRA": 8 * (m + h * d) + 8 * (m + g * d),
        "prefix": 2 * g * p * d,
    }[way]
"""

# %% [raw] tags=["right"]
"""
def numbers_to_learn(way, config, n_slots):
    m, d, layers = config.hidden_size, config.head_dim, config.num_hidden_layers
    query, keys = config.num_attention_heads * d, config.num_key_value_heads * d
    if way == "prompts":
        return layers * (n_slots * m + config.num_attention_heads)
    if way == "LoRA":
        return layers * 8 * (2 * m + query + keys)
    if way == "V2":
        outputs = [query, keys, keys, m, config.intermediate_size, config.intermediate_size, m]
        return layers * (2 * sum(outputs) + 2 * m) + m
    return layers * 2 * keys * (n_slots - (way == "cartridge"))
"""

# %% [raw] tags=["right"]
"""
def numbers_to_learn(way, config, n_slots):
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    total = 0
    for name, part in model.model.named_modules():
        shape = getattr(part, "weight", torch.empty(0)).shape
        if way == "V2" and "norm" in name:
            total += shape[0]
        if way == "V2" and isinstance(part, nn.Linear):
            total += 2 * shape[0]
        if way == "LoRA" and name.endswith(("q_proj", "v_proj")):
            total += 8 * sum(shape)
        if name.endswith(("k_proj", "v_proj")):
            total += {"prefix": n_slots, "cartridge": n_slots - 1}.get(way, 0) * shape[0]
        if way == "prompts" and name.endswith("self_attn"):
            total += n_slots * config.hidden_size + config.num_attention_heads
    return total
"""

# %% [markdown]
# And what do they reach? `benchmarks/many_papers.py` trained each of them on this task: the same
# questions, the same loss, three learning rates each, the best of them with three seeds. A seed is
# another order of the document's sentences and another random start. It ran twice: a few steps on a
# CPU, and more of them on a GPU.


# %%
def best_runs(stored: dict, way: str) -> list[dict]:
    """The runs of a way with the learning rate that did best on seed 0's trained words."""
    tried = [run for run in stored["runs"] if run["way"] == way]
    first = [run for run in tried if run["seed"] == 0]
    rate = min(first, key=lambda run: run["kl_trained"])["learning_rate"]
    return [run for run in tried if run["learning_rate"] == rate]


def mean(runs: list[dict], name: str) -> float:
    return sum(run[name] for run in runs) / len(runs)


ways = ("prompts", "V2", "cartridge", "LoRA", "prefix")
for file in ("many_papers_cpu", "many_papers"):
    path = resources.files("llama_adapter_edu") / "course/results" / f"{file}.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    about = stored["conditions"]
    n_seeds = len({run["seed"] for run in stored["runs"]})
    print(f"{about['steps']} steps, {n_seeds} seeds, on {about['device']}")
    print("way        numbers      KL trained words  KL other words  right of 8, other words")
    for way in ways:
        runs = best_runs(stored, way)
        n_learnt = numbers_to_learn(way, model.config, 10 if way == "prompts" else N_SLOTS)
        assert n_learnt == runs[0]["trainable_parameters"], way
        print(
            f"{way:10} {n_learnt:8,} {mean(runs, 'kl_trained'):16.2f} {mean(runs, 'kl_other'):15.2f}"
            f" {8 * mean(runs, 'right_other'):16.1f}"
        )
    print()
print("before the first step, in trained words:", end=" ")
first = {way: mean(best_runs(stored, way), "first_kl_trained") for way in ("cartridge", "prefix")}
print(*(f"{way} {kl:.2f}" for way, kl in first.items()))
for name in ("bare", "teacher"):
    print(f"{name:10} right of 8 in other words: {8 * mean(stored[name], 'right_other'):.1f}")

# %%
# alt: The KL to the teacher of three seeds for each of five ways, on the GPU. Trained words (dots): all close to 0. Other words (squares): V2, cartridge and LoRA between 0.3 and 0.6, prompts between 0.5 and 0.9, prefix between 2.2 and 3.4, above the bare Llama, whose dashed line is at 2.0.
fig, ax = plt.subplots(figsize=(7, 3.2))
for place, way in enumerate(ways):
    for shift, score, colour, marker in (
        (-0.12, "kl_trained", BLUE, "o"),
        (0.12, "kl_other", ORANGE, "s"),
    ):
        heights = [run[score] for run in best_runs(stored, way)]
        ax.plot([place + shift] * len(heights), heights, marker, color=colour, alpha=0.8)
for score, colour, label in (
    ("kl_trained", BLUE, "trained words"),
    ("kl_other", ORANGE, "other words"),
):
    ax.axhline(mean(stored["bare"], score), color=colour, ls="--", lw=1)
    ax.plot([], [], "o" if score == "kl_trained" else "s", color=colour, label=label)
ax.set_xticks(range(len(ways)), ways)
ax.set(ylabel="KL to the teacher (nats)", ylim=(-0.1, 4.7))
ax.legend(frameon=False, title="dashed: the bare Llama", loc="upper left", ncols=2)
plt.show()

# %% [markdown]
# Read it with care: one document, eight questions, and for each way the best of three learning
# rates. For cartridge, LoRA and prefix the best was the highest, so there may be a better one. The
# table does not say which way wins. Four things can be seen all the same:
#
# * In the trained words, all five end within 0.02 nats of the teacher. More steps bring them there.
# * In other words, prompts stay farther from the teacher than V2, cartridge and LoRA. V2 and LoRA
#   train two to three times as many numbers; the cartridge trains as many as the prompts do.
# * The prefix is a cartridge with another start, and one slot more that trains. At random, with no gate
#   and no document, it starts about three times as far from the teacher as the Llama with nothing. It
#   learns the trained words by heart. In other words it ends *farther* from the teacher than that Llama,
#   and more steps make it worse. There is no zero in a cartridge, but it obeys the same rule: **start
#   where you do no harm**.
# * In other words, cartridge and LoRA give *more* right answers than their teacher. Have they read
#   better than the one who reads? No. They have been trained on the tokens of these eight answers. This
#   is why right answers are not our measure here.
#
# What they cost afterwards differs, too. V2 and LoRA can be written into the weights, and are then free.
# Prompts and cartridges add slots that every query looks at: 10, or 16 in place of 68.
#
# ## What you built
#
# * `silent_parameters`: who learns first in six papers, predicted and measured,
# * `biased_and_scaled`: LLaMA-Adapter V2's linear layer, around 210 layers of a Llama,
# * `Cartridge`: trained keys and values of one layer,
# * `kl_divergence`: how far a student is from the one who reads the document,
# * `numbers_to_learn`: what five ways cost.
#
# **Next, lesson 11:** the full training, on a GPU if you have one.
#
# ## To think about
#
# 1. V2's bias and scale cost nothing once the training is over. Why, and why can prompts not do the
#    same?
#
# <details><summary>Answer</summary>
#
# scale · (W x + bias) is a linear layer again: with the matrix scale · W, each row times its number,
# and the bias scale · bias. It can be written into the weights, as LoRA's product can. What prompts
# add depends on the query through a softmax, so there is no matrix that does the same. The price of
# writing it in: the base is then no longer the base, and no other adapter can take its place.
#
# </details>
#
# 2. A sink of minus infinity gives plain attention. Why does no one start it there, as the others
#    start their gates at zero?
#
# <details><summary>Answer</summary>
#
# It would start silent, and stay so. The sink's weight is e^sink over the sum, and so is its
# gradient: at minus infinity both are exactly zero. The gates at zero are saved by their other
# factor; here there is none. It is lesson 04's "dead for ever".
#
# </details>
#
# 3. Two cartridges, of two documents, one behind the other in one cache: the Llama can read both.
#    Why not add two sets of prompts and gates instead?
#
# <details><summary>Answer</summary>
#
# One can: each set has its own softmax, and both results are added. But then each speaks with its
# full opening, whether the question concerns it or not. In one cache both stand in one softmax, and a
# query that finds its answer in one of them takes its weight from the other. The cartridge paper shows
# that it works without any training together.
#
# </details>
