"""Solutions of lesson 03: what a failed check falls back to.

Generated from solutions/03_soft_prompts.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'3.1': 'prompt_keys_values', '3.2': 'prompt_scores', '3.3': 'prompt_attention', '3.4': 'joint_attention_weights', '3.5': 'position_effect'}
CHECKS = {'3.1': '5af45742e75e', '3.2': 'f6ae7f60d0f4', '3.3': '6ab854b9e0e9', '3.4': 'e5a9759baddf', '3.5': 'f9a56349d7e4'}
STUBS = {'3.1': 'eecb399222df', '3.2': '9568319b0a06', '3.3': '4b8f6d9d50c3', '3.4': '87859e7637a2', '3.5': '4738eaa490a5'}
GIVEN = ('_', 'adapted', 'ax', 'bare', 'bars', 'block', 'colour', 'effects', 'fig', 'from_prompts', 'from_words', 'head', 'hidden', 'input_ids', 'joint', 'key', 'last', 'layer', 'left', 'lights', 'limits', 'model', 'moved_key', 'moved_query', 'moves', 'name', 'of_words', 'pair_score', 'places', 'position', 'prompt', 'prompt_key', 'prompt_score', 'prompt_value', 'prompts', 'query', 'raw_key', 'raw_query', 'right', 'scores_of_prompts', 'seen', 'sentence', 'shift', 'shifts', 'size', 'states', 'token', 'tokenizer', 'two', 'typical', 'vectors', 'with_prompts', 'without', 'word_key', 'word_scores', 'word_value', 'words', 'x')

import torch
from einops import rearrange
from jaxtyping import Float
from jaxtyping import Int
from llama_adapter_edu.method.attention import causal_softmax
from torch import Tensor
from torch import nn
from llama_adapter_edu.method.gated_prompts import prompt_keys_values
from llama_adapter_edu.method.gated_prompts import prompt_scores
from llama_adapter_edu.method.gated_prompts import prompt_attention


def joint_attention_weights(
    scores_bhsp: Float[Tensor, "b h s p"], scores_bhst: Float[Tensor, "b h s t"]
) -> tuple[Float[Tensor, "b h s p"], Float[Tensor, "b h s t"]]:
    """Weights of prompts and words from one softmax over both; words are masked causally."""
    joint = torch.cat([scores_bhsp, scores_bhst], dim=-1)
    sizes = [scores_bhsp.shape[-1], scores_bhst.shape[-1]]
    weights_bhsp, weights_bhst = causal_softmax(joint).split(sizes, dim=-1)
    return weights_bhsp, weights_bhst


def position_effect(model: nn.Module, input_ids: Int[Tensor, "b s"], shift: int) -> float:
    """The largest change of any logit when all words move `shift` positions to the right."""
    position = rearrange(torch.arange(input_ids.shape[1]), "s -> 1 s")
    with torch.no_grad():
        here = model(input_ids, position_ids=position).logits
        moved = model(input_ids, position_ids=position + shift).logits
    return (moved - here).abs().max().item()
