"""Solutions of lesson 05: what a failed check falls back to.

Generated from solutions/05_from_a_slide_to_a_layer.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'5.1': 'draft_shapes', '5.2': 'is_causal', '5.3': 'is_batch_independent', '5.4': 'moves_with_the_model', '5.5': 'AdaptationPromptAttentionLayer', '5.6': 'LlamaAttentionWithQueries'}
CHECKS = {'5.1': 'b983a1ac1e6f', '5.2': 'b6323e9be2dc', '5.3': '7e992167ea58', '5.4': 'b0555325453c', '5.5': '7667a41010ed', '5.6': 'dca1fdec04a1'}
STUBS = {'5.1': '51d11b7e2816', '5.2': 'f3f87e8c6d93', '5.3': 'df1fba8b3373', '5.4': 'f48547b6232c', '5.5': '8073acaef2c8', '5.6': '5e918ff0ebc4'}
GIVEN = ('DRAFT', 'IN_WORDS', 'REPAIRS', 'SENTENCES', 'TESTS', '_', 'a', 'apart', 'attention', 'ax', 'axes', 'b', 'base', 'batch', 'bias', 'bug', 'bugs', 'colours', 'column', 'decoder_layer', 'draft', 'drafted', 'entering', 'error', 'fig', 'finished', 'first_alone', 'found', 'gradients', 'hidden', 'hook', 'key', 'largest', 'layer', 'logits_before', 'm', 'matrix', 'model', 'n', 'name', 'o', 'options', 'output', 'p', 'pairs', 'prompt', 'prompts', 'queries', 'question', 'result', 'results', 'row', 's', 't', 'test', 'tokenizer', 'tokens', 'trainable', 'trains', 'twin', 'value', 'w', 'with_cache', 'without', 'wrapper', 'wrappers', 'yours')

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
            changed[:, word] = -changed[:, word]
            after = layer(changed)[0]
            if not torch.allclose(before[:, :word], after[:, :word]):
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
