"""Where things are in a transformers decoder: its layers, their attention, their device.

What adaption prompts make of base models that are not whole, in one place, in 16 or 32 bits:

    in 8 or 4 bits (bitsandbytes)       prompts stay float32, the base stays as it is
    in float8 (base_precision=)         the same
    spread by device_map="auto"         prompts are where their layer computes
    offloaded to CPU or disk            weights and prompts come when their layer computes
    cut by a tensor-parallel plan       refused: prompts would need a part of each device's heads
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from accelerate.utils import align_module_device
from torch import nn
from transformers import PreTrainedModel


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's, torch.compile's or another wrapper."""
    while not isinstance(model, PreTrainedModel):
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
            model = inner
        else:
            return model
    return model


def decoder_of(model: nn.Module) -> nn.Module:
    """The stack of decoder layers inside a wrapper, a model with a head, or a multi-modal one."""
    model = unwrapped(model)
    base = getattr(model, "base_model", model)
    names = ("language_model", "text_model", "decoder", "model")
    return next((getattr(base, name) for name in names if hasattr(base, name)), base)


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The self-attention modules of a decoder, bottom layer first.

    Raises:
        ValueError: not a transformers decoder, or one whose attention cannot take prompts.
    """
    model = unwrapped(model)
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"expected a transformers model, got {type(model).__name__}. Pass the model itself, or "
            "a wrapper of PEFT, torch.compile or DistributedDataParallel."
        )
    name = type(model).__name__
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    if not layers:
        raise ValueError(
            f"{name} has no decoder with a list of layers: prompts need one per layer."
        )
    found = [getattr(layer, "self_attn", None) for layer in layers]
    if missing := [i for i, attention in enumerate(found) if attention is None]:
        raise ValueError(f"{name}: layers {missing} have no self_attn to add prompts to.")
    if not getattr(decoder, "_supports_attention_backend", False):
        raise ValueError(
            f"{name} does not use transformers' attention interface, so prompts cannot be added to "
            "its attention. Llama, Mistral, Qwen, Phi-3, Gemma and OLMo models do."
        )
    for attention in found:
        _check_head_layout(attention)
    return found


def _check_head_layout(attention: nn.Module) -> None:
    """Refuse attention whose keys and values are not plain projections of the hidden states."""
    projections = ("qkv_proj",) if hasattr(attention, "qkv_proj") else ("k_proj", "v_proj")
    missing = [n for n in (*projections, "head_dim", "config") if not hasattr(attention, n)]
    if missing or not all(hasattr(getattr(attention, n), "out_features") for n in projections):
        raise ValueError(
            f"{type(attention).__name__} has an unusual head layout: expected head_dim, and k_proj "
            "and v_proj, or qkv_proj. Latent attention (DeepSeek), linear attention (MiniMax) and "
            "the fused layouts of GPT-2 and NeoX differ."
        )


def check_uncut(layers: list[nn.Module]) -> None:
    """Raise ValueError if one of these attention layers holds only a part of its weights."""
    for number, attention in enumerate(layers):
        if any(hasattr(parameter, "placements") for parameter in attention.parameters()):
            raise ValueError(
                f"the weights of layer {number} are cut into pieces, one for each process. Load "
                "the model without a tensor-parallel plan (tp_plan). If it must be spread over "
                "several GPUs: load_llama(name, shard=True), then add the adapters."
            )


def compute_device(module: nn.Module) -> torch.device:
    """Where a layer computes: where its weights are, or are brought to when they are needed."""
    for part in (module, *module.children()):
        hook = getattr(part, "_hf_hook", None)  # accelerate's, on offloaded weights
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def brought_here(module: nn.Module) -> AbstractContextManager:
    """Inside, a module's parameters can be read, even if accelerate keeps them elsewhere."""
    return align_module_device(module) if hasattr(module, "_hf_hook") else nullcontext()


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes without dropout, if it can; afterwards it is in the mode it was.

    bitsandbytes repacks 4-bit weights for good when a model computes in evaluation mode, and then
    they cannot train: such a model stays in the mode of training.
    """
    was_training = {module for module in model.modules() if module.training}
    model.train(any(type(module).__name__ == "Linear4bit" for module in model.modules()))
    try:
        yield
    finally:
        for module in model.modules():
            module.training = module in was_training
