"""A cartridge: the keys and values of tokens that were never written (arXiv 2506.06266).

     key, value (g p d)   of every layer, learnt       key, value (b g t d)   of the tokens
            └──────────────── side by side ───────────────────────┘
                       key, value (b g p+t d) ──> the model's own attention, one softmax

What a document leaves in a model is its cache. So that is where a cartridge starts, and what it
learns to replace. There are no projections and no gate: a cartridge competes with the tokens for
the attention. The first of its tokens is frozen: many heads rest on the first token of a text.

Shape legend: b batch, s query position, t key position, p prompt slot, g key/value head,
d head width.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llama_adapter_edu.method.float32 import Float32Module


class Cartridge(Float32Module):
    """The part of one layer: keys and values that stand before those of the tokens.

    Parameters `key` and `value` train; the first ones, `frozen_key` and `frozen_value`, do not.

    Args:
        key, value: of all p tokens, as a layer's cache holds them. They are copied.
        num_frozen_tokens: how many of the first tokens stay as they are.
    """

    def __init__(
        self,
        key: Float[Tensor, "g p d"],
        value: Float[Tensor, "g p d"],
        num_frozen_tokens: int = 1,
    ) -> None:
        super().__init__()
        for name, whole in (("key", key), ("value", value)):
            whole = whole.detach().to(torch.float32, copy=True)
            self.register_buffer(f"frozen_{name}", whole[:, :num_frozen_tokens].clone())
            setattr(self, name, nn.Parameter(whole[:, num_frozen_tokens:].clone()))

    def keys_values(self) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
        """Keys and values of all p tokens, the frozen ones first."""
        key = torch.cat([self.frozen_key, self.key], dim=1)
        return key, torch.cat([self.frozen_value, self.value], dim=1)


def before_tokens(
    of_prefix: Float[Tensor, "#b g p d"], of_tokens: Float[Tensor, "b g t d"]
) -> Float[Tensor, "b g p+t d"]:
    """A prefix's keys or values, then those of the tokens, in the tokens' number format."""
    prefix = of_prefix.to(of_tokens).expand(len(of_tokens), -1, -1, -1)
    return torch.cat([prefix, of_tokens], dim=2)


def mask_with_prefix(visible: Bool[Tensor, "#b p"], mask: Tensor, n_rows: int) -> Tensor:
    """A mask (b or 1, h or 1, s, t) over the tokens, made wider by p columns for the prefix.

    Boolean masks say what is seen; those of numbers are added to the scores, so 0 is seen.
    """
    columns = rearrange(visible, "b p -> b 1 1 p")
    if mask.dtype != torch.bool:
        hidden = torch.finfo(mask.dtype).min
        columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, hidden)
    rows = n_rows if len(visible) > 1 or len(mask) > 1 else 1
    columns = columns.expand(rows, mask.shape[1], mask.shape[2], -1)
    return torch.cat([columns, mask.expand(rows, -1, -1, -1)], dim=-1)


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Bool[Tensor, "1 1 s t"]:
    """What the first `n_queries` of `n_keys` tokens see: themselves and all before them."""
    seen = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return rearrange(seen.tril(), "s t -> 1 1 s t")
