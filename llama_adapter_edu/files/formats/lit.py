"""The adapter files of litgpt and of lit-llama, its predecessor: a `.pth` of `torch.save`.

                litgpt            lit-llama
    file        {"model": {..}}   {..}
    transformer.h.{i}.attn.adapter_wte.weight     (p m)
    transformer.h.{i}.attn.gating_factor          (1 1 h 1), (1 h 1 1), or of old (1)

The gate multiplies as it is; there is no tanh. lit-llama spread the one gate of old over all heads,
and so do we. litgpt finds K and L in its own settings, not in the file: set
`adapter_prompt_length` = K and `adapter_start_layer` = N - L there, as `Config.from_name(...,
adapter_prompt_length=K, adapter_start_layer=N - L)`.

LLaMA-Adapter V2 adds `.adapter_bias` and `.adapter_scale` of every linear layer, and the norms.
Queries, keys and values have one linear layer together. lit-llama keeps Meta's order of queries
and keys, litgpt that of transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files.download import LIT_LLAMA_FILE, LITGPT_FILE, LITGPT_V2_FILE
from llama_adapter_edu.files.safe_files import AdapterFileError, as_pickle, shown
from llama_adapter_edu.files.weights import (
    AdapterWeights,
    Layout,
    as_tensors,
    base_shape,
    from_meta_rotary,
    from_tensors,
    refuse_more,
    to_meta_rotary,
    turned,
    v2_shapes,
    without_tanh,
)

PROMPTS, GATE = "adapter_wte.weight", "gating_factor"
KEY = re.compile(rf"transformer\.h\.(0|[1-9][0-9]{{0,5}})\.attn\.(?:{re.escape(PROMPTS)}|{GATE})")
NAMES = {  # inside a layer: ours, litgpt's, lit-llama's
    "self_attn.q_proj": ("attn.qkv", "attn.c_attn"),
    "self_attn.k_proj": ("attn.qkv", "attn.c_attn"),
    "self_attn.v_proj": ("attn.qkv", "attn.c_attn"),
    "self_attn.o_proj": ("attn.proj", "attn.c_proj"),
    "mlp.gate_proj": ("mlp.fc_1", "mlp.c_fc1"),
    "mlp.up_proj": ("mlp.fc_2", "mlp.c_fc2"),
    "mlp.down_proj": ("mlp.proj", "mlp.c_proj"),
    "input_layernorm": ("norm_1", "rms_1"),
    "post_attention_layernorm": ("norm_2", "rms_2"),
}
THEIRS = "|".join(name for pair in NAMES.values() for name in pair)
V2_KEY = re.compile(
    rf"(?:transformer\.h\.\d{{1,6}}\.(?:{THEIRS})"
    r"|transformer\.ln_f|lm_head)\.(adapter_bias|adapter_scale|weight|scale)"
)


def to_litgpt(model: PreTrainedModel, weights: AdapterWeights, base_model: str | None) -> dict:
    """The content of litgpt's file, by its name. What tanh makes of a gate is stored."""
    name = LITGPT_V2_FILE if weights.v2 else LITGPT_FILE
    return {name: as_pickle({"model": _tensors(model, weights, (1, 1, -1, 1), meta=False)})}


def to_lit_llama(model: PreTrainedModel, weights: AdapterWeights, base_model: str | None) -> dict:
    """As `to_litgpt`, for lit-llama, which knows Meta's LLaMA only."""
    shape = base_shape(model)
    if shape["num_key_value_heads"] != shape["num_attention_heads"]:
        raise ValueError("lit-llama has no grouped key/value heads: save this one for litgpt.")
    return {LIT_LLAMA_FILE: as_pickle(_tensors(model, weights, (1, -1, 1, 1), meta=True))}


def _tensors(
    model: PreTrainedModel, weights: AdapterWeights, gate_shape: tuple, *, meta: bool
) -> dict:
    problem = _lit_differs(model)
    if weights.config.bias_scale and weights.config.scaled != "output":
        problem = "it scales the output of linear layers, and this adapter their input"
    if problem:
        raise ValueError(f"litgpt cannot use this adapter: {problem}.")
    shape = base_shape(model)
    layout = Layout(_keys, (weights.config.adapter_len, -1), gate_shape)
    n_heads = shape["num_attention_heads"]
    tensors = as_tensors(without_tanh(weights, "per_head", n_heads, "litgpt"), layout)
    v2 = (turned(weights, shape, to_meta_rotary) if meta else weights).v2
    for key, names in _fused(v2, meta=meta).items():
        tensors[key] = torch.cat([v2[name] for name in names])
    return tensors


def from_lit(path: Path, tensors: Mapping[str, Tensor], model: PreTrainedModel) -> AdapterWeights:
    """The adapter in a file of litgpt or lit-llama, for this model."""
    has_prompts = any(KEY.fullmatch(name) for name in tensors)
    more = [match for name in tensors if (match := V2_KEY.fullmatch(name))]
    if not (has_prompts or more):
        raise AdapterFileError(
            f"{path} is no adapter file of litgpt, lit-llama or the authors: it holds "
            f"{shown(sorted(tensors))}."
        )
    refuse_more(path, (n for n in tensors if not V2_KEY.fullmatch(n)), KEY)
    if problem := _lit_differs(model):
        raise AdapterFileError(f"{path} is litgpt's, which computes otherwise here: {problem}.")
    has = {match[1] for match in more}
    v2 = {
        "bias_scale": any(name.startswith("adapter_") for name in has),
        "norms": not has <= {"adapter_bias", "adapter_scale"},
    }
    shape = base_shape(model)
    n_layers, n_heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    width, layers, gate_shape = 0, n_layers, (1, 1, n_heads, 1)
    if has_prompts:
        start = min(int(match[1]) for name in tensors if (match := KEY.fullmatch(name)))
        first, gate = (tensors.get(key) for key in _keys(start))
        if start >= n_layers or first is None or first.ndim != 2 or not len(first):
            raise AdapterFileError(
                f"{path} does not fit this model: prompts (p m) expected from layer {start} to its "
                f"last layer, {n_layers - 1}."
            )
        width, layers = len(first), n_layers - start
        if gate is not None and tuple(gate.shape) in ((1, n_heads, 1, 1), (1,)):
            gate_shape = tuple(gate.shape)
    config = AdaptionPromptConfig(width, layers, gate_activation="identity", **v2)
    layout = Layout(_keys, (width, shape["hidden_size"]), gate_shape)
    meta = any("rms_" in name or "c_attn" in name for name in tensors)
    shapes = v2_shapes(model, config)
    fused = _fused(shapes, meta=meta)
    expected = {key: (sum(shapes[n][0] for n in names),) for key, names in fused.items()}
    tensors = dict(tensors)
    for key in ("lm_head.adapter_bias", "lm_head.adapter_scale"):
        if key in tensors and key in expected:  # a vocabulary filled up to a round number
            tensors[key] = tensors[key][: expected[key][0]]
    found = from_tensors(path, tensors, config, n_layers, layout, expected)
    apart: dict[str, Tensor] = {}
    for key, names in fused.items():
        parts = found.v2[key].split([shapes[name][0] for name in names])
        apart |= zip(names, parts, strict=True)
    weights = replace(found, v2=apart)
    return turned(weights, shape, from_meta_rotary) if meta else weights


def _keys(number: int) -> tuple[str, str]:
    attention = f"transformer.h.{number}.attn"
    return f"{attention}.{PROMPTS}", f"{attention}.{GATE}"


def _fused(names: Mapping[str, object], *, meta: bool) -> dict[str, list[str]]:
    """Their name of each of our tensors of V2: {their name: ours, in order}.

    Raises:
        ValueError: litgpt has no such layer.
    """
    theirs = {ours: lit_llama if meta else litgpt for ours, (litgpt, lit_llama) in NAMES.items()}
    fused: dict[str, list[str]] = {}
    for name in names:
        place, _, kind = name.rpartition(".")
        kind = {"bias": "adapter_bias", "scale": "adapter_scale"}.get(
            kind, "scale" if meta else kind
        )
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", place)
        if layer is None:
            place = {"norm": "transformer.ln_f", "lm_head": "lm_head"}.get(place)
        else:
            inside = theirs.get(layer[2])
            place = inside and f"transformer.h.{layer[1]}.{inside}"
        if "norm" in name and not name.endswith(".weight"):
            place = None  # a norm with a bias
        if place is None:
            raise ValueError(f"litgpt has no layer like {name.rpartition('.')[0]} of this model.")
        fused.setdefault(f"{place}.{kind}", []).append(name)
    return fused


def _lit_differs(model: PreTrainedModel) -> str:
    """Why litgpt computes something else with prompts in this model; "" if it does not."""
    attention = attention_layers(model)[0]
    if getattr(attention, "k_norm", None) is not None:
        return "it does not apply the norm of the keys to the prompts' keys"
    if getattr(attention.config, "attn_logit_softcapping", None) is not None:
        return "it caps the prompts' scores, and this library does not"
    return ""
