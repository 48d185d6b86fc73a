"""The loss: cross entropy of the labelled tokens, from logits of no more columns than it needs."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from llama_adapter_edu.base_models.fused import in_training, liger
from llama_adapter_edu.data.encoding import IGNORE_INDEX

LossSum = Callable[[Float[Tensor, "n v"], Int[Tensor, "n"]], Float[Tensor, ""]]
CHUNK = 1024  # positions: 200 MB of float32 logits with a vocabulary of 49,152


def cross_entropy_sum(logits: Float[Tensor, "n v"], labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """Sum of the cross entropy (nats) of n positions, in float32.

    Many positions go in chunks, once more in the backward pass: their float32 copies never exist
    all at once. Compiled, there are no such copies.
    """

    def of_chunk(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")

    if torch.compiler.is_compiling() or len(labels) <= CHUNK:
        return of_chunk(logits, labels)
    chunks = zip(logits.split(CHUNK), labels.split(CHUNK), strict=True)
    again = partial(checkpoint, of_chunk, use_reentrant=False, preserve_rng_state=False)
    return torch.stack([again(*chunk) for chunk in chunks]).sum()


def fused_cross_entropy_sum(
    logits: Float[Tensor, "n v"], labels: Int[Tensor, "n"]
) -> Float[Tensor, ""]:
    """`cross_entropy_sum` in one kernel of Liger-Kernel, which writes the gradient over the logits.

    Only on an NVIDIA GPU, with gradients and outside of CUDA graphs, since it counts labels on the
    CPU; else `cross_entropy_sum` itself.
    """
    if not in_training(logits) or torch.cuda.is_current_stream_capturing():
        return cross_entropy_sum(logits, labels)
    settings = None, IGNORE_INDEX, 0.0, 0.0, "sum"  # weights, z-loss and smoothing are left out
    return liger().LigerCrossEntropyFunction.apply(logits, labels, *settings)[0]


def labelled_columns(labels: Int[Tensor, "b s"]) -> Int[Tensor, "n"]:
    """The columns in which some row has a label; if none has, the last one.

    The first column never counts: nothing comes before a row's first token to predict it.
    """
    columns = torch.arange(1, labels.shape[1], device=labels.device)
    labelled = columns[(labels[:, 1:] != IGNORE_INDEX).any(dim=0)]
    return labelled if len(labelled) else columns[-1:]


def columns_logits(
    model: nn.Module, batch: dict[str, Tensor], columns: Int[Tensor, "n"]
) -> Float[Tensor, "b n v"]:
    """The logits that predict the tokens in these columns, and no others.

    The vocabulary is wide, and most of an instruction's positions teach nothing.
    """
    # Position s predicts the token at s + 1. Columns chosen by an index lie side by side in memory;
    # the slice that a plain number stands for does not, and a CPU is then several times slower.
    kept = predicting = columns - 1
    # accelerate would move an index to the first device of a map, and the head is on its last.
    # PEFT's prompt tuning puts tokens before the text: columns count from the end.
    before = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if before or hasattr(model, "hf_device_map"):
        first = int(predicting[0]) if len(predicting) else 0
        kept = batch["input_ids"].shape[1] - first
    inputs = {**batch, "use_cache": False, "logits_to_keep": kept}
    inputs.pop("labels", None)
    logits = model(**inputs).logits
    if kept is not predicting:
        logits = logits[:, (predicting - first).to(logits.device)]
    return logits


def columns_loss_sum(
    model: nn.Module,
    batch: dict[str, Tensor],
    columns: Int[Tensor, "n"],
    loss_sum: LossSum = cross_entropy_sum,
) -> Float[Tensor, ""]:
    """Sum of the cross entropy (nats) over the labelled tokens in these columns.

    `loss_sum` is `cross_entropy_sum`, or that compiled.
    """
    logits = columns_logits(model, batch, columns)
    labels = batch["labels"][:, columns].to(logits.device)
    return loss_sum(rearrange(logits, "b n v -> (b n) v"), rearrange(labels, "b n -> (b n)"))


def answer_loss_sum(
    model: nn.Module, batch: dict[str, Tensor], loss_sum: LossSum = cross_entropy_sum
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum of the cross entropy (nats) over the labelled tokens of a batch, and their number."""
    labels: Int[Tensor, "b s"] = batch["labels"]
    loss = columns_loss_sum(model, batch, labelled_columns(labels), loss_sum)
    return loss, (labels[:, 1:] != IGNORE_INDEX).sum()


def answer_loss(
    model: PreTrainedModel, batch: dict[str, Tensor], loss_sum: LossSum = cross_entropy_sum
) -> Float[Tensor, ""]:
    """Mean cross entropy (nats per token) over the labelled tokens of a batch.

    Raises:
        ValueError: no token of the batch has a label.
    """
    if not (batch["labels"][:, 1:] != IGNORE_INDEX).any():
        raise ValueError("no token of this batch has a label, so there is nothing to learn from.")
    loss, n_tokens = answer_loss_sum(model, batch, loss_sum)
    return loss / n_tokens
