"""What an adapter puts into a layer: keys and values of prompts, of cartridges, and V2's changes.

`keys.py` makes prompts' keys and values with a layer's own projections, `prefix.py` puts cartridges
before the tokens, `changes.py` and `v2.py` change linear layers and norms.
"""
