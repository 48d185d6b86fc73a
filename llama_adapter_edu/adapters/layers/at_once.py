"""Keys and gated values of all layers' prompts in one product, instead of two small ones a layer.

    prompts (l p m) ── key and value projections of all layers (l o m) ──> heads of each layer

A small model leaves a GPU waiting for each product, so fewer of them are faster. The projections
stand here a second time, side by side.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import einsum, rearrange, repeat
from torch import nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.choice import acting, state_of
from llama_adapter_edu.adapters.decoder import attention_layers, decoder_of
from llama_adapter_edu.adapters.layers.keys import KEY_NORMS, VALUE_NORMS, Heads
from llama_adapter_edu.method.gated_prompts import GATE_ACTIVATIONS, AdaptionPrompt


class HeadsAtOnce:
    """The heads in all layers of the adapter that acts now, computed together.

    Layers whose keys are more than a frozen projection, as with norms, biases or a clip, are left
    out. They compute their own heads, and so do all if layers or prompts differ in shape, or if the
    adapter sees pictures.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.name = name = acting(state_of(model))
        sees = name in getattr(decoder_of(model), "vision", {})
        layers = [] if name is None or sees else attention_layers(model)
        having = [a for a in layers if name in getattr(a, "adaption_prompts", ())]
        self.layers = [a for a in having if _is_plain(a, a.adaption_prompts[name])]
        self.prompts = [a.adaption_prompts[name] for a in self.layers]
        weights = [(a.k_proj.weight.detach(), a.v_proj.weight.detach()) for a in self.layers]
        kinds = {
            (
                *(x.shape for x in (p.prompts, p.gate, *pair)),
                *(p.gate_activation, a.head_dim, a.config.n_query_heads, pair[0].dtype),
            )
            for a, p, pair in zip(self.layers, self.prompts, weights, strict=True)
        }
        if len(kinds) > 1:
            self.layers, self.prompts = [], []
        if self.layers:
            self.weights = torch.stack([torch.stack(pair) for pair in weights])  # (l two o m)

    @contextmanager
    def ready(self, n_rows: int) -> Iterator[None]:
        """Inside, the layers take heads that were computed when the block was entered.

        Where another adapter acts, or none, they do not. Each of the rows gets a view of the same
        heads, so that one sum over the rows gives the gradients for all layers. One backward pass.
        """
        for attention, heads in zip(self.layers, self._heads(n_rows), strict=True):
            attention.config.ready = {self.name: heads}
        try:
            yield
        finally:
            for attention in self.layers:
                attention.config.ready = {}

    def _heads(self, n_rows: int) -> list[Heads]:
        if not self.layers:
            return []
        first, dtype = self.layers[0], self.weights.dtype
        prompts = torch.stack([p.prompts for p in self.prompts]).to(dtype)
        products = einsum(prompts, self.weights, "l p m, l two o m -> two l p o")
        pair = rearrange(products, "two l p (g d) -> two l g p d", d=first.head_dim)
        r = first.config.n_query_heads // pair.shape[2]
        key, value = repeat(pair, "two l g p d -> two l (g r) p d", r=r)
        open_gates = GATE_ACTIVATIONS[self.prompts[0].gate_activation]
        opening = open_gates(torch.stack([p.gate for p in self.prompts]))
        value = (rearrange(opening, "l h -> l h 1 1") * value).to(dtype)
        of_rows = (repeat(x, "l h p d -> l b h p d", b=n_rows) for x in (key, value))
        return [(k, v, None) for k, v in zip(*of_rows, strict=True)]


def _is_plain(attention: nn.Module, prompt: nn.Module) -> bool:
    """Whether the keys and values of these prompts are two products and nothing else."""
    projections = [getattr(attention, name, None) for name in ("k_proj", "v_proj")]
    config, more = attention.config, (*KEY_NORMS, *VALUE_NORMS)
    return (
        type(prompt) is AdaptionPrompt
        and all(type(p) is nn.Linear and _is_frozen(p) and _is_bare(p) for p in projections)
        and not any(getattr(attention, name, None) is not None for name in more)
        and getattr(config, "clip_qkv", None) is None
        and config.key_scale == 1
    )


def _is_bare(module: nn.Module) -> bool:
    """Whether a call is the class's own forward: no hook, as V2's, no forward of its own."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    return not any(hooks) and "forward" not in vars(module)


def _is_frozen(linear: nn.Linear) -> bool:
    """Whether a product with its weight, as it is now, is all that it ever computes."""
    return linear.bias is None and not linear.weight.requires_grad
