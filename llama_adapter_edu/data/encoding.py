"""Instruction data: rows of text -> token ids, and which of them are learnt.

    instruction, input --template--> prompt ids     labels IGNORE_INDEX
    output ------------------------> answer ids     labels = the ids themselves
    closing token -----------------> one id         label  = the id itself

A row has Alpaca's three columns: `instruction`, `input` (may be empty) and `output`.
Shapes: b rows of a batch, s token positions.
"""

import reprlib
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from datasets import Dataset

IGNORE_INDEX = -100  # what torch's cross entropy leaves out

COLUMNS = ("instruction", "input", "output")


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
) -> "Dataset":
    """Every row through `encode`, in memory; the three text columns stay for the evaluation.

    Rows longer than `max_length` are left out whole, and a warning says how many.

    Raises:
        ValueError: as `encode`; or no row is left.
    """
    from datasets import Dataset

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


def _texts(example: Mapping[str, Any]) -> tuple[str, str, str]:
    """The three columns of a row; a missing or empty `input` is ""."""
    texts = (example.get("instruction"), example.get("input") or "", example.get("output"))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            "A row needs the texts 'instruction' and 'output' ('input' may be left out). "
            f"This row has the columns {list(example)}: {reprlib.repr(dict(example))}"
        )
    return texts
