"""Two options for training: layers and loss in fewer, larger kernels, compiled or ready-made."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.base_models.fused import fused_base
from llama_adapter_edu.training.loss import LossSum, cross_entropy_sum, fused_cross_entropy_sum


@contextmanager
def compiled_layers(model: nn.Module, **options) -> Iterator[LossSum]:
    """Inside, the decoder's layers run compiled; yields `cross_entropy_sum`, compiled too.

    The first batches wait for the compiler. There are three kinds of layers: below the prompts, the
    lowest with prompts, which needs no gradient of its input, and those above. Each is compiled
    once, and once more, for any size, when rows of another length or number come. `options` are
    those of torch.compile.
    """
    layers = list(decoder_of(model).layers)
    own = [vars(layer).get("forward") for layer in layers]  # accelerate puts one there, for devices
    loss_sum = compile_layers(model, **options)
    try:
        # Three kinds of layers and a few sizes are more than torch's limit of 8 compilations.
        with torch._dynamo.config.patch(recompile_limit=32):
            yield loss_sum
    finally:
        for layer, forward in zip(layers, own, strict=True):
            vars(layer).pop("forward") if forward is None else vars(layer).update(forward=forward)


def compile_layers(model: nn.Module, **options) -> LossSum:
    """Run the decoder's layers compiled from now on; returns `cross_entropy_sum`, compiled."""
    for layer in decoder_of(model).layers:
        # Not `layer.compile()`: hooks, which put a spread layer's weights together, stay outside.
        layer.forward = torch.compile(layer.forward, **options)
    return torch.compile(cross_entropy_sum, **options)


@contextmanager
def fused_layers(model: nn.Module) -> Iterator[LossSum]:
    """Inside, the base is fused (`fuse_base`); yields `cross_entropy_sum` in one kernel."""
    with fused_base(model):
        yield fused_cross_entropy_sum
