"""Learning from a teacher: the model itself, with a document in its context (arXiv 2506.06266).

    teacher    [document] question answer      the base model    ─┐ logits at the labelled tokens
    student               question answer      with its adapter  ─┘ KL(teacher || student)

The answers' tokens only say where the two are compared. So any text will do, also a wrong answer.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.choice import disable_adapter
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.loss import columns_logits, labelled_columns


def kl_divergence(
    student: Float[Tensor, "n v"], teacher: Float[Tensor, "n v"]
) -> Float[Tensor, "n"]:
    """How far the student's distribution is from the teacher's at n positions, from their logits.

    KL(teacher || student) = sum over v of p_teacher * (log p_teacher - log p_student), in nats,
    computed in float32. 0 where they are the same.
    """
    ours, theirs = (logits.float().log_softmax(dim=-1) for logits in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum(dim=-1)


def distillation_loss(
    model: PreTrainedModel, document_ids: Int[Tensor, "1 t"], batch: dict[str, Tensor]
) -> Float[Tensor, ""]:
    """Mean KL (nats per token) over the labelled tokens of a batch; see `distillation_loss_sum`.

    Raises:
        ValueError: no token of the batch has a label, or its rows are packed.
    """
    labels = batch["labels"]
    n_tokens = (labels[:, 1:] != IGNORE_INDEX).sum()
    if not n_tokens:
        raise ValueError("no token of this batch has a label, so nothing is compared.")
    return distillation_loss_sum(model, document_ids, batch) / n_tokens


def distillation_loss_sum(
    model: nn.Module, document_ids: Int[Tensor, "1 t"], batch: dict[str, Tensor]
) -> Float[Tensor, ""]:
    """Sum of the KL (nats) between the model with its document and the model with its adapter.

    Args:
        model: with the adapter that learns as the acting one. The teacher is its base.
        document_ids: what the teacher reads before each row.
        batch: `input_ids`, `labels` and, if rows are padded on the left, `attention_mask` (b s).

    Raises:
        ValueError: rows are packed: the document would stand before the first example only.
    """
    if "position_ids" in batch:
        raise ValueError("packed rows have one document for several examples: do not pack them.")
    labels: Int[Tensor, "b s"] = batch["labels"]
    columns = labelled_columns(labels)
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    with torch.no_grad(), disable_adapter(model):
        after = _after_document(document_ids, inputs)
        teacher = _logits(model, after, columns + document_ids.shape[1])
    student = _logits(model, inputs, columns)
    labelled = rearrange(labels[:, columns] != IGNORE_INDEX, "b n -> (b n)")
    distances = kl_divergence(student, teacher)
    return distances.where(labelled.to(distances.device), 0.0).sum()


def _after_document(
    document_ids: Int[Tensor, "1 t"], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The same rows with the document before each."""
    ids = inputs["input_ids"]
    document = document_ids.to(ids.device).expand(len(ids), -1)
    longer = {**inputs, "input_ids": torch.cat([document, ids], dim=1)}
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        longer["attention_mask"] = torch.cat([mask.new_ones(document.shape), mask], dim=1)
    return longer


def _logits(
    model: nn.Module, inputs: dict[str, Tensor], columns: Int[Tensor, "n"]
) -> Float[Tensor, "b*n v"]:
    """Logits of the positions that predict the tokens in these columns."""
    if "attention_mask" in inputs:  # positions do not count what is padded on the left
        positions = inputs["attention_mask"].long().cumsum(dim=-1) - 1
        inputs = {**inputs, "position_ids": positions.clamp(min=0)}
    return rearrange(columns_logits(model, inputs, columns), "b n v -> (b n) v")
