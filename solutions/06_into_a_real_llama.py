# %% [markdown]
# # Lesson 06: Into a real Llama
#
# *90 minutes*
#
# At the end, your prompts live in the top layers of the course's Llama. They learn from a few
# commands, and you keep what they learnt in a small file. The base model never changes.
#
# Shape legend: `b` batch, `s` query position, `t` key position, `p` prompt slot, `h` query head,
# `g` key/value head, `d` head width, `m` model width.
#
# From here on, the library's copies of your functions of lessons 01 to 04 are used. They are
# imported in the next cell. At the end of this lesson you compare them with the running model.

# %% tags=["nbval-ignore-output"]
import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from llama_adapter_edu import (
    AdaptionPrompt,
    add_adaption_prompts,
    gate_openings,
    gated_prompt_attention,
    load_llama,
    prompt_weights,
    save_adapter,
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
from llama_adapter_edu.course.figures import (
    BLUE,
    ORANGE,
    heatmap,
    microscope,
    plot_loss,
    plot_reads,
    prompt_reads,
    use_style,
)
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import encode, encode_prompt
from llama_adapter_edu.method.attention import (
    AttentionLayer,
    apply_rotary,
    causal_attention,
    merge_heads,
    rotary_tables,
    split_heads,
)
from llama_adapter_edu.method.gated_prompts import prompt_keys_values
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

use_style()
llama, tokenizer = load_llama()


def small_llama() -> LlamaForCausalLM:
    """A random Llama of 4 layers for the checks: h=6, g=2, d=4, m=24, v=31."""
    sizes = dict(vocab_size=31, hidden_size=24, intermediate_size=40, num_hidden_layers=4)
    heads = dict(num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


# %% [markdown]
# ## Which layers get prompts
#
# The paper gives prompts to the *topmost* layers only: 30 of LLaMA-7B's 32 (section 4.1). The
# authors' reason: the upper layers work with higher-level meaning (section 3.1). There is a second
# gain. In training, no gradient has to travel below the lowest adapted layer.
#
# In code this is a slice of the list of layers. Slices from the end have a trap. Run this and look
# at the last line.

# %%
layers = ["bottom", "middle", "top"]
for count in (2, 1, 0):
    print(f"layers[-{count}:] is {layers[-count:]}")

# %% [markdown]
# `-0` is `0`, so `layers[-0:]` starts at the bottom: asked for no layers, it gives all. The
# authors' code has this slice, and so has PEFT 0.21, the usual library for adapters. An experiment
# with "no adapter" then measures something else than its label says. A slice on its own is also
# silent when you ask for more layers than there are; PEFT refuses that, and so will you.

# %% [markdown] tags=["card"]
# ### Exercise 6.1 · The topmost layers
#
# *easy ●○○ · 5 minutes*
#
# Return the topmost `count` layers, the lowest of them first. Zero gives no layers. Raise a
# `ValueError` if `count` is negative or there are not that many layers.
#
# <details><summary>Hint 1: direction</summary>
#
# Do not count from the end. Say at which index the slice starts.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Of N layers, the topmost L have the indices N - L to N - 1. For L = 0 the slice starts at N: it is
# empty.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `if not 0 <= count <= _____: raise ValueError(...)`, then `return layers[_____ - count :]`
#
# </details>


# %% tags=["exercise"] assemble=true
def top_layers(layers: Sequence, count: int) -> Sequence:
    """The topmost `count` of the layers, which are listed from the bottom up.

    Raises ValueError if there are not that many.
    """
    ### BEGIN SOLUTION
    if not 0 <= count <= len(layers):
        raise ValueError(f"asked for {count} layers, the model has {len(layers)}")
    return layers[len(layers) - count :]
    ### END SOLUTION


# %% tags=["check"]
@check("6.1", "top_layers", n=[4, 6], count=[2, 3])
def _(n, count):
    names = ["bottom", *(f"layer {number}" for number in range(1, n - 1)), "top"]

    def topmost(count):
        try:
            found = top_layers(names, count)
            assert not hasattr(found, "__next__"), "return a sequence, not a generator"
            return list(found)
        except ValueError:
            raise AssertionError(
                f"{count} of {n} layers are possible: no ValueError then"
            ) from None

    found, right = topmost(count), [names[i] for i in range(n - count, n)]
    assert found != right[::-1], "the lowest of the chosen layers comes first, not the top one"
    assert found == right, f"the topmost {count} of {names} are {right}, got {found}"
    assert topmost(n) == names, f"{n} of {n} layers are all of them"
    none = topmost(0)
    assert none == [], f"0 layers should be an empty list, got {none}: layers[-0:] takes all layers"
    assert topmost(1) == ["top"], "the topmost 1 layer is the top one"
    modules = nn.ModuleList(nn.Linear(1, 1) for _ in names)
    same = list(top_layers(modules, count)) == list(modules)[n - count :]
    assert same, "the layers of a model are an nn.ModuleList, and it fails there"
    for impossible in (n + 1, n + 5, -1, -n):
        try:
            found = top_layers(names, impossible)
        except ValueError:
            continue
        except Exception as error:
            found = f"a {type(error).__name__}"
        raise AssertionError(f"{impossible} of {n} layers gave {found}; raise a ValueError instead")


# %% [raw] tags=["wrong"] says="layers[-0:] takes all layers"
"""
def top_layers(layers, count):
    if not 0 <= count <= len(layers):
        raise ValueError(f"asked for {count} layers, the model has {len(layers)}")
    return layers[-count:]
"""

# %% [raw] tags=["wrong"] says="are ['layer 2', 'top'], got ['bottom', 'layer 1']"
"""
def top_layers(layers, count):
    if not 0 <= count <= len(layers):
        raise ValueError(f"asked for {count} layers, the model has {len(layers)}")
    return layers[:count]
"""

# %% [raw] tags=["wrong"] says="raise a ValueError instead"
"""
def top_layers(layers, count):
    return layers[len(layers) - count :]
"""

# %% [raw] tags=["wrong"] says="the lowest of the chosen layers comes first"
"""
def top_layers(layers, count):
    if not 0 <= count <= len(layers):
        raise ValueError(f"asked for {count} of {len(layers)} layers")
    return layers[::-1][:count]
"""

# %% [raw] tags=["right"]
"""
def top_layers(layers, count):
    if count < 0 or count > len(layers):
        raise ValueError("there are not that many layers")
    return [layer for number, layer in enumerate(layers) if number >= len(layers) - count]
"""

# %% [raw] tags=["right"]
"""
def top_layers(layers, count):
    if count not in range(len(layers) + 1):
        raise ValueError("there are not that many layers")
    return layers[-count:] if count else layers[:0]
"""

# %% [markdown]
# Here is what your function chooses in the course's Llama. It has 30 layers; layer 0 is the one
# above the tokens.

# %%
# alt: Five columns of 30 layers; the topmost 30, 20, 10, 1 and 0 of them are marked.
numbers = list(range(len(llama.model.layers)))
choices = [30, 20, 10, 1, 0]
_, ax = plt.subplots(figsize=(5, 3.6))
for column, count in enumerate(choices):
    chosen = list(top_layers(numbers, count))
    ax.bar([column] * 30, 1, bottom=numbers, width=0.7, color="#EEEEEE", edgecolor="white")
    ax.bar([column] * count, 1, bottom=chosen, width=0.7, color=BLUE, edgecolor="white")
    ax.text(column, 30.3, f"{count} with\nprompts", ha="center", fontsize=9)
ax.set(ylabel="layer", ylim=(0, 34), yticks=[0.5, 9.5, 19.5, 29.5], yticklabels=[0, 9, 19, 29])
ax.set_xticks(range(5), [f"L = {count}" for count in choices])
plt.show()

# %% [markdown]
# ## What trains
#
# Prompts and gate of one layer need a place to live. The library's `AdaptionPrompt` is that place:
# a module with the two parameters and your `gated_prompt_attention` as its forward. Put one onto
# the attention of the top layer, and it becomes a part of the model.

# %%
torch.manual_seed(0)
llama.model.layers[29].self_attn.adaption_prompt = AdaptionPrompt(10, 576, 9)
for name, parameter in llama.named_parameters():
    if "adaption_prompt" in name:
        print(name, tuple(parameter.shape))
sizes = [p.numel() for p in llama.parameters() if p.requires_grad]
print(f"numbers that train: {sum(sizes):,}")

# %% [markdown]
# The module is there, but so far nobody calls it. And all of the 134.5 million numbers would train.
# In LLaMA-Adapter only the new ones do.

# %% [markdown] tags=["card"]
# ### Exercise 6.2 · Freeze the base
#
# *easy ●○○ · 5 minutes*
#
# Change the model in place: the parameters of its `AdaptionPrompt` modules train, all others are
# frozen. Prompts always sit at `self_attn.adaption_prompt`.
#
# <details><summary>Hint 1: direction</summary>
#
# Freeze everything first. Then walk over `model.modules()` and switch the prompts on again.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# A module is frozen by calling its method `requires_grad_(False)`. Without the underscore at the
# end you would only set an attribute that nobody reads.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# model.requires_grad_(_____)
# for module in model.modules():
#     if isinstance(module, _____):
#         _____
# ```
#
# </details>


# %% tags=["exercise"] assemble=true
def freeze_all_but_prompts(model: nn.Module) -> None:
    """Let the model's `AdaptionPrompt` modules train, and nothing else; in place."""
    ### BEGIN SOLUTION
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, AdaptionPrompt):
            module.requires_grad_(True)
    ### END SOLUTION


# %% tags=["check"]
@check("6.2", "freeze_all_but_prompts", layers=[[2, 3], [0]], before=[True, False])
def _(layers, before):
    small = small_llama()
    for number in layers:
        small.model.layers[number].self_attn.adaption_prompt = AdaptionPrompt(7, 24, 6)
    small.requires_grad_(before)
    small.model.norm.train()
    modes = [module.training for module in small.modules()]
    for parameter in small.parameters():
        parameter.grad = torch.ones_like(parameter)
    values = {name: p.detach().clone() for name, p in small.named_parameters()}

    freeze_all_but_prompts(small)
    trains = {name for name, p in small.named_parameters() if p.requires_grad}
    base = sorted(name for name in trains if "adaption_prompt" not in name)
    mlp = bool(base) and all("gate_proj" in name for name in base)
    assert not mlp, f"{base[0]} trains: Llama's MLP has a gate too, and it belongs to the base"
    assert not base, f"{len(base)} parameters of the base still train, as {base[0]}"
    for part in ("prompts", "gate"):
        count = sum(name.endswith(part) for name in trains)
        says = f"{len(layers)} layers have an AdaptionPrompt, but the {part} of {count} train"
        assert count == len(layers), says
    same = modes == [module.training for module in small.modules()]
    assert same, "leave train and eval mode as they are: only requires_grad should change"
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, (
            f"the gradient of {name} is gone, or it is another parameter now: change requires_grad only"
        )
        assert torch.equal(parameter, values[name]), f"the values of {name} have changed"


# %% [raw] tags=["wrong"] says="but the prompts of 0 train"
"""
def freeze_all_but_prompts(model):
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, AdaptionPrompt):
            module.requires_grad = True
"""

# %% [raw] tags=["wrong"] says="parameters of the base still train"
"""
def freeze_all_but_prompts(model):
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Module):
            module.requires_grad_(True)
"""

# %% [raw] tags=["wrong"] says="parameters of the base still train"
"""
def freeze_all_but_prompts(model):
    model.requires_grad = False
    for module in model.modules():
        if isinstance(module, AdaptionPrompt):
            module.requires_grad = True
"""

# %% [raw] tags=["wrong"] says="but the prompts of 0 train"
"""
def freeze_all_but_prompts(model):
    model.requires_grad_(False)
"""

# %% [raw] tags=["wrong"] says="but the gate of 0 train"
"""
def freeze_all_but_prompts(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("prompts"))
"""

# %% [raw] tags=["wrong"] says="Llama's MLP has a gate too"
"""
def freeze_all_but_prompts(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("prompt" in name or "gate" in name)
"""

# %% [raw] tags=["wrong"] says="as model.embed_tokens.weight"
"""
def freeze_all_but_prompts(model):
    for layer in model.model.layers:
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_("adaption_prompt" in name)
    model.model.norm.requires_grad_(False)
"""

# %% [raw] tags=["right"]
"""
def freeze_all_but_prompts(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".adaption_prompt." in name
"""

# %% [raw] tags=["right"]
"""
def freeze_all_but_prompts(model):
    adapters = [module for module in model.modules() if type(module) is AdaptionPrompt]
    ours = {id(parameter) for adapter in adapters for parameter in adapter.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in ours)
"""

# %%
freeze_all_but_prompts(llama)
sizes = [p.numel() for p in llama.parameters() if p.requires_grad]
print(f"numbers that train: {sum(sizes):,} = 10 * 576 + 9")

# %% [markdown]
# ## How the prompts get in
#
# In lesson 05 you wrapped an attention layer. A wrapper stands outside: it needs the rotated
# queries, and a transformers layer does not hand them out. PEFT wraps too, and it computes the
# queries a second time in every adapted layer.
#
# transformers has a door inside. The layer makes queries, keys and values. Then it looks up the
# function that does the attention *by name*. `o_proj` comes after it. So whoever registers a
# function gets exactly what the paper's equations 5 to 8 need.
#
# ![LlamaAttention computes query, key and value, then looks up a function by name in a registry.
# The new entry sdpa_with_prompts calls sdpa for the tokens, adds the gated prompts, and gives heads
# back to o_proj](figures/06_attention_by_name.svg)

# %% [markdown]
# Look through the door first. This spy does what `"sdpa"` does and tells what it was given. Two
# texts of different length go in, so the shorter one is padded.


# %%
def spy(module, query, key, value, attention_mask, **kwargs):
    """What sdpa computes; the bottom layer tells what goes in and out."""
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if module.layer_idx == 0:
        print("query ", tuple(query.shape), " key ", tuple(key.shape))
        print("output", tuple(output.shape), " scaling", kwargs["scaling"])
        print("mask  ", None if attention_mask is None else tuple(attention_mask.shape))
    return output, weights


texts = ["The lights of the kitchen", "The lights"]
two_texts = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
AttentionInterface.register("spy", spy)
llama.set_attn_implementation("spy")
with torch.no_grad():
    llama(**two_texts)

# %% [markdown]
# Queries come as `(b h s d)`, keys as `(b g t d)`. The output is `(b s h d)`: the tokens come before
# the heads. And one thing is missing: the batch has padding, but the **mask is `None`**.
# transformers builds masks by name too, in a second registry. For a name it does not know it builds
# none, and it does not complain. The padding would be read as tokens.

# %%
AttentionMaskInterface.register("spy", sdpa_mask)
with torch.no_grad():
    llama(**two_texts)
llama.set_attn_implementation("sdpa")

# %% [markdown] tags=["card"]
# ### Exercise 6.3 · An attention function with prompts
#
# *hard ●●● · 15 minutes*
#
# Call `sdpa_attention_forward` for the tokens. If the layer has an `adaption_prompt`, add what its
# prompts contribute: keys and values through the layer's own projections, then your
# `gated_prompt_attention`. Prompts use the same scale as the tokens: `kwargs["scaling"]`.
#
# <details><summary>Hint 1: direction</summary>
#
# The spy shows the call. `getattr(module, "adaption_prompt", None)` tells whether the layer has
# prompts. `module.k_proj`, `module.v_proj` and `module.head_dim` are all that `prompt_keys_values`
# needs.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `gated_prompt_attention` returns `(b h s d)`, sdpa returns `(b s h d)`. They cannot be added as
# they are. If `h` and `s` happen to be equal, they can, and the result is wrong.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `added = gated_prompt_attention(query, _____, _____, prompt.gate, scale=_____)`, then
# `return output + rearrange(added, "_____ -> _____"), weights`
#
# </details>


# %% tags=["exercise"]
def sdpa_with_prompts(
    module: nn.Module,
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t d"],
    attention_mask: Tensor | None,
    **kwargs,
) -> tuple[Float[Tensor, "b s h d"], None]:
    """sdpa over the tokens, plus the gated prompts of the layer `module` if it has any (eq. 7, 8).

    `kwargs` is what else the model passes on. sdpa needs all of it; `scaling` is the scale of the
    scores. Returns the heads and what sdpa gave as weights.
    """
    ### BEGIN SOLUTION
    # ~ prompt = getattr(module, "adaption_prompt", None)
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    prompt_key, prompt_value = prompt_keys_values(
        prompt.prompts, module.k_proj, module.v_proj, module.head_dim
    )
    scale = kwargs["scaling"]
    added = gated_prompt_attention(query, prompt_key, prompt_value, prompt.gate, scale=scale)
    return output + rearrange(added, "b h s d -> b s h d"), weights
    ### END SOLUTION


# %% tags=["check"]
@check("6.3", "sdpa_with_prompts", b=[3, 2], s=[5, 6], t=[5, 8], p=[7, 4], scaling=[0.3, 0.7])
def _(b, s, t, p, scaling):
    layer = small_llama().model.layers[0].self_attn
    layer.k_proj, layer.v_proj = nn.Linear(24, 8), nn.Linear(24, 8)  # other Llamas have a bias
    query, key, value = torch.randn(b, 6, s, 4), torch.randn(b, 2, t, 4), torch.randn(b, 2, t, 4)
    mask = torch.ones(s, t).tril(t - s) > 0
    mask = repeat(mask, "s t -> b 1 s t", b=b).clone()
    mask[1, :, 1:, 0] = False  # of the second row, token 0 is hidden from the later ones
    inputs, rest = (layer, query, key, value, mask), {"scaling": scaling}  # it is not 1 / sqrt(d)
    words = sdpa_attention_forward(*inputs, **rest)[0]

    heads, weights = unpacked(sdpa_with_prompts(*inputs, **rest), "the heads", "sdpa's weights")
    mistakes = {
        "hand **kwargs on to sdpa: the model's own scale is lost": (
            sdpa_attention_forward(*inputs)[0]
        ),
        "hand attention_mask on to sdpa: the mask is lost": (
            sdpa_attention_forward(*inputs[:4], None, **rest)[0]
        ),
    }
    assert_close(heads, words, "b s h d", mistakes=mistakes, what="a layer without prompts")
    assert weights is None, "the second result is what sdpa gives as weights: None"
    everyone = {"is_causal": False, **rest}  # without a mask, and tokens see later ones
    heads = sdpa_with_prompts(*inputs[:4], None, **everyone)[0]
    right, lost = (sdpa_attention_forward(*inputs[:4], None, **x)[0] for x in (everyone, rest))
    mistakes = {"hand all of **kwargs on to sdpa: is_causal=False is lost": lost}
    assert_close(heads, right, "b s h d", mistakes=mistakes, what="a layer without prompts")

    prompt = layer.adaption_prompt = AdaptionPrompt(p, 24, 6)

    class Called(nn.Module):
        """The answer with the layer's prompts and gate as inputs of their own."""

        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, query, key, value):
            return sdpa_with_prompts(self.layer, query, key, value, mask, **rest)[0]

    def call(query, key, value, prompts, gate):
        own = {"layer.adaption_prompt.prompts": prompts, "layer.adaption_prompt.gate": gate}
        return torch.func.functional_call(Called(), own, (query, key, value))

    tensors = query, key, value, prompt.prompts, prompt.gate
    assert_gradients(call, *tensors, what="with closed gates", tol=0.002)

    for _ in range(2):  # the second time with other prompts in the same layer
        nn.init.normal_(prompt.gate)
        nn.init.normal_(prompt.prompts)
        prompt_key, prompt_value = (  # each of the 2 key/value heads serves 3 query heads
            repeat(projection(prompt.prompts), "p (g d) -> b (g r) p d", b=b, r=3, d=4)
            for projection in (layer.k_proj, layer.v_proj)
        )

        def added(opening, key=prompt_key, value=prompt_value, scale=scaling):
            attended = scaled_dot_product_attention(query, key, value, scale=scale)
            return rearrange(opening * attended, "b h s d -> b s h d")

        gate = rearrange(prompt.gate, "h -> h 1 1")
        right = added(gate.tanh())
        scrambled = rearrange(right, "b s h d -> b h s d").reshape(words.shape)
        mistakes = {
            "the prompts add nothing: add their part to sdpa's output": words,
            "the gate is missing": words + added(torch.ones(1)),
            "the gate lacks its tanh": words + added(gate),
            "the tanh is applied twice: gated_prompt_attention does it already": (
                words + added(gate.tanh().tanh())
            ),
            "reshape scrambles heads and tokens; rearrange b h s d to b s h d": words + scrambled,
            "the prompts' scores need the scale in kwargs['scaling']": (
                words + added(gate.tanh(), scale=None)
            ),
            "keys and values of the prompts look swapped": (
                words + added(gate.tanh(), prompt_value, prompt_key)
            ),
            "the tokens' part is lost: add the prompts to sdpa's output": right,
            "all rows get the prompts' part of row 0: each has a query of its own": (
                words + right[:1]
            ),
            "the prompts' part is taken away, not added": words - right,
        }
        if s == 6:  # as many tokens as heads
            says = "b h s d was added to b s h d: the sizes are equal here, the axes are not"
            mistakes[says] = words + rearrange(right, "b s h d -> b h s d")
        heads = sdpa_with_prompts(*inputs, **rest)[0]
        what = "a layer with prompts"
        assert_close(heads, words + right, "b s h d", mistakes=mistakes, what=what)
    assert_gradients(call, *tensors, tol=0.002)


# %% [raw] tags=["wrong"] says="reshape scrambles heads and tokens"
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, **kwargs):
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    keys_values = prompt_keys_values(prompt.prompts, module.k_proj, module.v_proj, module.head_dim)
    added = gated_prompt_attention(query, *keys_values, prompt.gate, scale=kwargs["scaling"])
    return output + added.reshape(output.shape), weights
"""

# %% [raw] tags=["wrong"] says="an axis of size 6 meets an axis of size 5"
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, **kwargs):
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    keys_values = prompt_keys_values(prompt.prompts, module.k_proj, module.v_proj, module.head_dim)
    return output + prompt(query, *keys_values, kwargs["scaling"]), weights
"""

# %% [raw] tags=["wrong"] says="need the scale in kwargs['scaling']"
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, **kwargs):
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    keys_values = prompt_keys_values(prompt.prompts, module.k_proj, module.v_proj, module.head_dim)
    added = gated_prompt_attention(query, *keys_values, prompt.gate)
    return output + rearrange(added, "b h s d -> b s h d"), weights
"""

# %% [raw] tags=["wrong"] says="hand **kwargs on to sdpa"
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, **kwargs):
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    keys_values = prompt_keys_values(prompt.prompts, module.k_proj, module.v_proj, module.head_dim)
    added = prompt(query, *keys_values, kwargs["scaling"])
    return output + rearrange(added, "b h s d -> b s h d"), weights
"""

# %% [raw] tags=["wrong"] says="the gate lacks its tanh"
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, **kwargs):
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    keys_values = prompt_keys_values(prompt.prompts, module.k_proj, module.v_proj, module.head_dim)
    same, scale = lambda gate: gate, kwargs["scaling"]
    added = gated_prompt_attention(query, *keys_values, prompt.gate, activation=same, scale=scale)
    return output + rearrange(added, "b h s d -> b s h d"), weights
"""

# %% [raw] tags=["wrong"] says="there is no `.adaption_prompt`"
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, **kwargs):
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = module.adaption_prompt
    keys_values = prompt_keys_values(prompt.prompts, module.k_proj, module.v_proj, module.head_dim)
    added = prompt(query, *keys_values, kwargs["scaling"])
    return output + rearrange(added, "b h s d -> b s h d"), weights
"""

# %% [raw] tags=["right"]
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, **kwargs):
    heads, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if hasattr(module, "adaption_prompt"):
        prompt, d = module.adaption_prompt, module.head_dim
        keys_values = prompt_keys_values(prompt.prompts, module.k_proj, module.v_proj, d)
        heads = heads + prompt(query, *keys_values, kwargs.get("scaling")).transpose(1, 2)
    return heads, weights
"""

# %% [raw] tags=["right"]
"""
def sdpa_with_prompts(module, query, key, value, attention_mask, scaling=None, **kwargs):
    output, weights = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )
    if "adaption_prompt" not in dict(module.named_children()):
        return output, weights
    prompts, gate = module.adaption_prompt.prompts, module.adaption_prompt.gate
    n_repeats = query.shape[1] // key.shape[1]
    keys = module.k_proj(prompts).unflatten(-1, (-1, module.head_dim)).permute(1, 0, 2)
    values = module.v_proj(prompts).unflatten(-1, (-1, module.head_dim)).permute(1, 0, 2)
    keys, values = (x.repeat_interleave(n_repeats, dim=0) for x in (keys, values))
    scores = (query @ keys.mT * scaling).softmax(dim=-1)
    added = gate.tanh()[:, None, None] * (scores @ values)
    return output + added.permute(0, 2, 1, 3), weights
"""

# %% [markdown]
# Now put the pieces together. `AdaptionPrompt` takes the number of prompts, the model's width and
# its number of query heads. The gates start at zero, so attaching must not change a single bit of
# the output. That makes a strong check: also for a padded batch, where a lost mask would show.

# %% [markdown] tags=["card"]
# ### Exercise 6.4 · Attach the prompts
#
# *medium ●●○ · 10 minutes*
#
# Give each of the topmost layers an `AdaptionPrompt` of its own, at `self_attn.adaption_prompt`, on
# the model's device. Freeze the rest. Register `sdpa_with_prompts` in **both** registries under one
# name, and switch the model to it.
#
# <details><summary>Hint 1: direction</summary>
#
# You have all parts: `top_layers`, `freeze_all_but_prompts`, `sdpa_with_prompts`. The cells with
# the spy show how to register and switch. The mask for your function is the one for sdpa:
# `sdpa_mask`.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Prompts are `(p m)`: `adapter_len` by `model.config.hidden_size`. The gate is `(h)`:
# `model.config.num_attention_heads`, not the number of key/value heads. The layers are in
# `model.model.layers`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# for layer in top_layers(_____, adapter_layers):
#     prompt = AdaptionPrompt(adapter_len, _____, _____, device=model.device)
#     layer.self_attn._____ = prompt
# ```
#
# </details>


# %% tags=["exercise"]
def attach(model: LlamaForCausalLM, adapter_layers: int, adapter_len: int = 10) -> None:
    """Add prompts (p m) and gates (h) to the topmost `adapter_layers` layers, in place.

    Only they train afterwards. Their gates are zero: the model computes what it did before. Prompts
    of an earlier call are taken off.
    """
    for layer in model.model.layers:  # prompts of an earlier call would go on training
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    ### BEGIN SOLUTION
    width, n_heads = model.config.hidden_size, model.config.num_attention_heads
    for layer in top_layers(model.model.layers, adapter_layers):
        prompt = AdaptionPrompt(adapter_len, width, n_heads, device=model.device)
        layer.self_attn.adaption_prompt = prompt
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
    model.set_attn_implementation("sdpa_with_prompts")
    ### END SOLUTION


# %% tags=["check"]
@check("6.4", "attach", adapter_layers=[2, 3], adapter_len=[7, 4])
def _(adapter_layers, adapter_len):
    small = small_llama()
    padding = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    inputs = {"input_ids": torch.randint(31, (3, 5)), "attention_mask": padding}
    before = small(**inputs).logits[:, -1]
    # Forget what an earlier run has registered.
    AttentionInterface.register("sdpa_with_prompts", sdpa_attention_forward)
    AttentionMaskInterface.register("sdpa_with_prompts", lambda **kwargs: None)
    attach(small, adapter_layers, adapter_len=adapter_len)

    def prompts_of(model):
        found = [getattr(layer.self_attn, "adaption_prompt", None) for layer in model.model.layers]
        return {number: prompt for number, prompt in enumerate(found) if prompt is not None}

    found, right = prompts_of(small), list(range(4 - adapter_layers, 4))
    says = f"the topmost {adapter_layers} of 4 layers are {right}; prompts sit at {list(found)}"
    assert list(found) == right, says
    different = len({id(prompt) for prompt in found.values()}) == adapter_layers
    assert different, "the layers share one AdaptionPrompt; make one for each layer"
    for prompt in found.values():
        assert_shape(prompt.prompts, "p m", p=adapter_len, m=24)
        assert len(prompt.gate) != 2, "make one gate for each query head, not each key/value head"
        assert_shape(prompt.gate, "h", h=6)
        assert not prompt.gate.any(), "the gates should start at zero: leave them as they are made"
        said = (
            "the prompts train, but their gate does not: both are parameters, and both must train"
        )
        assert prompt.gate.requires_grad or not prompt.prompts.requires_grad, said
        trains = all(p.requires_grad for p in prompt.parameters())
        assert trains, "the new prompts do not train: freeze after they are in the model"
    frozen = [p.requires_grad for name, p in small.named_parameters() if "adaption" not in name]
    assert not any(frozen), "the base still trains: call freeze_all_but_prompts"

    closed = small(**inputs).logits[:, -1]
    said = "the gates are zero, yet a padded batch gives other logits: register the mask as well, in each call"
    assert torch.equal(closed, before), said
    for prompt in found.values():
        nn.init.ones_(prompt.gate)
    changed = not torch.equal(small(**inputs).logits[:, -1], before)
    said = "open gates change nothing: is the model switched to your function, and that registered?"
    assert changed, said

    with torch.device("meta"):
        away = small_llama()
    attach(away, 1)
    (prompt,) = prompts_of(away).values()
    assert not small.training, "the model was in eval mode: leave its mode as it is"
    attach(small, 1)
    left = list(prompts_of(small))
    assert left == [3], f"attached again with 1 layer, prompts of layers {left} are there and train"
    attach(small, 0)
    left = list(prompts_of(small))
    assert not left, f"attached with 0 layers, layers {left} have prompts: use your top_layers"
    none = small_llama()
    attach(none, 0)
    said = "with 0 layers nothing trains: freeze the base then, too"
    assert not any(p.requires_grad for p in none.parameters()), said
    assert prompt.prompts.is_meta, "the prompts should be on the model's device: device=..."
    says = f"without adapter_len there are 10 prompts, not {len(prompt.prompts)}"
    assert len(prompt.prompts) == 10, says


# %% [raw] tags=["wrong"] says="register the mask as well"
"""
def attach(model, adapter_layers, adapter_len=10):
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    config = model.config
    for layer in top_layers(model.model.layers, adapter_layers):
        layer.self_attn.adaption_prompt = AdaptionPrompt(
            adapter_len, config.hidden_size, config.num_attention_heads
        )
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    model.set_attn_implementation("sdpa_with_prompts")
"""

# %% [raw] tags=["wrong"] says="is the model switched"
"""
def attach(model, adapter_layers, adapter_len=10):
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    config = model.config
    for layer in top_layers(model.model.layers, adapter_layers):
        layer.self_attn.adaption_prompt = AdaptionPrompt(
            adapter_len, config.hidden_size, config.num_attention_heads
        )
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
"""

# %% [raw] tags=["wrong"] says="share one AdaptionPrompt"
"""
def attach(model, adapter_layers, adapter_len=10):
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    prompt = AdaptionPrompt(
        adapter_len, model.config.hidden_size, model.config.num_attention_heads
    )
    for layer in top_layers(model.model.layers, adapter_layers):
        layer.self_attn.adaption_prompt = prompt
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
    model.set_attn_implementation("sdpa_with_prompts")
"""

# %% [raw] tags=["wrong"] says="freeze after they are in the model"
"""
def attach(model, adapter_layers, adapter_len=10):
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    for layer in top_layers(model.model.layers, adapter_layers):
        layer.self_attn.adaption_prompt = AdaptionPrompt(
            adapter_len, model.config.hidden_size, model.config.num_attention_heads
        )
    model.requires_grad_(False)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
    model.set_attn_implementation("sdpa_with_prompts")
"""

# %% [raw] tags=["wrong"] says="one gate for each query head"
"""
def attach(model, adapter_layers, adapter_len=10):
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    for layer in top_layers(model.model.layers, adapter_layers):
        layer.self_attn.adaption_prompt = AdaptionPrompt(
            adapter_len, model.config.hidden_size, model.config.num_key_value_heads
        )
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
    model.set_attn_implementation("sdpa_with_prompts")
"""

# %% [raw] tags=["wrong"] says="attached again with 1 layer"
"""
def attach(model, adapter_layers, adapter_len=10):
    config = model.config
    for layer in top_layers(model.model.layers, adapter_layers):
        layer.self_attn.adaption_prompt = AdaptionPrompt(
            adapter_len, config.hidden_size, config.num_attention_heads, device=model.device
        )
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
    model.set_attn_implementation("sdpa_with_prompts")
"""

# %% [raw] tags=["right"]
"""
def attach(model, adapter_layers, adapter_len=10):
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    name = "my_attention"
    AttentionInterface.register(name, sdpa_with_prompts)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    sizes = (adapter_len, model.config.hidden_size, model.config.num_attention_heads)
    for layer in top_layers(list(model.model.layers), adapter_layers):
        layer.self_attn.add_module("adaption_prompt", AdaptionPrompt(*sizes).to(model.device))
    freeze_all_but_prompts(model)
"""

# %% [raw] tags=["right"]
"""
def attach(model, adapter_layers, adapter_len=10):
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
    for parameter in model.parameters():
        parameter.requires_grad = False
    for attention in [layer.self_attn for layer in top_layers(model.model.layers, adapter_layers)]:
        weight = attention.q_proj.weight
        n_heads = weight.shape[0] // attention.head_dim
        attention.adaption_prompt = AdaptionPrompt(
            adapter_len, weight.shape[1], n_heads, device=weight.device
        )
    for registry, function in (
        (AttentionInterface, sdpa_with_prompts),
        (AttentionMaskInterface, sdpa_mask),
    ):
        registry.register("sdpa_with_prompts", function)
    model.set_attn_implementation("sdpa_with_prompts")
"""

# %% [markdown]
# Now the real model: all 30 layers, 10 prompts each. Four commands for a home go through it before
# and after. Then one gate in the middle is opened a little.
#
# The registry keeps the function itself. If you change `sdpa_with_prompts` later, attach again.

# %%
unseen = [encode(row, tokenizer) for row in home_commands("test", 4)]
unseen = collate(unseen, tokenizer.pad_token_id)
torch.manual_seed(0)
with torch.no_grad():
    bare = llama(**unseen)
    attach(llama, 30)
    print("zero gates, same logits:", torch.equal(llama(**unseen).logits, bare.logits))
    llama.model.layers[15].self_attn.adaption_prompt.gate[0] = 0.1
    print("one open gate, same logits:", torch.equal(llama(**unseen).logits, bare.logits))
    llama.model.layers[15].self_attn.adaption_prompt.gate[0] = 0.0

# %% [markdown]
# ## How many numbers
#
# The paper says 1.2 million for LLaMA-7B (Table 1; Table 3 in arXiv v1). You can predict the exact
# number. L = 30 layers each have K = 10 prompts of the model's width, 4096, and one gate for each
# of 32 heads.

# %%
print(f"{30 * (10 * 4096 + 32):,}")

# %% [markdown] tags=["card"]
# ### Exercise 6.5 · Count parameters
#
# *easy ●○○ · 5 minutes*
#
# Return two counts: how many numbers train, and how many there are in all. Many Llamas use one
# matrix both to read tokens and to predict them. It counts once.
#
# <details><summary>Hint 1: direction</summary>
#
# `model.parameters()` lists each parameter once, also a shared one. `state_dict()` lists it under
# both of its names.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# A parameter of shape `(p m)` holds p times m numbers: `numel()`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `sizes = [(p._____(), p._____) for p in model.parameters()]`, then two sums
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.adapters.inspect"
def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers train, and how many there are in all (shared weights count once)."""
    ### BEGIN SOLUTION
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
    ### END SOLUTION


# %% tags=["check"]
@check("6.5", "count_parameters", adapter_layers=[2, 1], adapter_len=[7, 5], norm_trains=[0, 1])
def _(adapter_layers, adapter_len, norm_trains):
    small = small_llama()
    attach(small, adapter_layers, adapter_len=adapter_len)
    small.model.norm.requires_grad_(bool(norm_trains))
    adapter = adapter_layers * (adapter_len * 24 + 6)
    attention, mlp, norms = 24 * (24 + 8 + 8 + 24), 3 * 24 * 40, 2 * 24
    words = 31 * 24  # one matrix at both ends
    total = words + 4 * (attention + mlp + norms) + 24 + adapter
    trains = adapter + 24 * norm_trains

    grads = [p.requires_grad for p in small.parameters()]
    result = count_parameters(small)
    said = "what trains has changed: count, and leave the model as it is"
    assert [p.requires_grad for p in small.parameters()] == grads, said
    tensors = 2 * adapter_layers + norm_trains, 1 + 4 * 9 + 1 + 2 * adapter_layers
    mistakes = {
        "that is the number of tensors; count the numbers in them": tensors,
        "everything is counted: only parameters with requires_grad train": (total, None),
        "these are bytes: count the numbers": (4 * trains, None),
        "these are the lengths of the first axes: count all numbers, with numel()": (
            sum(len(p) for p in small.parameters() if p.requires_grad),
            None,
        ),
        "parameters of equal size count once here: add up a list, not a set": (
            sum({p.numel() for p in small.parameters() if p.requires_grad}),
            None,
        ),
        "all is 0: a first loop has used up model.parameters(), call it again": (None, 0),
        "nothing trains: tensors of state_dict have no gradient, ask the parameters": (0, None),
        "these are the prompts and gates; another parameter trains, too": (adapter, None),
        "that is the base, which does not train": (total - trains, None),
        "the token matrix is counted twice: it is one, with two names": (None, total + words),
        "that is the base alone; the prompts are a part of the model too": (None, total - trains),
        "that is what trains; all are asked for": (None, trains),
    }
    assert_results(result, {"what trains": trains, "all": total}, mistakes=mistakes)
    with torch.device("meta"):
        away = small_llama()
        away.lm_head.weight = nn.Parameter(torch.empty(31, 24))  # now it has a matrix at each end
    n_away = total - adapter + words
    expected, what = {"what trains": n_away, "all": n_away}, "with two matrices, on the meta device"
    assert_results(count_parameters(away), expected, what=what)


# %% [raw] tags=["wrong"] says="the token matrix is counted twice"
"""
def count_parameters(model):
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(tensor.numel() for tensor in model.state_dict().values())
"""

# %% [raw] tags=["wrong"] says="that is the number of tensors"
"""
def count_parameters(model):
    parameters = list(model.parameters())
    return len([p for p in parameters if p.requires_grad]), len(parameters)
"""

# %% [raw] tags=["wrong"] says="what trains and all look swapped"
"""
def count_parameters(model):
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
"""

# %% [raw] tags=["wrong"] says="that is the base alone"
"""
def count_parameters(model):
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return trainable, sum(p.numel() for p in parameters if not p.requires_grad)
"""

# %% [raw] tags=["right"]
"""
def count_parameters(model):
    trainable = total = 0
    for parameter in model.parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trainable += parameter.numel()
    return trainable, total
"""

# %% [raw] tags=["right"]
"""
def count_parameters(model):
    once = {id(p): p for _, p in model.named_parameters(remove_duplicate=False)}.values()
    return sum(p.numel() * p.requires_grad for p in once), sum(p.nelement() for p in once)
"""

# %% [markdown]
# LLaMA-7B has 13 GB of weights. You need none of them to count. On PyTorch's `meta` device, tensors
# have a shape and no content. So this builds the whole model in a moment, with your `attach`.

# %%
with torch.device("meta"):
    shape = dict(hidden_size=4096, intermediate_size=11008, vocab_size=32000)
    llama_7b = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, num_attention_heads=32, **shape))
attach(llama_7b, adapter_layers=30, adapter_len=10)
for name, model in {"LLaMA-7B": llama_7b, "the course's Llama": llama}.items():
    trainable, total = count_parameters(model)
    print(f"{name}: {trainable:,} of {total:,} train ({trainable / total:.3%})")

# %% [markdown]
# 1,229,760: the prediction holds. PEFT has one gate for a layer, not one for each of 32 heads: it
# trains 30 · 31 = 930 numbers less.
#
# ## A few steps
#
# Does it learn? The task: turn a command for a home into JSON. Lesson 07 looks at these data, and
# lesson 11 does the full training. Eight steps of four commands are enough to see the loss fall. The
# curve shows the commands it learns from. Before and after, four others are asked, with rooms and
# phrasings that never occur in training.

# %%
row = home_commands("test", 1)[0]
print(row["instruction"], "->", row["output"])

# %% tags=["nbval-ignore-output"]
of_gates = predict(
    "After 8 steps, which gates have opened further?",
    options=["those of the upper 15 layers", "those of the lower 15 layers"],
    mine=...,
)

# %%
rows = [encode(row, tokenizer) for row in home_commands("train", 32)]
batches = [collate(rows[i : i + 4], tokenizer.pad_token_id) for i in range(0, 32, 4)]
optimizer = torch.optim.AdamW([p for p in llama.parameters() if p.requires_grad], lr=3e-2)
losses = []
for batch in batches:
    loss = llama(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

with torch.no_grad():
    after = llama(**unseen)
print(f"loss on unseen commands before: {bare.loss:.2f}")
print("after 8 steps it is below 1:", bool(after.loss < 1))

# %%
# alt: Left, the loss falls from 2.5 to about 0.5 in 8 steps, after a rise at the second. Right, a bar for each layer: all gates opened a little, those of the upper layers further than those of the lower ones.
openings = [layer.self_attn.adaption_prompt.gate_opening for layer in llama.model.layers]
openings = torch.stack(openings).detach().abs().numpy()  # layer, head
_, (left, right) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=[2, 3])
plot_loss(left, losses)
right.bar(range(30), openings.mean(axis=1), color=BLUE, label="mean of the layer")
right.plot(openings, ".", color=ORANGE, markersize=3)
right.plot([], [], ".", color=ORANGE, label="one head")
right.set(xlabel="layer", ylabel="gate opening, |tanh(g)|", ylim=(0, 1.25 * openings.max()))
right.legend(frameon=False, ncols=2, loc="upper left")
plt.show()

# %% tags=["nbval-ignore-output"]
lower, upper = openings[:15].mean(), openings[15:].mean()
of_gates.compare(f"those of the {'upper' if upper > lower else 'lower'} 15 layers")

# %% [markdown]
# All gates left zero, and the upper layers' gates went further, on average. What does the model
# answer now? It has seen 32 commands, each of them once.

# %% tags=["nbval-ignore-output"]
question = torch.tensor([encode_prompt(tokenizer, row["instruction"])])
greedy = dict(do_sample=False, attention_mask=torch.ones_like(question))
for name, implementation in {"before": "sdpa", "after": "sdpa_with_prompts"}.items():
    llama.set_attn_implementation(implementation)
    answer = llama.generate(question, max_new_tokens=24, **greedy)[0, question.shape[1] :]
    print(f"{name}: {tokenizer.decode(answer, skip_special_tokens=True)!r}")

# %% [markdown]
# It has learnt the form, and not yet all of the content. "Before" needed no second model: one name
# in the config switches the prompts off.
#
# `generate` gives the model one new token at a time and keeps the keys and values of the earlier
# ones. That cache is the model's own business. Prompts do not pass through it, so it must not
# matter.

# %%
short = dict(max_new_tokens=6, **greedy)
cached = llama.generate(question, use_cache=True, **short)
recomputed = llama.generate(question, use_cache=False, **short)
print("same tokens with and without cache:", torch.equal(cached, recomputed))

# %% [markdown]
# ## Keep only the adapter
#
# The base is on everybody's disk already. What you share is the adapter. `state_dict()` would write
# all of it. You want the prompts and gates, and nothing else.
#
# Loading has a silent failure: `load_state_dict(..., strict=False)` accepts a file that holds only
# some of the names, or none. You would go on with random prompts.

# %% [markdown] tags=["card"]
# ### Exercise 6.6 · Save and load the prompts
#
# *medium ●●○ · 10 minutes*
#
# Write the prompts and gates, under their full names, to a safetensors file. Read such a file back
# into a model that has prompts attached, without replacing its parameters. Refuse a file whose
# names or shapes are not the model's with a `ValueError` or `RuntimeError`.
#
# <details><summary>Hint 1: direction</summary>
#
# `model.named_parameters()` gives names and parameters; those with `".adaption_prompt."` in the
# name are yours. `load_state_dict` copies into the parameters that are there.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `load_state_dict` compares shapes, also with `strict=False`. `parameter.copy_(tensor)` does not:
# it spreads a file with one prompt, `(1 m)`, over all `p`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# expected = {name for name, _ in model._____() if ".adaption_prompt." in name}
# if set(_____) != expected:
#     raise ValueError(...)
# model.load_state_dict(_____, strict=_____)
# ```
#
# </details>


# %% tags=["exercise"]
def save_prompts(model: nn.Module, path: Path) -> None:
    """Write the model's prompts (p m) and gates (h), and nothing of the base."""
    ### BEGIN SOLUTION
    parameters = model.named_parameters()
    save_file({name: p.detach() for name, p in parameters if ".adaption_prompt." in name}, path)
    ### END SOLUTION


def load_prompts(model: nn.Module, path: Path) -> None:
    """Read what `save_prompts` wrote into the model's own prompts, in place.

    Raises ValueError or RuntimeError if names or shapes are not those of the model.
    """
    ### BEGIN SOLUTION
    tensors = load_file(path)
    expected = {name for name, _ in model.named_parameters() if ".adaption_prompt." in name}
    if different := sorted(expected ^ set(tensors)):
        raise ValueError(
            f"{path.name} is not for this model: {different[0]} is only in one of them"
        )
    model.load_state_dict(tensors, strict=False)
    ### END SOLUTION


# %% tags=["check"]
@check("6.6", "save_prompts", "load_prompts", adapter_layers=[2, 3], adapter_len=[7, 5])
def _(adapter_layers, adapter_len):
    def attached(adapter_layers, adapter_len):
        model = small_llama()
        attach(model, adapter_layers, adapter_len)
        for layer in model.model.layers[4 - adapter_layers :]:
            nn.init.normal_(layer.self_attn.adaption_prompt.gate)
        return model

    def own(model):
        return {n: p for n, p in model.named_parameters() if "adaption_prompt" in n}

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        # What is in the file: two models, two files.
        files = {
            Path(name, f"{i}.safetensors"): attached(adapter_layers, adapter_len) for i in "ab"
        }
        for path, model in files.items():
            save_prompts(model, path)
            assert path.is_file(), f"there is no file {path.name}: write to the path that is given"
        for path, model in files.items():
            try:
                saved = load_file(path)
            except Exception:
                raise AssertionError(
                    "this is no safetensors file: write it with save_file"
                ) from None
            known = dict(model.named_parameters())
            base = [key for key in saved if key in known and "adaption_prompt" not in key]
            assert not base, f"the file holds {len(base)} tensors of the base, as {base[0]}"
            unknown = sorted(saved.keys() - own(model).keys())
            assert not unknown, f"{unknown[0]} in the file is not the full name of a parameter"
            missing = sorted(own(model).keys() - saved.keys())
            count = f"{len(missing)} of {len(own(model))}"
            assert not missing, f"the file lacks {count} tensors, as {missing[0]}"
            for key, tensor in own(model).items():
                assert_close(saved[key], tensor.detach(), what=key)

        # Back again, into models that are there.
        for path, model in files.items():
            fresh = attached(adapter_layers, adapter_len)
            before = dict(fresh.named_parameters())
            old = {key: p.detach().clone() for key, p in before.items()}
            try:
                load_prompts(fresh, path)
            except NotImplementedError:
                raise
            except (ValueError, RuntimeError) as error:
                says = f"the file of a model of the same form is refused: {str(error)[:120]}"
                raise AssertionError(says) from None
            for key, parameter in fresh.named_parameters():
                said = "was replaced by another object: an optimizer would go on with the old one"
                assert parameter is before[key], f"{key} {said}"
                if key in own(model):
                    said = "is as it was before loading: write into the model's own parameters"
                    assert not torch.equal(parameter, old[key]), f"{key} {said}"
                    assert_close(parameter, own(model)[key], what=f"{key} after loading")
                    assert parameter.requires_grad, f"{key} does not train any more after loading"

        # Files of other models.
        path, tensors = next(iter(files)), {k: p.detach() for k, p in own(model).items()}
        first, count = next(iter(tensors)), f"{adapter_layers} layers of {adapter_len} prompts"
        wrong_files = {
            "3 layers" if adapter_layers == 2 else "2 layers": own(
                attached(5 - adapter_layers, adapter_len)
            ),
            "1 prompt in each layer": own(attached(adapter_layers, 1)),
            "prompts in one long row": {k: x.flatten() for k, x in tensors.items()},
            "nothing in it": {},
            "one tensor too few": {k: x for k, x in tensors.items() if k != first},
            "one unknown name": {k.replace(first, "other"): x for k, x in tensors.items()},
        }
        for words, content in wrong_files.items():
            save_file({k: x.detach() for k, x in content.items()}, path)
            try:
                load_prompts(fresh, path)
            except (ValueError, RuntimeError):
                continue
            except Exception as error:
                kind = type(error).__name__
                says = f"a file with {words} ends in a {kind}: raise a ValueError before that"
                raise AssertionError(says) from None
            raise AssertionError(f"a file with {words} was read into {count}, silently")


# %% [raw] tags=["wrong"] says="tensors of the base"
"""
def save_prompts(model, path):
    save_file({name: p.detach().clone() for name, p in model.state_dict().items()}, path)


def load_prompts(model, path):
    model.load_state_dict(load_file(path))
"""

# %% [raw] tags=["wrong"] says="a file with 3 layers was read"
"""
def save_prompts(model, path):
    save_file({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, path)


def load_prompts(model, path):
    model.load_state_dict(load_file(path), strict=False)
"""

# %% [raw] tags=["wrong"] says="a file with 1 prompt in each layer was read"
"""
def save_prompts(model, path):
    save_file({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, path)


def load_prompts(model, path):
    tensors = load_file(path)
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != tensors.keys():
        raise ValueError("this file is for another model")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
"""

# %% [raw] tags=["wrong"] says="the file lacks 2 of 4 tensors"
"""
def save_prompts(model, path):
    save_file({n: p.detach() for n, p in model.named_parameters() if n.endswith("prompts")}, path)


def load_prompts(model, path):
    model.load_state_dict(load_file(path), strict=False)
"""

# %% [raw] tags=["wrong"] says="was replaced by another object"
"""
def save_prompts(model, path):
    save_file({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, path)


def load_prompts(model, path):
    for name, tensor in load_file(path).items():
        module = model.get_submodule(name.rpartition(".")[0])
        setattr(module, name.rpartition(".")[2], nn.Parameter(tensor))
"""

# %% [raw] tags=["right"]
"""
def save_prompts(model, path):
    save_file({name: p.data for name, p in model.named_parameters() if p.requires_grad}, path)


def load_prompts(model, path):
    tensors = load_file(path)
    problems = model.load_state_dict(tensors, strict=False)
    lost = [name for name in problems.missing_keys if "adaption_prompt" in name]
    if lost or problems.unexpected_keys:
        raise ValueError(f"does not fit: {lost} {problems.unexpected_keys}")
"""

# %% [raw] tags=["right"]
"""
def prompts_of(model):
    return {
        f"{name}.{part}": tensor
        for name, module in model.named_modules()
        if isinstance(module, AdaptionPrompt)
        for part, tensor in module.named_parameters()
    }


def save_prompts(model, path):
    save_file({name: p.detach().clone() for name, p in prompts_of(model).items()}, path)


def load_prompts(model, path):
    tensors, own = load_file(path), prompts_of(model)
    shapes = [{name: t.shape for name, t in found.items()} for found in (tensors, own)]
    if shapes[0] != shapes[1]:
        raise ValueError("this file does not fit the model")
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])
"""

# %% [markdown]
# Save what eight steps have taught. Then make the model forget: new random prompts, gates at zero.
# Loading brings the same logits back.

# %% tags=["nbval-ignore-output"]
of_file = predict(
    "173,070 numbers in float32, in a file. How many MB? (The base has 538.)", mine=...
)

# %%
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
my_file = Path(folder.name, "prompts.safetensors")
save_prompts(llama, my_file)
print(f"the adapter's file: {my_file.stat().st_size / 1e6:.1f} MB")
trainable, total = count_parameters(llama)
print(f"the base, in float32: {4 * (total - trainable) / 1e6:.0f} MB")

attach(llama, 30)
with torch.no_grad():
    print("forgotten, as the bare model:", torch.equal(llama(**unseen).logits, bare.logits))
    load_prompts(llama, my_file)
    print("loaded, as after training:", torch.equal(llama(**unseen).logits, after.logits))

# %% tags=["nbval-ignore-output"]
of_file.compare(round(my_file.stat().st_size / 1e6, 1))

# %% [markdown]
# ## What you wrote is the library
#
# A second copy of the Llama, this time with the library's `add_adaption_prompts`. It gets your
# trained prompts. Then its own `save_adapter` writes them.

# %%
adapted, _ = load_llama()
add_adaption_prompts(adapted)
with torch.no_grad():
    for number, prompt in adapter_prompts(adapted, "default").items():
        mine = llama.model.layers[number].self_attn.adaption_prompt
        prompt.load_state_dict(mine.state_dict())
    difference = (adapted(**unseen).logits - after.logits).abs().max() / after.logits.abs().max()
print("the same logits, up to rounding:", bool(difference < 1e-5))

saved = save_adapter(adapted, Path(folder.name, "adapter"))
print("the library's files:", *sorted(file.name for file in saved.iterdir()))
mine, theirs = load_file(my_file), load_file(saved / "adapter_model.safetensors")
yours = "model.layers.{}.self_attn.adaption_prompt.{}"  # the library's name is layers.29.gate
same = [torch.equal(mine[yours.format(*key.split(".")[1:])], theirs[key]) for key in theirs]
print(f"{len(mine)} tensors in your file, {len(theirs)} in the library's; {sum(same)} are equal")

# %% [markdown]
# The same numbers. What the library adds is care: other models than Llama, 16-bit bases, several
# adapters side by side, prompt keys kept while text is generated, and a settings file beside the
# weights, which says what shape of base the adapter needs.
#
# One more comparison, with the functions you wrote in lessons 01 to 04. Take what goes into the top
# layer's attention and what comes out. Then compute the second from the first by hand, lesson by
# lesson. If it agrees, your functions are what runs inside the adapted Llama.

# %%
seen = {}


def keep(module, args, kwargs, output):
    """Remember what goes into an attention layer and what comes out."""
    seen.update(hidden=kwargs["hidden_states"], output=output[0])


attention = adapted.model.layers[29].self_attn
hook = attention.register_forward_hook(keep, with_kwargs=True)
with torch.no_grad():
    adapted(unseen["input_ids"])
hook.remove()

# %%
prompt, hidden = attention.adaption_prompts["default"], seen["hidden"]
head_dim, theta = attention.head_dim, AttentionLayer.from_llama(attention).theta
with torch.no_grad():
    query = split_heads(attention.q_proj(hidden), head_dim)  # lesson 01
    key = split_heads(attention.k_proj(hidden), head_dim)
    value = split_heads(attention.v_proj(hidden), head_dim)

    position = rearrange(torch.arange(hidden.shape[1]), "s -> 1 s")  # lesson 02
    cos, sin = rotary_tables(position, head_dim, theta)
    query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
    heads = causal_attention(query, key, value)

    projections = attention.k_proj, attention.v_proj  # lesson 03
    prompt_key, prompt_value = prompt_keys_values(prompt.prompts, *projections, head_dim)

    added = gated_prompt_attention(query, prompt_key, prompt_value, prompt.gate)  # lesson 04
    output = attention.o_proj(merge_heads(heads + added))
difference = (output - seen["output"]).abs().max() / seen["output"].abs().max()
print("by hand, as in the running model:", bool(difference < 1e-4))

# %% [markdown]
# ## The same numbers as PEFT
#
# PEFT computes something close to yours: one gate for a whole layer, without tanh. Your layer can
# play that: give all heads of a layer the same gate, atanh(c) where PEFT has c. The next cell does
# it, with the same prompts in both. If PEFT is not installed (`pip install peft`), it only says so;
# the output you see here is stored.

# %% tags=["nbval-skip"]
has_peft = importlib.util.find_spec("peft") is not None
if not has_peft:
    print("PEFT is not installed, so nothing was compared.")
else:
    import peft

    other, _ = load_llama()
    settings = dict(adapter_len=10, adapter_layers=30, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(other, peft.AdaptionPromptConfig(**settings))  # changes it in place
    with torch.no_grad():
        for number, layer in enumerate(llama.model.layers):
            mine, theirs = layer.self_attn.adaption_prompt, other.model.layers[number].self_attn
            opening = torch.tensor(0.005 + 0.0005 * number)
            theirs.adaption_prompt.copy_(mine.prompts)
            theirs.adaption_gate.fill_(opening)
            mine.gate.fill_(opening.atanh())
        mine, theirs = llama(**unseen).logits, other(**unseen).logits
        load_prompts(llama, my_file)
    print(f"open gates move the logits by up to {(mine - bare.logits).abs().max():.2g}")
    difference = (mine - theirs).abs().max()
    assert difference < 1e-5 * theirs.abs().max()
    print(f"you and PEFT differ by up to {difference:.0e}; the largest logit is {theirs.max():.0f}")

# %% [markdown]
# ## Where PEFT is wrong
#
# PEFT wraps the layer, so the prompts' part passes through `o_proj` on its own: o(a) + o(b). You
# add inside: o(a + b). In lesson 05 the two were the same, because the course's Llama has no bias
# there. With a bias they are not. Take a closed gate: the prompts add zero, and outside that
# gives o(a) + o(0). But o(0) is the bias, so it counts twice, in every adapted layer. Llamas with
# `attention_bias=True` have such biases. The next cell gives the course's Llama small random ones
# and asks both adapters, with all gates at zero, for their very first output. It should be that of
# the bare model.

# %% tags=["nbval-skip"]
biased, _ = load_llama()
torch.manual_seed(0)
for layer in biased.model.layers:
    layer.self_attn.o_proj.bias = nn.Parameter(0.01 * torch.randn(576))
with torch.no_grad():
    expected = biased(**unseen).logits
    attach(biased, 30)
    mine = biased(**unseen).logits
    assert torch.equal(mine, expected)
    print("your gates at zero: the bare model's logits, bit for bit")
    if has_peft:
        biased.set_attn_implementation("sdpa")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.get_peft_model(biased, peft.AdaptionPromptConfig(**settings))
        theirs = biased(**unseen).logits
        assert not torch.allclose(theirs, expected, atol=0.1)
        print(f"PEFT's gates at zero: logits off by up to {(theirs - expected).abs().max():.2g}")
        wrong = (theirs.argmax(dim=-1) != expected.argmax(dim=-1)).float().mean()
        print(f"PEFT predicts another next token in {wrong:.0%} of the places")

# %% [markdown]
# ## Looking inside
#
# You can ask the model what its heads do with the prompts. `prompt_weights` runs it once and
# returns each layer's softmax over the prompts, before the gate: `(b h s p)`. The test command from
# above goes in. Ten prompts: if a head did not care, each would get 0.1.

# %% tags=["nbval-ignore-output"]
of_weights = predict(
    "The largest of the ten weights, on average over layers, heads and tokens",
    options=["below 0.3", "0.3 to 0.7", "above 0.7"],
    mine=...,
)

# %%
weights = prompt_weights(adapted, question)
print("layers:", len(weights), " b h s p:", tuple(weights[29].shape))
sums = torch.stack([layer.sum(dim=-1) for layer in weights.values()])
print("they sum to 1:", torch.allclose(sums, torch.ones_like(sums)))
largest = torch.stack([layer.amax(dim=-1) for layer in weights.values()])
print("the largest of ten is on average above 0.7:", bool(largest.mean() > 0.7))

# %% tags=["nbval-ignore-output"]
mean = largest.mean()
of_weights.compare("above 0.7" if mean > 0.7 else "0.3 to 0.7" if mean > 0.3 else "below 0.3")

# %%
# alt: Weights of the prompts in the top layer. Left, averaged over the tokens: each head has its favourites, a few of the ten prompts get most of its weight. Right, one head: from the command's first token to its last, prompt 8 gets nearly all the weight; at the chat's marks, prompts 1 and 6 get more.
prompt = adapter_prompts(adapted, "default")[29]
widest = int(prompt.gate_opening.abs().argmax())
by_head = weights[29][0].mean(dim=1)
by_word = weights[29][0, widest, -16:]
favourites = by_head.topk(3, dim=1).values.sum(dim=1)
print("three of ten prompts get more than half of each head:", bool(favourites.min() > 0.5))
_, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), width_ratios=[1, 1])
slots = range(10)
heatmap(left, by_head, rows="head", columns="prompt", vmin=0, vmax=1, title="mean over the tokens")
left.set(xticks=slots, yticks=range(9))
names = [repr(tokenizer.decode(token)) for token in question[0, -16:]]
heatmap(right, by_word, row_labels=names, columns="prompt", vmin=0, vmax=1, title=f"head {widest}")
right.set(xticks=slots)
right.figure.colorbar(right.images[0], ax=right, label="weight")
plt.show()

# %% [markdown]
# Each head of the left picture has its favourites: three of the ten prompts get more than half of
# its weight. On the right, one head stays with one prompt through the whole command, and reads
# others at the marks of the chat around it. That is what the query does: the same prompts, read
# differently from different places.
#
# One reason for such sharp choices is the start. Prompts are drawn with standard deviation 1. Are
# tokens of that size, when they meet the same projections?

# %%
sizes = {"tokens": hidden, "prompts": prompt.prompts.detach()}
for name, x in sizes.items():
    print(f"{name}: typical entry {x.square().mean().sqrt():.1f}")

# %% [markdown]
# Tokens reach the projections normed, at less than half the prompts' size. So the prompts' scores
# are larger and their softmax is sharper. The authors' code starts this way too. In the library the
# start is a setting: `init_std`.
#
# ## Under the microscope
#
# The weights above are those before the gate. What a head adds of a prompt's value is its weight
# times the opening of the gate. Call that a **read**. `prompt_reads` gives all of them: `(l h s p)`,
# with `l` for the layers.

# %% tags=["nbval-ignore-output"]
of_reads = predict(
    "Add up the sizes of all reads of one token. Which token reads the most?",
    options=["the first token", "the last token", "one between them", "all read as much"],
    mine=...,
)

# %%
_, reads = prompt_reads(adapted, question)
by_token = reduce(reads.abs(), "l h s p -> s", "sum")
equal = torch.allclose(by_token, by_token.mean().expand_as(by_token), rtol=1e-4)
print("all tokens read as much:", equal)
opened = gate_openings(adapted).abs().sum()
print("it is the sum of all openings:", torch.allclose(by_token, opened, rtol=1e-4))

# %% tags=["nbval-ignore-output"]
ends = {0: "the first token", len(by_token) - 1: "the last token"}
most = ends.get(int(by_token.argmax()), "one between them")
of_reads.compare("all read as much" if equal else most)

# %% [markdown]
# A head's weights sum to 1. So **how much** it reads is up to its gate alone, for every token alike.
# What the token decides is **which** prompts. The picture shows the last token, after which the
# answer begins. The size of a cell is the sum over the heads, whatever their signs.

# %% tags=["nbval-ignore-output"]
# alt: A heatmap with a row for each layer and a column for each prompt: what the last token reads. Most cells are dark. The brightest are all in the upper half of the layers, the very brightest is prompt 8 in the top layer.
_, ax = plt.subplots(figsize=(6, 4.5))
plot_reads(ax, adapted, question)
plt.show()

# %% [markdown]
# The **prompt microscope** shows it for every token. Point at the tokens, or go to them with the tab
# key. Choose one head: its strip has a row for each layer, the top layer above. Is there a head that has
# the same favourite prompt at every token?

# %% tags=["nbval-ignore-output"]
microscope(adapted, tokenizer, question)

# %% tags=["nbval-ignore-output"]
favourites = [len(head.unique()) for layer in reads.abs().argmax(dim=-1) for head in layer]
print("prompts that are the favourite of some token, for each head:", end=" ")
print(f"{min(favourites)} to {max(favourites)}, {sum(favourites) / len(favourites):.1f} on average")

# %% [markdown]
# No head has the same favourite everywhere. Ten prompts are more than ten constants: each token
# gets a mix of its own.
#
# ## What you have built
#
# * A choice of layers that means what it says, also for zero.
# * A base that is frozen, and prompts that train: 173,070 numbers of 134.7 million.
# * An attention function inside transformers. It leaves queries, masks and cache to the model.
# * A file of 0.7 MB that turns the base into your model.
#
# **Next, lesson 07:** the data. Which tokens of a row is the model asked to learn, and how do you
# know that it did not just learn the rooms by heart?
#
# ## Three questions to think about
#
# **1.** You attach prompts to the top 10 layers, not to all 30. Which part of a training step gets
# shorter, and which does not?
#
# <details><summary>Answer</summary>
#
# The backward pass: below layer 20 nothing needs a gradient, so it stops there. The forward pass
# still goes through all 30 layers.
#
# </details>
#
# **2.** LoRA's update can be added into the base's weights after training. Can these prompts?
#
# <details><summary>Answer</summary>
#
# No. What the prompts add depends on the query through a softmax. No fixed change of a weight
# matrix does the same. The adapter stays a separate part, and therefore it can be swapped in a
# moment.
#
# </details>
#
# **3.** Somebody loads your file into another Llama of the same shape, trained on other data. Names
# and shapes fit. What happens?
#
# <details><summary>Answer</summary>
#
# Nothing complains, and the answers are bad. Your prompts were learnt for the key and value
# projections of this base. Shapes cannot tell two bases apart, so say beside the file which base it
# belongs to.
#
# </details>
