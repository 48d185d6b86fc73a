"""Solutions of lesson 04: what a failed check falls back to.

Generated from solutions/04_zero_init_gate.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'4.1': 'gated_prompt_attention', '4.2': 'gated_attention_weights', '4.3': 'GatedPrompts', '4.4': 'gets_gradient'}
CHECKS = {'4.1': '0de6d9f1359a', '4.2': '55c068131595', '4.3': '82b896642d43', '4.4': '4d6a4d6bb6ec'}
STUBS = {'4.1': '8d24ae3195f0', '4.2': '8b624430c0c2', '4.3': '30b69b1353a4', '4.4': '0e030c6706fe'}
GIVEN = ('_', 'added', 'all_prompts', 'ax', 'axes', 'bad', 'bare', 'bars', 'batch', 'block', 'colour', 'command', 'commands', 'fig', 'first', 'g', 'gate', 'gates', 'good', 'guessing', 'head', 'heads_value', 'hidden', 'history', 'inputs', 'keep', 'kept', 'key', 'largest', 'layer', 'layer_prompts', 'learns', 'lengths', 'loss', 'losses', 'mine', 'model', 'module', 'n', 'n_learnt', 'name', 'of_gates', 'of_prompts', 'of_words', 'opening', 'openings', 'optimizer', 'p', 'parameter', 'part', 'position', 'prompt_key', 'prompt_value', 'prompts', 'queries', 'query', 'rows', 'side_by_side', 'size', 'sizes', 'started', 'states', 'tensor', 'tokenizer', 'value', 'weights', 'word_scores')

import torch
from einops import rearrange
from jaxtyping import Float
from llama_adapter_edu.method.attention import causal_softmax
from torch import Tensor
from torch import nn
from llama_adapter_edu.method.gated_prompts import gated_prompt_attention


def gated_attention_weights(
    scores_bhsp: Float[Tensor, "b h s p"],
    scores_bhst: Float[Tensor, "b h s t"],
    gate: Float[Tensor, "h"],
) -> Float[Tensor, "b h s pt"]:
    """Equation 7: [softmax(prompt scores) * tanh(gate), causal softmax(word scores)]."""
    opening = rearrange(torch.tanh(gate), "h -> h 1 1")
    of_prompts = opening * scores_bhsp.softmax(dim=-1)
    return torch.cat([of_prompts, causal_softmax(scores_bhst)], dim=-1)


class GatedPrompts(nn.Module):
    """What one adapted layer learns: `prompts` (p m), from N(0, 1), and `gate` (h), from zero."""

    def __init__(self, adapter_len: int, model_width: int, n_heads: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(n_heads))

    def forward(
        self,
        query: Float[Tensor, "b h s d"],
        prompt_key: Float[Tensor, "g p d"],
        prompt_value: Float[Tensor, "g p d"],
        scale: float | None = None,
    ) -> Float[Tensor, "b h s d"]:
        """What the prompts add to each head."""
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)


def gets_gradient(prompts_are_zero: bool, gate_is_zero: bool) -> dict[str, bool]:
    """Whether prompts and gate get a gradient other than zero, from this start."""
    return {"prompts": not gate_is_zero, "gate": not prompts_are_zero}
