"""Fine-tuning on instructions: the loop.

    rows of `encode_dataset` -> batches of similar length -> gradients -> AdamW -> next step
                                                                 │
                                          every few steps: a checkpoint in the resume folder

accelerate takes care of devices, processes and mixed precision. `training_config.py` holds settings
and schedule, `loss.py` the loss, `training_step.py` computes the gradients, `training_state.py`
keeps the checkpoints.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from math import isfinite

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import set_seed
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.inspect import gate_openings
from llama_adapter_edu.training.compiled import compiled_layers
from llama_adapter_edu.training.config import (
    TrainingConfig,
    learning_rate_factor,
    make_optimizer,
    training_batches,
)
from llama_adapter_edu.training.cuda_graphs import GraphedGradients, check_possible
from llama_adapter_edu.training.interrupts import caught_interrupts
from llama_adapter_edu.training.loss import answer_loss
from llama_adapter_edu.training.resume import ResumeFolder
from llama_adapter_edu.training.state import History, dataset_fingerprint
from llama_adapter_edu.training.step import Rows, accumulate_within_memory, check_gradients

__all__ = [
    "History",
    "TrainingConfig",
    "answer_loss",
    "finetune",
    "learning_rate_factor",
    "make_optimizer",
    "training_batches",
]

DDP = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: TrainingConfig | None = None,
    *,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    resume_folder: str | os.PathLike | None = None,
    save_every: int = 20,
    cuda_graphs: bool = False,
    compile_layers: bool = False,
) -> History:
    """Train what is trainable in `model`, in place, on rows of `encode_dataset`.

    Args:
        accelerator: devices, processes and mixed precision; a plain one if None. What it has
            prepared so far is released.
        resume_folder: keeps a checkpoint every `save_every` steps and at the end. A run that was
            stopped, in whatever way, goes on from the last one when it is called again with the
            same model, data and settings; it ends as if it had never stopped. Ctrl-C waits for the
            step to end, saves, and then raises KeyboardInterrupt.
        cuda_graphs: on one NVIDIA GPU, several times faster for a small model, with the same losses
            (see `cuda_graphs.py`). Not with mixed precision or micro-batches.
        compile_layers: torch.compile the decoder's layers and the loss. Faster steps, with or
            without cuda_graphs, after a wait for the compiler: worth it for long runs.

    Returns:
        the loss and, for a model with adaption prompts, the gates' openings after each step.

    Raises:
        ValueError: nothing trains, a step has no labels, or an argument is out of range.
        ResumeError: the folder holds another run or a broken checkpoint, or a run works in it.
        OSError: a checkpoint cannot be written. Earlier ones are whole.
        FloatingPointError: loss or gradients became NaN or infinite. The model is as it was after
            the last good step, and so is the newest checkpoint.
        torch.OutOfMemoryError: not even one row at a time fits.
    """
    config, accelerator = config or TrainingConfig(), accelerator or Accelerator()
    _check(accelerator, save_every)
    if cuda_graphs:
        check_possible(accelerator, config)
    columns = dataset.select_columns(["input_ids", "labels"])
    batches = training_batches([len(ids) for ids in columns["input_ids"]], config)
    optimizer = make_optimizer(model, config)
    about = {"data": dataset_fingerprint(columns), **asdict(config)}
    del about["micro_batch_size"]  # it may change from one part of a run to the next

    with (
        ResumeFolder(resume_folder, about, accelerator) as saved,
        _training(model, accelerator),
        caught_interrupts(resume_folder is not None) as interrupted,
        compiled_layers(model) if compile_layers else nullcontext(),
    ):
        history = saved.load(model, optimizer)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        rows = Rows(columns, tokenizer.pad_token_id, accelerator.device)
        run = _Run(wrapped, prepared, rows, config, accelerator, config.micro_batch_size)
        if cuda_graphs:
            run.graphs = GraphedGradients(wrapped, tokenizer.pad_token_id)
        for step in _bar(history, config, shown=progress and accelerator.is_main_process):
            try:
                loss, stop = run.step(step, batches[step], interrupted)
            except FloatingPointError as error:
                last_good = saved.save(model, optimizer, history)
                raise FloatingPointError(f"{error} {last_good}".rstrip()) from None
            history.losses.append(loss)
            history.gates.append(gate_openings(model))
            if stop or (step + 1) % save_every == 0 or step + 1 == config.steps:
                where = saved.save(model, optimizer, history)
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after step {step + 1} of {config.steps}. {where} "
                    "Run the same lines again to go on."
                )
    return history


@dataclass
class _Run:
    """What a step needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rows: Rows
    config: TrainingConfig
    accelerator: Accelerator
    micro_batch_size: int | None
    graphs: GraphedGradients | None = None

    def step(
        self, step: int, numbers: list[int], interrupted: Callable[[], bool]
    ) -> tuple[float, bool]:
        """Learn from the rows `numbers`.

        Returns:
            the mean loss over the labelled tokens of all processes, and whether one of them was
            interrupted.

        Raises:
            FloatingPointError: loss or gradients are not finite; nothing was changed.
        """
        config = self.config
        # Drawn anew for each step: a resumed run needs no memory of earlier random numbers.
        set_seed(config.seed + step, device_specific=True)
        factor = learning_rate_factor(step, config.steps, config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        if self.graphs:
            part = self.graphs(self.rows.batch(numbers), self.rows.labelled_tokens(numbers))
        else:
            part, self.micro_batch_size = accumulate_within_memory(
                self.model, self.rows, numbers, self.micro_batch_size, self.accelerator
            )
        check_gradients(self.model)
        parts = torch.stack([part, torch.full_like(part, interrupted())])
        loss, stops = self.accelerator.reduce(parts).tolist()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        # A gradient scaler looks for infinite gradients itself, and skips the step.
        if not isfinite(loss) or not (self.accelerator.scaler or isfinite(norm)):
            self.optimizer.zero_grad()
            what = f"the loss became {loss}" if not isfinite(loss) else f"gradients became {norm}"
            raise FloatingPointError(
                f"{what} at step {step}, in the rows {numbers}. Look at these rows, lower "
                f"learning_rate (now {config.learning_rate}), or load the base in float32 or "
                "bfloat16."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, stops > 0


def _check(accelerator: Accelerator, every: int) -> None:
    if every < 1:
        raise ValueError(f"save_every must be 1 or more, got {every!r}.")
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "the accelerator has gradient_accumulation_steps. Leave it out, and set "
            "micro_batch_size in TrainingConfig: the step's rows are cut into as many parts."
        )
    if accelerator.distributed_type not in (DistributedType.NO, *DDP):
        raise ValueError(
            f"the accelerator uses {accelerator.distributed_type.value}, which would cut the "
            "adapters into pieces. Start without it; shard_base(model) spreads the frozen base."
        )


@contextmanager
def _training(model: PreTrainedModel, accelerator: Accelerator) -> Iterator[None]:
    """Training mode inside; afterwards the model is as before, without accelerate's wrappers."""
    was_training, own_forward = model.training, "forward" in vars(model)
    model.train()
    try:
        yield
    finally:
        model.train(was_training)
        if accelerator.native_amp:
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            if not own_forward:
                vars(model).pop("forward", None)
        accelerator.free_memory()


def _bar(history: History, config: TrainingConfig, *, shown: bool) -> Iterator[int]:
    """The numbers of the steps to do, with a progress bar that shows the newest loss."""
    done = len(history.losses)
    with tqdm(
        total=config.steps, initial=done, desc="fine-tuning", unit="step", disable=not shown
    ) as bar:
        for step in range(done, config.steps):
            yield step
            bar.update()
            bar.set_postfix(loss=f"{history.losses[-1]:.3f}")
