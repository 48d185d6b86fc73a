"""Solutions of lesson 00: what a failed check falls back to.

Generated from solutions/00_start_here.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'0.1': 'adapter_size'}
CHECKS = {'0.1': '925e3224adf4'}
STUBS = {'0.1': '4a41cb3258fc'}
GIVEN = ('commands', 'config', 'letter', 'llama_7b', 'model', 'one_layer', 'ours', 'parameter', 'size', 'sizes', 'tokenizer', 'total')


def adapter_size(adapter_len: int, adapter_layers: int, model_width: int, n_heads: int) -> int:
    """How many numbers a LLaMA-Adapter learns.

    Each of the `adapter_layers` layers (the paper's L) has `adapter_len` prompts (the paper's K),
    each a row of `model_width` numbers, and one gate for each of its `n_heads` heads.
    """
    return adapter_layers * (adapter_len * model_width + n_heads)
