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

import io
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files.safe_files import FLOATS, AdapterFileError, check_tensors, shown
from llama_adapter_edu.files.weights import AdapterWeights, base_shape, fold_tanh, one_gate_per_head

LITGPT_FILE, LIT_LLAMA_FILE = "lit_model.pth.adapter", "lit-llama-adapter-finetuned.pth"
PROMPTS, GATE = "adapter_wte.weight", "gating_factor"
KEY = re.compile(rf"transformer\.h\.(0|[1-9][0-9]{{0,5}})\.attn\.(?:{re.escape(PROMPTS)}|{GATE})")


def to_litgpt(
    model: PreTrainedModel, weights: AdapterWeights, base_model: str | None
) -> dict[str, bytes]:
    """The content of litgpt's adapter file, by file name.

    A tanh gate is stored as what it comes to, and one gate a layer is copied to every head.

    Raises:
        ValueError: litgpt would compute something else with this model.
    """
    return {LITGPT_FILE: _saved({"model": _tensors(model, weights, "h -> 1 1 h 1")})}


def to_lit_llama(
    model: PreTrainedModel, weights: AdapterWeights, base_model: str | None
) -> dict[str, bytes]:
    """As `to_litgpt`, for lit-llama, which knows Meta's LLaMA only.

    Raises:
        ValueError: lit-llama would compute something else with this model.
    """
    shape = base_shape(model)
    if shape["num_key_value_heads"] != shape["num_attention_heads"]:
        raise ValueError("lit-llama has no grouped key/value heads: save this one for litgpt.")
    return {LIT_LLAMA_FILE: _saved(_tensors(model, weights, "h -> 1 h 1 1"))}


def _tensors(model: PreTrainedModel, weights: AdapterWeights, gate_axes: str) -> dict[str, Tensor]:
    if problem := _lit_differs(model):
        raise ValueError(f"litgpt cannot use this adapter: {problem}.")
    weights = one_gate_per_head(fold_tanh(weights), base_shape(model)["num_attention_heads"])
    tensors = {}
    for number, prompts in weights.prompts.items():
        tensors[_key(number, PROMPTS)] = prompts
        tensors[_key(number, GATE)] = rearrange(weights.gates[number], gate_axes)
    return tensors


def _saved(content: dict) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def is_lit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these names are litgpt's or lit-llama's."""
    return any(KEY.fullmatch(name) for name in tensors)


def from_lit(path: Path, tensors: Mapping[str, Tensor], model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a file of litgpt or lit-llama, for this model.

    Raises:
        AdapterFileError: the tensors are not what such a file holds, or do not fit the model.
    """
    if extra := sorted(name for name in tensors if not KEY.fullmatch(name)):
        raise AdapterFileError(
            f"{path} holds more than prompts and gates, as {shown(extra[0])}: it may be of "
            "LLaMA-Adapter V2, whose biases and scales have no place here and would be lost."
        )
    if problem := _lit_differs(model):
        raise AdapterFileError(f"{path} is litgpt's, which computes otherwise here: {problem}.")
    start = min(int(KEY.fullmatch(name)[1]) for name in tensors)
    shape = base_shape(model)
    layers = range(start, shape["num_hidden_layers"])
    first = tensors.get(_key(start, PROMPTS))
    if not layers or first is None or first.ndim != 2 or not len(first):
        raise AdapterFileError(
            f"{path} does not fit this model: prompts (p m) expected from layer {start} to its last"
            f" layer, {shape['num_hidden_layers'] - 1}."
        )
    gates = {number: tensors.get(_key(number, GATE)) for number in layers}
    shapes = {_key(number, PROMPTS): (len(first), shape["hidden_size"]) for number in layers}
    for number, gate in gates.items():
        shapes[_key(number, GATE)] = _gate_shape(gate, shape["num_attention_heads"])
    check_tensors(path, tensors, shapes, FLOATS)
    config = AdaptionPromptConfig(len(first), len(layers), gate_activation="identity")
    weights = AdapterWeights(
        config,
        {number: tensors[_key(number, PROMPTS)].float() for number in layers},
        {number: gate.flatten().float() for number, gate in gates.items()},
    )
    return weights


def _gate_shape(gate: Tensor | None, n_heads: int) -> tuple[int, ...]:
    """The allowed shape that this gate has, else litgpt's."""
    allowed = (1, 1, n_heads, 1), (1, n_heads, 1, 1), (1,)
    found = None if gate is None else tuple(gate.shape)
    return found if found in allowed else allowed[0]


def _key(number: int, part: str) -> str:
    return f"transformer.h.{number}.attn.{part}"


def _lit_differs(model: PreTrainedModel) -> str:
    """Why litgpt computes something else with prompts in this model; "" if it does not."""
    attention = attention_layers(model)[0]
    if getattr(attention, "k_norm", None) is not None:
        return "it does not apply the norm of the keys to the prompts' keys"
    if getattr(attention.config, "attn_logit_softcapping", None) is not None:
        return "it caps the prompts' scores, and this library does not"
    return ""
