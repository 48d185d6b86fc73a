"""Rows that begin alike, as one long row in which their common start stands once.

    each row by itself      system prompt | question 1 | answer 1
                            system prompt | question 2 | answer 2
    side by side            system prompt | question 1 | answer 1 | question 2 | answer 2

A chat template opens every row with the same tokens. All layers compute them once in a step instead
of once in each row, and nothing is padded. Positions and attention are those of each row by itself:
a token sees the start and what comes before it in its own row. So losses and gradients stay the
same. (Dropout draws other numbers for fewer tokens.)

Attention and mask grow with the square of the long row. So this pays while the start is a good part
of each row; with many or long rows set a small `micro_batch_size`, or leave it out.
"""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llama_adapter_edu.adapters.decoder import evaluation
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.data.token_rows import Rows

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
# Shares of the states' spread. The course's Llama with open gates rounds to 2e-5, in a padded batch
# as here; what reads past the mask differs by more than 5e-4.
ROUNDING = {torch.float32: 2e-4, torch.float64: 2e-4}
ROUNDING_OF_16_BITS = 5e-2


class SharedStart:
    """Rows of a run whose batches are one row, with their common start once.

    Raises:
        ValueError: rows are packed, they begin differently, or the model gives other logits so.
            Not every model can: it must take positions and a mask for each pair of tokens.
    """

    def __init__(self, rows: Rows, model: nn.Module) -> None:
        if rows.packed:
            raise ValueError("packed rows do not begin alike. Leave out share_start.")
        self.rows, self.dtype, self.device = rows, model.dtype, rows.device
        kinds = set(getattr(model.config, "layer_types", None) or ATTENTION)
        if others := sorted(kinds - ATTENTION):
            raise ValueError(f"layers of the kind {others} take no mask. Leave out share_start.")
        self.n_shared = common_start(rows)
        if not self.n_shared:
            raise ValueError(
                "the rows do not begin with the same tokens, without labels. Leave out share_start."
            )
        self._check(model)

    def n_labelled(self, numbers: Sequence[int]) -> int:
        return self.rows.n_labelled(numbers)

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids`, `labels`, `position_ids` (1 s) and `attention_mask` (1 1 s s), a float."""
        padded, n = self.rows.batch(numbers), self.n_shared
        lengths = torch.tensor([[self.rows.lengths[number]] for number in numbers])
        columns = torch.arange(padded["labels"].shape[1])
        keep = (columns < lengths).to(self.device)
        keep[1:, :n] = False
        row, position = keep.nonzero(as_tuple=True)
        row[:n] = -1  # the start is everybody's
        batch = {name: rearrange(tensor[keep], "s -> 1 s") for name, tensor in padded.items()}
        hidden = torch.zeros(1, 1, len(row), len(row), dtype=self.dtype, device=self.device)
        hidden.masked_fill_(~_sees(row, position), torch.finfo(self.dtype).min)
        return {**batch, "position_ids": position[None], "attention_mask": hidden}

    def _check(self, model: nn.Module) -> None:
        """Compare the shortest and the two longest rows side by side with each by itself."""
        by_length = sorted(range(len(self.rows.lengths)), key=self.rows.lengths.__getitem__)
        numbers = [by_length[0], *by_length[-2:]]
        try:
            with evaluation(model):
                alone = [_hidden_states(model, self.rows.batch([number])) for number in numbers]
                together = _hidden_states(model, self.batch(numbers))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model does that does not expect such a mask
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"this model cannot share the start of rows ({reason}). Leave out share_start."
            ) from error
        wanted = torch.cat([alone[0], *(states[self.n_shared :] for states in alone[1:])])
        differs = reduce((together - wanted).abs(), "s m -> s", "mean").max()
        if not differs <= ROUNDING.get(self.dtype, ROUNDING_OF_16_BITS) * wanted.std():
            raise ValueError(
                "this model computes something else when rows share their start: a token reads "
                "where the mask does not let it, or only in a window. Leave out share_start."
            )


def common_start(rows: Rows) -> int:
    """With how many equal tokens all rows begin, none of them labelled.

    One more token of each row is its own and has no label: what predicts a label stands right
    before it, also in the long row.
    """
    first = rows.batch([0])["input_ids"][0]
    n = len(first)
    for number in range(len(rows.lengths)):
        batch = rows.batch([number])
        ids, labels = batch["input_ids"][0], batch["labels"][0]
        other = (ids[:n] != first[: len(ids)][:n]).nonzero()
        labelled = (labels[1:] != IGNORE_INDEX).nonzero()  # nothing predicts the first token
        n = min([n, len(ids), *other[:1, 0].tolist(), *labelled[:1, 0].tolist()])
    return n


@torch.no_grad()
def _hidden_states(model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "s m"]:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    how = {"use_cache": False, "output_hidden_states": True, "logits_to_keep": 1}
    return model(**inputs, **how).hidden_states[-1][0].float()


def _sees(row: Int[Tensor, " s"], position: Int[Tensor, " s"]) -> Bool[Tensor, "s s"]:
    """Whether the token in the first axis sees the one in the second."""
    query, key = rearrange(row, "s -> s 1"), rearrange(row, "s -> 1 s")
    later = rearrange(position, "s -> 1 s") > rearrange(position, "s -> s 1")
    return ((key == query) | (key == -1)) & ~later
