"""LLaMA-Adapter V2 in a transformers model (arXiv 2304.15010, section 4.1).

    each linear layer, of all decoder layers and the head      bias and scale       bias_scale
    each norm, of all decoder layers and the last one          weights of its own   norms

They hang on the linear layer or norm itself, by adapter name, and act through its hooks
(`changes.py`). So the base's weights stay as they are, in whatever format, and adapters are swapped
as prompts are.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.choice import state_of
from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.decoder import compute_device, decoder_of, unwrapped
from llama_adapter_edu.adapters.layers.changes import (
    Changes,
    NormWeights,
    hook_layer,
    hook_linear,
    hook_norm,
)
from llama_adapter_edu.method.bias_scale import BiasScale


def changeable(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers and norms that V2 changes, with their names inside of the decoder.

    Raises:
        ValueError: a part of the model that computes is neither.
    """
    decoder = decoder_of(model)
    for number, layer in enumerate(decoder.layers):
        yield from _inside(layer, f"layers.{number}")
    for name, module in decoder.named_children():
        if is_norm(module):
            yield name, module
    head = unwrapped(model).get_output_embeddings()
    if head is not None:
        yield "lm_head", head


def is_linear(module: nn.Module) -> bool:
    """Whether it maps `in_features` to `out_features`: quantised and LoRA's layers do, too."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm with weights."""
    return "norm" in type(module).__name__.lower() and any(
        True for _ in module.parameters(recurse=False)
    )


def _inside(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if is_linear(module) or is_norm(module):
        yield path, module
        return
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim > 2:
            raise ValueError(
                f"{path}.{name} of shape {tuple(parameter.shape)} is no linear layer: in a mixture "
                "of experts V2 would change only a part of the layers. Take prompts alone."
            )
    for name, child in module.named_children():
        if not isinstance(child, Changes) and name != "adaption_prompts":
            yield from _inside(child, f"{path}.{name}")


def wanted_parts(model: PreTrainedModel, config: AdaptionPromptConfig) -> dict[str, nn.Module]:
    """The linear layers, norms or both that an adapter of these settings changes, by name.

    Raises:
        ValueError: the model has parts that V2 does not know, or is spread over processes.
    """
    if not (config.bias_scale or config.norms):
        return {}
    parts = {
        name: module
        for name, module in changeable(model)
        if (config.norms if is_norm(module) else config.bias_scale)
    }
    if any(hasattr(p, "placements") for module in parts.values() for p in module.parameters()):
        raise ValueError(
            "the model's weights are spread over several processes, and V2 changes all of its "
            "linear layers and norms. Load it whole, or take prompts alone."
        )
    return parts


def add_changes(model: PreTrainedModel, config: AdaptionPromptConfig, adapter_name: str) -> None:
    """Give an adapter its biases, scales and norms, which change nothing yet."""
    parts, model = wanted_parts(model, config), unwrapped(model)
    state, layers = state_of(model), decoder_of(model).layers
    if parts and not hasattr(layers[0], "has_changes"):
        for layer in layers:
            hook_layer(layer, state)
    for module in parts.values():
        if not hasattr(module, "changes"):
            (hook_norm if is_norm(module) else hook_linear)(module, state)
        module.changes[adapter_name] = new_part(module, config, compute_device(module))
    if "lm_head" in parts and "resize_token_embeddings" not in vars(model):
        model.resize_token_embeddings = partial(_resize, model)


def new_part(
    module: nn.Module, config: AdaptionPromptConfig, device: torch.device | str
) -> nn.Module:
    """What an adapter of these settings has at a linear layer or norm; it changes nothing yet."""
    if is_norm(module):
        return NormWeights(module, device)
    widths = module.in_features, module.out_features
    return BiasScale(*widths, scaled=config.scaled, device=device)


def all_changes(model: PreTrainedModel) -> list[tuple[str, Changes]]:
    """What adapters change at each linear layer and norm, with its name; none without V2."""
    model = unwrapped(model)
    named = [*decoder_of(model).named_modules(), ("lm_head", model.get_output_embeddings())]
    # PEFT may have put its own layer around one of ours.
    found = [(n.replace(".base_layer", ""), getattr(m, "changes", None)) for n, m in named]
    return [(name, changes) for name, changes in found if isinstance(changes, Changes)]


def _resize(model: PreTrainedModel, *args, **kwargs) -> nn.Module:
    """`model.resize_token_embeddings`, which makes a new head: the adapters' changes go along.

    A new token has bias 0 and scale 1.
    """
    old = model.get_output_embeddings()
    embeddings = type(model).resize_token_embeddings(model, *args, **kwargs)
    head = model.get_output_embeddings()
    if head is not old:
        hook_linear(head, old.changes.state)
        head.changes.update(old.changes)
    for part in head.changes.values():
        trains = part.bias.requires_grad
        for name, value in part.named_parameters():
            if name == "bias" or part.scaled == "output":
                wider = torch.full((head.out_features,), float(name == "scale")).to(value)
                both = min(len(wider), len(value))
                wider[:both] = value.detach()[:both]
                setattr(part, name, nn.Parameter(wider, requires_grad=trains))
    return embeddings
