"""The adapter files of litgpt and of lit-llama, its predecessor: a `.pth` of `torch.save`.

                litgpt            lit-llama
    file        {"model": {..}}   {..}
    transformer.h.{i}.attn.adapter_wte.weight     (p m)
    transformer.h.{i}.attn.gating_factor          (1 1 h 1), (1 h 1 1), or of old (1)

The gate multiplies as it is; there is no tanh. lit-llama spread the one gate of old over all heads,
and so do we. litgpt finds K and L in its own settings, not in the file: set
`adapter_prompt_length` = K and `adapter_start_layer` = N - L there, as `Config.from_name(...,
adapter_prompt_length=K, adapter_start_layer=N - L)`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files.download import LIT_LLAMA_FILE, LITGPT_FILE
from llama_adapter_edu.files.safe_files import AdapterFileError, as_pickle, shown
from llama_adapter_edu.files.weights import (
    AdapterWeights,
    Layout,
    as_tensors,
    base_shape,
    from_tensors,
    refuse_more,
    without_tanh,
)

PROMPTS, GATE = "adapter_wte.weight", "gating_factor"
KEY = re.compile(rf"transformer\.h\.(0|[1-9][0-9]{{0,5}})\.attn\.(?:{re.escape(PROMPTS)}|{GATE})")


def to_litgpt(model: PreTrainedModel, weights: AdapterWeights, base_model: str | None) -> dict:
    """The content of litgpt's file, by its name. What tanh makes of a gate is stored."""
    return {LITGPT_FILE: as_pickle({"model": _tensors(model, weights, (1, 1, -1, 1))})}


def to_lit_llama(model: PreTrainedModel, weights: AdapterWeights, base_model: str | None) -> dict:
    """As `to_litgpt`, for lit-llama, which knows Meta's LLaMA only."""
    shape = base_shape(model)
    if shape["num_key_value_heads"] != shape["num_attention_heads"]:
        raise ValueError("lit-llama has no grouped key/value heads: save this one for litgpt.")
    return {LIT_LLAMA_FILE: as_pickle(_tensors(model, weights, (1, -1, 1, 1)))}


def _tensors(model: PreTrainedModel, weights: AdapterWeights, gate_shape: tuple) -> dict:
    if problem := _lit_differs(model):
        raise ValueError(f"litgpt cannot use this adapter: {problem}.")
    n_heads = base_shape(model)["num_attention_heads"]
    layout = Layout(_keys, (weights.config.adapter_len, -1), gate_shape)
    return as_tensors(without_tanh(weights, "per_head", n_heads, "litgpt"), layout)


def from_lit(path: Path, tensors: Mapping[str, Tensor], model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a file of litgpt or lit-llama, for this model."""
    if not any(KEY.fullmatch(name) for name in tensors):
        raise AdapterFileError(
            f"{path} is no adapter file of litgpt, lit-llama or the authors: it holds "
            f"{shown(sorted(tensors))}."
        )
    refuse_more(path, tensors, KEY)
    if problem := _lit_differs(model):
        raise AdapterFileError(f"{path} is litgpt's, which computes otherwise here: {problem}.")
    shape = base_shape(model)
    n_layers, n_heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    start = min(int(KEY.fullmatch(name)[1]) for name in tensors)
    first, gate = (tensors.get(key) for key in _keys(start))
    if start >= n_layers or first is None or first.ndim != 2 or not len(first):
        raise AdapterFileError(
            f"{path} does not fit this model: prompts (p m) expected from layer {start} to its last"
            f" layer, {n_layers - 1}."
        )
    gate_shape = None if gate is None else tuple(gate.shape)
    if gate_shape not in ((1, n_heads, 1, 1), (1,)):
        gate_shape = 1, 1, n_heads, 1
    config = AdaptionPromptConfig(len(first), n_layers - start, gate_activation="identity")
    layout = Layout(_keys, (len(first), shape["hidden_size"]), gate_shape)
    return from_tensors(path, tensors, config, n_layers, layout)


def _keys(number: int) -> tuple[str, str]:
    return tuple(f"transformer.h.{number}.attn.{part}" for part in (PROMPTS, GATE))


def _lit_differs(model: PreTrainedModel) -> str:
    """Why litgpt computes something else with prompts in this model; "" if it does not."""
    attention = attention_layers(model)[0]
    if getattr(attention, "k_norm", None) is not None:
        return "it does not apply the norm of the keys to the prompts' keys"
    if getattr(attention.config, "attn_logit_softcapping", None) is not None:
        return "it caps the prompts' scores, and this library does not"
    return ""
