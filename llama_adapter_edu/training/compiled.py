"""An option for training: torch.compile runs layers and loss as fewer, larger kernels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.training.loss import cross_entropy_sum


@contextmanager
def compiled_layers(model: nn.Module, **options) -> Iterator[None]:
    """Inside, decoder layers and loss run compiled; the first batches wait for the compiler.

    There are three kinds of layers: below the prompts, the lowest with prompts, which needs no
    gradient of its input, and those above. Each kind is compiled once for all its layers, and once
    more, for any size, when rows of another length or another number of rows come.

    Args:
        options: of torch.compile, as `fullgraph=True`.
    """
    compile_layers(model, **options)
    try:
        # Three kinds of layers and a few sizes are more than torch's limit of 8 compilations.
        with torch._dynamo.config.patch(recompile_limit=32):
            yield
    finally:
        for layer in decoder_of(model).layers:
            layer._compiled_call_impl = None  # torch has no public way back
        del model.cross_entropy_sum


def compile_layers(model: nn.Module, **options) -> None:
    """`compiled_layers` without a way back."""
    for layer in decoder_of(model).layers:
        layer.compile(**options)
    model.cross_entropy_sum = torch.compile(cross_entropy_sum, **options)
