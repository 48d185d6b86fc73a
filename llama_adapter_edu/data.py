"""Instruction data: rows of text -> token ids, and which of them are learnt.

    instruction, input --template--> prompt ids     labels IGNORE_INDEX
    output ------------------------> answer ids     labels = the ids themselves
    closing token -----------------> one id         label  = the id itself

A row has Alpaca's three columns: `instruction`, `input` (may be empty) and `output`.
Shapes: b rows of a batch, s token positions.
"""

import random
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from llama_adapter_edu.home_commands import Split, generate

IGNORE_INDEX = -100  # what torch's cross entropy leaves out

COLUMNS = ("instruction", "input", "output")


def home_commands(split: Split, n: int | None = None, *, seed: int = 0) -> Dataset:
    """Commands for a home and the JSON they stand for.

    Args:
        split: "train", "validation" or "test". No two splits share a room or a phrasing.
        n: number of rows; None gives all rows of the split. A smaller `n` gives the first rows of
            a larger one.
        seed: the same seed gives the same rows on every machine.

    Returns:
        A dataset with the columns `instruction`, `input` (always empty) and `output`. All
        instructions are different.

    Raises:
        ValueError: unknown split, or `n` below 1 or above the number of rows there are.
    """
    return Dataset.from_list(generate(split, n, seed))


def format_prompt(
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    input: str = "",
    response: str | None = None,
) -> str:
    """The text the model is given; with `response`, the whole text it is trained on.

    A tokenizer with a chat template uses it: one turn of the user, then the start of the
    assistant's turn. The only system prompt is the one the template writes by itself. A tokenizer
    without a chat template gets Stanford Alpaca's headings (Taori et al., 2023).
    """
    if tokenizer.chat_template:
        content = f"{instruction}\n\n{input}" if input else instruction
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    else:
        context = f"### Input:\n{input}\n\n" if input else ""
        prompt = f"### Instruction:\n{instruction}\n\n{context}### Response:\n"
    return prompt if response is None else prompt + response + (tokenizer.eos_token or "")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, instruction: str, input: str = ""
) -> list[int]:
    """Token ids of the prompt: what `generate` is given, and how the row's training ids begin."""
    # A chat template writes every special token itself. Plain text still needs the first one.
    prompt = format_prompt(tokenizer, instruction, input)
    return tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"]


def encode(
    example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None = 512
) -> dict[str, list[int]]:
    """One row as token ids: prompt, answer, closing token.

    Prompt and answer are tokenised one by one and then joined, so that no token spans the border:
    the row begins with exactly the ids `generate` is given.

    Args:
        example: a row with the texts `instruction` and `output`, and perhaps `input`.
        max_length: tokens a row may have; None for no limit. Nothing is ever cut off.

    Returns:
        `input_ids` and `labels`, equally long. The labels are IGNORE_INDEX on the prompt. On the
        answer and its closing token they are the ids (the model shifts them by one itself).

    Raises:
        ValueError: a missing column, a column that is not text, a row longer than `max_length`,
            or a tokenizer without an eos token.
    """
    instruction, input, output = _texts(example)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no eos token, so a model could not learn where an answer ends. "
            "Set tokenizer.eos_token first."
        )
    prompt = encode_prompt(tokenizer, instruction, input)
    answer = tokenizer(output, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    length = len(prompt) + len(answer)
    if max_length is not None and length > max_length:
        raise ValueError(
            f"A row has {length} tokens ({len(prompt)} of prompt, {len(answer)} of answer), more "
            f"than max_length={max_length}: shorten it or raise max_length. "
            f"It begins: {instruction[:60]!r}"
        )
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}


def encode_dataset(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = 512,
) -> Dataset:
    """Every row through `encode`, in memory; the three text columns stay for the evaluation.

    Rows longer than `max_length` are left out whole, and a warning says how many.

    Raises:
        ValueError: as `encode`; or no row is left.
    """
    rows = [
        dict(zip(COLUMNS, _texts(row), strict=True)) | encode(row, tokenizer, max_length=None)
        for row in dataset
    ]
    kept = [row for row in rows if max_length is None or len(row["input_ids"]) <= max_length]
    if not kept:
        raise ValueError(
            f"No row is left: {len(rows)} came in, all longer than max_length={max_length}."
            if rows
            else "There are no rows to encode: the dataset is empty."
        )
    if len(kept) < len(rows):
        warnings.warn(
            f"Left out {len(rows) - len(kept)} of {len(rows)} rows: "
            f"longer than max_length={max_length} tokens.",
            stacklevel=2,
        )
    return Dataset.from_list(kept)


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Int[Tensor, "b s"]]:
    """Rows of `encode` as one batch, padded on the right to the longest row.

    Returns:
        `input_ids` (b s), `attention_mask` (b s): 1 on tokens, 0 on padding, and `labels` (b s):
        IGNORE_INDEX on padding.

    Raises:
        ValueError: no rows, or no `pad_token_id`.
    """
    if not rows:
        raise ValueError("A batch needs at least one row.")
    if pad_token_id is None:
        raise ValueError("pad_token_id is None: set tokenizer.pad_token, the eos token will do.")
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    labels = [torch.as_tensor(row["labels"]) for row in rows]
    # The mask comes from the lengths: the padding token may also be a row's closing token.
    mask = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }


def length_grouped_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int
) -> list[list[int]]:
    """Row numbers in batches of similar length, so that little is padded; order shuffled.

    Every row is in exactly one batch. Only the batch with the longest rows may be smaller.

    Raises:
        ValueError: `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)  # rows of equal length meet other rows under another seed
    order.sort(key=lambda row: lengths[row])
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def _texts(example: Mapping[str, Any]) -> tuple[str, str, str]:
    """The three columns of a row; a missing or empty `input` is ""."""
    texts = (example.get("instruction"), example.get("input") or "", example.get("output"))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "A row needs the texts 'instruction' and 'output' ('input' may be left out). "
            f"This row has the columns {list(example)}: {reprlib.repr(dict(example))}"
        )
    return texts
