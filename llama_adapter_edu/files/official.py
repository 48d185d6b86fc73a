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
"""

import os
import re
from pathlib import Path

import torch
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.files.safe_files import AdapterFileError, read_pickled
from llama_adapter_edu.files.weights import Layout, base_shape, from_tensors, put_into, refuse_more

PROMPTS = "adapter_query.weight"
GATE = re.compile(r"layers\.(0|[1-9][0-9]{0,5})\.attention\.gate")


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
        path: the `.pth` file, as `llama_adapter_len10_layer30_release.pth`.
        gate_activation: "tanh", as in the authors' training code, or "identity", as in their
            inference code and in eq. 7. The file does not say; compare both on a few questions.
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
    if prompts is None or prompts.ndim != 2:
        raise AdapterFileError(f"{path} is not the authors' format: no {PROMPTS} ((l p) m) in it.")
    refuse_more(path, tensors, GATE)
    n_layers, n_adapted = shape["num_hidden_layers"], len(prompts) / adapter_len
    if n_adapted not in range(1, n_layers + 1):
        raise AdapterFileError(
            f"{path} has {len(prompts)} prompts: with adapter_len={adapter_len} this makes "
            f"{n_adapted:g} layers, and the model has {n_layers}. Pass the adapter_len that it was "
            "trained with."
        )
    one_gate = all(gate.ndim == 1 for gate in tensors.values())
    kind = "per_layer" if one_gate else "per_head"
    config = AdaptionPromptConfig(adapter_len, int(n_adapted), kind, gate_activation)
    first = n_layers - config.adapter_layers
    for number in range(first):  # gates exist in all layers, and those without prompts never learn
        if tensors.pop(_keys(number)[1], torch.zeros(1)).any():
            raise AdapterFileError(
                f"{path} does not fit: the gate of layer {number} is open, but with adapter_len="
                f"{adapter_len} and a model of {n_layers} layers prompts begin at layer {first}."
            )
    for number, rows in enumerate(prompts.split(adapter_len), start=first):
        tensors[_keys(number)[0]] = rows
    gate_shape = (1,) if one_gate else (1, shape["num_attention_heads"], 1, 1)
    layout = Layout(_keys, (adapter_len, shape["hidden_size"]), gate_shape)
    weights = from_tensors(path, tensors, config, n_layers, layout)
    return put_into(model, weights, adapter_name)


def _keys(number: int) -> tuple[str, str]:
    return f"{PROMPTS} of layer {number}", f"layers.{number}.attention.gate"
