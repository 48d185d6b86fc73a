"""Adapters on disk: a folder with `adapter_config.json` and `adapter_model.safetensors`.

The file holds, per adapted layer, `layers.{i}.prompts` (p m) and `layers.{i}.gate` (h, or 1), in
float32, and nothing of the base model. Everything is checked before the model is touched.
"""

import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapt import (
    AdaptionPromptConfig,
    adapter_configs,
    adapter_prompts,
    add_adaption_prompts,
    check_new_adapter,
)
from llama_adapter_edu.attention_interface import attention_layers, decoder_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
FORMAT = "llama_adapter_edu/1"


class AdapterFileError(ValueError):
    """A saved adapter cannot be used; the message says which file, why, and what to do."""


def save_adapter(
    model: PreTrainedModel, folder: str | os.PathLike, adapter_name: str | None = None
) -> Path:
    """Write one adapter, the active one if no name is given, and nothing of the base model.

    Both files are written beside their place and then moved there, so a save that is interrupted
    leaves an earlier one whole.

    Returns:
        the folder.

    Raises:
        ValueError: the model has no such adapter.
        OSError: the folder cannot be written (disk full, read-only); earlier files are intact.
    """
    name = adapter_name or getattr(getattr(model, "adapter_state", None), "active", None)
    if name is None:
        raise ValueError("the model has no active adapter to save: add one, or pass adapter_name.")
    prompts = adapter_prompts(model, name)
    tensors = {
        f"layers.{number}.{part}": tensor.detach().cpu().contiguous()
        for number, prompt in prompts.items()
        for part, tensor in prompt.named_parameters()
    }
    config = {"format": FORMAT, **asdict(adapter_configs(model)[name]), "base": _base(model)}

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as unfinished:
        for file, content in written.items():
            with open(Path(unfinished, file), "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
        for file in written:
            os.replace(Path(unfinished, file), folder / file)
    return folder


def load_adapter(
    model: PreTrainedModel, folder: str | os.PathLike, adapter_name: str = "default"
) -> PreTrainedModel:
    """Add a saved adapter to a base model of the same shape, in place, and make it the active one.

    Raises:
        FileNotFoundError: the folder or one of its files does not exist.
        AdapterFileError: a file is corrupt, keys or shapes are not what the settings say, or the
            adapter was made for another base model.
        ValueError: the model already has an adapter of that name.
        In each case the model is as it was.
    """
    folder = Path(folder)
    config, base = _read_config(folder / CONFIG_FILE)
    tensors = _read_weights(folder / WEIGHTS_FILE)
    layers = attention_layers(model)
    if base != _base(model):
        raise AdapterFileError(
            f"{folder} was made for another base model: {_difference(base, _base(model))}. "
            "Load the base it was trained on."
        )
    check_new_adapter(adapter_name, config, adapter_configs(model), len(layers))
    _check_tensors(folder / WEIGHTS_FILE, tensors, _expected_shapes(model, config))

    add_adaption_prompts(model, config, adapter_name)
    with torch.no_grad():
        for number, prompt in adapter_prompts(model, adapter_name).items():
            for part, parameter in prompt.named_parameters():
                parameter.copy_(tensors[f"layers.{number}.{part}"])
    return model


def _base(model: PreTrainedModel) -> dict:
    """What of the base model an adapter depends on."""
    config = decoder_of(model).config
    return {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
    }


def _difference(saved: dict, here: dict) -> str:
    names = [name for name in {**saved, **here} if saved.get(name) != here.get(name)]
    return ", ".join(f"{n} {saved.get(n)!r}, this model has {here.get(n)!r}" for n in names)


def _read_config(path: Path) -> tuple[AdaptionPromptConfig, dict]:
    if not path.is_file():
        raise FileNotFoundError(f"no adapter in {path.parent}: {path.name} is missing.")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        base = saved.pop("base")
        known = {field.name for field in fields(AdaptionPromptConfig)}
        if set(saved) != known:
            raise ValueError(f"settings {sorted(set(saved) ^ known)} are missing or unknown")
        return AdaptionPromptConfig(**saved), dict(base)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AdapterFileError(
            f"{path} is not the settings file of an adapter saved by save_adapter: {error!r}."
        ) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no adapter in {path.parent}: {path.name} is missing.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"{path} is corrupt or was cut short ({error}). Save or download the adapter again."
        ) from error


def _expected_shapes(
    model: PreTrainedModel, config: AdaptionPromptConfig
) -> dict[str, tuple[int, ...]]:
    base = _base(model)
    n_gates = base["num_attention_heads"] if config.gate == "per_head" else 1
    n_layers = base["num_hidden_layers"]
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(n_layers - config.adapter_layers, n_layers):
        shapes[f"layers.{number}.prompts"] = (config.adapter_len, base["hidden_size"])
        shapes[f"layers.{number}.gate"] = (n_gates,)
    return shapes


def _check_tensors(path: Path, tensors: dict[str, Tensor], shapes: dict[str, tuple]) -> None:
    """Refuse weights that are not exactly what the settings promise."""
    problems = [f"{key} is missing" for key in shapes if key not in tensors]
    problems += [f"{key} does not belong there" for key in tensors if key not in shapes]
    for key in shapes.keys() & tensors.keys():
        tensor = tensors[key]
        if tuple(tensor.shape) != shapes[key]:
            problems.append(f"{key} is {tuple(tensor.shape)}, expected {shapes[key]}")
        elif tensor.dtype != torch.float32:
            problems.append(f"{key} is {tensor.dtype}, expected torch.float32")
        elif not tensor.isfinite().all():
            problems.append(f"{key} holds NaN or infinity")
    if problems:
        shown = "; ".join(sorted(problems)[:4]) + ("; ..." if len(problems) > 4 else "")
        raise AdapterFileError(f"{path} does not fit its settings or this model: {shown}.")
