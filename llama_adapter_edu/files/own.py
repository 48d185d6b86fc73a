"""This library's files of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

    layers.{i}.prompts    (p m)       of each adapted layer, 0 at the bottom, in float32
    layers.{i}.gate       (h), or (1) for "per_layer"

The settings are those of `AdaptionPromptConfig`, the shape of the base model, and its id on the hub
where it is known.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.files.safe_files import (
    SHOWN,
    AdapterFileError,
    check_tensors,
    not_settings,
    read_json,
    read_safetensors,
    shown,
)
from llama_adapter_edu.files.weights import AdapterWeights, base_shape, top_layers

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
FORMAT = "llama_adapter_edu/1"
SETTINGS = "settings"  # a copy of them, among the weights' metadata


def to_own(
    model: PreTrainedModel, weights: AdapterWeights, base_model: str | None
) -> dict[str, bytes]:
    """The content of the two files, by file name."""
    config = {"format": FORMAT, **asdict(weights.config), "base": base_shape(model)}
    if base_model:
        config["base_model"] = base_model
    tensors = {f"layers.{number}.prompts": prompts for number, prompts in weights.prompts.items()}
    tensors |= {f"layers.{number}.gate": gate for number, gate in weights.gates.items()}
    return {
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt", SETTINGS: _as_text(weights.config)}),
        CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
    }


def from_own(folder: Path, model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a folder, for this model.

    Raises:
        FileNotFoundError: one of the files does not exist.
        AdapterFileError: a file is corrupt, or does not fit its settings or the model.
    """
    config, base = _read_config(folder / CONFIG_FILE)
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    shape = base_shape(model)
    if base != shape:
        raise AdapterFileError(
            f"{folder} was made for another base model: {_difference(base, shape)}. "
            "Load the base it was trained on."
        )
    try:
        layers = top_layers(model, config.adapter_layers)
    except ValueError as error:
        raise not_settings(folder / CONFIG_FILE, "save_adapter", error) from error
    n_gates = shape["num_attention_heads"] if config.gate == "per_head" else 1
    shapes: dict[str, tuple[int, ...]] = {}
    for number in layers:
        shapes[f"layers.{number}.prompts"] = (config.adapter_len, shape["hidden_size"])
        shapes[f"layers.{number}.gate"] = (n_gates,)
    check_tensors(folder / WEIGHTS_FILE, tensors, shapes)
    _check_saved_together(folder, config)
    prompts, gates = (
        {number: tensors[f"layers.{number}.{part}"] for number in layers}
        for part in ("prompts", "gate")
    )
    return AdapterWeights(config, prompts, gates)


def _as_text(config: AdaptionPromptConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def _check_saved_together(folder: Path, config: AdaptionPromptConfig) -> None:
    """The two files cannot be moved into place at once: a kill between leaves one of each save."""
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        settings = (file.metadata() or {}).get(SETTINGS)
    if settings not in (None, _as_text(config)):
        raise AdapterFileError(
            f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE} are not of the same save. A save was "
            f"killed, or the settings were edited. The weights were saved with {shown(settings)}."
        )


def _difference(saved: dict, here: dict) -> str:
    names = [name for name in {**here, **saved} if saved.get(name) != here.get(name)]
    different = [
        f"{n if n in here else shown(n)} {shown(saved.get(n))}, this model has {here.get(n)!r}"
        for n in names
    ]
    return ", ".join(different[:SHOWN])


def _read_config(path: Path) -> tuple[AdaptionPromptConfig, dict]:
    saved = read_json(path, "save_adapter")
    try:
        if saved.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        base = saved.pop("base")
        saved.pop("base_model", None)
        known = {field.name for field in fields(AdaptionPromptConfig)}
        if set(saved) != known:
            strange = [shown(name) for name in sorted(set(saved) ^ known)[:SHOWN]]
            raise ValueError(f"settings {', '.join(strange)} are missing or unknown")
        return AdaptionPromptConfig(**saved), dict(base)
    except (KeyError, TypeError, ValueError) as error:
        raise not_settings(path, "save_adapter", error) from error
