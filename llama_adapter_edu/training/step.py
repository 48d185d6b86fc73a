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
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.data.token_rows import Rows
from llama_adapter_edu.training.distillation import distillation_loss_sum
from llama_adapter_edu.training.loss import LossSum, answer_loss_sum, cross_entropy_sum
from llama_adapter_edu.training.shared_start import SharedStart


def micro_batches(
    numbers: Sequence[int], size: int | None, process: int = 0, n_processes: int = 1
) -> list[list[int]]:
    """Row numbers of a step that one process works on, in micro-batches of at most `size` rows.

    Every process gets the same number of micro-batches, because processes that share a spread base
    wait for each other in each of them. Where rows run out, micro-batches are empty.
    """
    share = -(-len(numbers) // n_processes)
    size = min(size or share, share)
    mine = list(numbers[process::n_processes])
    return [mine[start : start + size] for start in range(0, share, size)]


@dataclass
class Gradients:
    """Forward and backward over a step's rows: `part_of_loss = gradients(row_numbers)`.

    Gradients add up in the parameters. Out of memory, the micro-batch is halved and the step begun
    again: its rows stay the same, so what is learnt stays the same.
    """

    model: nn.Module
    rows: Rows | SharedStart
    accelerator: Accelerator
    micro_batch_size: int | None = None
    loss_sum: LossSum = cross_entropy_sum
    document_ids: Int[Tensor, "1 t"] | None = None  # of a teacher that reads it (`distillation.py`)

    def __call__(self, numbers: Sequence[int]) -> Float[Tensor, ""]:
        """This process's part of the step's mean loss: all parts sum to it, as gradients do.

        Raises:
            ValueError: no token of these rows has a label.
            torch.OutOfMemoryError: a micro-batch of one row does not fit, or several processes run:
                they cannot begin a step again one by one. The message says what may help.
        """
        while True:
            try:
                return self._add_up(numbers)
            except torch.OutOfMemoryError as error:
                reason = str(error).split("\n")[0]
            # Outside the except block: there, the traceback would keep the step's tensors alive.
            self._halve(numbers, reason)

    def _add_up(self, numbers: Sequence[int]) -> Float[Tensor, ""]:
        n_tokens, accelerator = self.rows.n_labelled(numbers), self.accelerator
        if n_tokens == 0:
            raise ValueError(f"rows {list(numbers)} have no token with a label: nothing to learn.")
        processes = accelerator.process_index, accelerator.num_processes
        part_of_loss = torch.zeros((), device=self.rows.device)
        for mine in micro_batches(numbers, self.micro_batch_size, *processes):
            batch = self.rows.batch(mine or numbers[:1])
            if not mine:  # the other processes compute, so this one must, too, but learns nothing
                batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
            with accelerator.autocast():
                loss = self._loss_sum(batch) / n_tokens
            accelerator.backward(loss)
            part_of_loss += loss.detach()
        return part_of_loss

    def _loss_sum(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        if self.document_ids is not None:
            return distillation_loss_sum(self.model, self.document_ids, batch)
        return answer_loss_sum(self.model, batch, self.loss_sum)[0]

    def _halve(self, numbers: Sequence[int], reason: str) -> None:
        share = -(-len(numbers) // self.accelerator.num_processes)
        size = min(self.micro_batch_size or share, share)
        advice = "Not even one row fits: take shorter rows, fewer adapter_layers, a 16-bit base."
        if self.accelerator.num_processes > 1:
            advice = f"Set micro_batch_size to less than the {size} rows of now."
        if size == 1 or self.accelerator.num_processes > 1:
            raise torch.OutOfMemoryError(f"{reason} {advice}")
        for parameter in self.model.parameters():
            parameter.grad = None
        gc.collect()
        torch.cuda.empty_cache()
        self.micro_batch_size = -(-size // 2)
        warnings.warn(
            f"Out of memory with {size} rows at once: going on with {self.micro_batch_size}. "
            f"A step still learns from {len(numbers)} rows.",
            stacklevel=4,
        )


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
