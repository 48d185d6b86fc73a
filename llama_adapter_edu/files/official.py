"""The authors' adapter file for LLaMA 1: a `.pth` of `torch.save`.

    adapter_query.weight          ((l p) m)    all prompts, the lowest adapted layer first
    layers.{i}.attention.gate     (1 h 1 1)    in every layer, adapted or not; of old (1)

**tanh?** The file does not say. The authors' training code multiplies by tanh(gate), their
inference code by the gate itself, and both read the same file. Before April 2023 there was no tanh
at all. So the caller has to say which.

**Why prompts need no permutation.** Meta's LLaMA rotates neighbouring numbers of a head, (0, 1),
(2, 3), ...; transformers rotates (0, d/2), (1, d/2 + 1), .... So the rows of Meta's query and key
projections are put into another order, within each head, when a LLaMA is converted. Scores are
sums over these rows: with query *and* key in the new order every score stays as it was. A prompt
is a vector of the model width, from before the projection, and has no such rows. A gate belongs to
a head, and the order of heads stays. So both are taken as they are.
"""

import os
import re
from pathlib import Path

from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.adapters.manage import adapter_configs, check_new_adapter
from llama_adapter_edu.files.safe_files import (
    FLOATS,
    AdapterFileError,
    check_tensors,
    read_pickled,
    shown,
)
from llama_adapter_edu.files.weights import AdapterWeights, base_shape, put_into

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
    path = Path(path)
    weights = from_official(path, read_pickled(path), shape, adapter_len, gate_activation)
    n_layers = shape["num_hidden_layers"]
    check_new_adapter(adapter_name, weights.config, adapter_configs(model), n_layers)
    return put_into(model, weights, adapter_name)


def from_official(
    path: Path, tensors: dict[str, Tensor], shape: dict, adapter_len: int, gate_activation: str
) -> AdapterWeights:
    """The adapter among an official file's tensors, for a model of this shape.

    Raises:
        AdapterFileError: the tensors are not what such a file holds, or do not fit the model.
    """
    if PROMPTS not in tensors:
        raise AdapterFileError(f"{path} is not the authors' format: {PROMPTS} is missing.")
    if extra := sorted(n for n in tensors if n != PROMPTS and not GATE.fullmatch(n)):
        raise AdapterFileError(
            f"{path} holds more than prompts and gates, as {shown(extra[0])}: it may be a whole "
            "model, or of LLaMA-Adapter V2, whose biases and scales would be lost here."
        )
    rows, n_layers, n_heads = _rows(tensors), shape["num_hidden_layers"], "num_attention_heads"
    if rows == 0 or rows % adapter_len or rows // adapter_len > n_layers:
        raise AdapterFileError(
            f"{path} has {rows} prompts: with adapter_len={adapter_len} this makes "
            f"{rows / adapter_len:g} layers, and the model has {n_layers}. Pass the adapter_len "
            "that it was trained with."
        )
    layers = range(n_layers - rows // adapter_len, n_layers)
    gates = {int(GATE.fullmatch(name)[1]): name for name in tensors if name != PROMPTS}
    one_gate = all(tensors[name].ndim == 1 for name in gates.values())
    gate_shape = (1,) if one_gate else (1, shape[n_heads], 1, 1)
    needed = {f"layers.{number}.attention.gate" for number in layers}
    others = {name for number, name in gates.items() if number < n_layers}
    shapes = dict.fromkeys(needed | others, gate_shape)
    shapes[PROMPTS] = (rows, shape["hidden_size"])
    check_tensors(path, tensors, shapes, FLOATS)
    # Gates exist in all layers, and those without prompts never learn.
    if opened := [n for n, name in gates.items() if n not in layers and tensors[name].any()]:
        raise AdapterFileError(
            f"{path} does not fit: the gate of layer {opened[0]} is open, but with adapter_len="
            f"{adapter_len} and a model of {n_layers} layers prompts begin at layer {layers[0]}."
        )
    gate = "per_layer" if one_gate else "per_head"
    config = AdaptionPromptConfig(adapter_len, len(layers), gate, gate_activation)
    prompts = rearrange(tensors[PROMPTS].float(), "(l p) m -> l p m", p=adapter_len)
    return AdapterWeights(
        config,
        dict(zip(layers, prompts, strict=True)),
        {number: tensors[gates[number]].flatten().float() for number in layers},
    )


def _rows(tensors: dict[str, Tensor]) -> int:
    prompts = tensors[PROMPTS]
    return len(prompts) if prompts.ndim == 2 else 0
