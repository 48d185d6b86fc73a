# %% [markdown]
# # Lesson 05: From a slide to a layer
#
# *90 minutes*
#
# At the end you have a working `AdaptationPromptAttentionLayer` inside a real Llama, and three
# tests that find bugs which no error message tells you about.
#
# Letters: `b` batch, `s` query position, `t` key position, `p` prompt slot, `h` query head, `g`
# key/value head, `r` query heads per key/value head, `d` head width, `m` model width, `v`
# vocabulary.
#
# This course began with a slide: twenty lines of pseudo-code that put gated prompts into an
# attention layer. Such code looks finished and is not. In this lesson you take a draft of that
# kind, with the same kinds of bugs, and make it **run**. Then you make it **right**. The second
# part is longer.

# %%
import copy
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    gated_prompt_attention,
    load_llama,
)
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course import (
    assert_close,
    assert_gradients,
    assert_shape,
    check,
    predict,
    unpacked,
)
from llama_adapter_edu.course.figures import ORANGE, SKY, heatmap, use_style
from llama_adapter_edu.method.attention import (
    AttentionLayer,
    KeyValueCache,
    apply_rotary,
    merge_heads,
    split_heads,
)
from llama_adapter_edu.method.gated_prompts import prompt_keys_values
from llama_adapter_edu.method.wrapped_layer import AdaptationPromptAttentionLayer as FinishedLayer
from matplotlib.colors import ListedColormap
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

use_style()
model, tokenizer = load_llama()

# %% [markdown]
# Two things to work with. `base` is layer 20 of the Llama, as the attention layer that you built in
# lesson 02. From here on we use the library's copy of your functions. `hidden` is what that layer
# really reads: 4 sentences, each cut to 12 tokens.

# %%
SENTENCES = [
    "The lights in the kitchen are too bright. Please dim them a little.",
    "Please turn the heating in the bathroom up to twenty-one degrees.",
    "Close the blinds in the living room before it gets dark outside.",
    "It is too warm in the attic, so open the window a little.",
]

with torch.no_grad():
    tokens = tokenizer(SENTENCES, truncation=True, max_length=12, return_tensors="pt")
    decoder_layer = model.model.layers[20]
    entering = model(**tokens, output_hidden_states=True).hidden_states[20]
    hidden = decoder_layer.input_layernorm(entering)
base = AttentionLayer.from_llama(decoder_layer.self_attn)

print("hidden   b s m   ", tuple(hidden.shape))
print("queries  b h s d ", tuple(base(hidden)[1].shape))

# %% [markdown]
# ## The draft
#
# The draft wraps an attention layer. Its contract: the base layer has `head_dim`, `key_layer` and
# `value_layer`, and returns a pair, its output and its queries. Your `AttentionLayer` does exactly
# that.
#
# The draft is kept as text, because Python cannot even read it. Read it once, slowly. How many bugs
# do you see?

# %%
DRAFT = """
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim, batch_size):
        super().__init__()
        self.base_attention_layer = base_attention_layer
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(1))
        numbers = torch.arange(num_prompt_tokens).repeat(batch_size, 1)
        self.prompt_numbers = numbers

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        output, query =
            base(hidden_states, **kwargs)
        b, s = query.shape[0], query.shape[1]
        prompts = self.prompt_embedding(self.prompt_numbers)
        key = base.key_layer(prompts)
        value = base.value_layer(prompts)
        scores = query @ key.transpose(2, 3) / base.head_dim**0.5
        weights = self.adaption_gate * scores.softmax(dim=-1)
        added = (weights @ value).reshape(b, s, -1)
        output = output + added
        return output
"""

# %% [markdown]
# Three helpers. `build` turns the text into a layer around a copy of `base`. `attempt` runs it, and
# says in words what happens. `repair` replaces a piece of the text. (`exec` runs text as code.)

# %%
IN_WORDS = {
    "SyntaxError": "Python cannot read the text",
    "IndexError": "an axis is named that does not exist",
    "RuntimeError": "two shapes do not fit",
}


def build(source: str, batch_size: int = 2) -> nn.Module:
    """The layer that the text defines, with 10 prompts, around a copy of `base`."""
    names = {"torch": torch, "nn": nn}
    exec(source, names)
    torch.manual_seed(0)
    return names["AdaptationPromptAttentionLayer"](copy.deepcopy(base), 10, 576, batch_size)


def attempt(source: str, hidden: Tensor) -> None:
    """Build the layer, run it, and print what happens."""
    size = "{} sentences of {} tokens".format(*hidden.shape)
    try:
        print(f"{size}: runs, output {tuple(build(source)(hidden).shape)}")
    except (SyntaxError, IndexError, RuntimeError) as error:
        name = type(error).__name__
        print(f"{size}: {name}, {IN_WORDS[name]}")


def repair(source: str, old: str, new: str) -> str:
    """The text with one piece replaced."""
    assert old in source, "this piece is not in the draft"
    return source.replace(old, new)


attempt(DRAFT, hidden[:2])

# %% [markdown]
# The first one is easy: a line may not end after `=`.

# %%
draft = repair(DRAFT, "output, query =\n            base(", "output, query = base(")

# %% [markdown] tags=["card"]
# ### Exercise 5.1 · Read the shapes
#
# *easy ●○○ · 6 minutes*
#
# Before you run it: say which shapes the draft makes. `b` sentences of `s` tokens go in;
# `batch_size` is what the constructor was given, and need not be `b`. For `"b, s"`, give the two
# numbers which that line of the draft stores. Our Llama has 9 query heads, 3 key/value heads, head
# width 64.
#
# <details><summary>Hint 1: direction</summary>
#
# Follow one line at a time. Where do the heads get split? Look at what the draft does, not at what
# it should do.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The base returns queries as `b h s d`. The prompts are looked up by a table of numbers of shape
# `batch_size p`. `key_layer` only changes the last axis, from 576 to `g · d`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `{"query": (b, 9, s, 64), "prompts": (____, p, 576), "key": (____, p, ___), "b, s": (b, _)}`
#
# </details>


# %% tags=["exercise"]
def draft_shapes(b: int, s: int, p: int, batch_size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of `query`, `prompts` and `key` in the draft, and the numbers in "b, s"."""
    ### BEGIN SOLUTION
    # ~ shapes = {"query": ..., "prompts": ..., "key": ..., "b, s": ...}
    return {
        "query": (b, 9, s, 64),
        "prompts": (batch_size, p, 576),
        "key": (batch_size, p, 3 * 64),
        "b, s": (b, 9),
    }
    ### END SOLUTION


# %% tags=["check"]
@check("5.1", "draft_shapes", b=[4, 3], s=[5, 6], p=[7, 8], batch_size=[2, 5])
def _(b, s, p, batch_size):
    shapes = draft_shapes(b=b, s=s, p=p, batch_size=batch_size)
    kind = "None: is the `return` missing?" if shapes is None else type(shapes).__name__
    assert isinstance(shapes, dict), f"return a dictionary, not {kind}"
    names = ["query", "prompts", "key", "b, s"]
    says = (
        f"the names should be query, prompts, key and 'b, s' (one name); yours are {list(shapes)}"
    )
    assert sorted(shapes) == sorted(names), says
    for name, shape in shapes.items():
        says = f"{name} should be numbers in brackets, as (b, 9), not {shape!r}"
        assert isinstance(shape, tuple | list), says
    shapes = {name: tuple(shape) for name, shape in shapes.items()}

    # The draft's own lines, run one after the other.
    query = base(torch.randn(b, s, 576))[1]
    prompts = nn.Embedding(p, 576)(repeat(torch.arange(p), "p -> b p", b=batch_size))
    says = "query: axis 0 is the input's b, not batch_size"
    assert shapes["query"] != (batch_size, 9, s, 64), says
    says = "query: 9 heads ask; the 3 heads are those of the keys"
    assert shapes["query"] != (b, 3, s, 64), says
    says = f"query: the base returns its queries as b h s d; for b={b}, s={s} yours is "
    assert shapes["query"] == query.shape, says + str(shapes["query"])
    assert shapes["prompts"] != (b, p, 576), "prompts: the draft uses batch_size, whatever b is"
    says = f"prompts are {tuple(prompts.shape)} for batch_size={batch_size}, p={p}"
    assert shapes["prompts"] == prompts.shape, says
    assert len(shapes["key"]) == 3, "key: no line of the draft splits the heads, so 3 axes"
    assert shapes["key"] != (b, p, 192), "key: it is made of the prompts: batch_size, not b"
    assert shapes["key"] == base.key_layer(prompts).shape, "key: key_layer makes 3 heads of 64"
    assert shapes["b, s"] != (b, s), "b, s: axis 1 of the queries holds the heads, not the tokens"
    assert shapes["b, s"] == query.shape[:2], "b, s: read axes 0 and 1 of the queries"


# %% [raw] tags=["wrong"] says="axis 1 of the queries holds the heads"
"""
def draft_shapes(b, s, p, batch_size):
    key = (batch_size, p, 192)
    return {"query": (b, 9, s, 64), "prompts": (batch_size, p, 576), "key": key, "b, s": (b, s)}
"""

# %% [raw] tags=["wrong"] says="the draft uses batch_size, whatever b is"
"""
def draft_shapes(b, s, p, batch_size):
    return {"query": (b, 9, s, 64), "prompts": (b, p, 576), "key": (b, p, 192), "b, s": (b, 9)}
"""

# %% [raw] tags=["wrong"] says="no line of the draft splits the heads"
"""
def draft_shapes(b, s, p, batch_size):
    key = (batch_size, 3, p, 64)
    return {"query": (b, 9, s, 64), "prompts": (batch_size, p, 576), "key": key, "b, s": (b, 9)}
"""

# %% [raw] tags=["wrong"] says="key_layer makes 3 heads of 64"
"""
def draft_shapes(b, s, p, batch_size):
    key = (batch_size, p, 576)
    return {"query": (b, 9, s, 64), "prompts": (batch_size, p, 576), "key": key, "b, s": (b, 9)}
"""

# %% [raw] tags=["right"]
"""
def draft_shapes(b, s, p, batch_size):
    query = torch.empty(b, 9, s, 64)
    prompts = torch.empty(batch_size, p, 576)
    shapes = {"query": query, "prompts": prompts, "key": nn.Linear(576, 192)(prompts)}
    return {name: x.shape for name, x in shapes.items()} | {"b, s": query.shape[:2]}
"""

# %% [raw] tags=["right"]
"""
def draft_shapes(b, s, p, batch_size):
    h, g, d = 9, 3, 64
    shapes = dict(query=[b, h, s, d], prompts=[batch_size, p, h * d], key=[batch_size, p, g * d])
    shapes["b, s"] = [b, h]
    return shapes
"""

# %% [markdown]
# ## Make it run
#
# With your shapes the first crash is no surprise: `key.transpose(2, 3)` wants four axes, `key` has
# three.
#
# We now repair the draft like somebody in a hurry: read the message, make it go away, run again.
# Keep an eye on the repairs. Some of them only move the problem.

# %%
attempt(draft, hidden[:2])

# %% [markdown]
# The heads were never split. So split them, with PyTorch's `view`:

# %%
draft = repair(
    draft,
    "value = base.value_layer(prompts)",
    """value = base.value_layer(prompts)
        key = key.view(b, -1, 3, 64).transpose(1, 2)
        value = value.view(b, -1, 3, 64).transpose(1, 2)""",
)
attempt(draft, hidden[:2])

# %% [markdown]
# Now 9 query heads meet 3 key/value heads. Our Llama shares each key/value head among 3
# neighbouring query heads (lesson 01).

# %%
draft = repair(
    draft,
    "        scores =",
    """        key = key.repeat_interleave(3, dim=1)
        value = value.repeat_interleave(3, dim=1)
        scores =""",
)
attempt(draft, hidden[:2])

# %% [markdown]
# Still not. But wait: somebody else tries it with the beginning of a sentence, nine tokens.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "What happens with 2 sentences of 9 tokens?",
    options=["two shapes do not fit", "it runs"],
    mine=...,
)

# %%
attempt(draft, hidden[:2, :9])

# %% tags=["nbval-ignore-output"]
nine = hidden[:2, :9]
guess.compare("it runs" if build(draft)(nine).shape == nine.shape else "two shapes do not fit")

# %% [markdown]
# Nine tokens, nine heads: the two numbers are equal, so taking one for the other does no harm *to
# the shapes*. You saw the reason in exercise 5.1: `s` is read from the axis of the heads. **A test
# whose sizes are equal cannot see which axis is which.** That is why the checks of this course use
# sizes that all differ.

# %%
draft = repair(draft, "query.shape[0], query.shape[1]", "query.shape[0], query.shape[2]")
attempt(draft, hidden[:2])
attempt(draft, hidden[:2, :5])

# %% [markdown]
# ## It runs. Is it right?
#
# Let us try the check that everybody tries first: at the start the gate is zero, so the layer must
# equal the frozen one.

# %%
layer = build(draft)
print("equal to the frozen layer:", torch.equal(layer(hidden[:2]), base(hidden[:2])[0]))

# %% [markdown]
# It is equal, bit for bit. And it proves almost nothing: **a closed gate hides every bug behind
# it**, as it hid lit-llama's wrong scale in lesson 04. So the first rule for testing such a layer:
# **open the gates**. `open_gates` does it, with another number for each head.

# %%


def open_gates(layer: nn.Module) -> nn.Module:
    """The same layer with gates between 0.2 and 1."""
    gate = layer.adaption_gate
    values = torch.linspace(0.2, 1.0, gate.shape[0])
    with torch.no_grad():
        gate.copy_(values.reshape(gate.shape))
    return layer


# %% [markdown]
# ### The pair that comes apart
#
# A Llama calls its attention like this, in transformers' own code: `hidden_states, _ =
# self.self_attn(...)`. It expects a pair. The draft returns one tensor. Python takes a tensor apart
# along its first axis, the batch. Let us do the same with batches of 1, 2 and 3 sentences.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "How many of the three batches end in an error?",
    options=["none", "one", "two", "all three"],
    mine=...,
)

# %%
n_errors = 0
for n in (1, 2, 3):
    try:
        output, _ = build(draft, batch_size=n)(hidden[:n])
        print(f"batch of {n}: runs, output {tuple(output.shape)}")
    except ValueError:
        n_errors += 1
        print(f"batch of {n}: ValueError, not a pair")

# %% tags=["nbval-ignore-output"]
guess.compare(["none", "one", "two", "all three"][n_errors])

# %% [markdown]
# Two sentences are a pair, too. The second one is thrown away, and the first one's attention goes
# to both, by broadcasting. No error. What stands in another layer's place should return **what that
# layer returns**: here, output and queries.

# %%
draft = repair(draft, "return output", "return output, query")

# %% [markdown]
# The rest of the bugs are of this kind: they never crash. You need tests that ask how the layer
# *behaves*. A test is worth something if it passes on a right layer and fails on a wrong one. So
# you need one of each:

# %%
torch.manual_seed(0)
finished = open_gates(FinishedLayer(copy.deepcopy(base), 10, 576))  # known to be right
drafted = open_gates(build(draft))  # runs, but is full of bugs


class Spoilt(nn.Module):
    """A right layer with one mistake behind it; the checks below try your tests on such layers."""

    def __init__(self, layer: nn.Module, mistake: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.mistake = copy.deepcopy(layer), mistake

    def forward(self, hidden_states: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        output, queries = self.layer(hidden_states, **kwargs)
        return self.mistake(output), queries


for name, layer in {"finished": finished, "drafted": drafted}.items():
    output, queries = layer(hidden[:2])
    print(f"{name:9}", tuple(output.shape), tuple(queries.shape))

# %% [markdown]
# The shapes agree. `finished` is the library's layer; you will write it yourself in exercise 5.5.
#
# ## A token must not see what comes later
#
# ![Six tokens in, six outputs out. Token 4 is changed. Outputs 4 and 5 may move, outputs 0 to 3
# must stay the same.](figures/05_causal.svg)
#
# A language model learns to guess the next token. A layer that lets a token see later tokens makes
# training easy and the model useless. Prompts have no place in the sentence, so they must not
# change this. The property has a name: the layer is **causal**.

# %% [markdown] tags=["card"]
# ### Exercise 5.2 · A test for causality
#
# *medium ●●○ · 8 minutes*
#
# Write a test: `True` if no output depends on a later token. `layer(hidden)` returns the pair
# (output, queries); only the output matters. Leave `hidden` itself as it is.
#
# <details><summary>Hint 1: direction</summary>
#
# Do what the picture does, once for each token: change it in a copy, run the layer, compare the
# outputs in front of it.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `hidden` is `b s m`. The outputs in front of token `s` are `output[:, :s]`. Compare with
# `torch.allclose(..., atol=1e-5)`: where nothing is read, the last bits may still differ.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `changed = hidden.clone(); changed[:, token] = ___`, then compare `layer(changed)[0][:, :____]`
# with `before[:, :____]`
#
# </details>


# %% tags=["exercise"]
def is_causal(layer: nn.Module, hidden: Float[Tensor, "b s m"]) -> bool:
    """Does every output stay the same when a later token changes?"""
    ### BEGIN SOLUTION
    # ~ for token in range(hidden.shape[1]):
    # ~     changed = ...
    with torch.no_grad():
        before = layer(hidden)[0]
        for token in range(hidden.shape[1]):
            changed = hidden.clone()
            changed[:, token] = -changed[:, token]
            after = layer(changed)[0]
            if not torch.allclose(before[:, :token], after[:, :token], atol=1e-5):
                return False
    return True
    ### END SOLUTION


# %% tags=["check"]
@check("5.2", "is_causal", b=[2, 3], s=[5, 9])
def _(b, s):
    x = hidden[:b, :s]
    verdict = is_causal(base, x)
    assert verdict in (True, False), f"return True or False, not {type(verdict).__name__}"
    noted = []  # what your test gives to a layer
    noting = Spoilt(finished, lambda y: y)
    noting.register_forward_pre_hook(
        lambda _, args, kwargs: noted.append((*args, *kwargs.values())[0].detach().clone()),
        with_kwargs=True,
    )
    is_causal(noting, x)
    moved = [(y - x).abs() for y in noted if y.shape == x.shape]
    moved = [y for y in moved if y.any()]
    tried = {t for y in moved for t in y.amax(dim=(0, 2)).nonzero().flatten().tolist()}
    if not noted:
        cause = "it never runs the layer"
    elif not moved:
        cause = "the layer never sees a changed text: change a copy, and run the layer on it"
    elif all(y.amax(dim=2).gt(0).all(dim=1).any() for y in moved):
        cause = "it changes whole sentences: change one token of all, changed[:, token]"
    elif max(y.max() for y in moved) < 1e-2:
        cause = "the change is too small to be seen: put other numbers there"
    elif len(tried) < s - 1:
        cause = "it does not change all tokens: return True after the loop, not in it"
    else:
        cause = ""

    def dealt_out_again(y):  # heads to tokens, as in the draft
        return rearrange(y, "b s (h d) -> b h s d", h=9).reshape(y.shape)

    draft_passes = is_causal(Spoilt(finished, dealt_out_again), x)
    says = "True and False are swapped: True where no output depends on a later token"
    assert verdict or not draft_passes, says
    says = (
        "your test fails a causal layer: only outputs in front of the changed token count, and "
        "rounding does not (atol=1e-5)"
    )
    assert verdict, says
    assert is_causal(finished, x), says
    says = "compare the outputs, layer(...)[0], value by value (atol=1e-5), in front of each token"
    says = f"your test passes the draft, where early outputs move: {cause or says}"
    assert not draft_passes, says
    one_token = cause or "keep each token's verdict: one False is enough"
    causal = Spoilt(finished, lambda y: y + y.cumsum(dim=1))
    assert is_causal(causal, x), "your test fails a layer that reads earlier tokens"

    not_causal = {
        "your test passes a layer in which each token reads the next one": (
            lambda y: y + y.roll(-1, dims=1)
        ),
        f"your test passes a layer in which token 0 reads token 1: {one_token}": (
            lambda y: torch.cat([y[:, :1] + y[:, 1:2].sum(1, keepdim=True), y[:, 1:]], dim=1)
        ),
        "your test passes a layer in which only the token before the last reads the last one": (
            lambda y: torch.cat([y[:, :-2], y[:, -2:-1] + y[:, -1:], y[:, -1:]], dim=1)
        ),
        "your test passes a layer in which all read a thousandth of the last token: too tolerant": (
            lambda y: y + 0.001 * y[:, -1:]
        ),
        "your test passes a layer that mixes the tokens of the last sentence: compare all": (
            lambda y: torch.cat([y[:-1], y[-1:].flip(1)])
        ),
        "your test passes a layer in which one entry of each token reads later ones: compare all": (
            lambda y: torch.cat([y[..., :-1], y[..., -1:] + 0.01 * y[:, -1:, :1]], dim=-1)
        ),
    }
    if s > 8:
        says = (
            "your test passes a layer in which all read token 8: go through all tokens of `hidden`"
        )
        not_causal[says] = lambda y: y + y[:, 8:9].sum(dim=1, keepdim=True)
    for says, mistake in not_causal.items():
        assert not is_causal(Spoilt(finished, mistake), x), says


# %% [raw] tags=["wrong"] says="only outputs in front of the changed token count"
"""
def is_causal(layer, hidden):
    before = layer(hidden)[0]
    for token in range(hidden.shape[1]):
        changed = hidden.clone()
        changed[:, token] += 1
        if not torch.allclose(before, layer(changed)[0], atol=1e-4):
            return False
    return True
"""

# %% [raw] tags=["wrong"] says="it does not change all tokens"
"""
def is_causal(layer, hidden):
    changed = hidden.clone()
    changed[:, -1] += 1
    return torch.allclose(layer(hidden)[0][:, :-1], layer(changed)[0][:, :-1], atol=1e-4)
"""

# %% [raw] tags=["wrong"] says="your test passes the draft"
"""
def is_causal(layer, hidden):
    return layer(hidden)[0].shape == hidden.shape
"""

# %% [raw] tags=["wrong"] says="changes its input hidden in place"
"""
def is_causal(layer, hidden):
    before = layer(hidden)[0]
    hidden[:, -1] += 1
    return torch.allclose(before[:, :-1], layer(hidden)[0][:, :-1], atol=1e-4)
"""

# %% [raw] tags=["wrong"] says="too tolerant"
"""
def is_causal(layer, hidden):
    before = layer(hidden)[0]
    for token in range(hidden.shape[1]):
        changed = hidden.clone()
        changed[:, token] += 1
        if not torch.allclose(before[:, :token], layer(changed)[0][:, :token], atol=0.1):
            return False
    return True
"""

# %% [raw] tags=["right"]
"""
def is_causal(layer, hidden):
    # What a token gives must be there already when the sentence stops after it.
    whole = layer(hidden)[0]
    for n in range(1, hidden.shape[1]):
        if not torch.allclose(layer(hidden[:, :n])[0], whole[:, :n], atol=1e-3):
            return False
    return True
"""

# %% [raw] tags=["right"]
"""
def is_causal(layer, hidden):
    # No gradient may flow from an output to a later token.
    x = hidden.clone().requires_grad_()
    output = layer(x)[0]
    for s in range(hidden.shape[1]):
        (gradient,) = torch.autograd.grad(output[:, s].sum(), x, retain_graph=True)
        if gradient[:, s + 1 :].any():
            return False
    return True
"""

# %% [markdown]
# Your test says that the draft is not causal. Here is the whole picture: one row for each changed
# token, one column for each output.

# %%
# alt: What moves when a token changes: a triangle in the finished layer. In the draft most outputs before the changed token move as well, marked with crosses.


def moves(layer: nn.Module, hidden: Tensor) -> Tensor:
    """1 where output s moves when token t changes, as a matrix (t s)."""
    rows = []
    with torch.no_grad():
        before = layer(hidden)[0]
        for token in range(hidden.shape[1]):
            changed = hidden.clone()
            changed[:, token] += 1
            difference = (layer(changed)[0] - before).abs()
            rows.append((difference.amax(dim=(0, 2)) > 1e-4).float())
    return torch.stack(rows)


fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), sharey=True)
for ax, (name, layer) in zip(axes, {"finished": finished, "drafted": drafted}.items(), strict=True):
    matrix = moves(layer, hidden[:2])
    heatmap(ax, matrix, columns="output", title=name, cmap=ListedColormap(["white", SKY]))
    for t, s in (torch.triu(matrix.mT, 1).mT > 0).nonzero().tolist():
        ax.text(s, t, "×", ha="center", va="center", color=ORANGE, fontsize=13)
axes[0].set_ylabel("changed token")
fig.suptitle("Coloured: the output moves. ×: it must not.")
plt.show()

# %% [markdown]
# The cause is one line: `(weights @ value).reshape(b, s, -1)`. The tensor is `b h s d`; `reshape`
# reads it in that order and deals the numbers out again, heads to tokens. You know the right way:
# `merge_heads` from lesson 01, whose pattern `b h s d -> b s (h d)` names each axis. `reshape`
# never asks which axis is which.
#
# ## A sentence must not see its neighbours
#
# In a batch, sentences lie next to each other only to save time. What comes out for one of them
# must be what comes out when it is **alone**.

# %% [markdown] tags=["card"]
# ### Exercise 5.3 · A test for the batch
#
# *medium ●●○ · 6 minutes*
#
# Write a test: `True` if each sentence of the batch `hidden` gives the same output alone as in the
# batch. Alone means: a batch of one.
#
# <details><summary>Hint 1: direction</summary>
#
# Run the layer once on the batch, and once on each sentence. Compare. Rounding may differ a little,
# so use a tolerance of `1e-4`.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Keep the batch axis: one sentence is `1 s m`. `hidden.split(1)` gives all of them.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `alone = torch.cat([layer(___)[0] for row in hidden.split(_)])`
#
# </details>


# %% tags=["exercise"]
def is_batch_independent(layer: nn.Module, hidden: Float[Tensor, "b s m"]) -> bool:
    """Does each sentence give the same output alone as in the batch?"""
    ### BEGIN SOLUTION
    # ~ together = ...
    with torch.no_grad():
        together = layer(hidden)[0]
        alone = torch.cat([layer(row)[0] for row in hidden.split(1)])
    return torch.allclose(together, alone, atol=1e-4)
    ### END SOLUTION


# %% tags=["check"]
@check("5.3", "is_batch_independent", b=[3, 4], s=[5, 7])
def _(b, s):
    x = hidden[:b, :s]
    verdict = is_batch_independent(base, x)
    assert verdict in (True, False), f"return True or False, not {type(verdict).__name__}"
    says = "your test fails a layer that treats each sentence alone; allow a rounding error of 1e-4"
    noted = []  # what your test gives to a layer
    noting = Spoilt(finished, lambda y: y)
    noting.register_forward_pre_hook(
        lambda _, args, kwargs: noted.append((*args, *kwargs.values())[0].detach().clone()),
        with_kwargs=True,
    )
    is_batch_independent(noting, x)
    alone = [y for y in noted if y.shape == (1, s, 576)]
    n_alone = len({tuple(y[0, :, 0].tolist()) for y in alone})
    if not noted:
        cause = "it never runs the layer"
    elif any(y.shape[1] != s for y in noted):
        cause = "it cuts `hidden` along the tokens; the sentences are axis 0"
    elif not alone:
        cause = "it runs no sentence alone: alone is a batch of one, 1 s m"
    elif n_alone < b:
        cause = f"it runs {n_alone} of {b} sentences alone"
    else:
        cause = ""
    mixing = is_batch_independent(Spoilt(finished, lambda y: y + y.mean(dim=0, keepdim=True)), x)
    if not verdict and mixing:
        says = "True and False are swapped: True where each sentence gives the same alone"
    elif not verdict:
        other = "compare each sentence with its own row, and allow a rounding error of 1e-4"
        says = f"your test fails a layer that treats each sentence alone: {cause or other}"
    assert verdict, says
    assert is_batch_independent(finished, x), says
    says = "your test passes a layer that adds the mean of the batch: "
    says += cause or "compare the outputs, layer(...)[0], value by value, to 1e-4"
    assert not mixing, says
    rounding = Spoilt(finished, lambda y: y + 1e-5 * torch.randn_like(y))
    assert is_batch_independent(rounding, x), says
    backwards = Spoilt(finished, lambda y: y.flip(1))
    assert is_batch_independent(backwards, x), "your test looks at tokens; only sentences count"

    mixes_sentences = {
        "your test passes a layer that multiplies by the number of sentences: run each alone": (
            lambda y: y * len(y)
        ),
        "your test passes a layer that spoils the last sentence: compare all of them": (
            lambda y: torch.cat([y[:-1], y[-1:] * len(y)])
        ),
        "your test passes a layer that spoils the first sentence: compare all of them": (
            lambda y: torch.cat([y[:1] * len(y), y[1:]])
        ),
        "your test passes a layer that spoils sentence 1 only: compare all of them": (
            lambda y: torch.cat([y[:1], y[1:2] * len(y), y[2:]])
        ),
        "your test passes a layer that swaps neighbours: alone is a batch of one, not of two": (
            lambda y: torch.cat([pair.flip(0) for pair in y.split(2)])
        ),
        "your test passes a layer that spoils the last token of each sentence: compare all": (
            lambda y: torch.cat([y[:, :-1], y[:, -1:] * len(y)], dim=1)
        ),
        "your test passes a layer that adds a thousandth of other sentences: too tolerant": (
            lambda y: y + 0.001 * y.roll(1, dims=0)
        ),
        "your test passes a layer whose outputs sink in a batch: take .abs() of the difference": (
            lambda y: y - len(y)
        ),
        "your test passes a layer whose outputs rise in a batch: take .abs() of the difference": (
            lambda y: y + len(y)
        ),
    }
    if b > 3:
        says = (
            "your test passes a layer in which all read sentence 3: take all sentences of `hidden`"
        )
        mixes_sentences[says] = lambda y: y + y[3:4].sum(dim=0, keepdim=True)
    for says, mistake in mixes_sentences.items():
        assert not is_batch_independent(Spoilt(finished, mistake), x), says


# %% [raw] tags=["wrong"] says="that adds the mean of the batch"
"""
def is_batch_independent(layer, hidden):
    return layer(hidden)[0].shape == hidden.shape and layer(hidden[:1])[0].shape == hidden[:1].shape
"""

# %% [raw] tags=["wrong"] says="multiplies by the number of sentences"
"""
def is_batch_independent(layer, hidden):
    # Changes the other sentences, but never their number.
    other = torch.cat([hidden[:1], torch.randn_like(hidden[1:])])
    return torch.allclose(layer(hidden)[0][0], layer(other)[0][0], atol=1e-4)
"""

# %% [raw] tags=["wrong"] says="compare all of them"
"""
def is_batch_independent(layer, hidden):
    return torch.allclose(layer(hidden)[0][:1], layer(hidden[:1])[0], atol=1e-4)
"""

# %% [raw] tags=["wrong"] says="that adds the mean of the batch"
"""
def is_batch_independent(layer, hidden):
    # Another order of the sentences.
    return torch.allclose(layer(hidden.flip(0))[0], layer(hidden)[0].flip(0), atol=1e-4)
"""

# %% [raw] tags=["right"]
"""
def is_batch_independent(layer, hidden):
    together, _ = layer(hidden)
    for i in range(len(hidden)):
        alone, _ = layer(hidden[i : i + 1])
        if (together[i] - alone[0]).abs().max() > 1e-4:
            return False
    return True
"""

# %% [raw] tags=["right"]
"""
def is_batch_independent(layer, hidden):
    together = layer(hidden)[0]
    return all(
        torch.allclose(layer(rearrange(row, "s m -> 1 s m"))[0], output, atol=1e-3)
        for row, output in zip(hidden, together)
    )
"""

# %% [markdown]
# The draft was built for a batch of 2. What does it do with others?

# %%
with torch.no_grad():
    first_alone = drafted(hidden[:1])[0]
    for n in (1, 2, 3, 4):
        try:
            error = (drafted(hidden[:n])[0][:1] - first_alone).abs().max()
            print(f"batch of {n}: the first sentence is off by {error:.1f}")
        except RuntimeError:
            print(f"batch of {n}: crash")

# %% [markdown]
# The table of prompts has 2 rows, because the constructor was told so. The hurried `view(b, -1, 3,
# 64)` then cuts 2 × 10 prompts into as many parts as there are sentences. Into 3 it cannot. Into 4
# it can, and each sentence gets five prompts of ten. With one sentence there are twenty, each of
# them twice, which changes nothing.
#
# Two morals. Prompts do not depend on the sentence: they need no batch axis at all. And
# `rearrange(key, "b p (g d) -> b g p d", d=64)` would have kept the 2 a 2, and the scores would
# have crashed for 4 sentences. einops keeps the axes that you name.
#
# ## The layer must be able to move
#
# `model.to("cuda")` moves a model to the GPU: its parameters, and its *buffers* (tensors registered
# with `register_buffer`). A tensor that is only an attribute stays behind. On a GPU the next call
# crashes. Here, without a GPU, nobody notices.

# %%
print("parameters:", [name for name, _ in drafted.named_parameters() if "base" not in name])
print("buffers:   ", [name for name, _ in drafted.named_buffers()])
print("attributes:", [name for name, value in vars(drafted).items() if isinstance(value, Tensor)])

# %% [markdown]
# You need no GPU to test it. PyTorch has the device `"meta"`: tensors with a shape and no numbers.
# `.to("meta")` moves what a GPU would get. What has not moved is the bug.

# %% [markdown] tags=["card"]
# ### Exercise 5.4 · A test for moving
#
# *medium ●●○ · 8 minutes*
#
# Write a test: `True` if no tensor stays behind when the layer moves to `"meta"`. Look at the
# attributes of the layer and of all modules inside it. The layer you are given must stay where it
# is.
#
# <details><summary>Hint 1: direction</summary>
#
# `module.to(...)` moves the module itself, and `"meta"` throws its numbers away. So move a
# `copy.deepcopy`. Then look for tensors that are not on `meta`.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `layer.modules()` gives the layer and every module inside. `vars(module).values()` gives a
# module's plain attributes. A tensor says where it is with `.is_meta`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `if isinstance(value, ______) and not value._______: return False`
#
# </details>


# %% tags=["exercise"]
def moves_with_the_model(layer: nn.Module) -> bool:
    """Does `.to("meta")` take along every tensor of the layer and of the modules inside it?"""
    ### BEGIN SOLUTION
    # ~ moved = copy.deepcopy(layer).to("meta")
    moved = copy.deepcopy(layer).to("meta")
    for module in moved.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_meta:
                return False
    return True
    ### END SOLUTION


# %% tags=["check"]
@check("5.4", "moves_with_the_model")
def _():
    subject = copy.deepcopy(finished)
    verdict = moves_with_the_model(subject)
    assert verdict in (True, False), f"return True or False, not {type(verdict).__name__}"
    says = "your test has moved the layer itself, and its numbers are lost: move a copy"
    assert not any(p.is_meta for p in subject.parameters()), says
    assert verdict, (
        "your test fails the finished layer, which holds parameters only: move a copy of it to meta"
    )

    with_buffer = copy.deepcopy(finished)
    with_buffer.register_buffer("prompt_numbers", torch.arange(10), persistent=False)
    assert moves_with_the_model(with_buffer), "your test fails a layer with a buffer; buffers move"

    says = "your test passes the draft, whose prompt_numbers stay on the CPU"
    assert not moves_with_the_model(copy.deepcopy(drafted)), says

    plain_gate = copy.deepcopy(finished)
    del plain_gate.adaption_gate
    plain_gate.adaption_gate = torch.zeros(9)
    says = "your test passes a layer whose gate is a plain tensor: look at every attribute"
    assert not moves_with_the_model(plain_gate), says

    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), copy.deepcopy(drafted)))
    says = "your test passes the draft inside another module: look at all of layer.modules()"
    assert not moves_with_the_model(nested), says


# %% [raw] tags=["wrong"] says="move a copy"
"""
def moves_with_the_model(layer):
    layer.to("meta")
    for module in layer.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_meta:
                return False
    return True
"""

# %% [raw] tags=["wrong"] says="your test passes the draft, whose prompt_numbers stay on the CPU"
"""
def moves_with_the_model(layer):
    moved = copy.deepcopy(layer).to("meta")
    return all(value.is_meta for value in moved.state_dict().values())
"""

# %% [raw] tags=["wrong"] says="look at all of layer.modules()"
"""
def moves_with_the_model(layer):
    moved = copy.deepcopy(layer).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    return all(value.is_meta for value in tensors)
"""

# %% [raw] tags=["wrong"] says="look at every attribute"
"""
def moves_with_the_model(layer):
    return "prompt_numbers" not in vars(layer)
"""

# %% [raw] tags=["right"]
"""
def moves_with_the_model(layer):
    moved = copy.deepcopy(layer).to("meta")
    left = [
        name
        for module in moved.modules()
        for name, value in vars(module).items()
        if torch.is_tensor(value) and value.device.type != "meta"
    ]
    return not left
"""

# %% [raw] tags=["right"]
"""
def moves_with_the_model(layer):
    # A tensor in vars(module) is neither a parameter nor a buffer: those are kept elsewhere.
    return not any(torch.is_tensor(v) for module in layer.modules() for v in vars(module).values())
"""

# %% [markdown]
# ## What no test of behaviour sees
#
# Three bugs are left. With them the layer is causal, treats each sentence alone, and moves. It just
# computes something else than the paper. The first two show only in a comparison with **another way
# to compute the same**, the third in a list of what trains.
#
# 1. **No output projection.** In equation 8 the prompts' part goes through `Linear_o`, as the
#    tokens' part does. The draft adds it after. The base's output is already projected, so the two
#    do not even speak the same language.
# 2. **One gate for all heads, and no tanh.** Equation 7 has one gate for each head, inside a tanh.
# 3. **Nothing is frozen.** All of the base's weights would train.

# %%
trains = sum(p.numel() for p in build(draft).parameters() if p.requires_grad)
print(f"the draft trains    {trains:>9,} numbers in one layer")
print(f"it should train     {10 * 576 + 9:>9,}: 10 prompts of 576 and 9 gates")

# %% [markdown]
# For the projection there is a neat way out. A linear layer `o` without bias gives `o(a) + o(b) =
# o(a + b)`. So we may project the prompts' part on its own and add it to the finished output. With
# a bias this no longer holds:

# %%
torch.manual_seed(0)
a, b = torch.randn(2, 8)
for bias in (False, True):
    o = nn.Linear(8, 8, bias=bias)
    print(f"bias {bias!s:5}: equal {torch.allclose(o(a) + o(b), o(a + b), atol=1e-6)}")

# %% [markdown]
# With a bias, `o(a) + o(b)` adds it twice. PEFT 0.21.2 does exactly that, even while its gate is
# zero. SmolLM2's `output_layer` has no bias, other models' do. `F.linear(x, o.weight)` is `o`
# without its bias.

# %% [markdown] tags=["card"]
# ### Exercise 5.5 · The layer, right
#
# *hard ●●● · 15 minutes*
#
# Write the layer, free of all these bugs. Freeze the base, make prompts and one zero gate per head,
# in float32. In `forward` use what you built: `prompt_keys_values`, `gated_prompt_attention` (tanh
# is its default), `merge_heads`. The base may be bfloat16: cast the prompts to the queries' dtype.
#
# <details><summary>Hint 1: direction</summary>
#
# Prompts need no numbers and no batch: `self.prompt_embedding.weight` is all of them, `p m`. Go:
# base, prompts, keys and values, gated attention, merge, project, add. Return a pair.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `key` and `value` are `g p d`, `added` is `b h s d`, merged it is `b s (h d)`, projected it is `b
# s m`. The gate has shape `h`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `key, value = prompt_keys_values(prompts, base._____, base._____, base.head_dim)`, and later
# `added = F.linear(______(added), base.output_layer.______)`
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.method.wrapped_layer"
class AdaptationPromptAttentionLayer(nn.Module):
    """A frozen attention layer plus what gated prompts add to it (paper eq. 7 and 8).

    `base_attention_layer` has `head_dim`, `key_layer`, `value_layer` and `output_layer`, and
    returns `(hidden_state, query_states)`: b s m and b h s d. So does this layer.
    """

    def __init__(
        self, base_attention_layer: nn.Module, num_prompt_tokens: int, emb_dim: int
    ) -> None:
        super().__init__()
        width = base_attention_layer.key_layer.in_features
        if emb_dim != width:
            raise ValueError(f"emb_dim is {emb_dim}, but the base layer reads a width of {width}.")
        output = base_attention_layer.output_layer
        n_heads = output.in_features // base_attention_layer.head_dim
        new = {"device": output.weight.device, "dtype": torch.float32}

        ### BEGIN SOLUTION
        # ~ self.base_attention_layer = base_attention_layer
        # ~ self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim, **new)
        # ~ self.adaption_gate = ...
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim, **new)
        self.adaption_gate = nn.Parameter(torch.zeros(n_heads, **new))
        ### END SOLUTION

    def forward(
        self, hidden_states: Float[Tensor, "b s m"], **kwargs
    ) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
        """Run the base layer with `kwargs` (mask, cache, ...) and add the prompts' part."""
        ### BEGIN SOLUTION
        # ~ base = self.base_attention_layer
        # ~ hidden_state, query_states = base(hidden_states=hidden_states, **kwargs)
        base = self.base_attention_layer
        hidden_state, query_states = base(hidden_states=hidden_states, **kwargs)

        prompts = self.prompt_embedding.weight.to(query_states.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query_states, key, value, self.adaption_gate)
        # o(a) + o(b) = o(a + b) only without a bias, and the base has added the bias already.
        added = F.linear(merge_heads(added), base.output_layer.weight)
        return hidden_state + added, query_states
        ### END SOLUTION


# %% tags=["check"]
@check("5.5", "AdaptationPromptAttentionLayer", p=[7, 5], m=[144, 40], d=[16, 64])
def _(p, m, d):
    sizes = (m, 9 * d), (m, 3 * d), (m, 3 * d), (9 * d, m)
    biased = AttentionLayer(*(nn.Linear(*size) for size in sizes), head_dim=d)
    layer = AdaptationPromptAttentionLayer(biased, num_prompt_tokens=p, emb_dim=m)

    # What trains.
    trains = sorted(name for name, x in layer.named_parameters() if x.requires_grad)
    wanted = {"adaption_gate", "prompt_embedding.weight"}
    missing = sorted(wanted - set(trains))
    assert not missing, f"these should train, and do not: {missing}. Freeze the base only"
    says = "exactly prompt_embedding.weight and adaption_gate should train: freeze the base"
    assert set(trains) == wanted, says
    shape = tuple(layer.adaption_gate.shape)
    assert shape == (9,), f"adaption_gate has shape {shape}; one gate for each head: (9,)"
    assert_shape(layer.prompt_embedding.weight, "p m", p=p, m=m)
    assert not layer.adaption_gate.any(), "the gates should start at zero"
    says = "the base is no part of the layer: store it as an attribute, not in a list"
    assert any(module is biased for module in layer.modules()), says

    # What equations 7 and 8 say, head by head.
    x = torch.randn(3, 5, m)
    frozen, query = biased(x)
    gate, prompts = layer.adaption_gate, layer.prompt_embedding.weight
    o, bias = biased.output_layer.weight, biased.output_layer.bias

    def attended(key, value):
        read = []
        for h in range(9):
            g = slice(d * (h // 3), d * (h // 3) + d)
            scores = einsum(query[:, h], key[:, g], "b s d, p d -> b s p") / d**0.5
            read.append(einsum(scores.softmax(dim=-1), value[:, g], "b s p, p d -> b s d"))
        return torch.stack(read, dim=1)  # b h s d

    def side_by_side(opening, heads):
        return torch.cat([opening[h] * heads[:, h] for h in range(9)], dim=-1)

    first_heads = heads = attended(biased.key_layer(prompts), biased.value_layer(prompts))
    open_to_one = side_by_side(torch.ones(9), heads)

    # Closed gates: the base, bit for bit.
    output, queries = unpacked(layer(x), "the layer's output", "its queries")
    mistakes = {
        "output and queries look swapped": query,
        "closed gates add the bias of output_layer: it is counted twice": frozen + bias,
        "closed gates add something: the gate is not used": frozen + F.linear(open_to_one, o),
        "the base's output is lost: add the prompts' part to it": torch.zeros_like(frozen),
        "the base's output is lost: add the prompts' part to it and project once": (
            torch.zeros_like(frozen) + bias
        ),
    }
    what = "the output with closed gates"
    assert_close(output, frozen, "b s m", mistakes=mistakes, what=what)
    assert_close(queries, query, "b h s d", what="the second value, the queries")

    def call(hidden_states, prompts, gate):
        own = {"prompt_embedding.weight": prompts, "adaption_gate": gate}
        return torch.func.functional_call(layer, own, (hidden_states,))

    assert_gradients(call, x[:1, :2], prompts, gate, what="with closed gates", tol=0.002)

    # Open gates.
    layer = open_gates(layer)
    nn.init.normal_(prompts)  # training has changed them
    key, value = biased.key_layer(prompts), biased.value_layer(prompts)
    heads, opening = attended(key, value), gate.tanh()
    added = side_by_side(opening, heads)
    scrambled = (rearrange(opening, "h -> h 1 1") * heads).reshape(3, 5, 9 * d)
    swapped = side_by_side(opening, attended(value, key))
    right = frozen + F.linear(added, o)
    mistakes = {
        "the prompts add nothing: add their part to the base's output": frozen,
        "the base's output is lost: add the prompts' part to it": F.linear(added, o),
        "the prompts' part is taken away, not added": frozen - F.linear(added, o),
        "the bias of output_layer is counted twice": right + bias,
        "the tanh around the gate is missing": (frozen + F.linear(side_by_side(gate, heads), o)),
        "the tanh is applied twice: gated_prompt_attention does it already": (
            frozen + F.linear(side_by_side(opening.tanh(), heads), o)
        ),
        "heads and tokens are mixed up: use merge_heads": frozen + F.linear(scrambled, o),
        "keys and values of the prompts look swapped": frozen + F.linear(swapped, o),
        "the prompts' keys and values are kept from the start: make them in forward": (
            frozen + F.linear(side_by_side(opening, first_heads), o)
        ),
        "scores are divided by the root of the head width d, the default": (
            frozen + F.linear(side_by_side(opening, attended(key * (d / m) ** 0.5, value)), o)
        ),
    }
    if m == 9 * d:
        not_projected = "the prompts' part does not go through output_layer (eq. 8)"
        turned = "the rows and columns of output_layer's weight look swapped"
        mistakes |= {not_projected: frozen + added, turned: frozen + added @ o}
    output = layer(x)[0]
    assert_close(output, right, "b s m", tol=1e-4, mistakes=mistakes, what="the output")
    assert_gradients(call, x[:1, :2], prompts, gate, tol=0.002)

    def of_prompts(hidden_states):
        return layer(hidden_states)[0] - biased(hidden_states)[0]

    assert_gradients(of_prompts, 3 * x[:1, :2], what="the prompts' part")

    # kwargs: with a cache the tokens come in two parts.
    cache = KeyValueCache()
    layer(x[:, :2], cache=cache)
    later = layer(hidden_states=x[:, 2:], cache=cache)[0]
    mistakes = {"the cache does not reach the base: give it **kwargs": layer(x[:, 2:])[0]}
    what = "the output for tokens 2 to 4, with a cache"
    assert_close(later, right[:, 2:], "b s m", tol=1e-4, mistakes=mistakes, what=what)

    # Behaviour (your own tests), and a base in half precision.
    assert is_causal(layer, x), "your is_causal fails this layer"
    assert is_batch_independent(layer, x), "your is_batch_independent fails this layer"
    assert moves_with_the_model(layer), "your moves_with_the_model fails this layer"
    half = open_gates(AdaptationPromptAttentionLayer(copy.deepcopy(biased).bfloat16(), p, m))
    for x16 in (half.adaption_gate, half.prompt_embedding.weight):
        assert x16.dtype == torch.float32, "prompts and gate should be float32 on any base"
    says = "on a bfloat16 base the output should be bfloat16"
    assert half(x.bfloat16())[0].dtype == torch.bfloat16, says


# %% [raw] tags=["wrong"] says="does not go through output_layer"
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(9))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query, key, value, self.adaption_gate)
        return hidden_state + merge_heads(added), query
"""

# %% [raw] tags=["wrong"] says="it is counted twice"
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(9))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query, key, value, self.adaption_gate)
        return hidden_state + base.output_layer(merge_heads(added)), query
"""

# %% [raw] tags=["wrong"] says="freeze the base"
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(9))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query, key, value, self.adaption_gate)
        return hidden_state + F.linear(merge_heads(added), base.output_layer.weight), query
"""

# %% [raw] tags=["wrong"] says="one gate for each head"
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query, key, value, self.adaption_gate)
        return hidden_state + F.linear(merge_heads(added), base.output_layer.weight), query
"""

# %% [raw] tags=["wrong"] says="return them with a comma between"
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(9))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query, key, value, self.adaption_gate)
        return hidden_state + F.linear(merge_heads(added), base.output_layer.weight)
"""

# %% [raw] tags=["wrong"] says="heads and tokens are mixed up"
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(9))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query, key, value, self.adaption_gate)
        added = added.reshape(hidden_state.shape)
        return hidden_state + F.linear(added, base.output_layer.weight), query
"""

# %% [raw] tags=["wrong"] says="no gradient reaches `prompts`"
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(9))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.data.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query, key, value, self.adaption_gate)
        return hidden_state + F.linear(merge_heads(added), base.output_layer.weight), query
"""

# %% [raw] tags=["right"]
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        for parameter in base_attention_layer.parameters():
            parameter.requires_grad = False
        self.base_attention_layer = base_attention_layer
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        n_heads = base_attention_layer.output_layer.in_features // base_attention_layer.head_dim
        self.adaption_gate = nn.Parameter(torch.zeros(n_heads))

    def forward(self, hidden_states, **kwargs):
        base = self.base_attention_layer
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        heads = merge_heads(gated_prompt_attention(query, key, value, self.adaption_gate))
        o = base.output_layer
        return hidden_state + (o(heads) - o(torch.zeros_like(heads))), query
"""

# %% [raw] tags=["right"]
"""
class AdaptationPromptAttentionLayer(nn.Module):
    def __init__(self, base_attention_layer, num_prompt_tokens, emb_dim):
        super().__init__()
        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim)
        self.adaption_gate = nn.Parameter(torch.zeros(9))

    def forward(self, hidden_states, **kwargs):
        base, d = self.base_attention_layer, self.base_attention_layer.head_dim
        hidden_state, query = base(hidden_states, **kwargs)
        prompts = self.prompt_embedding.weight.to(query.dtype)
        split = lambda x: repeat(x, "p (g d) -> (g r) p d", d=d, r=3)
        key, value = split(base.key_layer(prompts)), split(base.value_layer(prompts))
        weights = (query @ key.transpose(-1, -2) * d**-0.5).softmax(dim=-1)
        gate = self.adaption_gate.tanh().to(query.dtype)[:, None, None]
        heads = (gate * (weights @ value)).transpose(1, 2).flatten(2)
        return hidden_state + heads @ base.output_layer.weight.T, query
"""

# %% [markdown]
# ## The map of the bugs
#
# Now take the draft and repair **all** bugs but one. Do that for each bug, and run each test on it.
# Here are all the repairs as text. They keep the draft's style; your own layer is shorter.

# %%
REPAIRS = {
    "line ends after =": [("output, query =\n            base(", "output, query = base(")],
    "heads not split": [
        (
            "value = base.value_layer(prompts)",
            """value = base.value_layer(prompts)
        key = key.view(b, -1, 3, 64).transpose(1, 2)
        value = value.view(b, -1, 3, 64).transpose(1, 2)""",
        )
    ],
    "9 heads meet 3": [
        (
            "        scores =",
            """        key = key.repeat_interleave(3, dim=1)
        value = value.repeat_interleave(3, dim=1)
        scores =""",
        )
    ],
    "s read from the heads": [("query.shape[1]", "query.shape[2]")],
    "a bare tensor returned": [("return output", "return output, query")],
    "heads not put back": [("(weights @ value).resh", "(weights @ value).transpose(1, 2).resh")],
    "batch size built in": [("repeat(batch_size, 1)", "unsqueeze(0)"), (".view(b,", ".view(1,")],
    "numbers not a buffer": [
        ("self.prompt_numbers = numbers", "self.register_buffer('prompt_numbers', numbers)")
    ],
    "no output projection": [("output + added", "output + base.output_layer(added)")],
    "one gate, no tanh": [
        ("torch.zeros(1)", "torch.zeros(9, 1, 1)"),
        ("self.adaption_gate *", "self.adaption_gate.tanh() *"),
    ],
    "base not frozen": [
        ("= base_attention_layer\n", "= base_attention_layer.requires_grad_(False)\n")
    ],
}


def all_repaired_but(bug: str | None) -> str:
    """The draft's text with every repair but one."""
    source = DRAFT
    for name, replacements in REPAIRS.items():
        for old, new in replacements if name != bug else ():
            source = source.replace(old, new)
    return source


# %% [markdown]
# Seven tests: does it run on the lucky size, does it run on another, your three tests, the
# comparison with your own layer (equations 7 and 8), and the list of what trains. How many of the
# eleven bugs would the first test have shown you?

# %% tags=["nbval-ignore-output"]
guess = predict("How many of the 11 bugs does one run at the lucky size find?", mine=...)

# %%
torch.manual_seed(0)
yours = open_gates(AdaptationPromptAttentionLayer(copy.deepcopy(base), 10, 576))


def unpacks(layer: nn.Module, hidden: Tensor) -> bool:
    """Does it run as a Llama calls it?"""
    _output, _ = layer(hidden)
    return True


def equals_yours(layer: nn.Module) -> bool:
    """Does it compute equations 7 and 8, as your layer does?"""
    layer.prompt_embedding.weight.data.copy_(yours.prompt_embedding.weight)
    return torch.allclose(layer(hidden[:2])[0], yours(hidden[:2])[0], atol=1e-3)


def only_the_prompts_train(layer: nn.Module) -> bool:
    """Are prompts and gates all that trains?"""
    return {n.split(".")[0] for n, p in layer.named_parameters() if p.requires_grad} == {
        "prompt_embedding",
        "adaption_gate",
    }


TESTS = {
    "runs, 2 × 9 tokens": lambda layer: unpacks(layer, hidden[:2, :9]),
    "runs, 4 × 12 tokens": lambda layer: unpacks(layer, hidden),
    "is_causal": lambda layer: is_causal(layer, hidden[:2]),
    "is_batch_independent": lambda layer: is_batch_independent(layer, hidden),
    "moves_with_the_model": moves_with_the_model,
    "equals eq. 7 and 8": equals_yours,
    "only prompts train": only_the_prompts_train,
}


def finds(test, source: str) -> int:
    """0 the test passes, 1 it finds the bug, 2 the layer crashes."""
    try:
        return 0 if test(open_gates(build(source))) else 1
    except Exception:  # whatever a bug or a test raises
        return 2


bugs = {"(all repaired)": None, **{name: name for name in REPAIRS}}
found = torch.tensor(
    [[finds(test, all_repaired_but(bug)) for test in TESTS.values()] for bug in bugs.values()]
)
print("tests that complain about the repaired draft:", found[0].count_nonzero().item())
print("bugs that no test finds:", (found[1:] == 0).all(dim=1).sum().item())

# %% tags=["nbval-ignore-output"]
guess.compare(found[1:, 0].count_nonzero().item())

# %%
# alt: Eleven bugs by seven tests. They find 3, 5, 6, 6, 2, 8 and 2 bugs: the run at the lucky size 3, the comparison with the equations 8. Each bug is found by at least one test.
fig, ax = plt.subplots(figsize=(7, 4.6))
colours = ListedColormap(["white", SKY, "lightgrey"])
heatmap(ax, found, row_labels=list(bugs), cmap=colours)
ax.set_xticks(range(len(TESTS)), TESTS, rotation=35, ha="left", va="bottom")
ax.xaxis.tick_top()
for row, results in enumerate(found.tolist()):
    for column, result in enumerate(results):
        ax.text(column, row, ["·", "found", "crash"][result], ha="center", va="center", fontsize=9)
plt.show()

# %% [markdown]
# A dot means that the test passes. Read it from left to right. The first column is how most code
# is tested: one run, one size, by chance the lucky one. Most bugs walk past it. The next columns
# cost a few lines each. The comparison with the equations finds the most, but it needs a second
# implementation, and it misses what shows only at another batch size, on another device, or in
# training.
#
# Look at the row "(all repaired)" too: a test that complains about right code is worth nothing.
#
# ## Into a transformers Llama
#
# The base so far was our own attention layer. transformers' `LlamaAttention` computes the same, but
# it calls the parts `k_proj`, `v_proj` and `o_proj`, and it does not hand out its queries. So it
# needs a thin layer in between, a *shim*, that keeps the contract.
#
# The queries could be computed a second time, as PEFT does, which costs one more projection in each
# layer. Or we listen: a **forward hook** is a function that PyTorch calls with a module's output.

# %%
attention = decoder_layer.self_attn


def listen(module: nn.Module, inputs: tuple, output: Tensor) -> None:
    """Called each time the module has run."""
    print("q_proj has run; b s (h d) =", tuple(output.shape))


hook = attention.q_proj.register_forward_hook(listen)
with torch.no_grad():
    model(**tokens)
hook.remove()

# %% [markdown]
# What the hook hears are the queries **before** they are rotated by their positions. The angles
# come along with each call as `position_embeddings`, a pair (cos, sin), as you know them from
# lesson 02.

# %% [markdown] tags=["card"]
# ### Exercise 5.6 · Fit it into a Llama
#
# *medium ●●○ · 10 minutes*
#
# Complete the shim's `forward`: run `self.attention` with everything that came in, get the queries
# (with a hook on `q_proj`, or by a second projection), split them into heads, rotate them. Return
# the output and the queries.
#
# <details><summary>Hint 1: direction</summary>
#
# `self.attention(...)` returns (output, attention weights). You need the first only. The hook's
# output goes into a list; take the hook off afterwards.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `q_proj` gives `b s (h d)`. `split_heads` makes `b h s d` of it, and `apply_rotary` wants that,
# with `cos` and `sin`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `query_states = apply_rotary(split_heads(_____, self.head_dim), *_____)`
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.course.tasks.attention_with_queries"
class LlamaAttentionWithQueries(nn.Module):
    """A transformers `LlamaAttention` with the names and the contract that the wrapper expects."""

    def __init__(self, attention: LlamaAttention) -> None:
        super().__init__()
        if not isinstance(attention, LlamaAttention):
            raise TypeError(
                f"expected a transformers LlamaAttention, got {type(attention).__name__}. "
                "For other models use add_adaption_prompts(model)."
            )
        self.attention = attention

    # Properties, not attributes: a layer that is set twice would be saved twice.
    head_dim = property(lambda self: self.attention.head_dim)
    key_layer = property(lambda self: self.attention.k_proj)
    value_layer = property(lambda self: self.attention.v_proj)
    output_layer = property(lambda self: self.attention.o_proj)

    def forward(
        self,
        hidden_states: Float[Tensor, "b s m"],
        position_embeddings: tuple[Float[Tensor, "b s d"], Float[Tensor, "b s d"]],
        **kwargs,
    ) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
        """The attention's output, and its queries, rotated by `position_embeddings` (cos, sin)."""
        ### BEGIN SOLUTION
        # ~ hidden_state, _ = self.attention(hidden_states, position_embeddings, **kwargs)
        queries = []

        def listen(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            queries.append(output)

        hook = self.attention.q_proj.register_forward_hook(listen)
        try:
            hidden_state, _ = self.attention(hidden_states, position_embeddings, **kwargs)
        finally:
            hook.remove()
        query_states = split_heads(queries.pop(), self.head_dim)
        return hidden_state, apply_rotary(query_states, *position_embeddings)
        ### END SOLUTION


# %% tags=["check"]
@check("5.6", "LlamaAttentionWithQueries", layer=[3, 11])
def _(layer):
    real = copy.deepcopy(model.model.layers[layer].self_attn)
    shim = LlamaAttentionWithQueries(real)
    mask = torch.zeros(2, 1, 5, 5)
    mask[:, :, :, 3:] = -1e9  # tokens 3 and 4 are hidden from all

    calls, earlier = [], torch.zeros(2, 9, 5, 64)
    names = "hidden_states", "position_embeddings"
    real.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(dict(zip(names, args, strict=False)) | kwargs),
        with_kwargs=True,
    )
    for start in (4, 0):  # two calls, at the positions 4 to 8 and 0 to 4
        calls.clear()
        x = torch.randn(2, 5, 576)
        positions = rearrange(torch.arange(start, start + 5), "s -> 1 s")
        rotary = model.model.rotary_emb(x, positions)
        others = {"attention_mask": mask, "position_ids": positions}
        try:
            result = shim(x, position_embeddings=rotary, **others)
        except TypeError:
            says = "position_embeddings are not passed on to the attention"
            assert not calls or "position_embeddings" in calls[-1], says
            raise
        says = f"self.attention runs {len(calls)} times in one call: a cache would get all twice"
        assert len(calls) < 2, says
        reached = calls[0] if calls else {}
        output, queries = unpacked(result, "the attention's output", "its queries")

        says = "the second value is None: LlamaAttention's attention weights, not the queries"
        assert queries is not None, says
        unrotated = rearrange(real.q_proj(x), "b s (h d) -> b h s d", d=64)
        right = apply_rotary(unrotated, *rotary)
        mistakes = {
            "the mask is not passed on: give **kwargs to the attention": real(x, rotary)[0],
            "output and queries look swapped": right,
        }
        expected = real(x, rotary, attention_mask=mask)[0]
        assert_close(output, expected, "b s m", mistakes=mistakes, what="the output")
        says = "position_ids are not passed on: give all of **kwargs to the attention"
        assert "position_ids" in reached, says
        mistakes = {
            "the queries are not rotated by their positions": unrotated,
            "they are rotated twice": apply_rotary(right, *rotary),
            "cos and sin look swapped": apply_rotary(unrotated, *rotary[::-1]),
            "heads and tokens are mixed: split with split_heads": apply_rotary(
                real.q_proj(x).reshape(2, 9, 5, 64), *rotary
            ),
            "they are made of the attention's output: give q_proj the hidden states": apply_rotary(
                rearrange(real.q_proj(expected), "b s (h d) -> b h s d", d=64), *rotary
            ),
            "use position_embeddings: these angles start at position 0": apply_rotary(
                unrotated, *model.model.rotary_emb(x, positions - start)
            ),
            "these are the queries of an earlier call": earlier,
        }
        earlier = right
        assert_close(queries, right, "b h s d", mistakes=mistakes, what="the queries")
        says = "a hook stays on q_proj: take it off with hook.remove()"
        assert not real.q_proj._forward_hooks, says

    config = LlamaConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=12)
    config._attn_implementation = "eager"
    small, x = LlamaAttention(config, layer_idx=0), torch.randn(2, 5, 48)
    narrow = tuple(table[..., :12] for table in rotary)
    _, queries = unpacked(LlamaAttentionWithQueries(small)(x, narrow), "its output", "its queries")
    right = apply_rotary(rearrange(small.q_proj(x), "b s (h d) -> b h s d", d=12), *narrow)
    assert_close(queries, right, "b h s d", what="the queries of a Llama with heads of 12")

    x = torch.randn(2, 5, 576)

    def call(hidden_states, place):
        return shim(hidden_states, position_embeddings=rotary)[place]

    assert_gradients(call, x, 0, what="the output")
    assert_gradients(call, x, 1, what="the queries")


# %% [raw] tags=["wrong"] says="the queries are not rotated"
"""
class LlamaAttentionWithQueries(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states, position_embeddings, **kwargs):
        output, _ = self.attention(hidden_states, position_embeddings, **kwargs)
        return output, split_heads(self.attention.q_proj(hidden_states), self.attention.head_dim)
"""

# %% [raw] tags=["wrong"] says="the second value is None"
"""
class LlamaAttentionWithQueries(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states, position_embeddings, **kwargs):
        return self.attention(hidden_states, position_embeddings, **kwargs)
"""

# %% [raw] tags=["wrong"] says="the mask is not passed on"
"""
class LlamaAttentionWithQueries(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states, position_embeddings, **kwargs):
        output, _ = self.attention(hidden_states, position_embeddings)
        query = split_heads(self.attention.q_proj(hidden_states), 64)
        return output, apply_rotary(query, *position_embeddings)
"""

# %% [raw] tags=["wrong"] says="heads and positions look swapped"
"""
class LlamaAttentionWithQueries(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states, position_embeddings, **kwargs):
        output, _ = self.attention(hidden_states, position_embeddings, **kwargs)
        query = split_heads(self.attention.q_proj(hidden_states), 64)
        return output, rearrange(apply_rotary(query, *position_embeddings), "b h s d -> b s h d")
"""

# %% [raw] tags=["wrong"] says="a hook stays on q_proj"
"""
class LlamaAttentionWithQueries(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.heard = []
        attention.q_proj.register_forward_hook(lambda module, x, output: self.heard.append(output))

    def forward(self, hidden_states, position_embeddings, **kwargs):
        output, _ = self.attention(hidden_states, position_embeddings, **kwargs)
        return output, apply_rotary(split_heads(self.heard[-1], 64), *position_embeddings)
"""

# %% [raw] tags=["right"]
"""
class LlamaAttentionWithQueries(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention, self.head_dim = attention, attention.head_dim

    key_layer = property(lambda self: self.attention.k_proj)
    value_layer = property(lambda self: self.attention.v_proj)
    output_layer = property(lambda self: self.attention.o_proj)

    def forward(self, hidden_states, position_embeddings, **kwargs):
        output, _ = self.attention(hidden_states, position_embeddings, **kwargs)
        query = split_heads(self.attention.q_proj(hidden_states), self.head_dim)
        return output, apply_rotary(query, *position_embeddings)
"""

# %% [raw] tags=["right"]
"""
class LlamaAttentionWithQueries(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention, self.head_dim = attention, attention.head_dim

    key_layer = property(lambda self: self.attention.k_proj)
    value_layer = property(lambda self: self.attention.v_proj)
    output_layer = property(lambda self: self.attention.o_proj)

    def forward(self, hidden_states, position_embeddings, **kwargs):
        heard = {}
        hook = self.attention.q_proj.register_forward_hook(lambda m, x, y: heard.update(query=y))
        output = self.attention(
            hidden_states=hidden_states, position_embeddings=position_embeddings, **kwargs
        )[0]
        hook.remove()
        query = heard["query"].unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        cos, sin = (angle[:, None] for angle in position_embeddings)
        first, second = query.chunk(2, dim=-1)
        return output, query * cos + torch.cat([-second, first], dim=-1) * sin
"""

# %% [markdown]
# Your two classes now go into the real model: into the top 10 layers, in the place of `self_attn`.
# At first nothing changes.

# %%
with torch.no_grad():
    logits_before = model(**tokens).logits

model.requires_grad_(False)
for layer in model.model.layers[20:]:
    layer.self_attn = AdaptationPromptAttentionLayer(
        LlamaAttentionWithQueries(layer.self_attn), num_prompt_tokens=10, emb_dim=576
    )

with torch.no_grad():
    print("gates closed, same logits:", torch.equal(model(**tokens).logits, logits_before))
trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(f"{trainable:,} numbers train: 10 layers of 10 prompts of 576, and 9 gates")

# %% [markdown]
# Then the gates open a little. The library has a second way, `add_adaption_prompts`: it wraps
# nothing and hooks into transformers' attention functions instead (lesson 06). It is other code for
# the same equations. A second source of right answers like this one is called an **oracle**. We
# give it your numbers and compare logits and gradients.

# %%
torch.manual_seed(0)
wrappers = [layer.self_attn for layer in model.model.layers[20:]]
for wrapper in wrappers:
    nn.init.normal_(wrapper.adaption_gate, std=0.1)

twin, _ = load_llama()
add_adaption_prompts(twin, AdaptionPromptConfig(adapter_len=10, adapter_layers=10))
prompts = list(adapter_prompts(twin, "default").values())
with torch.no_grad():
    for prompt, wrapper in zip(prompts, wrappers, strict=True):
        prompt.prompts.copy_(wrapper.prompt_embedding.weight)
        prompt.gate.copy_(wrapper.adaption_gate)

# %%
batch = {key: value[:2] for key, value in tokens.items()}
results = [m.train()(**batch, labels=batch["input_ids"]) for m in (model, twin)]
for result in results:
    result.loss.backward()

largest = results[1].logits.abs().max()
apart = (results[0].logits - results[1].logits).abs().max() / largest
print("logits agree to 1e-5 of the largest:", bool(apart < 1e-5))
pairs = list(zip(wrappers, prompts, strict=True))
gradients = [(w.prompt_embedding.weight.grad, p.prompts.grad) for w, p in pairs]
print(
    "gradients agree to 1e-5:            ",
    all(torch.allclose(a, b, atol=1e-5) for a, b in gradients),
)
print("prompts get gradients:              ", all(a.abs().max() > 0 for a, _ in gradients))

# %% [markdown]
# Last, writing text. `generate` reads one new token at a time and keeps the keys and values of the
# earlier ones in a cache. The cache reaches the attention through `**kwargs`. With and without it,
# the same tokens must come out.

# %%
question = tokenizer("The lights in the kitchen are", return_tensors="pt")
options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
model.eval()
with_cache = model.generate(**question, **options)
without = model.generate(**question, **options, use_cache=False)
print("same tokens with and without the cache:", torch.equal(with_cache, without))

# %% [markdown]
# ## What you have now
#
# - The slide's class, working: on your own attention layer and inside a transformers Llama, with
#   gradients, a cache, and any batch.
# - Three tests that you can carry to any layer you will ever write: causality, batch independence,
#   moving.
# - Four habits: sizes that all differ, open gates, a second way to compute the same, and a test of
#   the test.
#
# **Next, lesson 06: into a real Llama.** Which layers get prompts, how the library attaches them
# without a wrapper, what a file of 0.7 MB holds, and where PEFT agrees with you.
#
# ### To think about
#
# <details><summary>Why would training not have shown that the draft is not causal?</summary>
#
# The loss would have gone down, perhaps even faster: tokens could look at their own answers. Only
# the generated text, where later tokens do not exist yet, would have been bad.
#
# </details>
# <details><summary>Which of the silent bugs would the seven tests find with closed gates?</summary>
#
# The tensor that does not move, the base that is not frozen, and the bare tensor: it comes apart
# along the batch whatever the gates are, so the run with 4 sentences, `is_causal`,
# `is_batch_independent` and the comparison complain. All others are multiplied by zero.
#
# </details>
# <details><summary>The wrapper projects twice. How could once be enough?</summary>
#
# Add the prompts' part before the projection, in head space: o(a + b). For that one must get
# between attention and projection. A wrapper around the whole layer cannot. An attention function
# can, and that is what lesson 06 does.
#
# </details>
