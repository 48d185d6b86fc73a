"""Rows of text -> token ids, and which of them are learnt.

    instruction, input --template--> prompt ids     labels IGNORE_INDEX
    output ------------------------> answer ids     labels = the ids themselves
    closing token -----------------> one id         label  = the id itself

A chat is the same several times: each turn of the assistant is an answer. What a row may be:
`rows.py`; how a chat becomes text: `chats.py`. Shapes: b rows of a batch, s token positions.
"""

import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from llama_adapter_edu.data.chats import (
    CUT,
    as_messages,
    learnt_pieces,
    prompt_ids,
    prompt_pieces,
    token_ids,
)
from llama_adapter_edu.data.rows import (
    UnusableRowError,
    check_same_form,
    checked_row,
    describe_left_out,
)

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

IGNORE_INDEX = -100  # what torch's cross entropy leaves out

Rows = Iterable[Mapping[str, Any]]


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
    row = {"instruction": instruction, "input": input}
    if response is None:
        pieces = prompt_pieces(tokenizer, as_messages(tokenizer, row))
    else:
        answered = as_messages(tokenizer, row | {"output": response})
        pieces = [piece for piece, _ in learnt_pieces(tokenizer, answered)]
    return "".join(pieces).replace(CUT, "")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, instruction: str, input: str = ""
) -> list[int]:
    """Token ids of the prompt: what `generate` is given, and how the row's training ids begin."""
    row = {"instruction": instruction, "input": input}
    return prompt_ids(tokenizer, as_messages(tokenizer, row))


def encode(
    example: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None = 512
) -> dict[str, list[int]]:
    """One row as token ids: prompt, answer, closing token; or a chat, up to its last answer.

    No token spans the border of prompt and answer: the row begins with exactly the ids `generate`
    is given. An answer is closed by the token that closes a turn in the chat template. Special
    tokens that a text of the row spells are text.

    Args:
        example: a row with the texts `instruction` and `output`, and perhaps `input`; or a chat in
            `messages` or `conversations`.
        max_length: tokens a row may have; None for no limit. Nothing is ever cut off.

    Returns:
        `input_ids` and `labels`, equally long. On answers and their closing tokens the labels are
        the ids (the model shifts them by one itself); elsewhere they are IGNORE_INDEX.

    Raises:
        UnusableRowError (a ValueError): a field is missing or no text, an answer is empty or
            missing, the template refuses the chat, or the row is longer than `max_length`.
        ValueError: the tokenizer has no token that could close an answer.
    """
    row = checked_row(example)
    pieces = learnt_pieces(tokenizer, as_messages(tokenizer, row))
    ids: list[int] = []
    labels: list[int] = []
    parts = token_ids(tokenizer, [piece for piece, _ in pieces])
    for part, (_, learnt) in zip(parts, pieces, strict=True):
        ids += part
        labels += part if learnt else [IGNORE_INDEX] * len(part)
    if max_length is not None and len(ids) > max_length:
        begin = next(iter(row.values()))
        raise UnusableRowError(
            f"longer than max_length={max_length} tokens",
            f"A row has {len(ids)} tokens ({labels.count(IGNORE_INDEX)} of them to read only), "
            f"more than max_length={max_length}: shorten it or raise max_length. It begins: "
            f"{begin if isinstance(begin, str) else begin[0]['content']!r:.60}",
        )
    return {"input_ids": ids, "labels": labels}


def encode_dataset(
    dataset: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int | None = 512
) -> "Dataset | IterableDataset":
    """Every row through `encode`, in memory; the texts stay for the evaluation.

    Rows that nothing can be learnt from are left out whole (see `encode`). A warning says how many,
    why, and where the first ones are, counted from 1.

    Args:
        dataset: a `Dataset`, a list, or any other iterable of rows. A streaming `IterableDataset`
            gives another one, which encodes as it is read.

    Raises:
        ValueError: no row is left (of a stream, of its first 1000), instructions and chats are
            mixed, or `dataset` is a dictionary or a name.
    """
    if isinstance(dataset, (str, PathLike, Mapping)) or not isinstance(dataset, Iterable):
        names = f" with {list(dataset)}" if isinstance(dataset, Mapping) else ""
        raise ValueError(
            f"Expected rows, got {type(dataset).__name__}{names}. Of a data set with several "
            "splits pass one, as dataset['train']; a single row in a list; what a file or the hub "
            "holds through load_instructions."
        )
    from datasets import IterableDataset

    if isinstance(dataset, IterableDataset):
        return _encode_stream(dataset, tokenizer, max_length)
    numbered = ((f"row {number}", row) for number, row in enumerate(dataset, start=1))
    rows, left_out = encode_rows(numbered, tokenizer, max_length)
    if left_out:
        warnings.warn(left_out, stacklevel=2)
    return rows


def encode_rows(
    rows: Iterable[tuple[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> "tuple[Dataset, str]":
    """The rows that can be used, encoded, and a sentence about the others ("" if there are none).

    Args:
        rows: each with the words for where it is.

    Raises:
        ValueError: as `encode_dataset`.
    """
    from datasets import Dataset

    kept, report = _encode_each(rows, tokenizer, max_length)
    if not kept:
        raise ValueError(f"No row is left. {report}" if report else "There are no rows to encode.")
    return Dataset.from_list(kept), report


def _encode_stream(
    stream: "IterableDataset", tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> "IterableDataset":
    def encode_some(columns: dict[str, list], numbers: list[int]) -> dict[str, list]:
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        places = (f"row {number + 1}" for number in numbers)
        kept, report = _encode_each(zip(places, rows, strict=True), tokenizer, max_length)
        if not kept and numbers[0] == 0:
            raise ValueError(f"None of the stream's first {len(numbers)} rows is left. {report}")
        if report:
            warnings.warn(report, stacklevel=2)
        names = kept[0] if kept else ("input_ids", "labels")
        return {name: [row[name] for row in kept] for name in names}

    columns = stream.column_names or list(next(iter(stream)))
    return stream.map(encode_some, batched=True, with_indices=True, remove_columns=columns)


def _encode_each(
    rows: Iterable[tuple[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[dict[str, Any]], str]:
    kept: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}
    first = ""
    for where, row in rows:
        try:
            kept.append(checked_row(row) | encode(row, tokenizer, max_length))
        except UnusableRowError as error:
            left_out.setdefault(error.kind, []).append(where)
            first = first or f" {where}: {error}"
        else:
            check_same_form(kept[0], kept[-1], where)
    return kept, describe_left_out(left_out, len(kept)) + first if left_out else ""
