"""One training step: forward and backward over all rows of the step, however they are cut.

    rows of the step ─┬─ process 0 ─┬─ micro-batch ─┐
                      │             └─ micro-batch ─┤  each adds  sum of its token losses
                      └─ process 1 ─┬─ micro-batch ─┤             ─────────────────────────
                                    └─ micro-batch ─┘             labelled tokens of the step

Every labelled token weighs the same. So the gradients are those of one big batch, whatever the
number of processes, the size of the micro-batches, and the length of the rows.
"""

import gc
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor, nn

from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.loss import answer_loss_sum


@dataclass
class Rows:
    """The encoded rows of a run and how they become tensors."""

    dataset: Dataset  # columns input_ids and labels
    pad_token_id: int
    device: torch.device

    def batch(self, numbers: Sequence[int]) -> dict[str, Int[Tensor, "b s"]]:
        columns = self.dataset[list(numbers)]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        tensors = collate(rows, self.pad_token_id)
        # Padding comes after the words, where causal attention does not look. So a mask changes
        # nothing, and attention is faster without one.
        del tensors["attention_mask"]
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def labelled_tokens(self, numbers: Sequence[int]) -> int:
        labels = self.dataset[list(numbers)]["labels"]
        return sum(label != IGNORE_INDEX for row in labels for label in row[1:])


def micro_batches(
    numbers: Sequence[int], size: int | None, process: int = 0, n_processes: int = 1
) -> list[tuple[list[int], float]]:
    """The rows of a step that one process works on, in micro-batches of at most `size` rows.

    Every process gets the same number of micro-batches, because processes wait for each other in
    each of them. Where rows run out, the step's first row fills in with weight 0.

    Returns:
        pairs of row numbers and weight, 1.0 or 0.0.
    """
    share = -(-len(numbers) // n_processes)
    size = min(size or share, share)
    mine = list(numbers[process::n_processes])
    cut = [(mine[start : start + size], 1.0) for start in range(0, share, size)]
    return [(rows, weight) if rows else ([numbers[0]], 0.0) for rows, weight in cut]


def accumulate_gradients(
    model: nn.Module,
    rows: Rows,
    numbers: Sequence[int],
    micro_batch_size: int | None,
    accelerator: Accelerator,
) -> Float[Tensor, ""]:
    """Forward and backward over a step's rows; gradients add up in the parameters.

    Returns:
        this process's part of the step's mean loss: the parts of all processes sum to it.
    """
    n_tokens, n_processes = rows.labelled_tokens(numbers), accelerator.num_processes
    if n_tokens == 0:
        raise ValueError(f"rows {list(numbers)} have no token with a label: nothing to learn from.")
    parts = micro_batches(numbers, micro_batch_size, accelerator.process_index, n_processes)
    part_of_loss = torch.zeros((), device=rows.device)
    for number, (mine, weight) in enumerate(parts, start=1):
        last = number == len(parts)
        # Processes average their gradients in the last backward; n_processes makes that a sum.
        with nullcontext() if last else accelerator.no_sync(model):
            loss, _ = answer_loss_sum(model, rows.batch(mine))
            loss = weight * loss / n_tokens
            accelerator.backward(loss * n_processes)
        part_of_loss += loss.detach()
    return part_of_loss


def accumulate_within_memory(
    model: nn.Module,
    rows: Rows,
    numbers: Sequence[int],
    micro_batch_size: int | None,
    accelerator: Accelerator,
) -> tuple[Float[Tensor, ""], int | None]:
    """`accumulate_gradients`; out of memory, the micro-batch is halved and the step begun again.

    The rows of the step stay the same, so what is learnt stays the same.

    Returns:
        this process's part of the loss, and the size that fitted: begin with it next time.

    Raises:
        torch.OutOfMemoryError: a micro-batch of one row does not fit, or several processes run:
            they cannot begin a step again one by one. The message says what may help.
    """
    while True:
        try:
            loss = accumulate_gradients(model, rows, numbers, micro_batch_size, accelerator)
            return loss, micro_batch_size
        except torch.OutOfMemoryError as error:
            reason = str(error).split("\n")[0]
        # Outside the except block: there, the traceback would keep the step's tensors alive.
        size = min(micro_batch_size or len(numbers), len(numbers))
        if accelerator.num_processes > 1:
            advice = f"Set micro_batch_size to less than the {size} rows of now."
        elif size == 1:
            advice = "Not even one row fits: take shorter rows, fewer adapter_layers, a 16-bit base"
        else:
            for parameter in model.parameters():
                parameter.grad = None
            gc.collect()
            torch.cuda.empty_cache()
            micro_batch_size = -(-size // 2)
            warnings.warn(
                f"Out of memory with {size} rows at once: going on with {micro_batch_size}. "
                f"A step still learns from {len(numbers)} rows.",
                stacklevel=2,
            )
            continue
        raise torch.OutOfMemoryError(f"{reason} {advice}")


def check_gradients(model: nn.Module) -> None:
    """Raise ValueError if, after a backward, nothing that trains has got a gradient.

    Training would go on without learning. Known ways there: on some CPUs bitsandbytes repacks 4-bit
    weights when the model computes in evaluation mode, for a kernel without gradients; and
    reentrant checkpoints pass no gradient on where their input needs none.
    """
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if training and all(parameter.grad is None for parameter in training):
        raise ValueError(
            "no gradient reaches what trains, so nothing would be learnt. Is the base in 4 bits on "
            "a CPU, and has it generated before? Load it anew and train it first, or take 8 bits. "
            "Gradient checkpointing? Take use_reentrant=False."
        )
