"""Adapters the library leaves out on purpose, to be compared with the one it has.

gate_start   "zero" as in the paper, or gates that are open from the first step
softmax      "two" as in the paper, or one "joint" softmax over prompts and words
dtype        "float32", or prompts and gates kept in "bfloat16" as in PEFT on a bfloat16 base
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.adapters.layers.keys import layer_keys_values
from llama_adapter_edu.adapters.manage import adapter_prompts

GATE_STARTS = ("zero", "random", "open")
SOFTMAXES = ("two", "joint")
DTYPES = ("float32", "bfloat16")


def joint_attention(
    module: nn.Module,
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t d"],
    attention_mask: Float[Tensor, "b one s t"],
    scaling: float | None = None,
    **_,
) -> tuple[Float[Tensor, "b s h d"], None]:
    """One softmax over prompts and words; the gate then multiplies the prompts' weights.

    A zero gate does not leave the Llama alone here: the prompts still take their share of the
    softmax from the words.
    """
    n_repeats = query.shape[1] // key.shape[1]
    key = repeat(key, "b g t d -> b (g r) t d", r=n_repeats)
    value = repeat(value, "b g t d -> b (g r) t d", r=n_repeats)
    if hasattr(module, "adaption_prompts"):
        prompt = module.adaption_prompts["default"]
        prompts = layer_keys_values(module, prompt.prompts.to(query.dtype))
        prompt_key, prompt_value = (
            repeat(x, "g p d -> b (g r) p d", b=len(query), r=n_repeats) for x in prompts
        )
        # A gate on the weights is a gate on the values: both scale what a prompt adds.
        opening = rearrange(prompt.gate_opening.to(value.dtype), "h -> h 1 1")
        key = torch.cat([prompt_key, key], dim=2)
        value = torch.cat([opening * prompt_value, value], dim=2)
        attention_mask = F.pad(attention_mask, (prompt_key.shape[2], 0))  # 0: prompts are seen
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling
    )
    return rearrange(attended, "b h s d -> b s h d"), None


def apply_variant(model: PreTrainedModel, gate_start: str, softmax: str, dtype: str) -> None:
    """Turn the freshly added adapter "default" into a variant of it, in place.

    Raises:
        ValueError: a setting is not one of those listed above.
    """
    chosen = {"gate_start": gate_start, "softmax": softmax, "dtype": dtype}
    known = {"gate_start": GATE_STARTS, "softmax": SOFTMAXES, "dtype": DTYPES}
    for name, value in chosen.items():
        if value not in known[name]:
            raise ValueError(f"{name} must be one of {known[name]}, got {value!r}.")
    for prompt in adapter_prompts(model, "default").values():
        if gate_start == "random":
            nn.init.normal_(prompt.gate)
        if gate_start == "open":
            nn.init.constant_(prompt.gate, 3.0)  # tanh(3) = 0.995
        for parameter in prompt.parameters():
            # `.to()` leaves an AdaptionPrompt in float32, so the numbers are swapped under it.
            parameter.data = parameter.data.to(getattr(torch, dtype))
    if softmax == "joint":
        AttentionInterface.register("joint_softmax", joint_attention)
        AttentionMaskInterface.register("joint_softmax", eager_mask)
        for attention in attention_layers(model):  # prompts are in it, so nothing is added to it
            attention.config = getattr(attention.config, "base", attention.config)
        model.set_attn_implementation("joint_softmax")
