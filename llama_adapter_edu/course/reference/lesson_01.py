"""Solutions of lesson 01: what a failed check falls back to.

Generated from solutions/01_shapes.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'1.1': 'split_heads', '1.2': 'merge_heads', '1.3': 'repeat_kv_heads', '1.4': 'attention_scores', '1.5': 'lonely_axes', '1.6': 'causal_softmax'}
CHECKS = {'1.1': '884ae14aadb3', '1.2': '711ff451e7d5', '1.3': '0670af54d287', '1.4': 'fc40173db35e', '1.5': '070b0831c74e', '1.6': 'c4f510b70cf4'}

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
