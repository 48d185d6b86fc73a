"""Where a text begins: behind the acting cartridge, as it would behind a text in the cache."""

import torch
from torch import Tensor

from llama_adapter_edu.adapters.choice import AdapterState, Choice, names_in

CACHES = "cache", "past_key_values"  # transformers calls it so since 5.24, and before


def prefix_lengths(state: AdapterState, choice: Choice) -> list[int]:
    """How many tokens adapters put before a text, in all rows or in each: those of a cartridge."""
    configs = map(state.configs.get, names_in(choice))
    return [getattr(config, "num_virtual_tokens", 0) for config in configs]


def after_prefix(
    lengths: list[int], texts: Tensor, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    """The decoder's arguments, with positions that begin behind the cartridge of each row."""
    if not any(lengths):
        return args, kwargs
    positions = args[2] if len(args) > 2 else kwargs.get("position_ids")
    if positions is None and kwargs.get("cache_position") is not None:
        positions = kwargs["cache_position"][None]
    if positions is None:
        cache = next((kwargs[n] for n in CACHES if kwargs.get(n) is not None), None)
        seen = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(texts.shape[1], device=texts.device)[None] + seen
    shift = lengths[0] if len(lengths) == 1 else positions.new_tensor(lengths)[:, None]
    if len(args) > 2:
        return (*args[:2], positions + shift, *args[3:]), kwargs
    return args, {**kwargs, "position_ids": positions + shift}
