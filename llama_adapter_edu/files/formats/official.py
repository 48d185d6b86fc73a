"""The authors' adapter file for LLaMA 1: a `.pth` of `torch.save`.

    adapter_query.weight          ((l p) m)    all prompts, the lowest adapted layer first
    layers.{i}.attention.gate     (1 h 1 1)    in every layer, adapted or not; of old (1)

**tanh?** The file does not say. The authors' training code multiplies by tanh(gate), their
inference code by the gate itself, and both read the same file. Before April 2023 there was no tanh
at all. So the caller has to say which.

**Why prompts need no permutation.** Meta's LLaMA rotates neighbouring numbers of a head, (0, 1),
(2, 3), ...; transformers rotates (0, d/2), (1, d/2 + 1), .... So a conversion reorders the rows of
the query and key projections, within each head; their products, the scores, stay as they were. A
prompt comes before the projections and a gate belongs to a whole head: both are taken as they are.

**LLaMA-Adapter V2** (their chat model of 65B) has more:

    layers.{i}.attention.wq_bias, wk_, wv_, wo_          (m)     as many as the layer puts out
    layers.{i}.attention.wq_scale, ...                   (n)     as many as it takes
    layers.{i}.feed_forward.w1_bias, w2_, w3_, w1_scale, ...     gate, down and up
    layers.{i}.attention_norm.weight, ffn_norm.weight, norm.weight

The paper scales the output, s * (W x + b), their code the input, W (s * x) + b. Biases of queries
and keys come after the projections: their order is turned. A file may lack all biases, all scales,
or all norms, and has no prompts if they trained without. Their multi-modal model has a visual
encoder of its own, which this library has not: its files are refused.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files.safe_files import AdapterFileError, read_pickled
from llama_adapter_edu.files.weights import (
    Layout,
    base_shape,
    from_meta_rotary,
    from_tensors,
    put_into,
    refuse_more,
    turned,
    v2_shapes,
)

PROMPTS = "adapter_query.weight"
NUMBER = r"layers\.(0|[1-9][0-9]{0,5})"
GATE = re.compile(rf"{NUMBER}\.attention\.gate")
NAMES = {f"self_attn.{n}_proj.": f"attention.w{n}_" for n in "qkvo"}
NAMES |= {f"mlp.{n}_proj.": f"feed_forward.w{i}_" for i, n in enumerate(("gate", "down", "up"), 1)}
NAMES |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
V2 = re.compile(
    rf"{NUMBER}\.(?:attention\.w[qkvo]|feed_forward\.w[123])_(?:bias|scale)"
    rf"|(?:{NUMBER}\.(?:attention|ffn)_)?norm\.weight"
)


def load_official_adapter(
    model: PreTrainedModel,
    path: str | os.PathLike,
    adapter_name: str = "default",
    *,
    gate_activation: str,
    adapter_len: int = 10,
) -> PreTrainedModel:
    """Add an adapter from the authors' repository to a LLaMA in transformers' format, in place.

    Args:
        path: the `.pth` file, as `llama_adapter_len10_layer30_release.pth`, or one of V2.
        gate_activation: "tanh", as in the authors' training code, or "identity", as in their
            inference code and in arXiv v1. The file does not say; compare both on a few questions.
        adapter_len: prompts in a layer (K). The file holds only K times the number of layers.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: it is no such file, is corrupt, or does not fit the model.
        ValueError: `gate_activation` or `adapter_len` is out of range, the model is no LLaMA, or it
            has an adapter of that name. In each case the model is as it was.
    """
    AdaptionPromptConfig(adapter_len, gate_activation=gate_activation)
    attention_layers(model)
    shape = base_shape(model)
    if shape["model_type"] != "llama":
        raise ValueError(f"the authors' adapters are for LLaMA, this is {shape['model_type']}.")
    path = Path(os.path.expanduser(path))
    tensors = read_pickled(path)
    prompts = tensors.pop(PROMPTS, None)
    v2 = {name: tensors.pop(name) for name in list(tensors) if V2.fullmatch(name)}
    if any(name.startswith("llama.") for name in tensors):
        raise AdapterFileError(
            f"{path} is of the authors' multi-modal model, whose visual encoder is not in this "
            "library. Without it the adapter would see something else."
        )
    if (prompts is None and not v2) or (prompts is not None and prompts.ndim != 2):
        raise AdapterFileError(f"{path} is not the authors' format: no {PROMPTS} ((l p) m) in it.")
    refuse_more(path, tensors, GATE)
    n_layers = shape["num_hidden_layers"]
    config = _config(path, prompts, tensors, v2, n_layers, gate_activation, adapter_len)
    first = n_layers - config.adapter_layers if config.adapter_len else n_layers
    for number in range(first):  # gates exist in all layers, and those without prompts never learn
        if tensors.pop(_keys(number)[1], torch.zeros(1)).any():
            raise AdapterFileError(
                f"{path} does not fit: the gate of layer {number} is open, but with adapter_len="
                f"{adapter_len} and a model of {n_layers} layers prompts begin at layer {first}."
            )
    for number, rows in enumerate(prompts.split(adapter_len) if config.adapter_len else ()):
        tensors[_keys(first + number)[0]] = rows
    gate_shape = (1, shape["num_attention_heads"], 1, 1) if config.gate == "per_head" else (1,)
    layout = Layout(_keys, (adapter_len, shape["hidden_size"]), gate_shape)
    shapes = v2_shapes(model, config)
    tensors |= _named_as_here(v2, shapes)
    weights = from_tensors(path, tensors, config, n_layers, layout, shapes)
    return put_into(model, turned(weights, shape, from_meta_rotary), adapter_name)


def is_official(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names is the authors'."""
    return any(name == PROMPTS or V2.fullmatch(name) for name in names)


def _config(
    path: Path,
    prompts: Tensor | None,
    gates: dict[str, Tensor],
    v2: dict[str, Tensor],
    n_layers: int,
    gate_activation: str,
    adapter_len: int,
) -> AdaptionPromptConfig:
    """The settings of the adapter in a file."""
    more = {
        "bias_scale": any(name.endswith(("_bias", "_scale")) for name in v2),
        "norms": any(name.endswith(".weight") for name in v2),
        "scaled": "input",
    }
    if prompts is None:
        config = AdaptionPromptConfig(0, gate_activation=gate_activation, **more)
        return config.for_depth(n_layers)
    n_adapted = len(prompts) / adapter_len
    if n_adapted not in range(1, n_layers + 1):
        raise AdapterFileError(
            f"{path} has {len(prompts)} prompts: with adapter_len={adapter_len} this makes "
            f"{n_adapted:g} layers, and the model has {n_layers}. Pass the adapter_len that it was "
            "trained with."
        )
    kind = "per_layer" if all(gate.ndim == 1 for gate in gates.values()) else "per_head"
    more = more if v2 else {}
    return AdaptionPromptConfig(adapter_len, int(n_adapted), kind, gate_activation, **more)


def _named_as_here(v2: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Their tensors of V2 by our names, with biases of 0 or scales of 1 where they have none."""
    ours = {}
    for name, shape in shapes.items():
        key, kind = name, f"_{name.rpartition('.')[2]}"
        for here, theirs in NAMES.items():
            key = key.replace(here, theirs)
        # They leave the head as it is.
        absent = name.startswith("lm_head.") or not any(k.endswith(kind) for k in v2)
        if key in v2:
            ours[name] = v2.pop(key)
        elif kind in ("_bias", "_scale") and absent:
            ours[name] = torch.full(shape, float(kind == "_scale"))
    return ours | v2  # what is left does not belong there, and is refused


def _keys(number: int) -> tuple[str, str]:
    return f"{PROMPTS} of layer {number}", f"layers.{number}.attention.gate"
