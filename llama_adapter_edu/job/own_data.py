"""The job on rows of one's own: a part of them is held out to test with."""

import os
import random
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from llama_adapter_edu.data.encoding import IGNORE_INDEX, encode_rows
from llama_adapter_edu.data.instructions import read_rows
from llama_adapter_edu.job.run import run_job
from llama_adapter_edu.job.score import Task

MOST_HELD_OUT = 200  # rows, if nobody says how many


def finetune_on(
    data: str | os.PathLike,
    output: str | os.PathLike = "runs/own-data",
    *,
    test_rows: int | None = None,
    max_length: int = 512,
    seed: int = 0,
    **settings: Any,
) -> int:
    """Fine-tune on rows of one's own; settings and errors as `run_job`. Returns 0.

    Args:
        data: a file, a folder or a hub id, as for `load_instructions`. Rows that cannot be used are
            counted and printed, with the places of the first ones.
        test_rows: how many rows are held out; a tenth if None, but 200 at most. Rows with the same
            question are never on both sides.
        max_length: longer rows, in tokens, are left out.
    """
    rows = list(read_rows(data))

    def task(tokenizer: PreTrainedTokenizerBase) -> Task:
        encoded, left_out = encode_rows(rows, tokenizer, max_length)
        n_test = min(MOST_HELD_OUT, max(1, len(encoded) // 10)) if test_rows is None else test_rows
        train, test = hold_out(encoded, n_test, seed=seed)
        about = f"{len(train)} rows of {data} to learn from, {len(test)} others to test with."
        return Task(train, test, "question", f"{left_out}\n{about}".strip())

    return run_job(task, output, seed=seed, **settings)


def hold_out(rows: Dataset, n_test: int, *, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to learn from, and at least `n_test` others, whose questions are not among the former.

    Raises:
        ValueError: `n_test` is below 1, or nothing is left to learn from.
    """
    if n_test < 1:
        raise ValueError(f"At least 1 row must be held out to test with, not {n_test}.")
    by_question: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        read = next(i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
        by_question.setdefault(tuple(row["input_ids"][:read]), []).append(number)
    groups = list(by_question.values())
    random.Random(seed).shuffle(groups)
    test: list[int] = []
    while groups and len(test) < n_test:
        test += groups.pop()
    if not groups:
        raise ValueError(
            f"{len(rows)} rows with {len(by_question)} different questions: with {n_test} held out "
            "to test with, none is left to learn from. Add rows, or hold out fewer."
        )
    train = [number for group in groups for number in group]
    return rows.select(sorted(train)), rows.select(sorted(test))
