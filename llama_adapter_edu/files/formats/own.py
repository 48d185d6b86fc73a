"""This library's files of an adapter: `adapter_config.json` and `adapter_model.safetensors`.

    layers.{i}.prompts    (p m)       of each adapted layer, 0 at the bottom, in float32
    layers.{i}.gate       (h), or (1) for "per_layer"
    layers.{i}.mlp.up_proj.bias, .scale, lm_head.bias, ...     of LLaMA-Adapter V2, and
    layers.{i}.input_layernorm.weight, norm.weight, ...        its norms, at their places in a model

The settings are those of `AdaptionPromptConfig`, the shape of the base model, and its id on the hub
where it is known.
"""

import json
from dataclasses import fields
from pathlib import Path

from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import V2_SETTINGS, AdaptionPromptConfig
from llama_adapter_edu.files import safe_files
from llama_adapter_edu.files.download import CONFIG_FILE, WEIGHTS_FILE, openable, two_files
from llama_adapter_edu.files.safe_files import AdapterFileError, not_settings, shown
from llama_adapter_edu.files.weights import (
    AdapterWeights,
    Layout,
    as_tensors,
    base_shape,
    from_tensors,
    v2_shapes,
)

FORMAT = "llama_adapter_edu/1"
SETTINGS = "settings"  # a copy of them, among the weights' metadata


def to_own(model: PreTrainedModel, weights: AdapterWeights, base_model: str | None) -> dict:
    """The content of the two files, by file name."""
    config = {"format": FORMAT, **weights.config.settings(), "base": base_shape(model)}
    if base_model:
        config["base_model"] = openable(base_model)
    tensors = as_tensors(weights, Layout(_keys, (weights.config.adapter_len, -1), (-1,)))
    tensors |= weights.v2
    return two_files(config, tensors, base_model, **{SETTINGS: _as_text(weights.config)})


def from_own(folder: Path, model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a folder, for this model."""
    shape = base_shape(model)
    config = _read_config(folder / CONFIG_FILE, shape)
    path = folder / WEIGHTS_FILE
    n_gates = shape["num_attention_heads"] if config.gate == "per_head" else 1
    layout = Layout(_keys, (config.adapter_len, shape["hidden_size"]), (n_gates,))
    tensors = safe_files.read_safetensors(path)
    top, v2 = shape["num_hidden_layers"], v2_shapes(model, config)
    weights = from_tensors(path, tensors, config, top, layout, v2)
    # Two files cannot be replaced in one step: a killed save may leave a new one and an old one.
    saved_with = safe_files.read_metadata(path).get(SETTINGS)
    if saved_with not in (None, _as_text(config)):
        raise AdapterFileError(
            f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE} are not of the same save. A save was "
            f"killed, or the settings were edited. The weights were saved with {shown(saved_with)}."
        )
    return weights


def _keys(number: int) -> tuple[str, str]:
    return f"layers.{number}.prompts", f"layers.{number}.gate"


def _as_text(config: AdaptionPromptConfig) -> str:
    return json.dumps(config.settings(), sort_keys=True)


def _read_config(path: Path, shape: dict) -> AdaptionPromptConfig:
    """The settings in a file, which have to be for a base model of this shape."""
    saved = safe_files.read_json(path, "save_adapter")
    try:
        if saved.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        base = dict(saved.pop("base"))
        saved.pop("base_model", None)
        known = {f.name for f in fields(AdaptionPromptConfig)}
        if strange := sorted((saved.keys() ^ known) - (known & {*V2_SETTINGS})):
            raise ValueError(f"settings {shown(strange)} are missing or unknown")
        if saved["adapter_layers"] is None:
            raise ValueError("adapter_layers is null, and a saved adapter has a number of them")
        config = AdaptionPromptConfig(**saved)
    except (KeyError, TypeError, ValueError) as error:
        raise not_settings(path, "save_adapter", error) from error
    safe_files.check_made_for(path.parent, base, shape)
    return config
