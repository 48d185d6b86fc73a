"""The test of a job: answers, exact match and loss, before and after the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.evaluate import (
    exact_match,
    expected_answers,
    generate_answers,
    last_answer,
    longest_answer,
)
from llama_adapter_edu.training.loss import answer_loss_sum

SHOWN, WIDTH = 5, 88  # answers that are printed, and letters of each
SHORT = 64  # tokens. Longer answers are not compared: no two of them are the same to the letter
BATCH = 8  # rows of which the loss is computed at once
ANSWERED = 64  # rows that are answered at once: a CPU's products are faster in larger batches


@dataclass(frozen=True)
class Task:
    """What a job learns and is tested with.

    Args:
        train, test: rows of `encode_dataset`; without a loss, texts are enough for the test.
        row: what a row is called.
        about: what is printed first.
        with_loss: whether the loss on the test is measured, besides the answers.
    """

    train: Dataset
    test: Dataset
    row: str
    about: str
    with_loss: bool = True


@dataclass(frozen=True)
class Score:
    """What came of a test: answers to its first rows or to all, and figures by name.

    `exact_match` is a share (0 to 1), `loss` the mean over all labelled tokens (nats).
    """

    answers: list[str]
    figures: dict[str, float]


def take_test(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    share_start: bool = False,
) -> Score:
    """Greedy answers to the test, compared if they are short, and the loss if it is wanted.

    `share_start`: as for `generate_answers`.
    """
    longest, rows = longest_answer(task.test, tokenizer), task.test
    if longest > SHORT:
        rows = rows.select(range(min(SHOWN, len(rows))))
    settings = {"max_new_tokens": min(longest, SHORT), "progress": True, "batch_size": ANSWERED}
    settings["share_start"] = share_start
    shown, others = rows.to_list()[:SHOWN], rows.to_list()[SHOWN:]
    answers = generate_answers(model, tokenizer, shown, **settings)
    figures = {}
    if longest <= SHORT:
        expected = expected_answers(others)  # of these only right or wrong is asked
        answers += generate_answers(model, tokenizer, others, expected=expected, **settings)
        figures["exact_match"] = exact_match(answers, expected_answers(rows))
    if task.with_loss:
        figures["loss"] = mean_loss(model, task.test, tokenizer.pad_token_id)
    return Score(answers, figures)


def mean_loss(model: PreTrainedModel, rows: Dataset, pad_token_id: int) -> float:
    """Mean cross entropy (nats) over all labelled tokens of the rows."""
    total, n_tokens = 0.0, 0
    for start in tqdm(range(0, len(rows), BATCH), desc="loss", unit="batch"):
        some = rows.select(range(start, min(start + BATCH, len(rows))))
        batch = collate(some.to_list(), pad_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.no_grad():
            loss, n_labelled = answer_loss_sum(model, batch)
        total, n_tokens = total + float(loss), n_tokens + int(n_labelled)
    return total / n_tokens


def print_answers(task: Task, before: Sequence[str], after: Sequence[str]) -> None:
    """The first rows of the test, each with the answers before and after."""
    rows = task.test.select(range(min(SHOWN, len(task.test))))
    print()
    for row, right, base, tuned in zip(rows, expected_answers(rows), before, after, strict=False):
        mark = "right" if tuned == right.strip() else f"expected {_line(right)}"
        print(f"{task.row}  {_line(_question(row))}")
        print(f"  before {_line(base)}")
        print(f"  after  {_line(tuned)}  ({mark})")
    print()


def print_scores(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """The figures of two tests."""
    for name, style in (("exact_match", "7.1%"), ("loss", "7.3f")):
        if name in before:
            print(f"{name.replace('_', ' ')}, base model  {before[name]:{style}}")
            print(f"{name.replace('_', ' ')}, fine-tuned  {after[name]:{style}}")
    if "exact_match" not in before:
        print(f"No exact match: there are answers of more than {SHORT} tokens.")


def _question(row: Mapping[str, Any]) -> str:
    """What the user said before the last answer."""
    if "instruction" in row:
        return f"{row['instruction']} {row['input']}"
    before = row["messages"][: last_answer(row)]
    return next((turn["content"] for turn in reversed(before) if turn["role"] == "user"), "")


def _line(text: str) -> str:
    return " ".join(text.split())[:WIDTH]
