"""Rows of token ids -> batches: which rows share one, and how they are padded.

Shapes: b rows of a batch, s token positions.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama_adapter_edu.data.encoding import IGNORE_INDEX


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
