"""Where cartridges meet the model's attention: their keys and values stand before the tokens'."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from llama_adapter_edu.adapters.choice import Choice, names_in
from llama_adapter_edu.adapters.decoder import brought_here
from llama_adapter_edu.method.cartridge import (
    Cartridge,
    before_tokens,
    causal_mask,
    mask_with_prefix,
)

MASKS_KNOWN = "eager", "sdpa"
Pair = tuple[Float[Tensor, "#b g p d"], Float[Tensor, "#b g p d"]]


def with_cartridges(
    attention: nn.Module,
    choice: Choice,
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t d"],
    mask: Tensor | None,
) -> tuple[Float[Tensor, "b g p+t d"], Float[Tensor, "b g p+t d"], Tensor | None]:
    """Keys, values and mask of an adapted layer, with the acting cartridge before the tokens.

    Raises:
        ValueError: the model's attention has masks of another kind.
    """
    prefix = _prefix(attention, choice)
    if prefix is None:
        return key, value, mask
    name = attention.config.base._attn_implementation or "eager"
    if name not in MASKS_KNOWN or (mask is not None and mask.ndim != 4):
        raise ValueError(
            f"a cartridge cannot be put before the tokens of attn_implementation={name!r}. Call "
            'model.set_attn_implementation("sdpa").'
        )
    pair, lengths = prefix
    longest = max(lengths)
    slots = torch.arange(longest, device=key.device)
    visible = slots >= longest - torch.tensor(lengths, device=key.device)[:, None]
    if mask is None:
        mask = _mask_that_is_meant(attention, name, query, key, whole=min(lengths) == longest)
    if mask is not None:
        mask = mask_with_prefix(visible, mask, len(query))
    return before_tokens(pair[0], key), before_tokens(pair[1], value), mask


def _mask_that_is_meant(
    attention: nn.Module, name: str, query: Tensor, key: Tensor, *, whole: bool
) -> Tensor | None:
    """What no mask stands for: in PyTorch's kernel, that query i of many sees the keys up to i.

    Else that all is seen; then no mask is needed if the prefix is `whole` in all rows, too.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    if name == "sdpa" and n_queries > 1 and getattr(attention, "is_causal", True):
        return causal_mask(n_queries, n_keys, query.device)
    if whole:
        return None
    dtype = torch.bool if name == "sdpa" else query.dtype
    fill = torch.ones if name == "sdpa" else torch.zeros
    return fill(1, 1, n_queries, n_keys, dtype=dtype, device=query.device)


def _prefix(attention: nn.Module, choice: Choice) -> tuple[Pair, list[int]] | None:
    """The acting cartridge of this layer, and its length; of each row, if rows differ.

    Shorter ones are filled up on the left.
    """
    names, parts = names_in(choice), attention.adaption_prompts
    with_one = {n for n in names if n in parts and isinstance(parts[n], Cartridge)}
    if not with_one:
        return None
    found = {n: heads_of(parts[n]) for n in with_one}
    lengths = [found[n][0].shape[1] if n in found else 0 for n in names]
    example = next(iter(found.values()))[0]
    nothing = example[:, :0], example[:, :0]
    key, value = (
        _side_by_side([found.get(n, nothing)[part] for n in names], max(lengths)) for part in (0, 1)
    )
    return (key, value), lengths


def heads_of(cartridge: Cartridge) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
    """Keys and values of a layer's cartridge, wherever it is kept."""
    with brought_here(cartridge):
        return cartridge.keys_values()


def _side_by_side(rows: Sequence[Float[Tensor, "g _ d"]], length: int) -> Float[Tensor, "b g p d"]:
    """Rows of several lengths as one tensor, filled up on the left."""
    filled = [F.pad(row, (0, 0, length - row.shape[1], 0)) for row in rows]
    return rearrange(filled, "b g p d -> b g p d")
