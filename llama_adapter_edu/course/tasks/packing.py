"""Several examples in one row, instead of padding.

    padded    The lights on ·  ·  ·  ·           packed    The lights on Make it 80 %
              Make it 80 % ·  ·  ·               position  0   1      2  0    1  2  3

Two things keep the examples apart. Positions start at 0 again with each example: adaption prompts
see absolute positions, so each example is seen as it would be alone. And words attend to words of
their own example only. transformers builds that mask (a triangle for each example) from positions
that restart, but only if it gets neither an attention mask nor a cache. With either one, examples
read each other and nothing complains. So a packed batch has no `attention_mask`, and it says
`use_cache=False` itself.

Shapes: b packed rows of a batch, s token positions.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama_adapter_edu.data.encoding import IGNORE_INDEX


def best_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which rows share a packed row: each goes where it leaves the least space, long rows first.

    Returns:
        Row numbers; every row is in exactly one packed row, and no packed row is longer than
        `length` tokens. ("Best fit decreasing": at most 11/9 of the fewest possible rows, and
        one more.)

    Raises:
        ValueError: a row is longer than `length`.
    """
    if lengths and max(lengths) > length:
        row = max(range(len(lengths)), key=lambda row: lengths[row])
        raise ValueError(
            f"Row {row} has {lengths[row]} tokens, more than a packed row of length={length}. "
            "Raise length, or leave long rows out: encode_dataset(..., max_length=length)."
        )
    with_space: list[list[list[int]]] = [[] for _ in range(length + 1)]
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        spaces = range(lengths[row], length + 1)
        space = next((space for space in spaces if with_space[space]), length)
        packed = with_space[space].pop() if with_space[space] else []
        with_space[space - lengths[row]].append([*packed, row])
    return [packed for group in with_space for packed in group]


def pack(rows: Iterable[Mapping[str, Any]], length: int) -> list[dict[str, list[int]]]:
    """Rows of `encode` packed into rows of at most `length` tokens; shuffle them before training.

    Returns:
        `input_ids`, `position_ids` (from 0 for each example) and `labels`, equally long. An
        example's first label is IGNORE_INDEX: no word of its own comes before it.

    Raises:
        ValueError: a row is longer than `length`, or has no tokens.
    """
    rows = list(rows)
    if empty := [number for number, row in enumerate(rows) if not len(row["input_ids"])]:
        raise ValueError(f"Row {empty[0]} has no tokens, so there is nothing to pack.")
    groups = best_fit([len(row["input_ids"]) for row in rows], length)
    return [_joined([rows[number] for number in group]) for group in groups]


def _joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    packed: dict[str, list[int]] = {"input_ids": [], "position_ids": [], "labels": []}
    for row in rows:
        packed["input_ids"] += row["input_ids"]
        packed["position_ids"] += range(len(row["input_ids"]))
        packed["labels"] += [IGNORE_INDEX, *row["labels"][1:]]
    return packed


def collate_packed(
    rows: Sequence[Mapping[str, Any]], pad_token_id: int
) -> dict[str, Int[Tensor, "b s"] | bool]:
    """Rows of `pack` as one batch: `model(**batch)` keeps the examples apart.

    Flash attention finds the examples only in a batch of one row; with sdpa and eager any number
    of rows will do.

    Returns:
        `input_ids`, `position_ids` and `labels` (b s each), and `use_cache`, which is False. What
        is padded on the right counts as one more example, whose labels are all IGNORE_INDEX.

    Raises:
        ValueError: no rows, or no `pad_token_id`.
    """
    if not rows:
        raise ValueError("A batch needs at least one row.")
    if pad_token_id is None:
        raise ValueError("pad_token_id is None: set tokenizer.pad_token, the eos token will do.")
    longest = max(len(row["input_ids"]) for row in rows)
    positions = [[*row["position_ids"], *range(longest - len(row["input_ids"]))] for row in rows]
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    labels = [torch.as_tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "position_ids": torch.tensor(positions),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "use_cache": False,
    }


def padding_share(lengths: Sequence[int], batches: Iterable[Sequence[int]]) -> float:
    """Share (0 to 1) of a pass's token positions that hold padding.

    Args:
        lengths: tokens of each row.
        batches: the row numbers of each batch; it is padded to its longest row.
    """
    batches = [[lengths[row] for row in batch] for batch in batches]
    computed = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / computed
