"""Adapters on disk: `save_adapter` and `load_adapter`, in this library's format and in others'.

What the formats hold is in `own.py`, `peft.py`, `lit.py` and
`official.py`. Whatever is loaded is checked before the model is touched.
"""

import os
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.adapters.manage import adapter_configs, check_new_adapter
from llama_adapter_edu.files.download import base_name, download_adapter
from llama_adapter_edu.files.lit import LITGPT_FILE, from_lit, is_lit, to_lit_llama, to_litgpt
from llama_adapter_edu.files.official import PROMPTS as OFFICIAL_PROMPTS
from llama_adapter_edu.files.official import load_official_adapter
from llama_adapter_edu.files.own import CONFIG_FILE, WEIGHTS_FILE, from_own, to_own
from llama_adapter_edu.files.peft import from_peft, to_peft
from llama_adapter_edu.files.safe_files import (
    AdapterFileError,
    read_json,
    read_pickled,
    shown,
    write_files,
)
from llama_adapter_edu.files.vision import put_vision, read_vision, vision_contents
from llama_adapter_edu.files.weights import AdapterWeights, base_shape, put_into, weights_of
from llama_adapter_edu.hub_names import is_hub_id
from llama_adapter_edu.vision.attach import vision_of

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterFileError",
    "load_adapter",
    "load_official_adapter",
    "save_adapter",
]


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
            different gates are refused.
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
    weights = weights_of(model, name)
    contents = FORMATS[format](model, weights, base_model or base_name(model))
    if name in vision_of(model):
        if format != "llama_adapter_edu":
            raise ValueError(
                f"the format {format!r} holds no image encoder, so adapter {name!r} would be "
                'blind. Take format="llama_adapter_edu".'
            )
        contents |= vision_contents(model, name)
    return write_files(folder, contents)


def load_adapter(
    model: PreTrainedModel,
    source: str | os.PathLike,
    adapter_name: str = "default",
    *,
    encoder: nn.Module | None = None,
) -> PreTrainedModel:
    """Add a saved adapter to a base model of the same shape, in place, and make it the active one.

    Args:
        source: what `save_adapter` wrote in any format, or PEFT, litgpt or lit-llama: a folder or
            a `.pth` file. Or the id of such a folder on the Hugging Face hub, as "owner/name".
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
    path = _on_this_computer(source)
    weights, sight = _read(path, model), read_vision(model, path, encoder)
    n_layers = base_shape(model)["num_hidden_layers"]
    check_new_adapter(adapter_name, weights.config, adapter_configs(model), n_layers)
    put_into(model, weights, adapter_name)
    if sight is not None:
        put_vision(model, sight, encoder, adapter_name)
    return model


def _on_this_computer(source: str | os.PathLike) -> Path:
    return download_adapter(source) if is_hub_id(source) else Path(os.path.expanduser(source))


def _read(path: Path, model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a folder or file, whichever format it is in."""
    lit_file = path if path.is_file() else path / LITGPT_FILE
    config_file = path / CONFIG_FILE
    if lit_file.is_file():
        if config_file.exists():
            raise AdapterFileError(
                f"{path} holds two adapters, {CONFIG_FILE} and {LITGPT_FILE}. Pass {lit_file}, or "
                "move that file to a folder of its own."
            )
        return _read_pickled(lit_file, model)
    if "peft_type" in read_json(config_file, "save_adapter"):
        return from_peft(path, model)
    return from_own(path, model)


def _read_pickled(path: Path, model: PreTrainedModel) -> AdapterWeights:
    tensors = read_pickled(path)
    if OFFICIAL_PROMPTS in tensors:
        raise AdapterFileError(
            f"{path} is from the authors' repository and does not say whether its gates go through "
            'tanh. Call load_official_adapter(model, path, gate_activation="tanh"), or "identity".'
        )
    if not is_lit(tensors):
        raise AdapterFileError(
            f"{path} is no adapter file of litgpt, lit-llama or the authors: it holds "
            f"{shown(sorted(tensors))}."
        )
    return from_lit(path, tensors, model)


FORMATS = {
    "llama_adapter_edu": to_own,
    "peft": to_peft,
    "litgpt": to_litgpt,
    "lit-llama": to_lit_llama,
}
