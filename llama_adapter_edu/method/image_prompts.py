"""Prompts that carry a picture: each row of a batch attends to prompts of its own (paper, eq. 10).

     prompts (p m)   learnt, the same for all rows        image (b m)   one vector a picture
          └──────────────────── + ─────────────────────────────┘        repeated p times
                            (b p m)
                               │ frozen key and value projections
                     key, value (b g p d)
                               │ rows become further heads
                     key, value ((b g) p d), as shared prompts have them, (g p d)

Shape legend: b batch, s query position, p prompt slot, h query head, g key/value head,
d head width, m model width.
"""

from collections.abc import Callable

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from llama_adapter_edu.method.gated_prompts import AdaptionPrompt

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


def attend_row_by_row(
    prompt: AdaptionPrompt,
    query: Float[Tensor, "b h s d"],
    prompt_key: Float[Tensor, "b g p d"],
    prompt_value: Float[Tensor, "b g p d"],
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """What `prompt` adds when each row of the batch has keys and values of its own (eq. 7).

    No head reads another head's keys. So the rows can be laid side by side as heads of one row,
    with the gates repeated for each.
    """
    n_rows, n_heads = query.shape[:2]
    gate = repeat(prompt.gate, "h -> (b h r)", b=n_rows, r=n_heads // len(prompt.gate))
    rows_as_heads = (
        rearrange(query, "b h s d -> 1 (b h) s d"),
        rearrange(prompt_key, "b g p d -> (b g) p d"),
        rearrange(prompt_value, "b g p d -> (b g) p d"),
    )
    added = functional_call(prompt, {"gate": gate}, (*rows_as_heads, scale))
    return rearrange(added, "1 (b h) s d -> b h s d", b=n_rows)
