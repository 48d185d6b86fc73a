"""Solutions of lesson 02: what a failed check falls back to.

Generated from solutions/02_attention.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'2.1': 'rotary_tables', '2.2': 'apply_rotary', '2.3': 'causal_attention', '2.4': 'KeyValueCache', '2.5': 'attend', '2.6': 'decode_greedily'}
CHECKS = {'2.1': '5c46ec4ce24f', '2.2': '480b40ff3722', '2.3': '0d688440c8b5', '2.4': '1f6024a146ff', '2.5': '44abc8bcc393', '2.6': 'dc152bfb9172'}
STUBS = {'2.1': 'a32df63cb35d', '2.2': 'b9b885c51f48', '2.3': '6083b3e393cc', '2.4': 'a44e0682ce98', '2.5': 'fa90d97fdd3b', '2.6': 'd49e661f163f'}
GIVEN = ('_', 'answer', 'ax', 'axes', 'block', 'cos', 'equal', 'everything', 'fig', 'from_the_start', 'head', 'hidden', 'hidden_of_layers', 'ids', 'in_order', 'key', 'layer', 'mine', 'mine_answer', 'mixed', 'model', 'n', 'n_read', 'n_written', 'one_step', 'out_of_order', 'position', 'positions', 'query', 'question', 'score', 'scores', 'sentence', 'sin', 'tables', 'theirs', 'title', 'token', 'token_ids', 'tokenizer', 'value', 'weights', 'with_caches', 'word', 'word_before', 'words')

from collections.abc import Callable
import torch
from einops import rearrange
from jaxtyping import Float
from jaxtyping import Int
from llama_adapter_edu.method.attention import AttentionLayer
from llama_adapter_edu.method.attention import merge_heads
from llama_adapter_edu.method.attention import split_heads
from torch import Tensor
from llama_adapter_edu.method.attention import rotary_tables
from llama_adapter_edu.method.attention import apply_rotary
from llama_adapter_edu.method.attention import causal_attention
from llama_adapter_edu.method.attention import KeyValueCache


def attend(
    layer: AttentionLayer,
    hidden_states: Float[Tensor, "b s m"],
    cache: KeyValueCache | None = None,
) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
    """The output of an attention layer, and its turned queries.

    `cache` holds the keys and values of the earlier words; those of the s new words are appended.
    """
    query = split_heads(layer.query_layer(hidden_states), layer.head_dim)
    key = split_heads(layer.key_layer(hidden_states), layer.head_dim)
    value = split_heads(layer.value_layer(hidden_states), layer.head_dim)

    start = 0 if cache is None else len(cache)
    position = torch.arange(start, start + hidden_states.shape[1])
    cos, sin = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

    if cache is not None:
        key, value = cache.append(key, value)
    attended = causal_attention(query, key, value)
    return layer.output_layer(merge_heads(attended)), query


def decode_greedily(
    read: Callable[[Tensor], Tensor], token_ids: Int[Tensor, "b s"], n_words: int
) -> Int[Tensor, "b n"]:
    """Read the prompt `token_ids`, then write n_words, each the most likely one.

    `read` takes new words (b s), gives scores (b s v), and remembers the words it has read.
    """
    written = []
    for _ in range(n_words):
        token_ids = read(token_ids)[:, -1:].argmax(dim=-1)
        written.append(token_ids)
    return torch.cat(written, dim=1)
