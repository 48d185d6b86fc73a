"""Solutions of lesson 01: what a failed check falls back to.

Generated from solutions/01_shapes.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'1.1': 'split_heads', '1.2': 'merge_heads', '1.3': 'repeat_kv_heads', '1.4': 'attention_scores', '1.5': 'lonely_axes', '1.6': 'causal_softmax'}
CHECKS = {'1.1': '18d266bd0c4e', '1.2': '198a3320cc50', '1.3': '243d9bca0c95', '1.4': '11c34d7a5cc1', '1.5': '941db7f50d15', '1.6': 'c8b9a15a0496'}
STUBS = {'1.1': '5fbb682e690e', '1.2': '04a569174f84', '1.3': '7fd5d7b8543f', '1.4': 'ebf2c896b5d6', '1.5': '334b3c7af321', '1.6': 'eb42a245bbf0'}
GIVEN = ('column', 'd', 'dog', 'fig', 'forbidden', 'hidden', 'it', 'key', 'keys', 'labels', 'layer', 'left', 'minus_infinity', 'model', 'name', 'pairs', 'queries', 'query', 'right', 'row', 'rows', 'scores', 'sentence', 'states', 'target', 'tensor', 'three', 'token', 'tokenizer', 'typo', 'weights', 'wide', 'words', 'x')

from llama_adapter_edu.method.attention import split_heads
from llama_adapter_edu.method.attention import merge_heads
from llama_adapter_edu.method.attention import repeat_kv_heads
from llama_adapter_edu.method.attention import attention_scores
from llama_adapter_edu.method.attention import causal_softmax


def lonely_axes(pattern: str) -> list[str]:
    """The axes of an einsum pattern that are summed on their own, sorted: nearly always a typo.

    "s d, t dd -> s t" gives ["d", "dd"]; "s d, t d -> s t" gives [].
    """
    inputs, output = pattern.split("->")
    names = inputs.replace(",", " ").split()
    return sorted(name for name in names if names.count(name) == 1 and name not in output.split())
