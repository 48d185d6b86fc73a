"""Where prompts meet the model's attention: the adapted layers, and nothing else of the model.

    attention layer ── its config, seen through `LayerView`
         │                 `_attn_implementation` is ADAPTED, everything else as it is
         │ looks ADAPTED up in transformers' registry of attention functions
         ▼
    adapted_attention ── 1. the attention function that the model's own config names at this moment,
                            which sees the acting cartridge before the tokens (`layers/prefix.py`)
                         2. plus what the acting adapter's prompts give to each head

Queries, rotary embedding, masks, grouped heads and caches stay the model's own. The model's config
stays untouched, so another attention implementation, a copy, a pickle or an offloaded layer carry
the prompts along.
"""

import sys
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llama_adapter_edu.adapters.choice import AdapterState
from llama_adapter_edu.adapters.decoder import brought_here
from llama_adapter_edu.adapters.generation import Call, call_of
from llama_adapter_edu.adapters.layers.changes import SeenWith, during
from llama_adapter_edu.adapters.layers.keys import Heads, heads_of_rows, layer_keys_values
from llama_adapter_edu.adapters.layers.prefix import with_cartridges
from llama_adapter_edu.method.cartridge import Cartridge
from llama_adapter_edu.method.gated_prompts import attend_to_heads
from llama_adapter_edu.method.image_prompts import add_image, image_keys_values

try:
    import triton  # noqa: F401  It comes with PyTorch for GPUs alone, and may be broken.
except ImportError:
    prompt_kernel = None
else:
    from llama_adapter_edu.adapters.layers import prompt_kernel

ADAPTED = "adaption_prompts"


class LayerView:
    """An adapted layer's view of its config: all as it is, but attention goes through the prompts.

    Args:
        base: the config that the layer had.
        state: the decoder's adapters.
        number: of the layer, 0 at the bottom.
        n_query_heads: of the layer (h); its attention function tells it (see `probe.py`).
        key_scale: by which the rotary embedding multiplies keys on every position (YaRN).

    Attributes:
        heard: is shown what arrives at the layer's attention, in its place, unless it is None.
        ready: by adapter, heads of prompts that are computed already (`layers/at_once.py`).
    """

    _attn_implementation = ADAPTED

    def __init__(
        self,
        base: PretrainedConfig,
        state: AdapterState,
        number: int,
        n_query_heads: int | None = None,
        key_scale: float = 1.0,
    ) -> None:
        vars(self).update(base=base, state=state, number=number, heard=None, ready={})
        vars(self).update(n_query_heads=n_query_heads, key_scale=key_scale)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a copy is being made and has no `base` yet
            raise AttributeError(name)
        return getattr(vars(self)["base"], name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            vars(self)[name] = value
        else:
            setattr(self.base, name, value)

    def __reduce__(self) -> tuple:
        return LayerView, (self.base, self.state, self.number, self.n_query_heads, self.key_scale)


def attach(attention: nn.Module, state: AdapterState, number: int) -> None:
    """Let this layer's attention go through prompts, of which it has none yet."""
    attention.config = LayerView(attention.config, state, number)
    attention.adaption_prompts = nn.ModuleDict()


def detach(attention: nn.Module) -> None:
    """Take `attach` back."""
    attention.config = attention.config.base
    del attention.adaption_prompts


def adapted_attention(
    attention: nn.Module,
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t d"],
    attention_mask: Tensor | None,
    *,
    adapter_call: Call | None = None,
    **kwargs,
) -> tuple[Float[Tensor, "b s h d"], Tensor | None]:
    """The model's own attention function, plus what the layer's acting prompts add (eq. 8)."""
    view = attention.config
    if view.heard is not None:
        return view.heard(attention, query, key, value)
    call = adapter_call or call_of(view.state, len(query))
    tokens = key, value, attention_mask
    if call.has_cartridge:
        tokens = with_cartridges(attention, call.choice, query, *tokens)
    before = SeenWith(attention, config=view.base)
    output, weights = own_attention(attention)(before, query, *tokens, **kwargs)
    scale = kwargs.get("scaling")
    heads = call.kept.get(view.number) if call.kept else view.ready.get(call.choice)
    if heads is None:
        heads = _acting_heads(attention, query, call)
    if heads is None:
        return output, weights
    if isinstance(heads, nn.Module):  # a learner's own, as in lesson 04
        pair = layer_keys_values(attention, heads.prompts.to(query.dtype))
        return _sum(output, heads(query, *pair, scale)), weights
    if call.listener is not None:
        call.listener(view.number, query, heads, scale)
    if _in_one_kernel(view, output, query, heads):
        return prompt_kernel.add_prompts(output, query, *heads[:2], scale), weights
    return _sum(output, attend_to_heads(query, *heads, scale=scale)), weights


def own_attention(attention: nn.Module):
    """The attention function that the model's config names now."""
    own = ALL_ATTENTION_FUNCTIONS.get(attention.config.base._attn_implementation)
    if own is not None:
        return own
    # "eager" is not in the registry: each model file has its own.
    files = (sys.modules[kind.__module__] for kind in type(attention).__mro__)
    return next(f.eager_attention_forward for f in files if hasattr(f, "eager_attention_forward"))


def _sum(output: Tensor, added: Float[Tensor, "b h s d"]) -> Tensor:
    """The output of the model's attention function, mostly (b s h d), and what the prompts add."""
    # No `rearrange`: in decoding, reading its pattern would take longer than the addition.
    added = added.transpose(1, 2)
    if added.shape != output.shape or added.dtype != output.dtype:
        added = added.reshape(output.shape).to(output.dtype)
    return output + added


def _in_one_kernel(
    view: LayerView, output: Tensor, query: Float[Tensor, "b h s d"], heads: Heads
) -> bool:
    """Whether attention to the prompts and the sum are one kernel.

    In compiled code and in CUDA graphs alone: elsewhere, launching it from Python takes longer than
    what it saves.
    """
    if prompt_kernel is None or not (torch.compiler.is_dynamo_compiling() or view.ready):
        return False
    (b, h, s, d), key = query.shape, heads[0]
    alike = output.shape == (b, s, h, d) and output.dtype == key.dtype
    return alike and prompt_kernel.takes(*heads)


def _acting_heads(
    attention: nn.Module, query: Float[Tensor, "b h s d"], call: Call
) -> Heads | nn.Module | None:
    """Keys and values of the acting prompts of this layer; None if it has none that act.

    A module that makes none, a learner's own, itself.
    """
    number, choice = attention.config.number, call.choice
    if isinstance(choice, tuple):
        heads = _heads_of_rows(attention, query, call)
    elif choice not in attention.adaption_prompts:
        return None
    else:
        prompt = attention.adaption_prompts[choice]
        if isinstance(prompt, Cartridge):
            return None
        if not hasattr(prompt, "gated_heads"):
            return prompt
        heads = _heads(attention, prompt, query, call.image_of(number))
    if call.kept is not None and heads is not None:
        call.kept[number] = heads
    return heads


def _heads(
    attention: nn.Module, prompt: nn.Module, query: Float[Tensor, "b h s d"], image: Tensor | None
) -> Heads:
    """Keys and gated values of one adapter's prompts: of each row, if each has a picture."""
    keys_values = partial(layer_keys_values, attention)
    with brought_here(prompt):
        if image is None:
            pair = keys_values(prompt.prompts.to(query.dtype))
        else:
            prompts = add_image(prompt.prompts, image.to(prompt.prompts.device)).to(query.dtype)
            pair = image_keys_values(prompts, keys_values)
        heads = prompt.gated_heads(*pair, query.shape[1])
        return *(x.to(query.dtype) for x in heads), None


def _heads_of_rows(
    attention: nn.Module, query: Float[Tensor, "b h s d"], call: Call
) -> Heads | None:
    """The heads of each row's own adapter; None if none of them has prompts here."""
    prompts = attention.adaption_prompts
    # Each in a call of its own: an adapter may change projections, too (`layers/changes.py`).
    found = {
        n: during(Call(n), _heads, attention, prompts[n], query, None)
        for n in {*call.choice}
        if n in prompts and not isinstance(prompts[n], Cartridge)
    }
    return heads_of_rows(found, call.choice) if found else None


AttentionInterface.register(ADAPTED, adapted_attention)
