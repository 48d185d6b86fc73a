# %% [markdown]
# # Lesson 11: Fine-tune a Llama on a GPU
#
# *80 minutes. Needs lessons 04 and 06 to 08.*
#
# At the end you will have
#
# * written a training loop that survives small memory, 16-bit numbers and a crash,
# * fine-tuned the course's Llama twice: for commands, and for telegrams,
# * swapped the two experts between two sentences of one chat,
# * tested the paper's four promises, and seen one of them fail on our own task.
#
# No GPU? The lesson runs on a CPU too, with fewer steps. Shapes: `b` batch, `s` query position.

# %% tags=["nbval-ignore-output"]
import json
import os
import pickle
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from math import cos, pi
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    count_parameters,
    encode_dataset,
    finetune,
    gate_openings,
    generate_answers,
    load_llama,
    remove_adapter,
    save_adapter,
    set_adapter,
)
from llama_adapter_edu.course import assert_close, check, predict
from llama_adapter_edu.course.figures import (
    BLUE,
    GREY,
    ORANGE,
    dial,
    microscope,
    plot_gates,
    plot_reads,
    use_style,
)
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.profiles import PROFILES, choose_profile, estimate_memory
from llama_adapter_edu.course.tasks.telegrams import style_score, telegrams
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.data.evaluate import exact_match, longest_answer
from llama_adapter_edu.training.loop import make_optimizer, training_batches
from llama_adapter_edu.training.loss import answer_loss_sum
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

use_style()

# %% [markdown]
# ## Where do you train?
#
# One line decides. Left as it is, it takes what fits your machine. You may write `"cpu"`, `"t4"` or
# `"gpu"` between the brackets.

# %% tags=["nbval-ignore-output"]
profile = choose_profile()

print(f"profile {profile.name}: base in {profile.dtype}, {profile.steps} steps")

# %% [markdown]
# | profile | for | base | adapters | gradient scaler |
# |---|---|---|---|---|
# | `cpu` | any machine, few steps | float32 | float32 | no |
# | `t4` | GPUs with 16 GB and without bfloat16, as on free Colab | float16 | float32 | yes |
# | `gpu` | newer GPUs: A100, L4, RTX 30 and later | bfloat16 | float32 | no |
#
# What the last two columns are about, you will see below.
#
# ## Will it fit?
#
# Ask before you allocate. Four things take memory: the frozen weights; the adapter with its
# gradients and AdamW's two moments; what the forward pass keeps for the backward pass; and the
# logits, because the vocabulary is wide. All four follow from the model's config. Take LLaMA-7B with
# rows of 512 tokens, 4 rows at a time, as on each GPU of the released script.

# %% tags=["nbval-ignore-output"]
of_memory = predict(
    "LLaMA-7B, 4 rows of 512 tokens. After the base, what takes the most memory?",
    options=["adapters, gradients, Adam", "activations", "logits"],
    mine=...,
)

# %%
llama_7b = LlamaConfig()  # the config's defaults are the shape of LLaMA-7B
paper_adapter = AdaptionPromptConfig(adapter_len=10, adapter_layers=30)
four_rows = replace(PROFILES["gpu"], micro_batch_size=4)
lengths = {"row_tokens": 512, "answer_tokens": 256}
of_7b = estimate_memory(llama_7b, four_rows, paper_adapter, **lengths)
print(of_7b)
print(
    f"\nfull fine-tuning, for the parameters alone: {of_7b.base_weights / 2 * 16 / 2**30:.0f} GiB"
)

# %% tags=["nbval-ignore-output"]
parts = {
    "adapters, gradients, Adam": of_7b.adapters,
    "activations": of_7b.activations,
    "logits": of_7b.logits,
}
of_memory.compare(max(parts, key=parts.get))

# %% [markdown]
# What trains is the smallest part. In full fine-tuning it would be the largest one: 16 bytes for
# each of 6.7 billion numbers. That is why the paper's method fits where full fine-tuning
# does not. Now your own run.

# %% tags=["nbval-ignore-output"]
llama, tokenizer = load_llama(dtype=profile.dtype)  # or load_llama("meta-llama/Llama-3.2-1B")
adapter = AdaptionPromptConfig(adapter_len=10, adapter_layers=len(llama.model.layers))
lengths = {"row_tokens": 63, "answer_tokens": 22}  # of a typical home command (lesson 07)
print(estimate_memory(llama.config, profile, adapter, **lengths))

accelerator = profile.accelerator()
llama = llama.to(accelerator.device)


# %% [markdown]
# Any Llama from the Hugging Face hub goes the same way: `load_llama("HuggingFaceTB/SmolLM2-1.7B")`.
# Nothing else in this lesson changes.
#
# A small random Llama serves the checks. Three of its parameters train: the norms.


# %%
def small_llama() -> LlamaForCausalLM:
    """A random Llama with m=24, v=31. Only its norms train; they stand in for prompts."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=31, hidden_size=24, intermediate_size=40, num_hidden_layers=1)
    heads = dict(num_attention_heads=6, num_key_value_heads=2, initializer_range=0.5)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    return model


def small_batch(*answer_lengths: int) -> dict[str, torch.Tensor]:
    """Random rows: three tokens of prompt, then so many labelled tokens."""
    rows = []
    for length in answer_lengths:
        ids = torch.randint(1, 31, (3 + length,)).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * 3 + ids[3:]})
    return collate(rows, pad_token_id=0)


print("numbers that train:", count_parameters(small_llama())[0])

# %% [markdown]
# ## The learning rate, and a trap
#
# The paper says: learning rate 0.009, batch 64, 2 epochs of warm-up, 5 epochs in all (section 4.1).
# You know the trap from lesson 08: 0.009 is a **base rate** per 256 rows. What runs is the base rate
# times the effective batch over 256. The paper's batch has 64 rows, the released script's 32: 8 GPUs
# with 4 rows each. So there are two real rates, and neither is 0.009.
#
# The rate does not stay the same either. It rises in a straight line during the warm-up, because
# AdamW knows nothing about the gradients yet. Then it falls like half a cosine to 0.

# %% [markdown] tags=["card"]
# ### Exercise 11.1 · The rate at each step
#
# *easy ●○○ · 8 minutes*
#
# Write two functions. The first turns a base rate per 256 rows into the real one. The second gives
# the share of the highest rate at a step: linear warm-up, never 0, then half a cosine from 1
# towards 0.
#
# <details><summary>Hint 1: direction</summary>
#
# Warm-up with `warmup_steps = 4` means the shares 1/5, 2/5, 3/5, 4/5; then the cosine starts at 1.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The cosine's way goes from step `warmup_steps` to `steps`. Which share of this way lies behind
# you at `step`? At 0 the result is 1, at 1 it is 0.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return base_rate * _____ / 256` and
# `return 0.5 * (1 + cos(pi * (step - _____) / max(1, steps - _____)))`
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.training.config"
def real_learning_rate(base_rate: float, batch_size: int) -> float:
    """The rate that runs where a base rate "per 256 rows" is given, as in the authors' code.

    `batch_size` is the effective one: the rows that a step learns from, over all processes.
    """
    ### BEGIN SOLUTION
    return base_rate * batch_size / 256
    ### END SOLUTION


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate at `step`: linear warm-up, then half a cosine to 0."""
    ### BEGIN SOLUTION
    # ~ if step < warmup_steps:
    # ~     return ...
    # ~ return ...
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
    ### END SOLUTION


# %% tags=["check"]
@check(
    "11.1",
    "real_learning_rate",
    "learning_rate_factor",
    base=[9e-3, 4e-3],
    rows=[64, 32],
    steps=[24, 37],
    warmup=[4, 7],
)
def _(base, rows, steps, warmup):
    mistakes = {
        "this is the trap: multiply by the batch, divide by 256": base,
        "it is upside down: a larger batch has the larger rate": base * 256 / rows,
        "this is the rate for one row more or less: divide by 256": base * rows / 255,
        "multiply by the batch, too": base / 256,
        "divide by 256, too": base * rows,
        "this is 0: `//` cuts off, divide with /": 0.0,
        "the rate grows with the batch, not with its root": base * (rows / 256) ** 0.5,
    }
    found = real_learning_rate(base, rows)
    assert_close(found, base * rows / 256, tol=1e-7, mistakes=mistakes, what=f"for {rows} rows")

    first = learning_rate_factor(0, steps, warmup)
    assert first != 0, f"the first step learns nothing: its share is 0, let it be 1/{warmup + 1}"
    up = torch.tensor([learning_rate_factor(step, steps, warmup) for step in range(warmup + 1)])
    right = torch.tensor([(step + 1) / (warmup + 1) for step in range(warmup + 1)])
    late, twice, none, ahead = (right.clone() for _ in range(4))
    late[-1] = 0.5 * (1 + cos(pi * warmup / steps))
    twice[-1], none[-1] = 2, 0
    ahead[-1] = 0.5 * (1 + cos(pi / (steps - warmup)))
    mistakes = {
        f"the last warm-up step has the full rate already: divide by {warmup + 1}": torch.tensor(
            [min(1.0, (step + 1) / warmup) for step in range(warmup + 1)]
        ),
        "the cosine starts at the end of the warm-up, not at step 0": late,
        "after the warm-up the share is 1, not 2: take half of 1 + cos(...)": twice,
        "after the warm-up the share is 1 and falls; here it starts at 0": none,
        "the cosine starts with the step `warmup_steps` itself, and with 1": ahead,
        "there is no warm-up: below warmup_steps the shares rise in a straight line": torch.tensor(
            [0.5 * (1 + cos(pi * step / steps)) for step in range(warmup + 1)]
        ),
        "the first step is one of the warm-up: add 1 to the step": torch.tensor(
            [*(step / warmup for step in range(warmup)), 1.0]
        ),
    }
    assert_close(up, right, mistakes=mistakes, what=f"the shares of a warm-up of {warmup} steps")
    way = [place / (steps - warmup) for place in range(steps - warmup + 1)]
    down = [learning_rate_factor(warmup + n, steps, warmup) for n in range(len(way))]
    mistakes = {
        "it falls in a straight line: take half a cosine": torch.tensor([1 - x for x in way]),
        "take half a cosine: it ends at 0, not at -1": torch.tensor([cos(pi * x) for x in way]),
        "that is a quarter of a cosine: take half of one, 0.5 * (1 + cos(pi * ...))": torch.tensor(
            [cos(pi * x / 2) for x in way]
        ),
        "the cosine takes radians: from 0 to pi, not to 180": torch.tensor(
            [0.5 * (1 + cos(180 * x)) for x in way]
        ),
        "it reaches 0 a step too early: the way is steps - warmup_steps long": torch.tensor(
            [0.5 * (1 + cos(pi * n / (len(way) - 2))) for n in range(len(way))]
        ),
        "take half a cosine, not a whole one": torch.tensor(
            [0.5 * (1 + cos(2 * pi * x)) for x in way]
        ),
        "the cosine's way is steps - warmup_steps long": torch.tensor(
            [0.5 * (1 + cos(pi * n / steps)) for n in range(len(way))]
        ),
    }
    right = torch.tensor([cos(pi * x / 2) ** 2 for x in way])  # half a cosine, by its half angle
    assert_close(torch.tensor(down), right, mistakes=mistakes, what="after the warm-up")
    assert learning_rate_factor(0, steps, 0) == 1, "without warm-up it starts at 1"
    short = learning_rate_factor(warmup, warmup, warmup)
    assert short == 1, f"where all steps are warm-up, the step after them has 1, got {short:g}"
    end = learning_rate_factor(warmup + 1, warmup + 1, warmup)
    assert abs(end) < 1e-6, f"one step after the warm-up, the last one, has 0, got {end:g}"
    half = learning_rate_factor(1, 2, 0)
    assert abs(half - 0.5) < 1e-6, f"half-way through 2 steps the share is 0.5, got {half:g}"


# %% [raw] tags=["wrong"] says="this is the trap"
"""
def real_learning_rate(base_rate, batch_size):
    return base_rate


def learning_rate_factor(step, steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / (steps - warmup_steps)))
"""

# %% [raw] tags=["wrong"] says="it is upside down"
"""
def real_learning_rate(base_rate, batch_size):
    return base_rate * 256 / batch_size


def learning_rate_factor(step, steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / (steps - warmup_steps)))
"""

# %% [raw] tags=["wrong"] says="the first step learns nothing"
"""
def real_learning_rate(base_rate, batch_size):
    return base_rate * batch_size / 256


def learning_rate_factor(step, steps, warmup_steps):
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + cos(pi * (step - warmup_steps) / (steps - warmup_steps)))
"""

# %% [raw] tags=["wrong"] says="not at step 0"
"""
def real_learning_rate(base_rate, batch_size):
    return base_rate * batch_size / 256


def learning_rate_factor(step, steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + cos(pi * step / steps))
"""

# %% [raw] tags=["wrong"] says="it falls in a straight line"
"""
def real_learning_rate(base_rate, batch_size):
    return base_rate * batch_size / 256


def learning_rate_factor(step, steps, warmup_steps):
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 1 - (step - warmup_steps) / (steps - warmup_steps)
"""

# %% [raw] tags=["right"]
"""
def real_learning_rate(base_rate, batch_size):
    return batch_size * (base_rate / 256)


def learning_rate_factor(step, steps, warmup_steps):
    if step >= warmup_steps:
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        return cos(done * pi / 2) ** 2
    return (step + 1) / (warmup_steps + 1)
"""

# %% [raw] tags=["right"]
"""
def real_learning_rate(base_rate, batch_size):
    rate_of_one_row = base_rate / 256
    return rate_of_one_row * batch_size


def learning_rate_factor(step, steps, warmup_steps):
    rising = (step + 1) / (warmup_steps + 1)
    way = max(0, step - warmup_steps) / max(1, steps - warmup_steps)
    return rising if step < warmup_steps else (1 + cos(pi * way)) / 2
"""

# %% [markdown]
# Your two functions translate the paper. Alpaca has 52,002 rows.

# %%
# alt: Three curves over 4,060 steps, rising for two fifths and falling: 0.009 taken literally; 0.00225, a quarter of it, for the paper's 64 rows; 0.001125, an eighth, for the released script's 32 rows.
epoch = 52_002 // 64
paper = TrainingConfig(
    steps=5 * epoch,
    batch_size=64,
    learning_rate=real_learning_rate(9e-3, 64),
    warmup_steps=2 * epoch,
    weight_decay=0.02,
)
of_script = real_learning_rate(9e-3, 8 * 4)
print(f"{paper.steps:,} steps; 64 rows a step: {paper.learning_rate}, 32 rows: {of_script}")
steps = range(paper.steps)
shares = [learning_rate_factor(step, paper.steps, paper.warmup_steps) for step in steps]
_, ax = plt.subplots(figsize=(6, 3))
for highest, colour, line, label in (
    (9e-3, GREY, "--", "0.009 taken literally"),
    (paper.learning_rate, BLUE, "-", "64 rows a step: the paper"),
    (of_script, ORANGE, "-.", "32 rows a step: the script"),
):
    ax.plot(steps, [highest * share for share in shares], line, color=colour, label=label)
ax.set(xlabel="training step", ylabel="learning rate", ylim=(0, 0.0125))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# With `paper` the paper's run is four lines, once `llama` is a LLaMA-7B:
#
# ```python
# from datasets import load_dataset
# alpaca = encode_dataset(load_dataset("tatsu-lab/alpaca", split="train"), tokenizer)
# add_adaption_prompts(llama, AdaptionPromptConfig(adapter_len=10, adapter_layers=30))
# finetune(llama, tokenizer, alpaca, paper, resume_folder="runs/alpaca")
# ```
#
# On one GPU give `paper` a `micro_batch_size`; you are about to write what this does. The third line
# is the one that counts: `add_adaption_prompts` freezes the base. Without it `finetune` trains
# whatever is not frozen:

# %%
print(f"{count_parameters(llama)[0]:,} numbers would train: no adapter, and nothing is frozen")

# %% [markdown]
# One more thing: these rates are for the paper's prompts, batch and base. On our task 0.03 works
# (lesson 08), and the comparison at the end of this lesson found 0.01 as good. A rate is a property
# of model, data and batch, never of a method alone.
#
# ## A batch that does not fit
#
# A step should learn from 32 rows, and only 8 fit into memory. So send four **micro-batches**
# through the model, one after the other. Gradients add up in `.grad` until you clear them. Then
# take one step. It is the same step as with 32 rows at once, if you average correctly.
#
# Here is where most loops are wrong. Take two micro-batches. One has 2 labelled tokens, the other
# has 8.

# %%
torch.manual_seed(0)
model, parts = small_llama(), [small_batch(1, 1), small_batch(8)]
with torch.no_grad():
    sums, counts = zip(*(answer_loss_sum(model, part) for part in parts), strict=True)
means = [total / count for total, count in zip(sums, counts, strict=True)]
print("mean loss of each:     ", ", ".join(f"{mean:.3f}" for mean in means))
print(f"mean of the two means:  {sum(means) / 2:.3f}")
print(f"mean over all tokens:   {sum(sums) / sum(counts):.3f}")

# %% [markdown]
# In the mean of means, a token of the short answers weighs four times as much. `transformers` had
# this very error until October 2024. The cure: add up *sums*, and divide by the tokens of the whole
# step. `answer_loss_sum(model, batch)` gives you sum and number for a micro-batch.

# %% [markdown] tags=["card"]
# ### Exercise 11.2 · Accumulate gradients
#
# *medium ●●○ · 12 minutes*
#
# Run forward and backward over all micro-batches, so that the gradients are those of the mean loss
# over *all* labelled tokens, times `scale`. Return the mean loss itself. Free each micro-batch
# before the next one: call backward for each. No optimiser here.
#
# <details><summary>Hint 1: direction</summary>
#
# Count the labelled tokens of all micro-batches first: labels other than `IGNORE_INDEX`. Then loop.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Each micro-batch contributes its sum divided by the number of *all* tokens. The contributions add
# up to the mean loss. `scale` belongs to what goes backward, not to what you return.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `n_tokens = sum((batch["labels"] != _____).sum() for batch in micro_batches)`, then for each:
# `loss = answer_loss_sum(model, batch)[0] / _____`, `(loss * _____).backward()`,
# `total += loss.item()`
#
# </details>


# %% tags=["exercise"]
def accumulate(
    model: nn.Module, micro_batches: Sequence[dict[str, torch.Tensor]], scale: float = 1.0
) -> float:
    """Forward and backward over a step's micro-batches; gradients add up in the parameters.

    Each micro-batch has `input_ids`, `attention_mask` and `labels`, all (b s). Returns the mean
    loss over the labelled tokens of all micro-batches. The gradients are `scale` times its own.
    """
    ### BEGIN SOLUTION
    # ~ n_tokens = ...
    # ~ total = 0.0
    n_tokens = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        loss_sum, _ = answer_loss_sum(model, batch)
        loss = loss_sum / n_tokens
        (loss * scale).backward()
        total += loss.item()
    return total
    ### END SOLUTION


# %% tags=["check"]
@check("11.2", "accumulate", lengths=[[(1, 2), (6,), (3, 5)], [(4,), (1, 1, 2)]])
def _(lengths):
    model, parts = small_llama(), [small_batch(*batch) for batch in lengths]
    parts[-1]["labels"][0, 3] = 0  # token 0 is a token
    sums, counts = zip(*(answer_loss_sum(model, part) for part in parts), strict=True)
    mean = sum(sums) / sum(counts)
    weight = model.model.norm.weight

    def gradient_of(loss):
        """Of the last norm's weight; the model is as before."""
        loss.backward(retain_graph=True)
        found = weight.grad.clone()
        model.zero_grad()
        return found

    gradient, of_last = gradient_of(mean), gradient_of(sums[-1] / sum(counts))
    of_first = gradient_of(sums[0] / sum(counts))
    sums = [total.detach() for total in sums]
    mean = mean.detach()
    seen = sum(int(part["attention_mask"].sum()) for part in parts)
    backwards = []
    weight.register_hook(lambda _: backwards.append(1))
    trains = [parameter.requires_grad for parameter in model.parameters()]
    values = [parameter.detach().clone() for parameter in model.parameters()]

    loss = accumulate(model, parts)
    assert not isinstance(loss, torch.Tensor), (
        "return a number: loss.item(), not a tensor that keeps memory"
    )
    mean_of_means = sum(s / c for s, c in zip(sums, counts, strict=True)) / len(parts)
    mistakes = {
        "this is a mean of means: tokens of short answers weigh more": mean_of_means.item(),
        "the means are added up, not averaged": len(parts) * mean_of_means.item(),
        "these are sums: divide by the tokens of all micro-batches": sum(sums).item(),
        "this is the loss of the last micro-batch alone": (sums[-1] / sum(counts)).item(),
        "this is the loss of the first micro-batch alone": (sums[0] / sum(counts)).item(),
        "divide by the labelled tokens, not by the number of micro-batches": (
            sum(sums) / len(parts)
        ).item(),
        "divide by the labelled tokens of all micro-batches, not of the first": (
            sum(sums) / counts[0]
        ).item(),
        "count the tokens of all micro-batches before the loop, not those so far": sum(
            (total / sum(counts[: n + 1])).item() for n, total in enumerate(sums)
        ),
        "count the labels other than IGNORE_INDEX; token 0 is a token, too": (
            sum(sums) / (sum(counts) - 1)
        ).item(),
        "count the labels other than IGNORE_INDEX, not all places": (
            sum(sums) / sum(part["labels"].numel() for part in parts)
        ).item(),
        "count the labels other than IGNORE_INDEX, not those that equal it": (
            sum(sums) / sum((part["labels"] == IGNORE_INDEX).sum() for part in parts)
        ).item(),
        "this is the mean of the last micro-batch alone": (sums[-1] / counts[-1]).item(),
        "divide by the labelled tokens, not by all that the attention sees": (
            sum(sums) / seen
        ).item(),
    }
    assert_close(loss, mean.item(), tol=1e-4, mistakes=mistakes, what="the loss")
    mine = weight.grad
    said = "no gradient arrived: call backward on a loss that comes from the model, and leave it in .grad"
    assert mine is not None, said
    mistakes = {
        "all micro-batches went backward twice or more": 2 * gradient,
        "the gradients are those of a sum": gradient * sum(counts),
        "these are the gradients of the last micro-batch alone: clear nothing in between": of_last,
        "these are the gradients of the first micro-batch alone": of_first,
        "the first micro-batch went backward twice": gradient + of_first,
    }
    assert_close(mine, gradient, tol=1e-5, mistakes=mistakes, what="the gradients")
    assert len(backwards) == len(parts), (
        "call backward for each micro-batch, in the loop: one backward at the end keeps all of "
        "them in memory"
    )
    assert [p.requires_grad for p in model.parameters()] == trains, "what trains has changed"
    said = "a parameter has changed: no step here, the optimiser takes it later"
    assert all(map(torch.equal, model.parameters(), values)), said
    assert not model.training, "the model was in eval mode: leave its mode as it is"

    accumulate(model, parts)
    said = "gradients that are there already stay, and the new ones are added: clear nothing"
    assert torch.allclose(weight.grad, 2 * gradient, atol=1e-5), said
    model.zero_grad()
    scaled = accumulate(model, parts, scale=512.0)
    mistakes = {"return the loss itself; only the gradients are scaled": 512 * mean.item()}
    assert_close(scaled, mean.item(), tol=1e-4, mistakes=mistakes, what="with scale=512, the loss")
    mistakes = {
        "`scale` is ignored": gradient,
        "multiply the loss by `scale` before going backward, do not divide": gradient / 512,
    }
    mine = weight.grad
    assert_close(mine, 512 * gradient, tol=1e-2, mistakes=mistakes, what="with scale=512, they")
    rows = [{key: values[:1] for key, values in parts[0].items()}]
    total, count = answer_loss_sum(model, rows[0])
    right = (total / count).item()
    assert_close(accumulate(model, rows), right, tol=1e-4, what="the loss of one row alone")
    with torch.no_grad():
        weight.mul_(3)
    right = (answer_loss_sum(model, rows[0])[0] / count).item()
    what = "the loss of the same row after a change of the model"
    assert_close(accumulate(model, rows), right, tol=1e-4, what=what)


# %% [raw] tags=["wrong"] says="this is a mean of means"
"""
def accumulate(model, micro_batches, scale=1.0):
    total = 0.0
    for batch in micro_batches:
        loss_sum, n_tokens = answer_loss_sum(model, batch)
        loss = loss_sum / n_tokens / len(micro_batches)
        (loss * scale).backward()
        total += loss.item()
    return total
"""

# %% [raw] tags=["wrong"] says="the means are added up"
"""
def accumulate(model, micro_batches, scale=1.0):
    total = 0.0
    for batch in micro_batches:
        loss_sum, n_tokens = answer_loss_sum(model, batch)
        loss = loss_sum / n_tokens
        (loss * scale).backward()
        total += loss.item()
    return total
"""

# %% [raw] tags=["wrong"] says="only the gradients are scaled"
"""
def accumulate(model, micro_batches, scale=1.0):
    n_tokens = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        loss = scale * answer_loss_sum(model, batch)[0] / n_tokens
        loss.backward()
        total += loss.item()
    return total
"""

# %% [raw] tags=["wrong"] says="the gradients"
"""
def accumulate(model, micro_batches, scale=1.0):
    n_tokens = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        model.zero_grad()
        loss = answer_loss_sum(model, batch)[0] / n_tokens
        (loss * scale).backward()
        total += loss.item()
    return total
"""

# %% [raw] tags=["wrong"] says="`scale` is ignored"
"""
def accumulate(model, micro_batches, scale=1.0):
    n_tokens = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in micro_batches)
    losses = []
    for batch in micro_batches:
        loss = answer_loss_sum(model, batch)[0] / n_tokens
        loss.backward()
        losses.append(loss.item())
    return sum(losses)
"""

# %% [raw] tags=["right"]
"""
def accumulate(model, micro_batches, scale=1.0):
    labels = [batch["labels"].flatten() for batch in micro_batches]
    n_tokens = int((torch.cat(labels) != IGNORE_INDEX).sum())
    losses = []
    for batch in micro_batches:
        loss_sum, _ = answer_loss_sum(model, batch)
        (loss_sum * (scale / n_tokens)).backward()
        losses.append(loss_sum.item() / n_tokens)
    return sum(losses)
"""

# %% [raw] tags=["right"]
"""
def accumulate(model, micro_batches, scale=1.0):
    counts = [(batch["labels"] > IGNORE_INDEX).float().sum().item() for batch in micro_batches]
    total = 0.0
    for batch, count in zip(micro_batches, counts):
        loss_sum, n_tokens = answer_loss_sum(model, batch)
        weight = count / sum(counts)
        mean = loss_sum / n_tokens
        (scale * weight * mean).backward()
        total += weight * mean.item()
    return total
"""

# %% [markdown]
# ## Sixteen bits
#
# A 16-bit base takes half the memory and, on a GPU, a fraction of the time. There are two kinds of
# 16-bit numbers, and each has its own weakness. Look at three small sums.

# %%
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    one, update, gradient = torch.tensor([1.0, 1e-3, 1e-8]).to(dtype)
    row = f"1 + 0.001 = {one + update:.6f}   a gradient of 1e-8: {gradient:.1e}"
    print(f"{dtype!s:15} {row}   largest: {torch.finfo(dtype).max:.0e}")

# %% [markdown]
# * **bfloat16** has the range of float32, but few digits: 1 + 0.001 stays 1. As in lesson 08, prompts
#   around 1 would not move at all under small updates. So the base may be bfloat16, but **what
#   trains stays float32**. The library's prompts refuse to be cast; the forward pass makes a 16-bit
#   copy of them.
# * **float16** has more digits, and little range: small gradients become 0, large ones infinite.
#
# A T4 has no bfloat16 in hardware, so it needs a trick for the second point: a **gradient scaler**.
# Multiply the loss by a large number before going backward. All gradients grow by this factor, and
# the small ones survive. Divide them by it afterwards, in float32. If one of them became infinite,
# skip the step and take a smaller factor from there on.

# %% [markdown] tags=["card"]
# ### Exercise 11.3 · An update with unscaling
#
# *medium ●●○ · 12 minutes*
#
# The gradients are `scale` times too large. Divide them by it. Clip their norm to `max_grad_norm`.
# If all are finite, let the optimiser step. Always clear the gradients. Return whether a step was
# taken.
#
# <details><summary>Hint 1: direction</summary>
#
# The order matters: unscale, clip, look, step, clear. Clipping first would compare a scaled norm
# with an unscaled limit.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The parameters are in `optimizer.param_groups`, each a dict with a list `"params"`. Some may have
# no gradient. `nn.utils.clip_grad_norm_` returns the norm before clipping: if one gradient is not
# finite, neither is the norm.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# for parameter in parameters:
#     parameter.grad /= _____
# norm = nn.utils.clip_grad_norm_(parameters, _____)
# finite = bool(norm._____())
# ```
#
# </details>


# %% tags=["exercise"]
def update(optimizer: torch.optim.Optimizer, max_grad_norm: float, scale: float = 1.0) -> bool:
    """Step with the gradients divided by `scale` and clipped; skip if one is not finite.

    Returns whether the optimiser stepped. All gradients are cleared.
    """
    ### BEGIN SOLUTION
    # ~ parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad /= scale
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    finite = bool(norm.isfinite())
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite
    ### END SOLUTION


# %% tags=["check"]
@check("11.3", "update")
def _():
    def after_update(gradient: list[float], limit: float, scale: float) -> tuple:
        """Ones after an update with SGD at rate 1: two numbers in one group, one in the other."""
        pair, one, unused = (nn.Parameter(torch.ones(n)) for n in (2, 1, 1))
        pair.grad, one.grad = torch.tensor(gradient[:2]), torch.tensor(gradient[2:])
        optimizer = torch.optim.SGD([{"params": [pair, unused]}, {"params": [one]}], lr=1.0)
        steps = []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        inputs = (limit, scale) if scale != 1 else (limit,)  # 1 is what `scale` is when left out
        stepped = update(optimizer, *inputs)
        left = [p.grad for p in (pair, one) if p.grad is not None]
        return stepped, torch.cat([pair, one]).detach(), left, len(steps)

    stepped, value, left, _ = after_update([1024.0, 0.0, 2048.0], limit=10.0, scale=1024.0)
    direction = torch.tensor([1.0, 0.0, 2.0]) / 5**0.5  # clipped to 10, the norm is 10
    mistakes = {
        "the gradients are still scaled: divide them by `scale`": 1 - 10 * direction,
        "clip after unscaling: a scaled norm is far above the limit": 1 - 10 / 1024 * direction,
        "the limit is max_grad_norm, here 10, not 1": 1 - direction,
        "nothing has moved: is a step taken, before the gradients are cleared?": torch.ones(3),
    }
    right = torch.tensor([0.0, 1.0, -1.0])
    assert_close(value, right, tol=1e-4, mistakes=mistakes, what="what trains")
    assert stepped is True, f"a step was taken: return True, got {stepped!r}"
    said = "the gradients are still there: the next step would add to them"
    assert not any(gradient.any() for gradient in left), said

    for size in (1.0, 1e4):
        stepped, value, *_ = after_update([3.0 * size, 0.0, 4.0 * size], limit=1.0, scale=1.0)
        mistakes = {
            f"nothing is clipped: the norm is {5 * size:g}, the limit 1": torch.tensor(
                [1 - 3 * size, 1.0, 1 - 4 * size]
            ),
            "clip the norm of all gradients together, not each one on its own": torch.tensor(
                [0.0, 1.0, 0.0]
            ),
            "a norm above the limit is clipped, and a step is taken; only infinity and NaN skip it": (
                torch.ones(3)
            ),
        }
        right = torch.tensor([0.4, 1.0, 0.2])
        assert_close(value, right, tol=1e-4, mistakes=mistakes, what="clipped to norm 1, it")

    _, value, *_ = after_update([0.5, 0.0, 0.25], limit=10.0, scale=1.0)
    what = "below the limit, with no scale given, it"
    assert_close(value, torch.tensor([0.5, 1.0, 0.75]), tol=1e-4, what=what)

    for place, bad, scale in ((0, "inf", 2.0), (2, "nan", 1.0), (2, "inf", 1.0), (0, "nan", 2.0)):
        gradient = [1.0, 1.0, 1.0]
        gradient[place] = float(bad)
        stepped, value, left, n_steps = after_update(gradient, limit=1.0, scale=scale)
        said = f"a gradient is {bad} and the optimiser stepped: what trains is {value.tolist()}"
        assert torch.equal(value, torch.ones(3)), said
        said = (
            f"a gradient is {bad}: do not call optimizer.step, zeros would change AdamW's moments"
        )
        assert n_steps == 0, said
        assert stepped is False, f"the step was skipped: return False, got {stepped!r}"
        said = f"a gradient of {bad} is still there after the skipped step, and spoils the next one"
        assert all(bool((gradient == 0).all()) for gradient in left), said


# %% [raw] tags=["wrong"] says="the gradients are still scaled"
"""
def update(optimizer, max_grad_norm, scale=1.0):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if norm.isfinite():
        optimizer.step()
    optimizer.zero_grad()
    return bool(norm.isfinite())
"""

# %% [raw] tags=["wrong"] says="clip after unscaling"
"""
def update(optimizer, max_grad_norm, scale=1.0):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in parameters if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    for parameter in parameters:
        parameter.grad /= scale
    if norm.isfinite():
        optimizer.step()
    optimizer.zero_grad()
    return bool(norm.isfinite())
"""

# %% [raw] tags=["wrong"] says="nothing is clipped"
"""
def update(optimizer, max_grad_norm, scale=1.0):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad /= scale
    finite = all(bool(p.grad.isfinite().all()) for p in parameters)
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite
"""

# %% [raw] tags=["wrong"] says="and the optimiser stepped"
"""
def update(optimizer, max_grad_norm, scale=1.0):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad /= scale
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return bool(norm.isfinite())
"""

# %% [raw] tags=["wrong"] says="and spoils the next one"
"""
def update(optimizer, max_grad_norm, scale=1.0):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad /= scale
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not norm.isfinite():
        return False
    optimizer.step()
    optimizer.zero_grad()
    return True
"""

# %% [raw] tags=["wrong"] says="the next step would add to them"
"""
def update(optimizer, max_grad_norm, scale=1.0):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in parameters if p.grad is not None]
    for parameter in parameters:
        parameter.grad /= scale
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if norm.isfinite():
        optimizer.step()
    return bool(norm.isfinite())
"""

# %% [raw] tags=["right"]
"""
def update(optimizer, max_grad_norm, scale=1.0):
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt() / scale
    finite = norm.isfinite().item()
    if finite:
        for gradient in gradients:
            gradient.mul_(min(1.0, max_grad_norm / norm.item()) / scale)
        optimizer.step()
    optimizer.zero_grad()
    return finite
"""

# %% [raw] tags=["right"]
"""
def update(optimizer, max_grad_norm, scale=1.0):
    parameters = []
    for group in optimizer.param_groups:
        parameters += [p for p in group["params"] if p.grad is not None]
    try:
        for parameter in parameters:
            parameter.grad = parameter.grad / scale
        nn.utils.clip_grad_norm_(parameters, max_grad_norm, error_if_nonfinite=True)
        optimizer.step()
        return True
    except RuntimeError:
        return False
    finally:
        optimizer.zero_grad(set_to_none=True)
"""

# %% [markdown]
# ## When a run is cut off
#
# A long run will be interrupted: a crash, a free Colab session that ends, a closed lid. What must a
# file hold, so that the run goes on as if nothing had happened? Are the learnt numbers enough? Take
# two runs of 6 steps on the small Llama. In one of them AdamW loses its moments before step 3: a
# fresh optimiser goes on.

# %% tags=["nbval-ignore-output"]
of_forgetting = predict(
    "AdamW forgets its moments at step 3. The losses of the steps after it are",
    options=["the same", "higher", "lower"],
    mine=...,
)


# %%
def six_steps(forget_at: int | None) -> list[float]:
    """The losses of a small run; the optimiser starts afresh before the step `forget_at`."""
    model = small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    batch, losses = small_batch(4, 6), []
    for step in range(6):
        if step == forget_at:
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        losses.append(accumulate(model, [batch]))
        update(optimizer, max_grad_norm=1.0)
    return losses


kept, forgotten = six_steps(None), six_steps(3)
for name, losses in {"kept": kept, "forgotten at step 3": forgotten}.items():
    print(f"{name:20}", ", ".join(f"{loss:.3f}" for loss in losses))

# %% tags=["nbval-ignore-output"]
change = sum(forgotten[4:]) - sum(kept[4:])
of_forgetting.compare("the same" if abs(change) < 1e-3 else "higher" if change > 0 else "lower")

# %% [markdown]
# It is another run. Here its loss even falls faster: the first step of a fresh AdamW moves every
# number by the full learning rate. Elsewhere that may do harm. Better or worse is not the point: you
# no longer know which run you have.
#
# So the state is what trains, the optimiser's state, and the number of steps done. With a float16
# base there is a fourth, the scale; and wherever a step draws random numbers, their state. (The
# library keeps the scale and draws anew from seed and step. Our loop below starts its scale afresh.)
#
# And the file must be whole at every moment. If the program dies while it writes, the earlier file
# must still be there. The remedy is old: write beside it, then **rename**. A rename happens entirely
# or not at all. Against a *power cut* one more line is needed: renamed or not, the bytes may still
# wait in memory. `os.fsync(file.fileno())`, before the rename, waits for the disk. The library does
# it; the exercise does not ask for it.
#
# One warning. `torch.save` writes pickles, and a pickle can hold code that runs when it is read.
# `torch.load(path, weights_only=True)` reads tensors, numbers and containers, and refuses the rest.

# %% [markdown] tags=["card"]
# ### Exercise 11.4 · Save and go on
#
# *hard ●●● · 15 minutes*
#
# Save a run: what trains (not the base), the optimiser's state, the step; with `torch.save`, beside
# the path, then renamed. Load it: put both back in place and return the step. Never unpickle code.
#
# <details><summary>Hint 1: direction</summary>
#
# One dict with three entries. `optimizer.state_dict()` and `optimizer.load_state_dict` do the
# second one. `named_parameters()` gives names for the first.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Keep parameters with `requires_grad`, each detached. To load, copy each tensor into its parameter
# under `torch.no_grad()`; a new `nn.Parameter` would be a stranger to the optimiser.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# ```python
# torch.save(state, path.with_suffix(".unfinished"))
# os.replace(_____, _____)
# state = torch.load(path, weights_only=_____)
# ```
#
# </details>


# %% tags=["exercise"]
def save_run(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write what trains, the optimiser's state and the steps done; a whole file or none."""
    ### BEGIN SOLUTION
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".unfinished"))
    os.replace(path.with_suffix(".unfinished"), path)
    ### END SOLUTION


def load_run(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved run into model and optimiser, in place. Returns the steps done."""
    ### BEGIN SOLUTION
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
    ### END SOLUTION


# %% tags=["check"]
@check("11.4", "save_run", "load_run")
def _():
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    path = Path(folder.name, "run.pt")

    def watched_load(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """load_run, with a look at what it leaves."""
        before = {name: (p, p.requires_grad) for name, p in model.named_parameters()}
        frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        try:
            step = load_run(path, model, optimizer)
        except pickle.UnpicklingError:
            raise AssertionError(
                "the file holds more than tensors, numbers and containers, or is cut short: save "
                "optimizer.state_dict(), not the optimiser"
            ) from None
        for name, parameter in model.named_parameters():
            said = (
                f"load_run put a new parameter into the model as {name}, and the optimiser goes on "
            )
            assert parameter is before[name][0], said + "with the old one: copy into it"
            said = (
                f"after load_run {name} does not train any more, or was frozen before: leave that"
            )
            assert parameter.requires_grad == before[name][1], said
            said = f"{name} is frozen, and load_run changed it: find each parameter by its name"
            assert name not in frozen or torch.equal(parameter, frozen[name]), said
        return step

    def small_run(first: int, last: int, resumed: bool = False) -> tuple:
        """Steps `first` to `last` - 1 on the same rows, from the file at `path` if resumed."""
        model = small_llama()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
        step = watched_load(model, optimizer) if resumed else 0
        torch.manual_seed(1)
        batch = small_batch(4, 6)
        for _ in range(first, last):
            accumulate(model, [batch])
            update(optimizer, 1.0)
        return model, optimizer, step

    at_once = small_run(0, 6)[0].model.norm.weight.detach()
    model, optimizer, _ = small_run(0, 3)
    save_run(path, model, optimizer, 3)
    assert path.is_file(), f"there is no file at the path that was given: {path.name}"
    size = path.stat().st_size
    assert size < 12_000, f"the file has {size:,} bytes: the frozen base is in it"
    resumed, _, step = small_run(3, 6, resumed=True)
    assert step == 3, f"3 steps were done when it was saved; load_run returned {step!r}"
    untrained = small_run(3, 6)[0].model.norm.weight.detach()
    said = "the run went on from the untrained model: its parameters were not put back"
    assert not torch.equal(resumed.model.norm.weight, untrained), said
    loaded, _, _ = small_run(3, 3, resumed=True)
    right = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        said = (
            f"{name} is not what was saved: is it in the file as it was, like all that trains, and "
            "does load_run copy it into the model's own parameter?"
        )
        assert torch.equal(parameter, right[name]), said
    said = "3 steps, loading and 3 more steps end elsewhere than 6 steps: is AdamW's state missing?"
    assert torch.equal(resumed.model.norm.weight, at_once), said

    def disk_is_full(state: object, file: object, *args: object, **options: object) -> None:
        """A torch.save that writes a part and dies."""
        file.write(b"PK") if hasattr(file, "write") else Path(file).write_bytes(b"PK")
        raise OSError("the disk is full")

    with patch("torch.save", disk_is_full), suppress(OSError):
        save_run(path, model, optimizer, 4)
    try:
        step = small_run(3, 3, resumed=True)[2]
    except Exception as error:
        raise AssertionError(
            "a second save died while it was writing, and the first file is gone: write beside it, "
            "then os.replace"
        ) from error
    assert step == 3, f"after a save that failed, the earlier file should say 3, not {step!r}"

    def dies(*_args: object, **_options: object) -> None:
        raise OSError("the machine is off")

    copying = "the new file must take the old one's place in one step: os.replace, not copying"
    os.link(path, path.with_name("link"))  # keeps the old file's number from being used again
    before = path.stat().st_ino
    save_run(path, model, optimizer, 3)
    assert path.stat().st_ino != before, copying
    with patch("os.replace", dies), patch("os.rename", dies), suppress(OSError):
        save_run(path, model, optimizer, 3)
    said = "a save died before its rename, and the earlier file is gone: os.replace needs no unlink"
    assert path.is_file(), said

    path = path.with_name("another.pt")
    model, optimizer, _ = small_run(0, 2)
    save_run(path, model, optimizer, 2)
    assert path.is_file(), f"there is no file at the second path that was given: {path.name}"
    loaded, its_optimizer, step = small_run(2, 2, resumed=True)
    assert step == 2, f"another run of 2 steps was saved; load_run returned {step!r}"
    said = "a second run, saved to another file, was not put back"
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight), said
    right, found = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    said = "AdamW's state of a second run, saved to another file, was not put back"
    assert found.keys() == right.keys(), said
    assert all(torch.equal(found[key]["exp_avg"], right[key]["exp_avg"]) for key in right), said

    class Trap:
        """Runs code when it is unpickled."""

        def __reduce__(self) -> tuple:
            return exec, ("import os; os.environ['TRAP'] = 'sprung'",)

    state = {"trained": Trap(), "optimizer": Trap(), "step": Trap()}
    said = "code inside the file was run by load_run: torch.load(path, weights_only=True)"
    for write in (torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))):
        write(state, path)
        with suppress(Exception):  # refusing the file is right
            small_run(3, 3, resumed=True)
        assert os.environ.pop("TRAP", None) is None, said
    folder.cleanup()


# %% [raw] tags=["wrong"] says="is AdamW's state missing?"
"""
def save_run(path, model, optimizer, step):
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    torch.save({"trained": trained, "step": step}, path.with_suffix(".unfinished"))
    os.replace(path.with_suffix(".unfinished"), path)


def load_run(path, model, optimizer):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["trained"], strict=False)
    return state["step"]
"""

# %% [raw] tags=["wrong"] says="the frozen base is in it"
"""
def save_run(path, model, optimizer, step):
    state = {"trained": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".unfinished"))
    os.replace(path.with_suffix(".unfinished"), path)


def load_run(path, model, optimizer):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
"""

# %% [raw] tags=["wrong"] says="and the first file is gone"
"""
def save_run(path, model, optimizer, step):
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    torch.save({"trained": trained, "optimizer": optimizer.state_dict(), "step": step}, path)


def load_run(path, model, optimizer):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["trained"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
"""

# %% [raw] tags=["wrong"] says="code inside the file was run"
"""
def save_run(path, model, optimizer, step):
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".unfinished"))
    os.replace(path.with_suffix(".unfinished"), path)


def load_run(path, model, optimizer):
    state = torch.load(path, weights_only=False)
    model.load_state_dict(state["trained"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
"""

# %% [raw] tags=["wrong"] says="its parameters were not put back"
"""
def save_run(path, model, optimizer, step):
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".unfinished"))
    os.replace(path.with_suffix(".unfinished"), path)


def load_run(path, model, optimizer):
    return torch.load(path, weights_only=True)["step"]
"""

# %% [raw] tags=["wrong"] says="os.replace needs no unlink"
"""
def save_run(path, model, optimizer, step):
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".unfinished"))
    path.unlink(missing_ok=True)
    path.with_suffix(".unfinished").rename(path)


def load_run(path, model, optimizer):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["trained"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
"""

# %% [raw] tags=["wrong"] says="in one step"
"""
def save_run(path, model, optimizer, step):
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
    beside = path.with_suffix(".unfinished")
    torch.save(state, beside)
    path.write_bytes(beside.read_bytes())


def load_run(path, model, optimizer):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["trained"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
"""

# %% [raw] tags=["right"]
"""
def save_run(path, model, optimizer, step):
    own = [p for p in model.parameters() if p.requires_grad]
    beside = path.parent / (path.name + ".part")
    with open(beside, "wb") as file:
        torch.save([[p.data for p in own], optimizer.state_dict(), step], file)
    beside.rename(path)


def load_run(path, model, optimizer):
    tensors, moments, step = torch.load(path, weights_only=True)
    own = [p for p in model.parameters() if p.requires_grad]
    for parameter, tensor in zip(own, tensors, strict=True):
        parameter.data.copy_(tensor)
    optimizer.load_state_dict(moments)
    return step
"""

# %% [raw] tags=["right"]
"""
def save_run(path, model, optimizer, step):
    state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    state = {"model": state, "moments": optimizer.state_dict(), "done": torch.tensor(step)}
    unfinished = Path(str(path) + "~")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def load_run(path, model, optimizer):
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["moments"])
    return int(state["done"])
"""

# %% [markdown]
# ## Your loop
#
# All parts are there. The next cell puts them together: your schedule, your accumulation, your
# update, your checkpoints. `scale` is 1 unless the base is float16.


# %%
def train_by_hand(
    model: LlamaForCausalLM,
    rows: list[dict],
    training: TrainingConfig,
    path: Path,
    save_every: int = 8,
) -> list[float]:
    """Train on encoded rows; saves at `path`, and goes on from there. The losses of its steps."""
    optimizer = make_optimizer(model, training)
    batches = training_batches([len(row["input_ids"]) for row in rows], training)
    done = load_run(path, model, optimizer) if path.exists() else 0
    size = training.micro_batch_size or training.batch_size
    scale = 2.0**14 if model.dtype == torch.float16 else 1.0
    losses = []
    for step in range(done, training.steps):
        factor = learning_rate_factor(step, training.steps, training.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * factor
        numbers = batches[step]
        parts = [numbers[first : first + size] for first in range(0, len(numbers), size)]
        micro_batches = [collate([rows[n] for n in part], tokenizer.pad_token_id) for part in parts]
        micro_batches = [
            {name: tensor.to(model.device) for name, tensor in batch.items()}
            for batch in micro_batches
        ]
        losses.append(accumulate(model, micro_batches, scale))
        if not update(optimizer, training.max_grad_norm, scale):
            scale /= 2
        if (step + 1) % save_every == 0:
            save_run(path, model, optimizer, step + 1)
    return losses


# %% [markdown]
# The first expert learns commands. As in lesson 07, the test asks for rooms and phrasings that the
# training never has. First the score of the bare Llama. All commands begin with the same tokens,
# those of the chat template. As in lesson 08, `share_start=True` reads them once for all.

# %% tags=["nbval-ignore-output"]
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
training = profile.training()
commands = encode_dataset(
    home_commands("train", training.steps * training.batch_size), tokenizer
).to_list()
test_commands = home_commands("test", profile.test_rows)


def answers(test) -> list[str]:
    """What the Llama says to the instructions of a test set, with the adapter that is active."""
    most = longest_answer(test, tokenizer)
    options = {"max_new_tokens": most, "batch_size": 64, "share_start": True}
    return generate_answers(llama, tokenizer, test, **options)


before = exact_match(answers(test_commands), test_commands["output"][:])
print(f"the bare Llama gets {before:.0%} of {len(test_commands)} commands right")

# %% [markdown]
# Now train. Three quarters through, the run is saved once.

# %% tags=["nbval-ignore-output"]
path = Path(folder.name, "commands.pt")
saved_at = training.steps * 3 // 4
torch.manual_seed(0)
add_adaption_prompts(llama, adapter, adapter_name="commands")
start = time.perf_counter()
unbroken = train_by_hand(llama, commands, training, path, save_every=saved_at)
seconds = time.perf_counter() - start
print(f"{len(unbroken)} steps in {seconds:.0f} s, the last loss is {unbroken[-1]:.2f}")

# %% [markdown]
# Suppose it had crashed after that save. Start again: a new adapter with other random prompts, a new
# optimiser. Only the file knows what was learnt.

# %% tags=["nbval-ignore-output"]
of_resuming = predict(
    "The second run goes on from the file. Its losses differ from the unbroken run's by",
    options=["nothing, to the last bit", "less than 0.01", "0.01 or more"],
    mine=...,
)

# %% tags=["nbval-ignore-output"]
remove_adapter(llama, "commands")
torch.manual_seed(1)
add_adaption_prompts(llama, adapter, adapter_name="commands")
resumed = train_by_hand(llama, commands, training, path)
largest = max(abs(a - b) for a, b in zip(unbroken[saved_at:], resumed, strict=True))
print(f"{len(resumed)} steps more, the last loss is {resumed[-1]:.2f}")
of_resuming.compare(
    "nothing, to the last bit"
    if largest == 0
    else "less than 0.01"
    if largest < 0.01
    else "0.01 or more"
)

# %% tags=["nbval-ignore-output"]
# alt: Left, the loss of each step falls. From the save on, the points of the second run lie on the line of the unbroken one. Right, the gates of 30 layers and 9 heads after training: openings of both signs, widest in the upper layers, up to about 0.3.
_, (left, right) = plt.subplots(ncols=2, figsize=(8, 3.6))
left.plot(range(1, len(unbroken) + 1), unbroken, color=BLUE, label="unbroken")
left.plot(range(saved_at + 1, len(unbroken) + 1), resumed, "o", color=ORANGE, label="from the file")
left.axvline(saved_at + 0.5, color=GREY, ls="--", lw=1)
left.set(xlabel="training step", ylabel="loss", yscale="log")
left.legend(frameon=False)
gates = gate_openings(llama)
plot_gates(right, gates, layers=range(len(gates)))
plt.show()

# %% tags=["nbval-ignore-output"]
said = answers(test_commands)
after = exact_match(said, test_commands["output"][:])
for row, answer in zip(test_commands.select(range(3)), said, strict=False):
    print(row["instruction"], "\n  ->", answer)
print(f"exact match on unseen rooms and phrasings: {before:.0%} before, {after:.0%} after")

# %% [markdown]
# On the CPU these are few steps, and many answers are still wrong, often by one word. What a GPU
# makes of it in 200 steps of 32 rows stands further down.
#
# ## A second expert
#
# Now something visibly different: telegrams. At most three sentences, each closed by STOP, no other
# marks, and no small words, for every word cost money.

# %%
for row in telegrams("train", 3):
    print(row["instruction"], "\n  ->", row["output"])
print("\nstyle of the right answers:", style_score(telegrams("test", 50)["output"][:]))
print("style of what was asked:   ", style_score(telegrams("test", 50)["instruction"][:]))

# %% [markdown]
# `style_score` is the share of texts that keep all the rules. It does not look at what a telegram
# *says*: "stove stove STOP" scores as well. So we also count those that are right to the letter. Test
# topics, addressees and phrasings never occur in training.
#
# You have written the loop once. From here on use the library's, which does the same and a little
# more: several processes, out-of-memory, Ctrl-C, a loss that becomes NaN. It also has
# `share_start`, for the tokens with which all rows begin. A CPU then has a good deal less to multiply.
# The new adapter goes into the *same* Llama, beside the first one.

# %% tags=["nbval-ignore-output"]
messages = encode_dataset(telegrams("train", training.steps * training.batch_size), tokenizer)
torch.manual_seed(0)
add_adaption_prompts(llama, adapter, adapter_name="telegrams")
start = time.perf_counter()
history = finetune(
    llama,
    tokenizer,
    messages,
    training,
    accelerator=accelerator,
    resume_folder=Path(folder.name, "telegrams"),
    share_start=profile.name == "cpu",
    progress=False,
)
print(f"loss {history.losses[0]:.2f} -> {history.losses[-1]:.2f}", end="")
print(f" in {time.perf_counter() - start:.0f} s")

# %% tags=["nbval-ignore-output"]
of_telegrams = predict(
    "Of telegrams about unseen topics, more than half have",
    options=["neither style nor content right", "the style only", "style and content right"],
    mine=...,
)

# %% tags=["nbval-ignore-output"]
test_messages = telegrams("test", profile.test_rows)
said = answers(test_messages)
style, content = style_score(said), exact_match(said, test_messages["output"][:])
print(f"in a telegram's style: {style:.0%}; right to the letter: {content:.0%}")
of_telegrams.compare(
    "style and content right"
    if content > 0.5
    else "the style only"
    if style > 0.5
    else "neither style nor content right"
)

# %% [markdown]
# ## Plug in an expert
#
# One Llama is in memory, with two adapters. `set_adapter` says whose prompts the layers read. No
# weight moves. So you can change the expert between two sentences of one chat.

# %% tags=["nbval-ignore-output"]
chat = [
    ("commands", "Make it 80% for the lights of the upstairs office"),
    ("telegrams", "Say to my brother: we have reached the summit. Next: please send warm socks."),
    ("commands", "Kindly leave the small gallery heating off"),
    ("telegrams", "Send word to Aunt Clara that the balloon landed in a lake."),
]
for expert, sentence in chat:
    start = time.perf_counter()
    set_adapter(llama, expert)
    swap = time.perf_counter() - start
    row = [{"instruction": sentence, "input": ""}]
    answer = generate_answers(llama, tokenizer, row, max_new_tokens=40)[0]
    print(f"you        {sentence}\n{expert:10} {answer}   (swapped in {swap * 1e3:.1f} ms)")

# %% [markdown]
# Does the swap leave a trace? Ask for the logits of the first expert, go to the second and back.

# %%
ids = tokenizer("Power on the modern theatre lights", return_tensors="pt").input_ids
logits = []
with torch.no_grad():
    for expert in ("commands", "telegrams", "commands"):
        set_adapter(llama, expert)
        logits.append(llama(ids.to(llama.device)).logits)
back_again = torch.equal(logits[0], logits[2])
print("the experts differ:      ", not torch.equal(logits[0], logits[1]))
print("back again, bit for bit: ", back_again)

# %% [markdown]
# ## Half of each
#
# A swap takes the whole expert. What if you take half? A prompt gives each layer a key and a value
# (lesson 03). The keys decide which prompts a token reads, the values are what it reads. Take the keys
# of one expert and the values of the other. A gate multiplies what its head has read, so the gates go
# with the values.

# %% tags=["nbval-ignore-output"]
of_halves = predict(
    "The keys of the commands' expert, values and gates of the telegrams' expert. Its answers have",
    options=["braces as JSON, no STOP", "STOP, no braces", "some of both", "neither"],
    mine=...,
)

# %% [markdown]
# `benchmarks/swap_experts.py` trained both experts with three seeds, in 120 steps of 4 rows. It asked
# all four mixes for 20 commands and 20 telegrams, and stored what they answered. Three numbers in a
# column are the three seeds.

# %%
swapped = json.loads((files("llama_adapter_edu") / "course/results/swap_experts.json").read_text())
kinds = ("commands", "telegrams")


def runs_of(keys: str, values: str) -> list[dict]:
    """The runs with the keys of one expert and the values of another, one for each seed."""
    return [run for run in swapped["runs"] if (run["keys"], run["values"]) == (keys, values)]


def marked(run: dict, mark: str) -> float:
    """The share of a run's answers, to commands and telegrams alike, that hold a mark."""
    answers = [answer for kind in kinds for answer in run[f"asked for {kind}"]["answers"]]
    return sum(mark in answer for answer in answers) / len(answers)


print("keys of    values of  answers with {  with STOP       loss on rows of the values' expert")
for keys_of in kinds:
    for values_of in kinds:
        runs = runs_of(keys_of, values_of)
        braces = " ".join(f"{marked(run, '{'):4.0%}" for run in runs)
        stops = " ".join(f"{marked(run, 'STOP'):4.0%}" for run in runs)
        nats = " ".join(f"{run[f'asked for {values_of}']['loss']:.2f}" for run in runs)
        print(f"{keys_of:9}  {values_of:9}  {braces:14}  {stops:14}  {nats}")
mixed = [run for pair in (kinds, kinds[::-1]) for run in runs_of(*pair)]
verdicts = [v for run in mixed for kind in kinds for v in run[f"asked for {kind}"]["right"]]
print(f"right answers of the mixes: {sum(verdicts)} of {len(verdicts)}")

# %% tags=["nbval-ignore-output"]
outcomes = {(True, False): "braces as JSON, no STOP", (False, True): "STOP, no braces"}
outcomes |= {(True, True): "some of both", (False, False): "neither"}
has_braces, has_stop = (any(marked(run, mark) for run in runs_of(*kinds)) for mark in ("{", "STOP"))
of_halves.compare(outcomes[has_braces, has_stop])

# %% [markdown]
# **The form comes with the values.** In both mixes, with every seed, no answer has the mark of the
# keys' expert. A study of trained caches, the cartridges of lesson 10, found the same division: keys
# act as routers, and most of what is learnt sits in the values (arXiv 2508.17032, abstract).
#
# But that study could exchange keys between tasks "with little performance loss". Here the loss is
# large: only a part of the answers has a mark at all, and hardly any is right. One reason may be that
# a cartridge learns keys and values apart. Here one prompt makes both, so they were learnt together.
#
# ## Look inside, and turn
#
# Which prompts does your expert read? For one token, a head's weight in the softmax over the prompts
# times the opening of its gate says how much of that prompt's value it adds. The picture shows the
# last token of the command, and adds up the sizes of all heads, without their signs. In the figure
# after it, point at the other tokens, or go to them with the tab key.

# %% tags=["nbval-ignore-output"]
# alt: A heatmap with a row per layer and a column per prompt: how much the last token reads from each, summed over the heads without sign. Most cells are near zero; a few in the upper layers reach 0.5 and more.
_, ax = plt.subplots(figsize=(6, 4.5))
plot_reads(ax, llama, ids.to(llama.device))
plt.show()

# %% tags=["nbval-ignore-output"]
microscope(llama, tokenizer, ids.to(llama.device))

# %% [markdown]
# And how far must the gates be open? In lesson 04 the dial showed stored stops. Here it runs your own
# Llama: turn all gates, or those of a third of the layers, or switch single heads off. Each turn
# answers the first command again. The dial needs a running kernel: on a page without one you see only
# its name, or nothing. Lesson 04 has the stored one.

# %% tags=["nbval-ignore-output"]
dial(llama, tokenizer, test_commands.select(range(4)).to_list())

# %% [markdown]
# ## Beside the others
#
# Is the small adapter worth it? `benchmarks/quality.py` compared six ways on a GPU, with the same rows
# in the same order: home commands, 32 rows a step, base in float32. Each way got the best of three
# learning rates, chosen on the validation split. V2 and the cartridge are those of lesson 10. They were
# measured later, on another machine with the same card. The numbers below are read from the file.

# %%
results = files("llama_adapter_edu") / "course/results"
stored = json.loads((results / "quality.json").read_text())


def values(part: str, method: str, key: str) -> list[float]:
    """A number of all seeds of one part of the benchmark."""
    runs = stored["runs"].items()
    return [run[key] for name, run in runs if name.startswith(f"{part}/{method}/")]


names = {name.split("/")[1] for name in stored["runs"] if name.startswith("methods/")}
early = {name: values("speed", name, "exact_match")[0] for name in names}
methods = sorted(names, key=str.lower)
print(f"{stored['conditions']['device']}, torch {stored['conditions']['torch']}\n")
print(f"{'':21} {'rate':>6} {'that train':>12} {'file':>9} {'tokens/s':>9} {'memory':>9}")
for method in methods:
    (trained,) = values("speed", method, "trainable_parameters")
    (size,) = values("speed", method, "file_bytes")
    (speed,) = values("speed", method, "tokens_per_second")
    (peak,) = values("speed", method, "peak_memory_bytes")
    (rate,) = values("speed", method, "learning_rate")
    print(
        f"{method:21} {rate:6} {trained:12,} {size / 1e6:6.1f} MB {speed:9,} "
        f"{(peak or 0) / 2**30:5.1f} GiB"
    )

# %% tags=["nbval-ignore-output"]
of_ways = predict(
    "Who gets the most unseen commands right after only 30 steps?", options=methods, mine=...
)

# %%
# alt: After 100 steps all runs of all six ways get more than 94 % right, and the seeds of one way lie about as far apart as the ways. After 30 steps they differ: adaption prompts 72 and 80 %, the cartridge 82 %, LoRA 94 %, V2 95 %, full fine-tuning nearly 100 %.
_, ax = plt.subplots(figsize=(6.5, 3.0))
by_score = sorted(methods, key=early.get)
for place, method in enumerate(by_score):
    after_100 = [100 * score for score in values("methods", method, "exact_match")]
    ax.plot(after_100, [place] * len(after_100), "o", color=BLUE)
    ax.plot(100 * early[method], place, "D", color=ORANGE)
    print(f"{method:21} 30 steps {early[method]:6.1%}, 100 steps", end=" ")
    print(f"{sum(after_100) / len(after_100):5.1f}% (mean of {len(after_100)} seeds)")
ax.plot([], [], "D", color=ORANGE, label="30 steps, one seed")
ax.plot([], [], "o", color=BLUE, label="100 steps, each seed")
ax.set_yticks(range(len(by_score)), by_score)
ax.set(xlabel="exact match (%)", ylim=(-0.5, len(methods) - 0.5))
ax.legend(frameon=False, loc="upper left", fontsize=9)
plt.show()

# %% tags=["nbval-ignore-output"]
of_ways.compare(max(methods, key=early.get))

# %% [markdown]
# On our own task V2, LoRA and full fine-tuning learn **faster**. After 100 steps the six ways lie
# within three points. So it is in public, too. PEFT's comparison on MetaMathQA (Llama-3.2-3B, 5,000 steps, scored on
# GSM8K; read in November 2026):
#
# | method | right answers |
# |---|---|
# | adaption prompts | 38.4 % |
# | prefix tuning, from a real prefix | 41.6 % |
# | full fine-tuning | 47.2 % |
# | LoRA, rank 32 | 47.8 % |
# | LoRA, rank 64, rank-stabilised | 51.3 % |
# | Lily, the best of 63 runs | 52.6 % |
#
# (Its prompts ran in bfloat16, at N(0, 1): lesson 08 showed what that costs. We found no such run
# in float32.) So **take LoRA** if you want the best score for your data, or weights
# that can be merged. Take adaption prompts for what you have seen in this course: the base
# untouched at the start and afterwards, a small file, experts that swap within a chat, a gate
# that you can read, a picture that comes in through the prompts.
#
# And this lesson's own runs on a GPU: 200 steps of 32 rows. For telegrams with both scores.

# %%
for part, name, keys in (
    ("bar", "commands, profile gpu", ["exact_match"]),
    ("t4", "commands, profile t4", ["exact_match"]),
    ("telegrams", "telegrams, profile gpu", ["style", "exact_match"]),
):
    for key in keys:
        shown = ", ".join(f"{x:.1%}" for x in values(part, "adaption prompts", key))
        print(f"{name:23} {key.replace('_', ' '):12} {shown}")

# %% [markdown]
# With that many steps a telegram's style is learnt. What it must say is harder.
#
# ## Four promises, tested
#
# Figure 1 of the paper has four badges; lesson 00 listed them. The next cells compute whether each
# holds here. A badge needs a rule that it can fail:
#
# * **few parameters**: less than 1 % of the numbers train,
# * **fast**: more tokens per second than full fine-tuning, in the table above,
# * **expertise to plug in**: back to the first expert bit for bit, and less than 1 MB a file,
# * **several modalities**: above 90 % on unseen pictures (lesson 09's stored runs).

# %% tags=["nbval-ignore-output"]
of_badges = predict(
    "Which badge fails?",
    options=["few parameters", "fast", "expertise to plug in", "several modalities", "none"],
    mine=...,
)

# %% tags=["nbval-ignore-output"]
trainable, total = count_parameters(llama)
sizes = [
    (save_adapter(llama, Path(folder.name, name), name) / "adapter_model.safetensors").stat()
    for name in ("commands", "telegrams")
]
largest = max(size.st_size for size in sizes) / 1e6
(ours,) = values("speed", "adaption prompts", "tokens_per_second")
(full,) = values("speed", "full fine-tuning", "tokens_per_second")
seen = json.loads((results / "vision.json").read_text())["mean"]["seen_pairs"]
badges = {
    "few parameters": (trainable / total < 0.01, f"{trainable:,} of {total:,} train"),
    "fast": (ours > full, f"{ours:,} tokens/s; full fine-tuning {full:,}"),
    "expertise to plug in": (back_again and largest < 1, f"files of {largest:.1f} MB, one Llama"),
    "several modalities": (min(seen.values()) > 0.9, f"{min(seen.values()):.1%} or more right"),
}
for name, (holds, evidence) in badges.items():
    print(f"[{'x' if holds else ' '}] {name:22} {evidence}")
failed = [name for name, (holds, _) in badges.items() if not holds]
of_badges.compare(failed[0] if failed else "none")

# %% [markdown]
# *Fast* fails on a small Llama and a large GPU. There, starting the many small operations takes longer
# than computing them, and prompts add operations to each layer. (`finetune(..., cuda_graphs=True)`
# records them once: 11.9 instead of 131 ms a step.) Where the numbers count it is otherwise: on two CPU
# cores prompts get 289 tokens through per second, full fine-tuning 147; with LLaMA-7B's shape on an
# H100, prompts 14,276, LoRA 12,721 (full fine-tuning of that shape was not measured; the estimate at the
# top tells its price). All of it stands in `benchmarks/results/train_step.json`.
#
# ## More than one GPU
#
# The library's `finetune` needs no change for several GPUs. Put your lines into a file:
#
# ```python
# # train.py
# from accelerate import Accelerator
# from llama_adapter_edu import add_adaption_prompts, load_llama, save_adapter
# from llama_adapter_edu import encode_dataset
# from llama_adapter_edu.course.tasks.home_commands import home_commands
# from llama_adapter_edu import TrainingConfig, finetune
#
# accelerator = Accelerator()
# llama, tokenizer = load_llama(device=accelerator.device)
# add_adaption_prompts(llama)
# rows = encode_dataset(home_commands("train", 6400), tokenizer)
# training = TrainingConfig(steps=200, batch_size=32)
# finetune(llama, tokenizer, rows, training, accelerator=accelerator, resume_folder="runs/two")
# if accelerator.is_main_process:
#     save_adapter(llama, "runs/two/adapter")
# ```
#
# ```
# accelerate launch --multi_gpu --num_processes 2 train.py     # two GPUs
# torchrun --nproc_per_node 2 train.py                         # the same; also works on CPUs
# ```
#
# This is **data parallel** training: each process holds the whole Llama and works on its share of
# each step's 32 rows. Gradients of 173,070 numbers are all that travels: one sum over all processes
# a step. `batch_size` counts the rows of *all* processes, and every token weighs the same, as in
# exercise 11.2. So two processes learn what one learns; a test of the course runs both and compares
# the losses. Measured on four H100 with the shape of LLaMA-7B: 3.9 times the tokens per second of
# one.
#
# And a Llama that fits on no single GPU? It is **sharded** (FSDP): each process holds a part of
# every layer, and a layer is put together only while it computes. In LLaMA-Adapter only the frozen
# base needs this. Another argument, before `add_adaption_prompts`:
#
# ```python
# import torch
# llama, tokenizer = load_llama("owner/a-large-llama", dtype=torch.bfloat16, shard=True)
# ```
#
# Each process reads only its part of the files. Prompts and gates stay whole in each, so training,
# saving and swapping are as before. The shape of LLaMA-70B was trained so on four H100, with random
# weights. `benchmarks/results/several_gpus.json` has all figures. Several machines: start the same
# command on each, with `--num_machines` and `--machine_rank`.

# %% [markdown]
# ## What you have built
#
# * A schedule with the rate that really ran, and an eye for base rates.
# * Gradient accumulation in which every labelled token weighs the same.
# * An update for 16-bit bases: float32 adapters, a gradient scaler that skips bad steps.
# * Checkpoints that a crash cannot hurt, and a run that goes on from them, bit for bit.
# * Two experts in one Llama, swapped in the middle of a chat.
# * Four promises tested, with the one that fails.
#
# That was the course. The library is yours: `from llama_adapter_edu import add_adaption_prompts`
# works with your own rows (lesson 07) and with other Llamas. `python -m llama_adapter_edu chat
# --adapter FOLDER` talks to what you have saved.
#
# ## Three questions to think about
#
# **1.** You have 4 GPUs instead of 1, keep the rows of each GPU at 8, and keep the learning rate.
# What has changed in the run?
#
# <details><summary>Answer</summary>
#
# The effective batch: 32 rows instead of 8. The authors' rule would take four times the rate, since
# it grows with the batch. If you keep 8 rows in all (2 on each GPU), nothing changes but the time.
#
# </details>
#
# **2.** Why does the gradient scaler divide *before* clipping and not after?
#
# <details><summary>Answer</summary>
#
# `max_grad_norm` speaks of real gradients. Scaled ones are thousands of times longer, so all of them
# would be cut to the limit, and after the division almost nothing would be left.
#
# </details>
#
# **3.** LoRA's update can be merged into the weights, prompts cannot (lesson 06). When is that an
# advantage of the prompts?
#
# <details><summary>Answer</summary>
#
# When one Llama serves many experts. Merged weights are a whole Llama for each of them. Prompts stay
# beside the base, so changing the expert moves no weight, as in your chat.
#
# </details>
