"""The rows of a run: checked before the first step, and made into batches.

A row has `input_ids` and `labels`, a number for each token. With `position_ids` too it is packed:
several examples in one row. Positions begin at 0 again with each, and none sees another.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llama_adapter_edu.data.encoding import IGNORE_INDEX

NEEDED, MASK = ("input_ids", "labels"), "attention_mask"
KNOWN = (*NEEDED, "position_ids")


class Rows:
    """Rows that have been looked through once.

    Args:
        dataset: a `datasets.Dataset`, a list of rows, or anything with a length and rows by number.
            Of what has no length, as an IterableDataset, the first `wanted` rows are read into
            memory.
        pad_token_id: fills shorter rows of a batch, on the right.
        device: of the batches.
        n_tokens: token ids are below this; None for any.

    Raises:
        ValueError: a row has no ids and labels, or a column that training would have to respect
            and does not know; there are no rows, or no `pad_token_id`.

    Attributes:
        lengths: tokens of each row.
        labelled: labelled tokens of each row, of which a row's (and an example's) first is none.
        fingerprint: changes with any id, label or position of any row.
    """

    def __init__(
        self,
        dataset: Iterable[Mapping[str, Any]],
        pad_token_id: int,
        device: torch.device,
        wanted: int | None = None,
        n_tokens: int | None = None,
    ) -> None:
        if isinstance(dataset, Mapping):
            raise ValueError(
                f"the dataset is several, {sorted(map(str, dataset))}: pass one, as dataset[name]."
            )
        if pad_token_id is None:
            raise ValueError("the tokenizer has no pad token: set tokenizer.pad_token first.")
        has_length = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        self.rows = dataset if has_length else list(islice(dataset, wanted))
        if not len(self.rows):
            raise ValueError("there are no rows to learn from: the dataset is empty.")
        read = _known_columns(self.rows[0])
        if hasattr(self.rows, "select_columns"):  # texts are left where they are
            self.rows = self.rows.select_columns(read)
        self.columns = [name for name in read if name != MASK]
        self.pad_token_id, self.device = pad_token_id, device
        self.lengths, self.labelled, every = [], [], hashlib.sha256()
        expected = self.rows[0].keys()
        for number, row in enumerate(self.rows):
            if row.keys() != expected:
                raise ValueError(f"row {number} has {list(row)}, but row 0 has {list(expected)}.")
            if not np.all(np.asarray(row.get(MASK, 1)) == 1):
                raise ValueError(f"row {number} holds padding: leave it out, batches get theirs.")
            arrays = _arrays(number, row, self.columns)
            _check_known(number, arrays, n_tokens)
            self.lengths.append(len(arrays["labels"]))
            self.labelled.append(int((arrays["labels"][1:] != IGNORE_INDEX).sum()))
            for name, array in arrays.items():
                every.update(f"{name} {len(array)} ".encode() + array.tobytes())
        self.fingerprint = every.hexdigest()[:16]

    @property
    def packed(self) -> bool:
        return "position_ids" in self.columns

    def n_labelled(self, numbers: Sequence[int]) -> int:
        return sum(self.labelled[number] for number in numbers)

    def batch(self, numbers: Sequence[int]) -> dict[str, Int[Tensor, "b s"]]:
        """Rows side by side, padded on the right to the longest.

        There is no attention mask. Padding comes after a row's tokens, where causal attention does
        not look, and attention is faster without one. Packed rows must not have one: transformers
        finds their examples by the positions, in which the padding is one more example.
        """
        rows = [_arrays(number, self.rows[number], self.columns) for number in numbers]
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX}
        longest = max(len(row["labels"]) for row in rows)
        if self.packed:
            for row in rows:
                missing = np.arange(longest - len(row["labels"]))
                row["position_ids"] = np.concatenate([row["position_ids"], missing])
        return {
            name: pad_sequence(
                [torch.from_numpy(row[name]) for row in rows],
                batch_first=True,
                padding_value=fill.get(name, 0),
            ).to(self.device)
            for name in self.columns
        }


def _known_columns(row: object) -> list[str]:
    """The columns that training reads; the others must be harmless, as the encoded texts."""
    if not isinstance(row, Mapping) or not set(NEEDED) <= row.keys():
        shown = list(row) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(
            f"a row needs input_ids and labels, as encode_dataset makes them; here it is {shown}."
        )
    known = [name for name in (*KNOWN, MASK) if name in row]
    if unknown := [name for name in row if name not in known and not _harmless(row[name])]:
        raise ValueError(
            f"finetune would leave out the columns {unknown}, and so learn something else. Leave "
            "them out yourself if they do not matter: dataset.remove_columns([...])."
        )
    return known


def _harmless(value: object) -> bool:
    """Texts, single numbers, and what is made of texts: nothing that belongs to the tokens."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return all(not isinstance(v, (int, float)) and _harmless(v) for v in value)
    return value is None or isinstance(value, (str, int, float))


def _arrays(number: int, row: Mapping[str, Any], columns: list[str]) -> dict[str, np.ndarray]:
    """A row's numbers; no label where no token of the same example comes before."""
    arrays = {name: np.asarray(row[name]).astype(np.int64) for name in columns}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or arrays["input_ids"].ndim != 1 or not len(arrays["input_ids"]):
        sizes = {name: list(array.shape) for name, array in arrays.items()}
        raise ValueError(f"row {number}: expected one number for each token, got sizes {sizes}.")
    if "position_ids" in arrays:
        starts = arrays["position_ids"] == 0
        arrays["labels"] = np.where(starts, IGNORE_INDEX, arrays["labels"])
    return arrays


def _check_known(number: int, arrays: dict[str, np.ndarray], n_tokens: int | None) -> None:
    """Raise ValueError for ids that the model does not have: on a GPU they end the process."""
    for name in NEEDED if n_tokens is not None else ():
        ids = arrays[name][arrays[name] != IGNORE_INDEX] if name == "labels" else arrays[name]
        if len(ids) and not 0 <= ids.min() <= ids.max() < n_tokens:
            raise ValueError(
                f"row {number}: {name} go from {ids.min()} to {ids.max()}, but the model knows the "
                f"tokens 0 to {n_tokens - 1}. Encode the rows with the model's own tokenizer."
            )
