"""The seeing part of an adapter on disk: `vision_config.json` and `vision_model.safetensors`.

They lie in the adapter's folder, beside its other files. They hold what trains: the projection, and
the encoder unless it is frozen.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.files.download import VISION_FILES
from llama_adapter_edu.files.safe_files import (
    AdapterFileError,
    as_json,
    check_made_for,
    check_tensors,
    not_settings,
    read_json,
    read_safetensors,
)
from llama_adapter_edu.vision.attach import add_vision, image_prompt_of
from llama_adapter_edu.vision.image_prompt import ImagePrompt

CONFIG_FILE, WEIGHTS_FILE = VISION_FILES
FORMAT = "llama_adapter_edu.vision/1"


class Sight(NamedTuple):
    """What `read_vision` has read: numbers by name, and how many layers see (all if None)."""

    tensors: dict[str, Tensor]
    layers: int | None


def vision_contents(model: PreTrainedModel, adapter_name: str) -> dict[str, bytes]:
    """The files of an adapter's image encoder: name -> content."""
    vision = image_prompt_of(model, adapter_name)
    trained = vision.trained().items()
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained}
    settings = {"format": FORMAT, **_settings(vision.encoder, decoder_of(model).config.hidden_size)}
    if vision.layers is not None:
        settings["layers"] = vision.layers
    return {
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: as_json(settings),
    }


def read_vision(
    model: PreTrainedModel, folder: Path, encoder: nn.Module | None, n_adapted: int
) -> Sight | None:
    """The saved numbers for this encoder, checked; None if the adapter in the folder does not see.

    Args:
        n_adapted: how many layers have prompts of this adapter.

    Raises:
        FileNotFoundError: one of the two files is missing.
        AdapterFileError: a file is corrupt, or is for another encoder or another base model.
        ValueError: the adapter sees and no encoder is given, or the other way round.
    """
    if not any((folder / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        if encoder is None:
            return None
        raise ValueError(f"the adapter in {folder} was saved without an image encoder.")
    if encoder is None:
        raise ValueError(
            f"the adapter in {folder} sees pictures. Pass the kind of encoder that it was trained "
            f"with: encoder={_read_settings(folder / CONFIG_FILE).get('encoder', '...')}(...)."
        )
    width = decoder_of(model).config.hidden_size
    saved, here = _read_settings(folder / CONFIG_FILE), _settings(encoder, width)
    check_made_for(folder, saved, here, "encoder or base model")
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    expected = ImagePrompt(encoder, width).trained().items()
    check_tensors(folder / WEIGHTS_FILE, tensors, {n: tuple(p.shape) for n, p in expected})
    layers = saved.get("layers")
    if layers is not None and not isinstance(layers, int):
        raise AdapterFileError(f"{folder}: layers must be a number, got {layers!r}.")
    if not 1 <= (1 if layers is None else layers) <= n_adapted:
        raise AdapterFileError(f"{folder}: the image encoder in it is of another adapter.")
    return Sight(tensors, layers)


def put_vision(model: PreTrainedModel, sight: Sight, encoder: nn.Module, adapter_name: str) -> None:
    """Give an adapter of the model this encoder with the numbers that `read_vision` has read."""
    add_vision(model, encoder, adapter_name, layers=sight.layers)
    with torch.no_grad():
        for name, parameter in image_prompt_of(model, adapter_name).trained().items():
            parameter.copy_(sight.tensors[name])


def _settings(encoder: nn.Module, model_width: int) -> dict:
    """What the saved numbers depend on, as JSON gives it back."""
    return {
        "encoder": type(encoder).__name__,
        "image_shape": list(encoder.image_shape),
        "feature_widths": list(encoder.feature_widths),
        "hidden_size": model_width,
    }


def _read_settings(path: Path) -> dict:
    settings = read_json(path, "save_adapter")
    if settings.pop("format", None) != FORMAT:
        raise not_settings(path, "save_adapter", ValueError(f"its format is not {FORMAT!r}"))
    return settings
