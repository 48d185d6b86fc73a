"""PEFT's files for adaption prompts: `adapter_config.json` and `adapter_model.safetensors`.

    base_model.model.model.layers.{i}.self_attn.adaption_prompt    (1 p m)
    base_model.model.model.layers.{i}.self_attn.adaption_gate      (1)      multiplies as it is

PEFT has one gate a layer and no tanh. It adds the prompts' part after a second o_proj instead of
before the only one. That is the same as long as o_proj has no bias.
"""

import json
from pathlib import Path

from einops import rearrange
from safetensors.torch import save
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files.safe_files import (
    FLOATS,
    AdapterFileError,
    check_tensors,
    not_settings,
    read_json,
    read_pickled,
    read_safetensors,
    shown,
)
from llama_adapter_edu.files.weights import (
    AdapterWeights,
    fold_tanh,
    one_gate_per_layer,
    top_layers,
)

CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
KIND = "ADAPTION_PROMPT"
MODEL_TYPES = ("llama", "mistral")


def to_peft(
    model: PreTrainedModel, weights: AdapterWeights, base_model: str | None
) -> dict[str, bytes]:
    """The content of PEFT's two files, by file name. A tanh gate is stored as what it comes to.

    Raises:
        ValueError: heads have different gates, or PEFT would compute something else with this
            model; the message says what would be lost.
    """
    if problem := _peft_differs(model):
        raise ValueError(f"PEFT cannot use this adapter: {problem}.")
    weights = one_gate_per_layer(fold_tanh(weights), "PEFT")
    tensors = {}
    for number, (prompts_key, gate_key) in _keys(model, weights.config.adapter_layers).items():
        tensors[prompts_key] = rearrange(weights.prompts[number], "p m -> 1 p m")
        tensors[gate_key] = weights.gates[number]
    config = {
        "peft_type": KIND,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "target_modules": "self_attn",
        "adapter_len": weights.config.adapter_len,
        "adapter_layers": weights.config.adapter_layers,
        "inference_mode": True,
    }
    return {
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
    }


def from_peft(folder: Path, model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a folder of PEFT's, for this model. `adapter_model.bin` of old is read too.

    Raises:
        FileNotFoundError: one of the files does not exist.
        AdapterFileError: a file is corrupt, is no adaption prompt, or does not fit the model.
    """
    path = folder / CONFIG_FILE
    settings = read_json(path, "PEFT")
    if settings.get("peft_type") != KIND:
        raise AdapterFileError(
            f"{path} is of the kind {shown(settings.get('peft_type'))}. Of PEFT's methods only "
            f"{KIND} is LLaMA-Adapter; load others with peft."
        )
    if settings.get("target_modules") not in (None, "self_attn"):
        raise AdapterFileError(
            f"{path}: prompts were put into {shown(settings['target_modules'])}, expected "
            "'self_attn'."
        )
    if problem := _peft_differs(model):
        raise AdapterFileError(f"{folder} is PEFT's, which computes something else here: {problem}")
    try:
        config = AdaptionPromptConfig(
            settings["adapter_len"],
            # PEFT takes 0 for all layers.
            settings["adapter_layers"] or len(attention_layers(model)),
            gate="per_layer",
            gate_activation="identity",
        )
        keys = _keys(model, config.adapter_layers)
    except (KeyError, TypeError, ValueError) as error:
        raise not_settings(path, "PEFT", error) from error

    path = folder / WEIGHTS_FILE
    if not path.exists() and (folder / OLD_WEIGHTS_FILE).exists():
        path = folder / OLD_WEIGHTS_FILE
        tensors = read_pickled(path)
    else:
        tensors = read_safetensors(path)
    width = attention_layers(model)[0].config.hidden_size
    shapes = {}
    for prompts_key, gate_key in keys.values():
        shapes |= {prompts_key: (1, config.adapter_len, width), gate_key: (1,)}
    check_tensors(path, tensors, shapes, FLOATS)
    return AdapterWeights(
        config,
        {i: rearrange(tensors[key], "1 p m -> p m").float() for i, (key, _) in keys.items()},
        {i: tensors[key].float() for i, (_, key) in keys.items()},
    )


def _keys(model: PreTrainedModel, adapter_layers: int) -> dict[int, tuple[str, str]]:
    """PEFT's names of the prompts and the gate, by layer number."""
    names = {id(module): name for name, module in model.named_modules()}
    layers = attention_layers(model)
    return {
        number: tuple(
            f"base_model.model.{names[id(layers[number])]}.{part}"
            for part in ("adaption_prompt", "adaption_gate")
        )
        for number in top_layers(model, adapter_layers)
    }


def _peft_differs(model: PreTrainedModel) -> str:
    """Why PEFT computes something else with prompts in this model; "" if it does not."""
    attention = attention_layers(model)[0]
    config = attention.config
    if config.model_type not in MODEL_TYPES:
        return f"it takes {' and '.join(MODEL_TYPES)} models, this is {config.model_type}"
    if config.num_attention_heads * attention.head_dim != config.hidden_size:
        return (
            f"it takes head_dim for hidden_size / heads, but here it is {attention.head_dim}, not "
            f"{config.hidden_size}/{config.num_attention_heads}"
        )
    if attention.o_proj.bias is not None:
        return "it adds the bias of o_proj a second time"
    return ""
