"""Adapters on disk: `save_adapter` and `load_adapter`, in this library's format and in others'.

What the formats hold is in the files of `formats/`. Each has functions from
`AdapterWeights` to the content of its files and back; the way back raises AdapterFileError for what
is corrupt or does not fit the model. Whatever is loaded is checked before the model is touched.
"""

import os
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.cartridge import cartridge_cache, put_cartridge
from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.config import CartridgeConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.adapters.manage import adapter_configs
from llama_adapter_edu.files import safe_files
from llama_adapter_edu.files.download import CONFIG_FILE, WEIGHTS_FILE, adapter_file, base_name
from llama_adapter_edu.files.formats.cartridge import (
    CartridgeWeights,
    cartridge_contents,
    read_cartridge,
)
from llama_adapter_edu.files.formats.lit import from_lit, to_lit_llama, to_litgpt
from llama_adapter_edu.files.formats.official import is_official
from llama_adapter_edu.files.formats.own import from_own, to_own
from llama_adapter_edu.files.formats.peft import from_peft, to_peft
from llama_adapter_edu.files.safe_files import AdapterFileError
from llama_adapter_edu.files.vision import put_vision, read_vision, vision_contents
from llama_adapter_edu.files.weights import AdapterWeights, put_into, weights_of
from llama_adapter_edu.vision.attach import vision_of

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "AdapterFileError", "load_adapter", "save_adapter"]


def save_adapter(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    adapter_name: str | None = None,
    format: str = "llama_adapter_edu",
    *,
    base_model: str | None = None,
) -> Path:
    """Write one adapter, the active one if no name is given, and nothing of the base model.

    The files are written beside their place and then moved there, so a save that is interrupted
    leaves an earlier one whole.

    Args:
        format: "llama_adapter_edu", "peft", "litgpt" or "lit-llama". The others have no tanh:
            what it makes of a gate is stored. PEFT has one gate a layer: adapters whose heads have
            different gates are refused, and so are adapters of V2. A cartridge is written as PEFT's
            in the first two, and in no other.
        base_model: the base model's id on the hub, kept in the settings for `from_pretrained`. Not
            needed if the model was loaded by it.

    Returns:
        the folder.

    Raises:
        ValueError: the model has no such adapter, there is no such format, or it cannot hold this
            adapter; the message says what would be lost.
        OSError: the folder cannot be written (disk full, read-only); earlier files are intact.
    """
    name = adapter_name or active_adapter(model)
    if name is None:
        raise ValueError("the model has no active adapter to save: add one, or pass adapter_name.")
    if format not in FORMATS:
        raise ValueError(f"format must be one of {tuple(FORMATS)}, got {format!r}.")
    base_model = base_model or base_name(model)
    weights = read_out(model, name)
    if isinstance(weights, CartridgeWeights):
        contents = cartridge_contents(model, weights, format, base_model)
    else:
        contents = FORMATS[format](model, weights, base_model)
    if name in vision_of(model):
        if format != "llama_adapter_edu":
            raise ValueError(
                f"the format {format!r} holds no image encoder, so adapter {name!r} would be "
                'blind. Take format="llama_adapter_edu".'
            )
        contents |= vision_contents(model, name)
    return safe_files.write_files(folder, contents)


def read_out(model: PreTrainedModel, adapter_name: str) -> AdapterWeights | CartridgeWeights:
    """A copy on the CPU of one of the model's adapters; ValueError if it has none of that name."""
    config = adapter_configs(model).get(adapter_name)
    if isinstance(config, CartridgeConfig):
        return CartridgeWeights(config, cartridge_cache(model, adapter_name))
    return weights_of(model, adapter_name)


def load_adapter(
    model: PreTrainedModel,
    source: str | os.PathLike,
    adapter_name: str = "default",
    *,
    encoder: nn.Module | None = None,
) -> PreTrainedModel:
    """Add a saved adapter to a base model of the same shape, in place, and make it the active one.

    Args:
        source: a folder that `save_adapter` wrote in any format, or that is PEFT's, litgpt's or
            lit-llama's, or one of the files in it. Or its id on the Hugging Face hub, "owner/name".
        encoder: for an adapter that sees (`add_vision`): an image encoder of the same kind as when
            it was saved. What trains of it gets the saved numbers; what is frozen, as a CLIP, stays
            as it is.

    Raises:
        FileNotFoundError: the folder, one of its files, or the repository does not exist.
        AdapterFileError: a file is corrupt, keys or shapes are not what the settings say, or the
            adapter was made for another base model.
        ValueError: the model already has an adapter of that name, or the id is malformed.
        PermissionError, ConnectionError: the repository needs a login; the hub does not answer.
        In each case the model is as it was.
    """
    attention_layers(model)
    file = adapter_file(source)
    folder = file.parent if file.name == CONFIG_FILE else file
    weights = _read(file, model)
    sight = read_vision(model, folder, encoder, len(getattr(weights, "prompts", ())))
    if isinstance(weights, CartridgeWeights):
        return put_cartridge(model, *weights, adapter_name)
    put_into(model, weights, adapter_name)
    if sight is not None:
        put_vision(model, sight, encoder, adapter_name)
    return model


def _read(file: Path, model: PreTrainedModel) -> AdapterWeights | CartridgeWeights:
    """The adapter that a file of settings or tensors belongs to, whichever format it is in."""
    if file.name == CONFIG_FILE:
        kind = safe_files.read_json(file, "save_adapter").get("peft_type")
        if kind == "CARTRIDGE":
            return read_cartridge(file.parent, model)
        return (from_own if kind is None else from_peft)(file.parent, model)
    tensors = safe_files.read_pickled(file)
    if is_official(tensors):
        raise AdapterFileError(
            f"{file} is from the authors' repository and does not say whether its gates go through "
            'tanh. Call load_official_adapter(model, path, gate_activation="tanh"), or "identity".'
        )
    return from_lit(file, tensors, model)


FORMATS = {"llama_adapter_edu": to_own, "peft": to_peft}
FORMATS |= {"litgpt": to_litgpt, "lit-llama": to_lit_llama}
