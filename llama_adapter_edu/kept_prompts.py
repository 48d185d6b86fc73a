"""The prompts' keys and values of a generation: computed with its first words, used with all.

They are kept in the cache that keeps the words' own, so they end with it. Never with gradients:
keys kept in training would stop the prompts from learning (litgpt issue 1287).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache


def keep_in_generations(decoder: nn.Module) -> None:
    """From now on the attention functions of this decoder's layers get, in a generation,

    `prompts_to_keep` (dict) with the first words: each layer puts its pair of tensors into it, and
    `kept_prompts` (dict) with later words: the pairs by number of the layer.
    """
    decoder.register_forward_pre_hook(_hand_out, with_kwargs=True)
    decoder.register_forward_hook(_keep, with_kwargs=True)


def _hand_out(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    words = kwargs.get("cache", kwargs.get("past_key_values"))  # renamed in transformers 5.24
    if isinstance(words, Cache) and not torch.is_grad_enabled():
        # The length of a static cache is a tensor, which a compiled graph cannot branch on.
        if not torch.compiler.is_compiling() and words.get_seq_length() == 0:
            words.kept_prompts = {}
        image, layers, first, second = _kept(decoder, words)
        if layers and image is kwargs.get("image_vector"):
            pairs = zip(first, second, strict=True)
            kwargs["kept_prompts"] = dict(zip(layers, pairs, strict=True))
        elif not torch.compiler.is_compiling():
            kwargs["prompts_to_keep"] = {}
    return args, kwargs


def _kept(decoder: nn.Module, words: Cache) -> tuple:
    """Of the active adapter: image, numbers of the layers, first and second tensor of each."""
    active = decoder.layers[0].self_attn.adapter_state.active
    return getattr(words, "kept_prompts", {}).get(active, (None, (), (), ()))


def _keep(decoder: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
    if new := kwargs.get("prompts_to_keep"):
        words = kwargs.get("cache", kwargs.get("past_key_values"))
        active = decoder.layers[0].self_attn.adapter_state.active
        first, second = (_joined(tensors) for tensors in zip(*new.values(), strict=True))
        words.kept_prompts[active] = kwargs.get("image_vector"), tuple(new), first, second


def _joined(tensors: Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """All layers' tensors as one: all that a compiled model then has to check and to copy."""
    alike = len({(t.shape, t.dtype, t.device) for t in tensors}) == 1
    return torch.stack(tuple(tensors)) if alike else tensors
