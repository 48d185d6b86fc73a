"""One adapter outside a model: what all file formats are read into and written from.

The formats differ in what they can hold:

                         gate                      softmax weight of a prompt is multiplied by
    this library         (h) or (1), and its kind  tanh(gate) or gate, as its settings say
    PEFT                 (1)                       gate
    litgpt, lit-llama    (h)                       gate
    the authors          (h), once (1)             tanh(gate) in training, gate in inference

So a tanh can be computed once and stored, one gate can be copied to every head, but different gates
of different heads cannot be put into one number.
"""

from dataclasses import dataclass, replace

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import attention_layers, brought_here, decoder_of
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts, add_adaption_prompts
from llama_adapter_edu.method.gated_prompts import GATE_ACTIVATIONS


@dataclass(frozen=True)
class AdapterWeights:
    """Settings of an adapter and, by layer number, its `prompts` (p m) and `gates` (h, or 1)."""

    config: AdaptionPromptConfig
    prompts: dict[int, Float[Tensor, "p m"]]
    gates: dict[int, Float[Tensor, "h"]]


def weights_of(model: PreTrainedModel, adapter_name: str) -> AdapterWeights:
    """A copy on the CPU of one of the model's adapters.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    prompts, gates = {}, {}
    for number, prompt in adapter_prompts(model, adapter_name).items():
        with brought_here(prompt):
            prompts[number], gates[number] = _copy(prompt.prompts), _copy(prompt.gate)
    return AdapterWeights(adapter_configs(model)[adapter_name], prompts, gates)


def _copy(parameter: Tensor) -> Tensor:
    return parameter.detach().to("cpu", copy=True).contiguous()


def put_into(model: PreTrainedModel, weights: AdapterWeights, adapter_name: str) -> PreTrainedModel:
    """Add the adapter to a model whose shape it fits, in place, and make it the active one."""
    add_adaption_prompts(model, weights.config, adapter_name)
    with torch.no_grad():
        for number, prompt in adapter_prompts(model, adapter_name).items():
            prompt.prompts.copy_(weights.prompts[number])
            prompt.gate.copy_(weights.gates[number])
    return model


def fold_tanh(weights: AdapterWeights) -> AdapterWeights:
    """The same adapter with identity gates: what the activation makes of a gate is stored."""
    activation = GATE_ACTIVATIONS[weights.config.gate_activation]
    config = replace(weights.config, gate_activation="identity")
    gates = {number: activation(gate) for number, gate in weights.gates.items()}
    return replace(weights, config=config, gates=gates)


def one_gate_per_layer(weights: AdapterWeights, format: str) -> AdapterWeights:
    """The same adapter with one gate a layer, for a format that holds no more.

    Raises:
        ValueError: the heads of a layer have different gates.
    """
    for number, gate in weights.gates.items():
        if (gate != gate[0]).any():
            raise ValueError(
                f"{format} has one gate a layer, but the heads of layer {number} have gates from "
                f"{gate.min():.3f} to {gate.max():.3f}: what each head learnt would be lost. Train "
                'with AdaptionPromptConfig(gate="per_layer"), or save in another format.'
            )
    config = replace(weights.config, gate="per_layer")
    return replace(weights, config=config, gates={n: g[:1] for n, g in weights.gates.items()})


def one_gate_per_head(weights: AdapterWeights, n_heads: int) -> AdapterWeights:
    """The same adapter with a gate for each head."""
    if weights.config.gate == "per_head":
        return weights
    config = replace(weights.config, gate="per_head")
    gates = {number: repeat(gate, "1 -> h", h=n_heads) for number, gate in weights.gates.items()}
    return replace(weights, config=config, gates=gates)


def base_shape(model: PreTrainedModel) -> dict:
    """What of the base model an adapter depends on."""
    config = decoder_of(model).config
    return {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
    }


def top_layers(model: PreTrainedModel, adapter_layers: int) -> range:
    """The numbers of the topmost `adapter_layers` layers.

    Raises:
        ValueError: the model has fewer.
    """
    n_layers = len(attention_layers(model))
    if adapter_layers > n_layers:
        raise ValueError(f"{adapter_layers} layers have prompts, but the model has {n_layers}")
    return range(n_layers - adapter_layers, n_layers)
