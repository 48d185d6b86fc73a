# %% [markdown]
# # Lesson 04: The zero-init gate
#
# *55 minutes. Needs lessons 01 to 03.*
#
# At the end you will have
#
# * 173,070 new numbers inside a Llama that still computes exactly what it did before,
# * a prediction, and a measurement, of which of them learn first,
# * three bugs of well-known projects, and the look that reveals each of them.
#
# Letters: `b` batch, `s` query position, `t` key position, `p` prompt slot, `h` query head, `g`
# key/value head, `r` query heads per key/value head (h = g · r), `d` head width, `m` model width.
#
# From here on we use the library's copies of the functions that you wrote in lesson 03.

# %%
import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course import assert_close, assert_gradients, assert_shape, check, predict
from llama_adapter_edu.course.figures import (
    BLUE,
    GREY,
    ORANGE,
    gate_dial,
    plot_dial,
    plot_gates,
    use_style,
)
from llama_adapter_edu.course.figures.stored_dial import stored_stops
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import encode
from llama_adapter_edu.method.attention import (
    AttentionLayer,
    apply_rotary,
    attention_scores,
    causal_attention,
    causal_softmax,
    repeat_kv_heads,
    rotary_tables,
    split_heads,
)
from llama_adapter_edu.method.gated_prompts import (
    prompt_attention,
    prompt_keys_values,
    prompt_scores,
)
from torch import Tensor, nn

use_style()
model, tokenizer = load_llama()
model.requires_grad_(False)

commands = home_commands("train", 4)
rows = [encode(command, tokenizer) for command in commands]
batch = collate(rows, tokenizer.pad_token_id)
with torch.no_grad():
    bare = model(**batch)
print(commands[0]["instruction"], "->", commands[0]["output"])
print(f"loss of the bare Llama on 4 commands: {bare.loss:.2f}")

# %% [markdown]
# ## How loud may a stranger start?
#
# The course's task is to turn a command for a home into JSON. `encode` makes tokens of a command,
# `collate` puts several into one batch; lesson 07 opens both. The loss says how surprised the Llama
# is by the right answers, in *nats* per token: a token to which it gives the probability 1/e costs
# 1 nat. Four commands are enough for this lesson.
#
# Now put 10 random prompts into each of the 30 layers. In lesson 03 they shouted: what a token read
# from them was more than ten times as long as what it read from the tokens. So turn them down: draw
# a random number for each head, multiply what the prompts add there by the tanh of it, and let the
# random numbers grow from 0 to size 1.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "The bare Llama's loss is 2.50. How high is it with random numbers of size 1?",
    options=["about 3", "about 10", "above 15"],
    mine=...,
)

# %%
torch.manual_seed(0)
add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=10, adapter_layers=30))
sizes, losses = (0, 0.01, 0.03, 0.1, 0.3, 1), []
for size in sizes:
    torch.manual_seed(0)
    for layer_prompts in adapter_prompts(model, "default").values():
        nn.init.normal_(layer_prompts.gate, std=size)
    with torch.no_grad():
        losses.append(model(**batch).loss.item())

guessing = math.log(model.config.vocab_size)
print(f"all {model.config.vocab_size} tokens equally likely: loss {guessing:.1f}")
print("loss with random numbers of size 1:", f"{losses[-1]:.1f}")

# %%
# alt: Bars of the loss for random numbers of size 0 to 1. At 0 and 0.01 it is near that of the bare Llama; from 0.1 on it is above 10.8, the loss of guessing.
fig, ax = plt.subplots(figsize=(6.5, 3))
bars = ax.bar([str(size) for size in sizes], losses, color=[BLUE] + [ORANGE] * 5)
ax.bar_label(bars, fmt="{:.1f}")
ax.axhline(guessing, color=GREY, ls="--")
ax.text(-0.4, guessing + 0.3, "all tokens equally likely")
ax.set(xlabel="size of the random numbers", ylabel="loss", ylim=(0, 20))
plt.show()

# %% tags=["nbval-ignore-output"]
loud = losses[-1]
guess.compare("above 15" if loud > 15 else "about 10" if loud > 6 else "about 3")

# %% [markdown]
# Random prompts can make a Llama *worse than one that knows nothing at all*. (From there on, louder
# is not always worse: the loss is 16.3 at size 0.1, and 15.4 at 0.3.) Training would first have to
# repair the damage. Only one start is sure to do no harm: zero.
#
# The number is called a **gate**. It is learnt, and it starts at zero: **zero-init attention**. In
# the paper, on the validation questions of ScienceQA, the zero start ends at 83.85 % right answers
# and a random start at 40.77 % (ICLR 2024, Table 5; arXiv v1 has 84.04 % for the zero start, and
# does not say what exactly was random).
#
# For what follows we need one layer from inside: layer 10, as in lesson 03, reading the first
# command.

# %%
block = model.model.layers[10]
layer = AttentionLayer.from_llama(block.self_attn)
for layer_prompts in adapter_prompts(model, "default").values():
    nn.init.zeros_(layer_prompts.gate)

with torch.no_grad():
    first = torch.tensor([rows[0]["input_ids"]])
    states = model(first, output_hidden_states=True).hidden_states[10]
    hidden = block.input_layernorm(states)
    _, query = layer(hidden)
    key = split_heads(layer.key_layer(hidden), layer.head_dim)
    value = split_heads(layer.value_layer(hidden), layer.head_dim)
    position = rearrange(torch.arange(hidden.shape[1]), "s -> 1 s")
    key = apply_rotary(key, *rotary_tables(position, layer.head_dim, layer.theta))

torch.manual_seed(0)
prompts = torch.randn(10, 576)
prompt_key, prompt_value = prompt_keys_values(
    prompts, layer.key_layer, layer.value_layer, layer.head_dim
)
print("query         b h s d ", tuple(query.shape))
print("prompt value    g p d ", tuple(prompt_value.shape))

# %% [markdown]
# ## One gate for each head
#
# Each head of each layer has a gate of its own: "we adopt multiple g_l to be independently
# learned for different heads" (arXiv v1, section 3.2). So one head may listen to the prompts while
# its neighbour does not.
#
# Equation 7 multiplies the prompts' weights by the tanh of the gate. (ArXiv v1 prints the bare
# gate; the authors' training code and the ICLR 2024 edition have the tanh.) tanh(0) is 0, and
# however far the gate runs, the **opening**, tanh(gate), stays between −1 and 1.

# %% [markdown] tags=["card"]
# ### Exercise 4.1 · The gate
#
# *easy ●○○ · 8 minutes*
#
# Multiply what each head reads from the prompts by `activation(gate)` of that head. A gate with
# one element serves all heads. Give the result the dtype of `prompt_attention`'s result.
#
# ![The query meets tokens and prompts apart. Tokens: scores, softmax over t, token values. Prompts:
# scores, softmax over p, times tanh of the gate, prompt values. Both are added and go through
# output_layer](figures/04_gate.svg)
#
# <details><summary>Hint 1: direction</summary>
#
# `prompt_attention` does nearly everything. What is left is a product. Mind that the gate's only
# axis is `h`.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# What the heads read is `b h s d`. Give the gate two more axes of size 1 behind `h`; then it is
# multiplied head by head.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `opening = rearrange(activation(gate), "h -> _ _ _")`, then `(opening *
# attended).to(attended._____)`
#
# </details>


# %% tags=["exercise"] assemble=true library="llama_adapter_edu.method.gated_prompts"
def gated_prompt_attention(
    query: Float[Tensor, "b h s d"],
    prompt_key: Float[Tensor, "g p d"],
    prompt_value: Float[Tensor, "g p d"],
    gate: Float[Tensor, "h"],
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """What the prompts add to each head: activation(gate) * prompt_attention (eq. 7).

    A gate of zero adds exactly nothing. A gate of one element serves all heads.
    """
    ### BEGIN SOLUTION
    # ~ opening = ...
    opening = rearrange(activation(gate), "h -> h 1 1")
    attended = prompt_attention(query, prompt_key, prompt_value, scale)
    return (opening * attended).to(attended.dtype)
    ### END SOLUTION


# %% tags=["check"]
@check("4.1", "gated_prompt_attention", b=[2, 3], g=[3, 2], r=[4, 5])
def _(b, g, r):
    # 5 tokens, 7 prompts, d = 8
    inputs = torch.randn(b, g * r, 5, 8), torch.randn(g, 7, 8), torch.randn(g, 7, 8)
    gate = torch.randn(g * r)

    def head_after_head(opening, scale=None):
        read = prompt_attention(*inputs, scale)
        return torch.stack([opening[h] * read[:, h] for h in range(g * r)], dim=1)

    for options, what in (
        ({}, "with tanh"),
        ({"activation": torch.sigmoid}, "with activation=torch.sigmoid"),
        ({"scale": 0.25}, "with scale=0.25"),
    ):
        activation, scale = options.get("activation", torch.tanh), options.get("scale")
        opening = activation(gate)
        right = head_after_head(opening, scale)
        query, key, value = inputs
        mistakes = {
            "the activation is missing: use activation(gate), not the gate itself": (
                head_after_head(gate, scale)
            ),
            "the activation is applied twice": head_after_head(activation(opening), scale),
            "the activation is for the gate, not for the product": activation(
                head_after_head(gate, scale)
            ),
            "the gate should multiply what the softmax gives, not the scores": prompt_attention(
                rearrange(opening, "h -> h 1 1") * query, key, value, scale
            ),
            "the gate is not used": prompt_attention(*inputs, scale),
            "only what the prompts add: opening times attended, not 1 + opening": head_after_head(
                1 + opening, scale
            ),
            "each head has its own gate; this is the first one for all": head_after_head(
                opening[:1].expand(g * r), scale
            ),
            "each head has its own gate; this is their mean": head_after_head(
                activation(gate.mean()).expand(g * r), scale
            ),
            "each head has its own gate; this is the mean opening": head_after_head(
                opening.mean().expand(g * r), scale
            ),
            "the gates are summed over the heads: keep h on the right": head_after_head(
                opening.sum().expand(g * r), scale
            ),
            "keys and values of the prompts are swapped": rearrange(opening, "h -> h 1 1")
            * prompt_attention(query, value, key, scale),
        }
        if "activation" not in options:
            sigmoid = head_after_head(gate.sigmoid(), scale)
            mistakes["use the argument `activation`, which is tanh here, not a sigmoid"] = sigmoid
        if scale:
            mistakes["the argument `scale` is ignored"] = head_after_head(opening)
        if "activation" in options:
            mistakes["the argument `activation` is ignored"] = head_after_head(gate.tanh())
        mine = gated_prompt_attention(*inputs, gate, **options)
        assert_close(mine, right, "b h s d", mistakes=mistakes, what=what)

    mine = gated_prompt_attention(*inputs, gate[:1])
    right = head_after_head(gate[:1].tanh().expand(g * r))
    assert_close(mine, right, "b h s d", what="with one gate for all heads")
    closed = gated_prompt_attention(*inputs, torch.zeros(g * r))
    assert torch.count_nonzero(closed) == 0, "a gate of zero should add exactly nothing"
    half = gated_prompt_attention(*(x.bfloat16() for x in inputs), gate)
    assert half.dtype == torch.bfloat16, (
        "a float32 gate should not turn a bfloat16 result into float32: cast it back at the end"
    )
    assert_gradients(gated_prompt_attention, *inputs, gate)
    what = "with closed gates"
    assert_gradients(gated_prompt_attention, *inputs, torch.zeros(g * r), what=what)


# %% [raw] tags=["wrong"] says="the activation is missing"
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    attended = prompt_attention(query, key, value, scale)
    return (rearrange(gate, "h -> h 1 1") * attended).to(attended.dtype)
"""

# %% [raw] tags=["wrong"] says="not the scores"
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    opening = rearrange(activation(gate), "h -> h 1 1")
    return prompt_attention(opening * query, key, value, scale)
"""

# %% [raw] tags=["wrong"] says="with activation=torch.sigmoid"
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    attended = prompt_attention(query, key, value, scale)
    return (rearrange(torch.tanh(gate), "h -> h 1 1") * attended).to(attended.dtype)
"""

# %% [raw] tags=["wrong"] says="scale=0.25"
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    attended = prompt_attention(query, key, value)
    return (rearrange(activation(gate), "h -> h 1 1") * attended).to(attended.dtype)
"""

# %% [raw] tags=["wrong"] says="cast it back at the end"
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    attended = prompt_attention(query, key, value, scale)
    return rearrange(activation(gate), "h -> h 1 1") * attended
"""

# %% [raw] tags=["wrong"] says="no gradient reaches `gate`"
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    attended = prompt_attention(query, key, value, scale)
    opening = rearrange(activation(gate.detach()), "h -> h 1 1")
    return (opening * attended).to(attended.dtype)
"""

# %% [raw] tags=["wrong"] says="with closed gates"
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    if not gate.any():
        return torch.zeros_like(query)
    attended = prompt_attention(query, key, value, scale)
    return (rearrange(activation(gate), "h -> h 1 1") * attended).to(attended.dtype)
"""

# %% [raw] tags=["wrong"] says="the activation is missing"
"""
def gated_prompt_attention(
    query, prompt_key, prompt_value, gate, activation=torch.tanh, scale=None
):
    opening = rearrange(gate, "h -> h 1 1")
    attended = prompt_attention(query, prompt_key, prompt_value, scale)
    return (opening * attended).to(attended.dtype)
"""

# %% [raw] tags=["wrong"] says="scale=0.25"
"""
def gated_prompt_attention(
    query, prompt_key, prompt_value, gate, activation=torch.tanh, scale=None
):
    opening = rearrange(activation(gate), "h -> h 1 1")
    attended = prompt_attention(query, prompt_key, prompt_value)
    return (opening * attended).to(attended.dtype)
"""

# %% [raw] tags=["right"]
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    attended = prompt_attention(query, key, value, scale)
    opening = activation(gate).expand(query.shape[1])
    return einsum(opening, attended.float(), "h, b h s d -> b h s d").to(attended.dtype)
"""

# %% [raw] tags=["right"]
"""
def gated_prompt_attention(query, key, value, gate, activation=torch.tanh, scale=None):
    attended = prompt_attention(query, key, value, scale)
    return attended.mul(activation(gate)[:, None, None]).type_as(attended)
"""

# %% [markdown]
# Here are nine gates, and how far they are open.

# %%
# alt: For nine gates from -2 to 2, a bar for the gate and a bar for its tanh. Near 0 both are the same; at 2, the tanh is 0.96.
gate = torch.linspace(-2, 2, 9)
head = torch.arange(9)
fig, ax = plt.subplots(figsize=(7, 2.8))
ax.bar(head - 0.2, gate.tolist(), width=0.38, color=GREY, hatch="//", label="gate")
opening = gate.tanh().tolist()
bars = ax.bar(head + 0.2, opening, width=0.38, color=BLUE, label="tanh(gate), the opening")
ax.bar_label(bars, fmt="{:.2f}", fontsize=7)
ax.axhline(0, color="black", lw=1)
ax.set(xlabel="head", ylabel="gate", xticks=head, ylim=(-2.2, 2.2))
ax.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# **A bug in the open.** The authors' training code uses tanh(gate). Their inference code
# multiplies by the bare gate, the grey bars (LLaMA-Adapter, issue 39, May 2023). As long as gates
# are small, nobody sees it: tanh(0.1) is 0.0997. At a gate of 1 the prompts are 31 % too loud.
#
# ## Behind a closed gate
#
# With all gates at zero, the prompts add exact zeros. Not small numbers: zeros. That is the good
# news. The bad news is that *everything* behind the gate is out of sight too. Here is the layer
# with the right scale 1 / √64, and with a wrong one, 1 / √576.

# %%
inputs = query, prompt_key, prompt_value
for name, gate in (("closed", torch.zeros(9)), ("open, 0.5", torch.full((9,), 0.5))):
    good = gated_prompt_attention(*inputs, gate)
    bad = gated_prompt_attention(*inputs, gate, scale=576**-0.5)
    print(
        f"gate {name:9}  same result: {torch.equal(good, bad)!s:5}  largest {good.abs().max():.2g}"
    )

# %% [markdown]
# **A bug behind the gate.** This happened in lit-llama. Its scale was 1 / √(model width) instead
# of 1 / √(head width), and the fresh model gave the right numbers all the same. A comparison with
# the authors' code found it at last, with an open gate (lit-llama, pull request 106). So: **test
# adapters with open gates.**
#
# ## Equation 7 as it is printed
#
# The paper writes it in another way. It lays all scores of a token side by side, and then all its
# weights: those of the prompts, times the opening, and those of the tokens. $S_l^K$ are the scores
# of the $K$ prompts, $S_l^{M+1}$ those of the tokens.
#
# | eq. | in the paper | in our letters | in code |
# |---|---|---|---|
# | 6 | $S_l = [S_l^K;\ S_l^{M+1}]^T$ | `b h s p` and `b h s t` | `scores_bhsp`, `scores_bhst` |
# | 7 | $S_l^g = [\mathrm{softmax}(S_l^K) \cdot \tanh(g_l);\ \mathrm{softmax}(S_l^{M+1})]^T$ | `b h s (p t)`, p + t wide | `gated_attention_weights`, exercise 4.2 |
# | 8 | $t_l^o = \mathrm{Linear}_o(S_l^g V_l)$ | `b h s d` → `b s m` | `output_layer(merge_heads(side_by_side))`, with `side_by_side` from below |
#
# What do the weights of a token sum to?

# %% [markdown] tags=["card"]
# ### Exercise 4.2 · All weights of a token
#
# *medium ●●○ · 8 minutes*
#
# From both kinds of scores, make the weights of equation 7: the prompts' own softmax times
# tanh(gate) of the head, then the tokens' causal softmax. Lay them side by side, the prompts
# first. There may be fewer queries than tokens (s < t): they are the last ones.
#
# <details><summary>Hint 1: direction</summary>
#
# Two softmaxes, one product, one `torch.cat`. It is exercise 3.4 with the softmax on the other
# side of the `cat`.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The gate has the axis `h`. Prompts' weights are `b h s p`, tokens' weights `b h s t`. They are
# joined along the last axis.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `torch.cat([opening * scores_bhsp._____(dim=-1), causal_softmax(_____)], dim=-1)`
#
# </details>


# %% tags=["exercise"] assemble=true
def gated_attention_weights(
    scores_bhsp: Float[Tensor, "b h s p"],
    scores_bhst: Float[Tensor, "b h s t"],
    gate: Float[Tensor, "h"],
) -> Float[Tensor, "b h s pt"]:
    """Equation 7: [softmax(prompt scores) * tanh(gate), causal softmax(token scores)]."""
    ### BEGIN SOLUTION
    # ~ opening = ...
    opening = rearrange(torch.tanh(gate), "h -> h 1 1")
    of_prompts = opening * scores_bhsp.softmax(dim=-1)
    return torch.cat([of_prompts, causal_softmax(scores_bhst)], dim=-1)
    ### END SOLUTION


# %% tags=["check"]
@check(
    "4.2",
    "gated_attention_weights",
    b=[2, 3, 2],
    h=[3, 4, 3],
    s=[5, 4, 1],
    t=[5, 6, 4],
    p=[7, 2, 5],
)
def _(b, h, s, t, p):
    for_prompts, for_tokens, gate = torch.randn(b, h, s, p), torch.randn(b, h, s, t), torch.randn(h)

    right = torch.zeros(b, h, s, p + t)  # head after head, query after query
    for head in range(h):
        right[:, head, :, :p] = math.tanh(gate[head]) * for_prompts[:, head].softmax(-1)
        for i in range(s):
            seen = slice(t - s + i + 1)
            right[:, head, i, p:][..., seen] = for_tokens[:, head, i, seen].softmax(-1)

    opening = rearrange(gate.tanh(), "h -> h 1 1")
    alone, tokens = for_prompts.softmax(-1), right[..., p:]  # not gated
    joint = causal_softmax(torch.cat([for_prompts, for_tokens], -1))
    first = for_tokens.masked_fill(torch.ones(s, t).tril() == 0, float("-inf")).softmax(-1)
    mistakes = {
        "the gate should multiply the softmax, not the scores": [
            (opening * for_prompts).softmax(-1),
            tokens,
        ],
        "this is one softmax over both; take two": [joint],
        "this is one softmax over both; take two before the gate comes in": [
            opening * joint[..., :p],
            joint[..., p:],
        ],
        "the gate is for the prompts only; tokens keep their weights": [
            opening * alone,
            opening * tokens,
        ],
        "the gate is for the prompts, not for the tokens": [alone, opening * tokens],
        "the gate is not used": [alone, tokens],
        "the tanh is missing: the prompts are as loud as the bare gate": [
            gate[:, None, None] * alone,
            tokens,
        ],
        "tokens see later tokens: use causal_softmax": [opening * alone, for_tokens.softmax(-1)],
        "the tokens keep their weights, whatever the gate is": [
            opening * alone,
            (1 - opening) * tokens,
        ],
        "the prompts' softmax runs over the queries: take dim=-1": [
            opening * for_prompts.softmax(-2),
            tokens,
        ],
        "each head has its own gate; this is the first one for all": [opening[:1] * alone, tokens],
        "the sign of the opening counts: below zero the prompts take away": [
            opening.abs() * alone,
            tokens,
        ],
        "prompts have no causal mask: use a plain softmax": [
            opening * causal_softmax(for_prompts),
            tokens,
        ],
        "the prompts' softmax is missing": [opening * for_prompts, tokens],
        "put the prompts first": [tokens, opening * alone],
        f"the {s} queries are the last of the {t} tokens, not the first": [opening * alone, first],
        "leave the sum as it is: the weights add up to 1 + tanh(gate)": [
            right / right.sum(-1, keepdim=True)
        ],
    }
    values = {sentence: torch.cat(parts, dim=-1) for sentence, parts in mistakes.items()}
    mistakes = {sentence: x for sentence, x in values.items() if not torch.allclose(x, right)}
    mine = gated_attention_weights(for_prompts, for_tokens, gate)
    assert_close(mine, right, "b h s n", mistakes=mistakes)
    assert_gradients(gated_attention_weights, for_prompts, for_tokens, gate)
    what = "with closed gates"
    assert_gradients(gated_attention_weights, for_prompts, for_tokens, 0 * gate, what=what)


# %% [raw] tags=["wrong"] says="not the scores"
"""
def gated_attention_weights(scores_bhsp, scores_bhst, gate):
    opening = rearrange(torch.tanh(gate), "h -> h 1 1")
    of_prompts = (opening * scores_bhsp).softmax(dim=-1)
    return torch.cat([of_prompts, causal_softmax(scores_bhst)], dim=-1)
"""

# %% [raw] tags=["wrong"] says="take two before the gate"
"""
def gated_attention_weights(scores_bhsp, scores_bhst, gate):
    opening = rearrange(torch.tanh(gate), "h -> h 1 1")
    weights = causal_softmax(torch.cat([scores_bhsp, scores_bhst], dim=-1))
    n_prompts = scores_bhsp.shape[-1]
    return torch.cat([opening * weights[..., :n_prompts], weights[..., n_prompts:]], dim=-1)
"""

# %% [raw] tags=["wrong"] says="put the prompts first"
"""
def gated_attention_weights(scores_bhsp, scores_bhst, gate):
    of_prompts = rearrange(torch.tanh(gate), "h -> h 1 1") * scores_bhsp.softmax(dim=-1)
    return torch.cat([causal_softmax(scores_bhst), of_prompts], dim=-1)
"""

# %% [raw] tags=["wrong"] says="leave the sum as it is"
"""
def gated_attention_weights(scores_bhsp, scores_bhst, gate):
    of_prompts = rearrange(torch.tanh(gate), "h -> h 1 1") * scores_bhsp.softmax(dim=-1)
    weights = torch.cat([of_prompts, causal_softmax(scores_bhst)], dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True)
"""

# %% [raw] tags=["wrong"] says="the tanh is missing"
"""
def gated_attention_weights(scores_bhsp, scores_bhst, gate):
    opening = rearrange(gate, "h -> h 1 1")
    of_prompts = opening * scores_bhsp.softmax(dim=-1)
    return torch.cat([of_prompts, causal_softmax(scores_bhst)], dim=-1)
"""

# %% [raw] tags=["right"]
"""
def gated_attention_weights(scores_bhsp, scores_bhst, gate):
    of_prompts = einsum(gate.tanh(), scores_bhsp.softmax(-1), "h, b h s p -> b h s p")
    return torch.cat((of_prompts, causal_softmax(scores_bhst)), -1)
"""

# %% [raw] tags=["right"]
"""
def gated_attention_weights(scores_bhsp, scores_bhst, gate):
    n_queries, n_tokens = scores_bhst.shape[-2:]
    later = torch.ones(n_queries, n_tokens).triu(n_tokens - n_queries + 1).bool()
    tokens = scores_bhst.masked_fill(later, -torch.inf).softmax(-1)
    prompts = torch.softmax(scores_bhsp, -1) * torch.tanh(gate).view(-1, 1, 1)
    return torch.cat([prompts, tokens], -1)
"""

# %%
# alt: A bar for each of nine heads: the tokens' weights reach up to 1 in all heads; the prompts' weights are added on top or taken away, so that the sum is 1 plus tanh of the gate.
gate = torch.linspace(-2, 2, 9)
token_scores = attention_scores(query, repeat_kv_heads(key, 3))
weights = gated_attention_weights(prompt_scores(query, prompt_key), token_scores, gate)
of_prompts, of_tokens = (
    part[0, :, -1].sum(dim=-1).numpy() for part in weights.split([10, key.shape[2]], -1)
)

fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.bar(head, of_tokens, width=0.7, color=BLUE, label="tokens: always 1")
ax.bar(head, of_prompts, width=0.45, bottom=of_tokens, color=ORANGE, hatch="//", label="prompts")
ax.plot(head, of_tokens + of_prompts, "k_", ms=26, mew=2.5, label="sum: 1 + tanh(gate)")
ax.set_xticks(head, [f"{g:.1f}" for g in gate])
ax.set(xlabel="gate of the head", ylabel="sum of the last token's weights", ylim=(0, 2.6))
ax.legend(frameon=False, ncols=3, loc="upper left")
plt.show()

# %% [markdown]
# The tokens keep their 1, in all heads. The prompts come on top: an opening of 0.76 gives them
# three quarters of the weight that all the tokens have together. Below zero they take something
# away. So weights no longer sum to 1, but to **1 + tanh(gate)**. Nothing in a transformer needs
# them to.
#
# Side by side, or added? People have asked whether the paper's equation and code that *adds* the
# prompts' part are the same (LLaMA-Adapter, issue 47). You have both.

# %%
heads_value = torch.cat(  # the values of prompts and tokens, side by side too
    [repeat(prompt_value, "g p d -> 1 (g r) p d", r=3), repeat_kv_heads(value, 3)], dim=2
)
side_by_side = einsum(weights, heads_value, "b h s pt, b h pt d -> b h s d")
added = causal_attention(query, key, value) + gated_prompt_attention(*inputs, gate)
print("the same to 0.0001:", torch.allclose(side_by_side, added, atol=1e-4))

# %% [markdown]
# ## Two tensors that learn
#
# Now put prompts and gate into a module. These two tensors are all that an adapted layer learns.
# The frozen projections stay outside: the layer makes keys and values from your prompts (lesson
# 03), and hands them to `forward` together with its queries.

# %% [markdown] tags=["card"]
# ### Exercise 4.3 · A module with prompts and a gate
#
# *medium ●●○ · 8 minutes*
#
# Write the module. Two parameters: `prompts` (p m), drawn from N(0, 1), and `gate` (h), zero.
# `forward` is `gated_prompt_attention` with the module's own gate.
#
# <details><summary>Hint 1: direction</summary>
#
# A tensor becomes a parameter, found by optimizers, when it is wrapped in `nn.Parameter` and
# stored as an attribute.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `prompts` has the axes p = `adapter_len` and m = `model_width`. `gate` has the one axis h =
# `n_heads`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `self.gate = nn.Parameter(torch._____(n_heads))`, and in `forward`
# `gated_prompt_attention(query, prompt_key, prompt_value, _____, scale=scale)`
#
# </details>


# %% tags=["exercise"]
class GatedPrompts(nn.Module):
    """What one adapted layer learns: `prompts` (p m), from N(0, 1), and `gate` (h), from zero."""

    def __init__(self, adapter_len: int, model_width: int, n_heads: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        # ~ self.prompts = ...
        # ~ self.gate = ...
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(n_heads))
        ### END SOLUTION

    def forward(
        self,
        query: Float[Tensor, "b h s d"],
        prompt_key: Float[Tensor, "g p d"],
        prompt_value: Float[Tensor, "g p d"],
        scale: float | None = None,
    ) -> Float[Tensor, "b h s d"]:
        """What the prompts add to each head."""
        ### BEGIN SOLUTION
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)
        ### END SOLUTION


# %% tags=["check"]
@check("4.3", "GatedPrompts", p=[7, 5], m=[40, 60], g=[3, 2], r=[4, 5])
def _(p, m, g, r):
    h = g * r
    module, other = GatedPrompts(p, m, h), GatedPrompts(p, m, h)
    learnt = dict(module.named_parameters())
    assert set(learnt) == {"prompts", "gate"}, (
        f"expected the parameters prompts and gate, found {sorted(learnt)}: wrap both tensors, and "
        "nothing else, in nn.Parameter"
    )
    assert_shape(module.prompts, "p m", p=p, m=m)
    assert_shape(module.gate, "h", h=h)
    frozen = [name for name, parameter in learnt.items() if not parameter.requires_grad]
    assert not frozen, f"{' and '.join(frozen)} cannot learn: requires_grad is False"
    assert torch.count_nonzero(module.gate) == 0, "the gate should start at exactly zero"
    size, middle = module.prompts.std().item(), module.prompts.mean().item()
    assert 0.8 < size < 1.2, f"the prompts should come from N(0, 1), but their std is {size:.2g}"
    assert abs(middle) < 0.3, (
        f"the prompts should come from N(0, 1), but their mean is {middle:.2g}"
    )
    assert not torch.equal(module.prompts, other.prompts), "two modules have the same prompts"

    push, first = torch.randn(2, h, 5, 8), None
    for gate, scale, what in (
        (torch.zeros(h), None, "with closed gates"),
        (torch.linspace(-1, 1, h), None, "with open gates"),
        (torch.linspace(-1, 1, h), 0.25, "with scale=0.25"),
    ):
        inputs = torch.randn(2, h, 5, 8), torch.randn(g, p, 8), torch.randn(g, p, 8)
        first = first or inputs
        module.gate.data.copy_(gate)
        gate.requires_grad_()
        mine, right = module(*inputs, scale), gated_prompt_attention(*inputs, gate, scale=scale)
        mistakes = {
            "the gate of the start is used: read self.gate in forward": torch.zeros_like(right),
            "the gate is not used": prompt_attention(*inputs, scale),
            "gated_prompt_attention takes the tanh already": gated_prompt_attention(
                *inputs, gate.tanh(), scale=scale
            ),
            "keys and values are kept from an earlier call: take those of this call": (
                gated_prompt_attention(inputs[0], *first[1:], gate, scale=scale)
            ),
            "the argument `scale` is ignored": gated_prompt_attention(*inputs, gate),
        }
        mistakes = {words: x for words, x in mistakes.items() if not torch.allclose(x, right)}
        assert_close(mine, right, "b h s d", mistakes=mistakes, what=what)
        assert mine.requires_grad, f"{what}: no gradient reaches the gate"
        mine, right = (
            torch.autograd.grad((push * x).sum(), leaf)[0]
            for x, leaf in ((mine, module.gate), (right, gate))
        )
        assert_close(mine, right, "h", tol=1e-4, what=f"the gradient of the gate {what}")
    assert_gradients(module, *inputs)


# %% [raw] tags=["wrong"] says="found ['prompts']"
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = torch.zeros(n_heads)

    def forward(self, query, prompt_key, prompt_value, scale=None):
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)
"""

# %% [raw] tags=["wrong"] says="the gate should start at exactly zero"
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.randn(n_heads))

    def forward(self, query, prompt_key, prompt_value, scale=None):
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)
"""

# %% [raw] tags=["wrong"] says="their std is 0"
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.zeros(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(n_heads))

    def forward(self, query, prompt_key, prompt_value, scale=None):
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)
"""

# %% [raw] tags=["wrong"] says="expected (h=12), got (1,)"
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, query, prompt_key, prompt_value, scale=None):
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)
"""

# %% [raw] tags=["wrong"] says="with scale=0.25"
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(n_heads))

    def forward(self, query, prompt_key, prompt_value, scale=None):
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate)
"""

# %% [raw] tags=["wrong"] says="keys and values are kept from an earlier call"
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(n_heads))

    def forward(self, query, prompt_key, prompt_value, scale=None):
        if not hasattr(self, "kv"):
            self.kv = prompt_key, prompt_value
        return gated_prompt_attention(query, *self.kv, self.gate, scale=scale)
"""

# %% [raw] tags=["wrong"] says="no gradient reaches the gate"
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(n_heads))

    def forward(self, query, prompt_key, prompt_value, scale=None):
        if not self.gate.any():
            return torch.zeros_like(query)
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)
"""

# %% [raw] tags=["right"]
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(adapter_len, model_width))
        self.gate = nn.Parameter(torch.empty(n_heads))
        nn.init.normal_(self.prompts)
        nn.init.zeros_(self.gate)

    def forward(self, query, prompt_key, prompt_value, scale=None):
        return gated_prompt_attention(
            query, prompt_key, prompt_value, self.gate, torch.tanh, scale
        )
"""

# %% [raw] tags=["right"]
"""
class GatedPrompts(nn.Module):
    def __init__(self, adapter_len, model_width, n_heads):
        super().__init__()
        table = nn.Embedding(adapter_len, model_width)
        self.register_parameter("prompts", table.weight)
        self.register_parameter("gate", nn.Parameter(torch.randn(n_heads) * 0))

    def forward(self, query, prompt_key, prompt_value, scale=None):
        read = prompt_attention(query, prompt_key, prompt_value, scale)
        return read * self.gate.tanh().view(-1, 1, 1)
"""

# %% [markdown]
# Your module goes into the Llama. At the start of this lesson the library put its own
# prompts into each attention layer. Yours take their place, in all 30 layers. (How it hooks into
# the attention is lesson 06.)

# %%
torch.manual_seed(0)
for block in model.model.layers:
    block.self_attn.adaption_prompts["default"] = GatedPrompts(10, 576, 9)
mine = adapter_prompts(model, "default")

with torch.no_grad():
    started = model(**batch)
n_learnt = sum(p.numel() for module in mine.values() for p in module.parameters())
print(f"numbers to learn: {n_learnt:,}")
print("all logits equal to those of the bare Llama, bit for bit:", end=" ")
print(torch.equal(started.logits, bare.logits))

# %% [markdown]
# 30 · (10 · 576 + 9) = 173,070 new numbers, and not one bit of the output has changed. **A zero
# gate is the frozen model, exactly.**
#
# ## Who learns first?
#
# If nothing comes out of the prompts, does anything come back? A parameter learns only if its
# gradient is not zero. What a head adds is
#
# added = tanh(gate) · A(prompts)
#
# where A is your `prompt_attention`, with keys and values made from the prompts. Before you
# measure: think.

# %% [markdown] tags=["card"]
# ### Exercise 4.4 · Predict the gradients
#
# *hard ●●● · 10 minutes*
#
# Predict for each start, all zeros or random, whether prompts and gate get a gradient other than
# zero. Return `{"prompts": ..., "gate": ...}` with True or False. The check does not know the
# answer: it measures. The projections have no bias.
#
# <details><summary>Hint 1: direction</summary>
#
# The derivative of a product, by one factor, is multiplied by the other factor.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# No axes here, but two questions. What is tanh(gate) if the gate is zero? What is A if all
# prompts are zero, and so all their values?
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return {"prompts": not _____, "gate": not _____}`
#
# </details>


# %% tags=["exercise"]
def gets_gradient(prompts_are_zero: bool, gate_is_zero: bool) -> dict[str, bool]:
    """Whether prompts and gate get a gradient other than zero, from this start."""
    ### BEGIN SOLUTION
    return {"prompts": not gate_is_zero, "gate": not prompts_are_zero}
    ### END SOLUTION


# %% tags=["check"]
@check("4.4", "gets_gradient")
def _():
    key_layer, value_layer = nn.Linear(40, 24, bias=False), nn.Linear(40, 24, bias=False)
    some_query, push = torch.randn(2, 12, 5, 8), torch.randn(2, 12, 5, 8)
    for prompts_are_zero in (False, True):
        for gate_is_zero in (False, True):
            module = GatedPrompts(7, 40, 12)
            nn.init.normal_(module.prompts, std=not prompts_are_zero)
            nn.init.normal_(module.gate, std=not gate_is_zero)
            keys_values = prompt_keys_values(module.prompts, key_layer, value_layer, 8)
            (push * module(some_query, *keys_values)).sum().backward()
            measured = {n: bool(p.grad.abs().max() > 0) for n, p in module.named_parameters()}

            predicted = gets_gradient(prompts_are_zero, gate_is_zero)
            start = f"prompts {'zero' if prompts_are_zero else 'random'}, "
            start += f"gate {'zero' if gate_is_zero else 'random'}"
            assert isinstance(predicted, dict) and set(predicted) == {"prompts", "gate"}, (
                f'expected a dictionary like {{"prompts": True, "gate": True}}, got {predicted!r}'
            )
            odd = [x for x in predicted.values() if x not in (True, False)]
            assert not odd, f"the dictionary holds True and False, not {odd[0]!r}"
            assert predicted["prompts"] == measured["prompts"], (
                f"{start}: the measurement says {measured['prompts']} for the prompts. "
                "What reaches them is multiplied by tanh(gate)"
            )
            assert predicted["gate"] == measured["gate"], (
                f"{start}: the measurement says {measured['gate']} for the gate. "
                "What reaches it is multiplied by what the head reads from the prompts"
            )


# %% [raw] tags=["wrong"] says="multiplied by tanh(gate)"
"""
def gets_gradient(prompts_are_zero, gate_is_zero):
    return {"prompts": True, "gate": True}
"""

# %% [raw] tags=["wrong"] says="gate zero: the measurement says True for the gate"
"""
def gets_gradient(prompts_are_zero, gate_is_zero):
    return {"prompts": not gate_is_zero, "gate": not gate_is_zero}
"""

# %% [raw] tags=["wrong"] says="gate random: the measurement says True for the prompts"
"""
def gets_gradient(prompts_are_zero, gate_is_zero):
    learns = not gate_is_zero and not prompts_are_zero
    return {"prompts": learns, "gate": not prompts_are_zero}
"""

# %% [raw] tags=["right"]
"""
def gets_gradient(prompts_are_zero, gate_is_zero):
    if prompts_are_zero and gate_is_zero:
        return {"prompts": False, "gate": False}
    if gate_is_zero:
        return {"gate": True, "prompts": False}
    if prompts_are_zero:
        return {"gate": False, "prompts": True}
    return {"gate": True, "prompts": True}
"""

# %% [raw] tags=["right"]
"""
def gets_gradient(prompts_are_zero, gate_is_zero):
    opening, read = 1 - gate_is_zero, 1 - prompts_are_zero
    return dict(prompts=bool(opening), gate=bool(read))
"""

# %% [markdown]
# Now the whole Llama. Six steps of training, on the same four commands. (It learns them by heart.
# Real training comes later.) After each backward pass, take the length of the gradient: of all
# gates together, and of all prompts together.

# %%
gates = [module.gate for module in mine.values()]
all_prompts = [module.prompts for module in mine.values()]
optimizer = torch.optim.AdamW([*gates, *all_prompts], lr=1e-2)


def gradient_length(parameters: list[nn.Parameter]) -> float:
    """The length of all gradients together, as one long vector."""
    return math.sqrt(sum(p.grad.square().sum().item() for p in parameters))


history = []
for _ in range(6):
    loss = model(**batch).loss
    optimizer.zero_grad()
    loss.backward()
    history.append((gradient_length(gates), gradient_length(all_prompts), loss.item()))
    optimizer.step()

# %%
# alt: Three bar charts over six training steps. The gates' gradient is large from step 0. The prompts' gradient is exactly 0 at step 0 and not zero from step 1 on. The loss falls.
of_gates, of_prompts, losses = zip(*history, strict=True)
fig, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for ax, lengths, name, colour in (
    (axes[0], of_gates, "gradient of the gates", BLUE),
    (axes[1], of_prompts, "gradient of the prompts", ORANGE),
    (axes[2], losses, "loss", GREY),
):
    ax.bar(range(6), lengths, color=colour)
    ax.set(title=name, xlabel="step", xticks=range(6))
axes[1].text(0, 0.005, "exactly 0", rotation=90, ha="center", va="bottom")
plt.show()

# %%
print("step 0: the gates get a gradient:", of_gates[0] > 0, " the prompts:", of_prompts[0] > 0)
print("step 1: the gates get a gradient:", of_gates[1] > 0, " the prompts:", of_prompts[1] > 0)

# %% [markdown]
# At step 0 only the gates learn, as in exercise 4.4: they find out which heads are helped by noise,
# and which are not. From step 1 on the gates are open a little, and the prompts learn too.
#
# Here are the gates after these six steps: 270 little knobs, each with a direction of its own. Look
# at the directions, not at the strengths: AdamW moves a number by about its learning rate in each
# step, however long the gradient is, so six steps of 0.01 take no gate much further than 0.06.

# %%
# alt: A table of 30 layers and 9 heads, coloured by the opening of the gate after six steps. All are within 0.06 of zero; about as many are negative, marked with a minus sign, as positive.
openings = torch.stack([gate.detach().tanh() for gate in gates])
fig, ax = plt.subplots(figsize=(5, 4.8))
plot_gates(ax, openings, layers=list(mine))
plt.show()

# %% [markdown]
# **A bug in who learns.** litgpt keeps the prompts' keys and values from one step for the next,
# also in training (issue 1287, April 2024). Its training begins with a trial evaluation, without
# gradients. So the kept keys have no path back to the prompts. Here is what that does to the
# gradients.

# %%
module = mine[10]
queries = query.detach()
for name, keep in (
    ("keys and values new at each step", False),
    ("kept from a step without gradients", True),
):
    module.zero_grad()
    with torch.set_grad_enabled(not keep):
        kept = prompt_keys_values(module.prompts, layer.key_layer, layer.value_layer, 64)
    module(queries, *kept).sum().backward()
    learns = {n: p.grad is not None for n, p in module.named_parameters()}
    print(f"{name:34}  prompts learn: {learns['prompts']!s:5}  gates learn: {learns['gate']}")

# %% [markdown]
# The gates still learn, the loss still falls, and nothing complains. Only a look at the gradients
# tells.
#
# ## Dead for ever
#
# One start is left: zero gate *and* zero prompts. It is the frozen model too. So why not? We take a
# fresh optimizer: the one above is still moving from its six steps.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "All gates and prompts are zero. One step at rate 0.01: how large is the largest of them now?",
    options=["exactly 0", "about 0.01", "about 1"],
    mine=...,
)

# %%
for module in mine.values():
    nn.init.zeros_(module.prompts)
    nn.init.zeros_(module.gate)
optimizer = torch.optim.AdamW([*gates, *all_prompts], lr=1e-2)
optimizer.zero_grad()
model(**{name: tensor[:1] for name, tensor in batch.items()}).loss.backward()
optimizer.step()
largest = max(parameter.abs().max().item() for parameter in (*gates, *all_prompts))
print("gradient of the gates:  ", gradient_length(gates))
print("gradient of the prompts:", gradient_length(all_prompts))
print("largest number after the step:", largest)

# %% tags=["nbval-ignore-output"]
guess.compare("exactly 0" if largest == 0 else "about 0.01" if largest < 0.1 else "about 1")

# %% [markdown]
# All zero. The step changed nothing, so the next gradients are zero again, and so on for ever.
# Each factor waits for the other one. A start that is silent and can still learn has **exactly
# one of the two at zero**. That is why the library refuses `init_std=0`, prompts that start at
# zero.
#
# ## Turn the gates yourself
#
# Last, an adapter after real training: that of `make demo`, which answers commands like ours. Take
# six commands that it has never seen, and multiply *all* its 270 openings by one number: 0 is the
# bare Llama, 1 the adapter as it was trained, 2 has all gates twice as open.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "As trained, all 6 answers are right. How many are right with all gates twice as open?",
    options=["none", "some", "all 6"],
    mine=...,
)

# %% tags=["nbval-ignore-output"]
# alt: Two curves over the factor of all gate openings, from -1 to 2. The loss falls from 14 at -1 over 2.7 at 0 to 0.003 at 1 and rises again to 1.3 at 2. Of six commands none is right up to 0.3, three at 0.4, all six from 0.6 to 1.5, two at 1.75, none at 2.
fig, (loss, right) = plt.subplots(2, figsize=(7, 4.5), sharex=True)
plot_dial(loss, right)
plt.show()

# %% tags=["nbval-ignore-output"]
dial = stored_stops()
doubled = next(stop for stop in dial["stops"]["all gates"] if stop["factor"] == 2)
expected = [row["output"] for row in dial["rows"]]
n_right = sum(
    dial["answers"][n] == text for n, text in zip(doubled["answers"], expected, strict=True)
)
guess.compare("none" if n_right == 0 else "all 6" if n_right == 6 else "some")

# %% [markdown]
# The gates are learnt together with the prompts: too much of a good thing breaks the answers, and
# at −1 the Llama is worse than without an adapter. Between 0.6 and 1.5 all six stay right. Now turn
# them yourself: all, or a third of the layers, or one head off. (One control at a time: only these
# stops were measured. `dial`, from the same place, turns the gates of a model of your own.)

# %% tags=["nbval-ignore-output"]
gate_dial()

# %% [markdown]
# ## What you built
#
# * `gated_prompt_attention`: prompts behind a gate, one for each head,
# * `gated_attention_weights`: equation 7 as printed, with weights that sum to 1 + tanh(gate),
# * `GatedPrompts`: all that an adapted layer learns,
# * `gets_gradient`: who learns first, predicted and measured.
#
# With lesson 03, this is all of LLaMA-Adapter's attention.
#
# **Next, lesson 05:** a slide shows the same idea in twenty lines of code. They do not run. You
# make them run, and then make them right.
#
# ## To think about
#
# 1. Random prompts with a zero gate, or zero prompts with an open gate: both start as the frozen
#    Llama. What differs?
#
# <details><summary>Answer</summary>
#
# With zero prompts, all prompts of a layer are alike. Their scores are all 0, each gets the
# weight 1/p, and all get the same gradient. They stay alike: ten prompts that act as one. Random
# prompts differ from the start.
#
# </details>
#
# 2. Lesson 03's prompts did harm in another way too: in one joint softmax they took weight from
#    the tokens. Would a gate of zero have helped there?
#
# <details><summary>Answer</summary>
#
# No. The tokens would have lost their weight to the prompts before the gate closed. The tokens'
# weights would sum to less than 1, and the Llama would not be the frozen one. The gate needs the
# two softmaxes.
#
# </details>
#
# 3. The gate has a gradient at step 0 although its prompts are pure noise. What does it learn
#    from noise?
#
# <details><summary>Answer</summary>
#
# Whether what this head happens to read from these random prompts, added or taken away, makes the
# right answer more likely. It is a poor direction, but better than none, and it opens the way for
# the prompts.
#
# </details>
