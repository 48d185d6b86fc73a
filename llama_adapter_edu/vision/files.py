"""The seeing part of an adapter on disk: `vision_config.json` and `vision_model.safetensors`.

They lie in the adapter's folder, beside what `save_adapter` writes. The file holds what trains:
the projection, and the encoder unless it is frozen. Everything is checked before a model changes.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.files.safe_files import (
    AdapterFileError,
    check_tensors,
    read_safetensors,
    write_files,
)
from llama_adapter_edu.vision.attach import ImagePrompt, add_vision, check_can_see, image_prompt_of

CONFIG_FILE, WEIGHTS_FILE = "vision_config.json", "vision_model.safetensors"
FORMAT = "llama_adapter_edu.vision/1"


def save_vision(
    model: PreTrainedModel, folder: str | os.PathLike, adapter_name: str | None = None
) -> Path:
    """Write what trains of one adapter's `ImagePrompt`, the active adapter's if none is named.

    Both files are written beside their place and then moved there, so a save that is interrupted
    leaves an earlier one whole.

    Returns:
        the folder.

    Raises:
        ValueError: the adapter has no image encoder.
        OSError: the folder cannot be written; earlier files are intact.
    """
    vision = image_prompt_of(model, adapter_name)
    tensors = {
        name: parameter.detach().cpu().contiguous() for name, parameter in _trained(vision).items()
    }
    settings = {"format": FORMAT, **_settings(vision.encoder, decoder_of(model).config.hidden_size)}
    written = {
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: (json.dumps(settings, indent=2) + "\n").encode(),
    }
    return write_files(folder, written)


def load_vision(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    encoder: nn.Module,
    adapter_name: str | None = None,
) -> PreTrainedModel:
    """Give an adapter the seeing part that `save_vision` wrote, in place.

    Args:
        encoder: one of the same kind as when it was saved. What trains of it gets the saved
            numbers; what is frozen, as a CLIP, stays as it is.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        AdapterFileError: a file is corrupt, or it is for another encoder or another base model.
        ValueError: the model has no such adapter, or the adapter has an encoder already.
        In each case model and encoder are as they were.
    """
    folder = Path(folder)
    width = decoder_of(model).config.hidden_size
    saved, here = _read_settings(folder / CONFIG_FILE), _settings(encoder, width)
    if different := [name for name in here if saved.get(name) != here[name]]:
        listed = ", ".join(f"{n} {saved.get(n)!r}, here it is {here[n]!r}" for n in different)
        raise AdapterFileError(f"{folder} was made for something else: {listed}.")
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    expected = _trained(ImagePrompt(encoder, width))
    shapes = {name: tuple(parameter.shape) for name, parameter in expected.items()}
    check_tensors(folder / WEIGHTS_FILE, tensors, shapes)
    check_can_see(model, adapter_name)

    add_vision(model, encoder, adapter_name)
    with torch.no_grad():
        for name, parameter in _trained(image_prompt_of(model, adapter_name)).items():
            parameter.copy_(tensors[name])
    return model


def _trained(vision: ImagePrompt) -> dict[str, nn.Parameter]:
    return {name: p for name, p in vision.named_parameters() if p.requires_grad}


def _settings(encoder: nn.Module, model_width: int) -> dict:
    """What the saved numbers depend on, as JSON gives it back."""
    return {
        "encoder": type(encoder).__name__,
        "image_shape": list(encoder.image_shape),
        "feature_widths": list(encoder.feature_widths),
        "hidden_size": model_width,
    }


def _read_settings(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"no image encoder in {path.parent}: {path.name} is missing.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            f"{path} is not the settings file written by save_vision: {error!r}."
        ) from error
    return settings
