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


def labelled_columns(labels: Int[Tensor, "b s"]) -> int:
    """How many of the last columns of a batch hold all its labels, at least 1.

    The first column never counts: nothing comes before a row's first token to predict it.
    """
    labelled = (labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero()
    return labels.shape[1] - 1 - int(labelled[0]) if len(labelled) else 1


def columns_loss_sum(
    model: nn.Module,
    batch: dict[str, Tensor],
    n_columns: int,
    loss_sum: LossSum = cross_entropy_sum,
) -> Float[Tensor, ""]:
    """Sum of the cross entropy (nats) over the labelled tokens in the last `n_columns` columns.

    Logits are computed for these alone: the vocabulary is wide, and most of an instruction's
    positions teach nothing. `loss_sum` is `cross_entropy_sum`, or that compiled.
    """
    labels: Int[Tensor, "b s"] = batch["labels"]
    # Position s predicts the token at s + 1. Columns chosen by an index lie side by side in memory;
    # the slice that a plain number stands for does not, and a CPU is then several times slower.
    predicting = torch.arange(labels.shape[1], device=labels.device)[-n_columns - 1 : -1]
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if hasattr(model, "hf_device_map"):  # accelerate moves an index to the first device of the map
        logits = model(**inputs, use_cache=False, logits_to_keep=n_columns + 1).logits[:, :-1]
    else:
        logits = model(**inputs, use_cache=False, logits_to_keep=predicting).logits
    labels = labels[:, 1:][:, -n_columns:].to(logits.device)
    return loss_sum(rearrange(logits, "b s v -> (b s) v"), rearrange(labels, "b s -> (b s)"))


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
