"""Solutions of lesson 00: what a failed check falls back to.

Generated from solutions/00_start_here.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'0.1': 'adapter_size'}
STUBS = {'0.1': '4a41cb3258fc'}
GIVEN = ('commands', 'config', 'guess', 'letter', 'llama_7b', 'model', 'n_right', 'one_layer', 'ours', 'parameter', 'shares', 'size', 'sizes', 'tokenizer', 'total')
CELLS = ('f4a19fe4029b', '8f55257d692a', '92687e040a18', '553c64704add', '83128f43280b', '876a6fc05a8d', '4a5afa540c6b', 'aacbe3cfdb0a', '6d1d18189486', '2926f1d915a3', '40ee5a0ea016', '05382b82660d', '74a77816c1c0')
CHECKS = {'0.1': '@check(\n    "0.1",\n    "adapter_size",\n    adapter_len=[6, 10],\n    adapter_layers=[3, 30],\n    model_width=[7, 576],\n    n_heads=[4, 9],\n)\ndef _(adapter_len, adapter_layers, model_width, n_heads):\n    mine = adapter_size(\n        adapter_len=adapter_len,\n        adapter_layers=adapter_layers,\n        model_width=model_width,\n        n_heads=n_heads,\n    )\n    prompts, gates = torch.zeros(adapter_len, model_width).numel(), torch.zeros(n_heads).numel()\n    right = sum(prompts + gates for _ in range(adapter_layers))\n    mistakes = {\n        "the gates are missing: add one per head in each layer": adapter_layers * prompts,\n        "each head has a gate of its own: add n_heads per layer, not 1": adapter_layers\n        * (prompts + 1),\n        "every layer has its own gates: multiply them by adapter_layers, too": adapter_layers\n        * prompts\n        + gates,\n        "every layer has its own prompts: multiply them by adapter_layers, too": prompts\n        + adapter_layers * gates,\n        "this is one layer: multiply by adapter_layers": prompts + gates,\n        "use the arguments, not the numbers of our Llama": adapter_layers * (10 * 576 + 9),\n        "a layer\'s gates stand beside its prompts: add them, do not multiply": adapter_layers\n        * prompts\n        * gates,\n        "every prompt has model_width numbers: multiply them, do not add": adapter_layers\n        * (adapter_len + model_width + n_heads),\n        "the prompts are missing: each has model_width numbers": adapter_layers * gates,\n        "the gates belong to heads, not to prompts: n_heads per layer": adapter_layers\n        * (prompts + gates * adapter_len),\n        "keys and values are made of the prompts, not learnt: count each prompt once": adapter_layers\n        * (2 * prompts + gates),\n        "use the argument model_width, not our Llama\'s 576": adapter_layers\n        * (576 * adapter_len + gates),\n        "use the arguments, not our Llama\'s numbers": 30 * (10 * 576 + 9),\n        "use the arguments, not LLaMA-7B\'s numbers": 30 * (10 * 4096 + 32),\n        "one layer too many: there are adapter_layers of them": (adapter_layers + 1)\n        * (prompts + gates),\n        "this is the size in bytes; count the numbers": 4 * right,\n    }\n    assert_close(mine, right, mistakes=mistakes)'}
PUZZLES = {}


def adapter_size(adapter_len: int, adapter_layers: int, model_width: int, n_heads: int) -> int:
    """How many numbers a LLaMA-Adapter learns.

    Each of the `adapter_layers` layers (the paper's L) has `adapter_len` prompts (the paper's K),
    each a row of `model_width` numbers, and one gate for each of its `n_heads` heads.
    """
    return adapter_layers * (adapter_len * model_width + n_heads)
