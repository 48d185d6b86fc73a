"""PEFT's files for adaption prompts: `adapter_config.json` and `adapter_model.safetensors`.

    base_model.model.model.layers.{i}.self_attn.adaption_prompt    (1 p m)
    base_model.model.model.layers.{i}.self_attn.adaption_gate      (1)      multiplies as it is

PEFT has one gate a layer and no tanh. It adds the prompts' part after a second o_proj instead of
before the only one. That is the same as long as o_proj has no bias.
"""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files import safe_files
from llama_adapter_edu.files.download import (
    CONFIG_FILE,
    OLD_WEIGHTS_FILE,
    WEIGHTS_FILE,
    openable,
    two_files,
)
from llama_adapter_edu.files.safe_files import AdapterFileError, not_settings, shown
from llama_adapter_edu.files.weights import (
    AdapterWeights,
    Layout,
    as_tensors,
    base_shape,
    from_tensors,
    without_tanh,
)

KIND = "ADAPTION_PROMPT"
MODEL_TYPES = ("llama", "mistral")


def to_peft(model: PreTrainedModel, weights: AdapterWeights, base_model: str | None) -> dict:
    """The content of PEFT's two files, by file name. A tanh gate is stored as what it comes to."""
    if problem := _peft_differs(model):
        raise ValueError(f"PEFT cannot use this adapter: {problem}.")
    if weights.v2:
        raise ValueError("PEFT has no LLaMA-Adapter V2: biases, scales and norms would be lost.")
    n_heads = base_shape(model)["num_attention_heads"]
    weights = without_tanh(weights, "per_layer", n_heads, "PEFT")
    config = {
        "peft_type": KIND,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": openable(base_model),
        "target_modules": "self_attn",
        "adapter_len": weights.config.adapter_len,
        "adapter_layers": weights.config.adapter_layers,
        "inference_mode": True,
    }
    layout = Layout(_keys(model), (1, weights.config.adapter_len, -1), (1,))
    return two_files(config, as_tensors(weights, layout), base_model)


def from_peft(folder: Path, model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a folder of PEFT's, for this model. `adapter_model.bin` of old is read too."""
    path = folder / CONFIG_FILE
    settings = safe_files.read_json(path, "PEFT")
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
    layers = attention_layers(model)
    try:
        n_adapted = settings["adapter_layers"] or len(layers)  # PEFT takes 0 for all layers
        config = AdaptionPromptConfig(settings["adapter_len"], n_adapted, "per_layer", "identity")
    except (KeyError, TypeError, ValueError) as error:
        raise not_settings(path, "PEFT", error) from error
    path, old = folder / WEIGHTS_FILE, folder / OLD_WEIGHTS_FILE
    if old.exists() and not path.exists():
        path, tensors = old, safe_files.read_pickled(old)
    else:
        tensors = safe_files.read_safetensors(path)
    prompts = 1, config.adapter_len, layers[0].config.hidden_size
    return from_tensors(path, tensors, config, len(layers), Layout(_keys(model), prompts, (1,)))


def _keys(model: PreTrainedModel) -> Callable[[int], tuple[str, str]]:
    """PEFT's names of a layer's prompts and gate, by its number."""
    names = {id(module): f"base_model.model.{name}" for name, module in model.named_modules()}
    layers = [names[id(attention)] for attention in attention_layers(model)]
    return lambda i: (f"{layers[i]}.adaption_prompt", f"{layers[i]}.adaption_gate")


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
