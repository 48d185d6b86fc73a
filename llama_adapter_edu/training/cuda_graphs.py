"""An option for NVIDIA GPUs: record the kernels of a training step once, then replay them.

A small model leaves a GPU waiting: to launch a kernel from Python takes longer than to run it. A
CUDA graph launches all kernels of forward and backward at once. It needs fixed shapes, so batches
are padded to a few sizes, and each size is recorded when it first comes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llama_adapter_edu.adapters.choice import acting, state_of
from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.adapters.layers.at_once import HeadsAtOnce
from llama_adapter_edu.adapters.positions import prefix_lengths
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.config import TrainingConfig
from llama_adapter_edu.training.loss import (
    LossSum,
    columns_loss_sum,
    cross_entropy_sum,
    labelled_columns,
)

WINDOWS = "sliding_window", "attention_chunk_size"  # as transformers' configs call them
MASKLESS = "sdpa_without_mask"
AttentionInterface.register(MASKLESS, sdpa_attention_forward)

BUCKET = 16  # columns: lengths are rounded up to a multiple of this


def check_possible(accelerator: Accelerator, config: TrainingConfig, packed: bool) -> None:
    """Raise ValueError if a run with these settings cannot be recorded."""
    plain = accelerator.num_processes == 1 and accelerator.mixed_precision == "no"
    size, device = config.micro_batch_size, accelerator.device
    if device.type != "cuda" or not plain or size is not None or packed:
        raise ValueError(
            "cuda_graphs works with one process on one NVIDIA GPU, without mixed precision, "
            f"micro-batches and packed rows. Here: {accelerator.num_processes} processes on "
            f"{device}, {accelerator.mixed_precision=!r}, {size=}, {packed=}. Leave it out."
        )


def pad_to_bucket(batch: dict[str, Tensor], pad_token_id: int) -> tuple[dict[str, Tensor], int]:
    """The batch with more padding on the right, and how many last columns need logits.

    Both the length s and that number are multiples of BUCKET. The loss stays as it is.
    """
    missing = -batch["labels"].shape[1] % BUCKET
    fill = {"input_ids": pad_token_id, "labels": IGNORE_INDEX}
    padded = {name: F.pad(batch[name], (0, missing), value=fill[name]) for name in fill}
    length = padded["labels"].shape[1]
    n_columns = length - int(labelled_columns(padded["labels"])[0])
    n_columns = min(-(-n_columns // BUCKET) * BUCKET, length - 1)
    return padded, n_columns


def sees_all_before(model: nn.Module, length: int) -> bool:
    """Whether PyTorch's attention, without a mask, is that of this model on so many tokens."""
    decoder = decoder_of(model)
    config = decoder.config
    limits = (getattr(config, name, None) for name in WINDOWS)
    both_ways = getattr(config, "use_bidirectional_attention", None)
    state = state_of(model)
    has_cartridge = any(prefix_lengths(state, acting(state)))
    return (
        config._attn_implementation == "sdpa"
        and getattr(decoder, "_supports_attention_backend", False)
        and not both_ways
        and not has_cartridge
        and all(limit is None or limit >= length for limit in limits)
    )


@contextmanager
def without_mask(model: nn.Module) -> Iterator[None]:
    """Inside, transformers makes no mask for PyTorch's attention.

    While a graph is recorded, it would always make one, for a function with this name. So the
    function has another name, which the list of mask functions lacks.
    """
    config = decoder_of(model).config
    own, config._attn_implementation = config._attn_implementation, MASKLESS
    try:
        yield
    finally:
        config._attn_implementation = own


class GraphedGradients:
    """Gradients of the loss per labelled token, from a graph for each shape of batch.

    Rows are padded with `pad_token_id`, on the right, to a multiple of BUCKET tokens.

    Raises:
        ValueError: the model is not on a CUDA device, or nothing in it trains.
    """

    def __init__(
        self, model: nn.Module, pad_token_id: int, loss_sum: LossSum = cross_entropy_sum
    ) -> None:
        self.model, self.pad_token_id, self.loss_sum = model, pad_token_id, loss_sum
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters or {p.device.type for p in self.parameters} != {"cuda"}:
            raise ValueError("cuda_graphs needs a model on an NVIDIA GPU, with something to train.")
        self.heads = HeadsAtOnce(model)
        self.recorded: dict[tuple, tuple] = {}
        self.memory = torch.cuda.graph_pool_handle()  # graphs share it: only one runs at a time

    def __call__(self, batch: dict[str, Tensor], n_tokens: int) -> Float[Tensor, ""]:
        """Set the parameters' gradients to those of the mean over `n_tokens`; return the loss.

        `batch` has `input_ids` and `labels` (b s), padded on the right. On the CPU they come from
        faster: to look at labels on the GPU, one would have to wait for it.
        """
        padded, n_columns = pad_to_bucket(batch, self.pad_token_id)
        inputs = padded | {"n_tokens": torch.tensor(float(n_tokens))}
        shape = (*padded["labels"].shape, n_columns)
        if shape not in self.recorded:
            self.recorded[shape] = self._record(inputs, n_columns)
        graph, places, loss, gradients = self.recorded[shape]
        for name, tensor in inputs.items():
            places[name].copy_(tensor)
        graph.replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss.clone()  # the next replay writes to the same place

    def _record(self, inputs: dict[str, Tensor], n_columns: int) -> tuple:
        device = self.parameters[0].device
        places = {name: tensor.to(device, copy=True) for name, tensor in inputs.items()}
        length = places["labels"].shape[1]
        maskless = sees_all_before(self.model, length)
        if not maskless:
            # The runs before recording must be given a mask, too: compiled layers would be compiled
            # again while recording. The last column may be masked: no token looks at it.
            places["attention_mask"] = torch.ones_like(places["input_ids"])
            places["attention_mask"][:, -1] = 0

        def run() -> tuple[Tensor, tuple[Tensor, ...]]:
            batch = {name: tensor for name, tensor in places.items() if name != "n_tokens"}
            columns = torch.arange(length - n_columns, length, device=batch["labels"].device)
            how = without_mask(self.model) if maskless else nullcontext()
            with how, self.heads.ready(len(places["labels"])):
                loss_sum = columns_loss_sum(self.model, batch, columns, self.loss_sum)
                loss = loss_sum / places["n_tokens"]
                # Inside, too: layers with checkpoints are computed again in the backward pass.
                return loss.detach(), torch.autograd.grad(loss, self.parameters)

        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Libraries set themselves up in the first runs, which a graph must not record.
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, self.memory, stream):
            loss, gradients = run()
        return graph, places, loss, gradients
