"""Fine-tuning on instructions: the loss on the answers, the optimiser, the loop.

    rows of `encode_dataset` -> batches of similar length -> answer_loss -> AdamW

accelerate takes care of devices, processes and mixed precision. `evaluate.py` does the scoring.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, pi

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapt import gate_openings
from llama_adapter_edu.data import IGNORE_INDEX, collate, length_grouped_batches


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run.

    Args:
        steps: optimiser steps.
        batch_size: rows per step and process.
        learning_rate: its highest value, after `warmup_steps` of linear rise; from there it follows
            half a cosine to 0. A real rate, not one per 256 rows as in the authors' code.
        weight_decay: on the prompts; gates are not decayed.
        max_grad_norm: gradients are scaled down to this norm.
        seed: of the order of the rows.

    Raises:
        ValueError: a number is out of range.
    """

    steps: int = 80
    batch_size: int = 8
    learning_rate: float = 3e-2
    warmup_steps: int = 5
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}.")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)!r}.")


@dataclass
class History:
    """What a run was like: one entry per step."""

    losses: list[float] = field(default_factory=list)
    gates: list[Float[Tensor, "layers h"]] = field(default_factory=list)


def answer_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Mean cross entropy (nats per token) over the labelled tokens of a batch.

    Logits are computed from the first labelled position on: the vocabulary is wide, and most of an
    instruction's positions teach nothing.

    Raises:
        ValueError: no token of the batch has a label.
    """
    labels: Int[Tensor, "b s"] = batch["labels"]
    labelled = (labels != IGNORE_INDEX).any(dim=0).nonzero()
    if len(labelled) == 0:
        raise ValueError("no token of this batch has a label, so there is nothing to learn from.")
    n_columns = labels.shape[1] - int(labelled[0])
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        logits_to_keep=n_columns + 1,  # position s predicts the token at s + 1
    ).logits[:, :-1]
    return F.cross_entropy(
        rearrange(logits.float(), "b s v -> (b s) v"),
        rearrange(labels[:, -n_columns:], "b s -> (b s)"),
        ignore_index=IGNORE_INDEX,
    )


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at `step`: linear warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW on what trains, with weight decay on matrices (prompts) and none on vectors (gates).

    Raises:
        ValueError: nothing trains.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("nothing in this model trains: call add_adaption_prompts(model) first.")
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate)


def training_batches(lengths: Sequence[int], config: TrainingConfig) -> list[list[int]]:
    """Row numbers of each step: as many passes over the data as `steps` need."""
    batches: list[list[int]] = []
    while len(batches) < config.steps:
        seed = config.seed + len(batches)
        batches += length_grouped_batches(lengths, config.batch_size, seed=seed)
    return batches[: config.steps]


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: TrainingConfig | None = None,
    *,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> History:
    """Train what is trainable in `model`, in place, on rows of `encode_dataset`.

    Returns:
        the loss and, for a model with adaption prompts, the gates' openings after each step.

    Raises:
        ValueError: nothing trains, or a batch has no labels.
        FloatingPointError: the loss became NaN or infinite; the message says at which step.
    """
    config = config or TrainingConfig()
    accelerator = accelerator or Accelerator()
    set_seed(config.seed)
    optimizer = make_optimizer(model, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config.steps, config.warmup_steps)
    )
    loader = DataLoader(
        dataset.select_columns(["input_ids", "labels"]),
        batch_sampler=training_batches([len(ids) for ids in dataset["input_ids"]], config),
        collate_fn=lambda rows: collate(rows, tokenizer.pad_token_id),
    )
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    history = History()
    was_training = model.training
    wrapped.train()
    bar = tqdm(loader, desc="fine-tuning", unit="step", disable=not progress)
    for step, batch in enumerate(bar):
        loss = answer_loss(wrapped, batch)
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss became {loss.item()} at step {step}. Lower learning_rate "
                f"(now {config.learning_rate}), or load the base in float32 or bfloat16."
            )
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        history.losses.append(loss.item())
        history.gates.append(gate_openings(model))
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.train(was_training)
    return history
