"""The prompts' keys and values of a generation: computed with its first words, used with all.

They are kept in the cache that keeps the words' own, so they end with it. Never with gradients:
keys kept in training would stop the prompts from learning (litgpt issue 1287).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache


def keep_in_generations(decoder: nn.Module) -> None:
    """In a generation, give the attention functions of this decoder's layers one of two arguments.

    `prompts_to_keep` with the first words: a dict into which each layer puts its pair of tensors,
    by its number. `kept_prompts` with later words: such a dict with the pairs of all layers.
    """
    decoder.register_forward_pre_hook(_hand_out, with_kwargs=True)
    decoder.register_forward_hook(_keep, with_kwargs=True)


def _hand_out(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    words = kwargs.get("cache", kwargs.get("past_key_values"))  # renamed in transformers 5.24
    if isinstance(words, Cache) and not torch.is_grad_enabled():
        compiling = torch.compiler.is_compiling()
        # The length of a static cache is a tensor, which a compiled graph cannot branch on.
        if not compiling and words.get_seq_length() == 0:
            words.kept_prompts = {}
        # None: its first words came with gradients, or before there were adapters.
        all_kept = getattr(words, "kept_prompts", None)
        if all_kept is not None:
            image, layers, first, second = all_kept.get(_active(decoder), (None, (), (), ()))
            if layers and image is kwargs.get("image_vector"):
                pairs = zip(first, second, strict=True)
                kwargs["kept_prompts"] = dict(zip(layers, pairs, strict=True))
            elif not compiling:
                kwargs["prompts_to_keep"] = {}
    return args, kwargs


def _active(decoder: nn.Module) -> str | None:
    return decoder.layers[0].self_attn.adapter_state.active


def _keep(decoder: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
    if new := kwargs.get("prompts_to_keep"):
        words = kwargs.get("cache", kwargs.get("past_key_values"))
        first, second = (_joined(tensors) for tensors in zip(*new.values(), strict=True))
        kept = kwargs.get("image_vector"), tuple(new), first, second
        words.kept_prompts[_active(decoder)] = kept


def _joined(tensors: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """All layers' tensors as one: all that a compiled model then has to check and to copy."""
    alike = len({(t.shape, t.dtype, t.device) for t in tensors}) == 1
    return torch.stack(tuple(tensors)) if alike else tensors
