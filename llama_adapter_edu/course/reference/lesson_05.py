"""Solutions of lesson 05: what a failed check falls back to.

Generated from solutions/05_from_a_slide_to_a_layer.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'5.1': 'draft_shapes', '5.2': 'is_causal', '5.3': 'is_batch_independent', '5.4': 'moves_with_the_model', '5.5': 'AdaptationPromptAttentionLayer', '5.6': 'LlamaAttentionWithQueries'}
CHECKS = {'5.1': '410b9c8fce81', '5.2': '8b12adec1fd2', '5.3': 'e33289484c15', '5.4': '56aa2e40566a', '5.5': 'f69219b826cd', '5.6': '280b0da403b9'}

import copy
import torch
from jaxtyping import Float
from torch import Tensor
from torch import nn
from llama_adapter_edu.method.wrapped_layer import AdaptationPromptAttentionLayer
from llama_adapter_edu.course.tasks.attention_with_queries import LlamaAttentionWithQueries


def draft_shapes(b: int, s: int, p: int, batch_size: int) -> dict[str, tuple[int, ...]]:
    """The shapes of `query`, `prompts` and `key` in the draft, and the numbers in "b, s"."""
    return {
        "query": (b, 9, s, 64),
        "prompts": (batch_size, p, 576),
        "key": (batch_size, p, 3 * 64),
        "b, s": (b, 9),
    }


def is_causal(layer: nn.Module, hidden: Float[Tensor, "b s m"]) -> bool:
    """Does every output stay the same when a later word changes?"""
    with torch.no_grad():
        before = layer(hidden)[0]
        for word in range(hidden.shape[1]):
            changed = hidden.clone()
            changed[:, word] += 1
            after = layer(changed)[0]
            if not torch.allclose(before[:, :word], after[:, :word], atol=1e-4):
                return False
    return True


def is_batch_independent(layer: nn.Module, hidden: Float[Tensor, "b s m"]) -> bool:
    """Does each sentence give the same output alone as in the batch?"""
    with torch.no_grad():
        together = layer(hidden)[0]
        alone = torch.cat([layer(row)[0] for row in hidden.split(1)])
    return torch.allclose(together, alone, atol=1e-4)


def moves_with_the_model(layer: nn.Module) -> bool:
    """Does `.to("meta")` take along every tensor of the layer and of the modules inside it?"""
    moved = copy.deepcopy(layer).to("meta")
    for module in moved.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_meta:
                return False
    return True
