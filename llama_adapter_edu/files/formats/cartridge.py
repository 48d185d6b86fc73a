"""A cartridge on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

    prompt_embeddings    (p, l 2 g d)    of each token, key and value of every layer, lowest first

All layers must have the same number of key/value heads and the same head width. PEFT reads the text
behind a cartridge as this library does, except for a model with a sliding window: there PEFT lets
the cartridge slide out of sight.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.cartridge import KeysValues
from llama_adapter_edu.adapters.config import CartridgeConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files import safe_files
from llama_adapter_edu.files.download import CONFIG_FILE, WEIGHTS_FILE, openable, two_files
from llama_adapter_edu.files.safe_files import FLOATS, check_tensors, not_settings

KIND, TENSOR = "CARTRIDGE", "prompt_embeddings"
LAYOUT = "l two g p d -> p (l two g d)"


class CartridgeWeights(NamedTuple):
    """A cartridge outside a model: its settings, and keys and values (g p d) by layer number."""

    config: CartridgeConfig
    cache: dict[int, KeysValues]


def cartridge_contents(
    model: PreTrainedModel, weights: CartridgeWeights, format: str, base_model: str | None
) -> dict[str, bytes]:
    """The content of the two files, by file name.

    Raises:
        ValueError: the format holds no cartridges, or PEFT would compute something else.
    """
    if format not in ("llama_adapter_edu", "peft"):
        raise ValueError(f'{format} holds no cartridges: take format="peft".')
    base = attention_layers(model)[0].config
    slides = "sliding_attention" in (getattr(base, "layer_types", None) or ())
    if format == "peft" and slides and getattr(base, "sliding_window", None):
        raise ValueError(
            "PEFT cannot use this cartridge: the model has a sliding window, out of which the "
            "cartridge would slide there."
        )
    config, cache = weights
    shapes = {tuple(x.shape) for pair in cache.values() for x in pair}
    if len(shapes) > 1:
        raise ValueError(f"PEFT's format has one shape for all layers, here they are {shapes}.")
    [(groups, _, width)] = shapes
    settings = {
        "peft_type": KIND,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": openable(base_model),
        **config.settings(),
        "num_layers": len(cache),
        "num_attention_heads": groups,
        "token_dim": groups * width,
        "num_transformer_submodules": 1,
        "inference_mode": True,
    }
    pairs = torch.stack([torch.stack(pair) for pair in cache.values()])
    tensors = {TENSOR: rearrange(pairs, LAYOUT).contiguous()}
    return two_files(settings, tensors, base_model)


def read_cartridge(folder: Path, model: PreTrainedModel) -> CartridgeWeights:
    """The cartridge in a folder, for this model.

    Raises:
        AdapterFileError: a file is corrupt, or was made for another model.
    """
    path = folder / CONFIG_FILE
    settings = safe_files.read_json(path, "PEFT")
    try:
        config = CartridgeConfig(settings["num_virtual_tokens"], settings["num_frozen_tokens"])
        if config.num_virtual_tokens is None:
            raise ValueError("num_virtual_tokens is missing")
    except (KeyError, TypeError, ValueError) as error:
        raise not_settings(path, "PEFT", error) from error
    layers = attention_layers(model)
    groups, width = layers[0].config.num_key_value_heads, layers[0].head_dim
    here = {"num_layers": len(layers), "num_attention_heads": groups, "token_dim": groups * width}
    safe_files.check_made_for(folder, settings, here)
    path = folder / WEIGHTS_FILE
    tensors = safe_files.read_safetensors(path)
    shape = config.num_virtual_tokens, len(layers) * 2 * groups * width
    check_tensors(path, tensors, {TENSOR: shape}, FLOATS)
    return CartridgeWeights(config, _by_layer(tensors[TENSOR].float(), len(layers), groups))


def _by_layer(packed: Float[Tensor, "p n"], n_layers: int, groups: int) -> dict[int, KeysValues]:
    back = " -> ".join(reversed(LAYOUT.split(" -> ")))
    pairs = rearrange(packed, back, l=n_layers, two=2, g=groups)
    return {number: (pair[0], pair[1]) for number, pair in enumerate(pairs)}
