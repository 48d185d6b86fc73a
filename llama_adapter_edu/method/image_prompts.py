"""Prompts that carry a picture: each row of a batch attends to prompts of its own (paper, eq. 10).

     prompts (p m)   learnt, the same for all rows        image (b m)   one vector a picture
          └──────────────────── + ─────────────────────────────┘        repeated p times
                            (b p m)
                               │ frozen key and value projections
                     key, value (b g p d)
                               │ `AdaptionPrompt.gated_heads`, `attend_to_heads`
                     each row attends to its own

Shape legend: b batch, s query position, p prompt slot, h query head, g key/value head,
d head width, m model width.
"""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

KeysValues = Callable[[Tensor], tuple[Tensor, Tensor]]


def add_image(prompts: Float[Tensor, "p m"], image: Float[Tensor, "b m"]) -> Float[Tensor, "b p m"]:
    """Add each picture's vector to every prompt (eq. 10): one set of prompts for each row."""
    return prompts + rearrange(image, "b m -> b 1 m")


def image_keys_values(
    prompts: Float[Tensor, "b p m"], keys_values: KeysValues
) -> tuple[Float[Tensor, "b g p d"], Float[Tensor, "b g p d"]]:
    """Keys and values of every row's prompts, from `keys_values`, which knows only (p m)."""
    all_rows = rearrange(prompts, "b p m -> (b p) m")
    key, value = (
        rearrange(x, "g (b p) d -> b g p d", b=prompts.shape[0]) for x in keys_values(all_rows)
    )
    return key, value
