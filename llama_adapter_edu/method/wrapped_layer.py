"""`AdaptationPromptAttentionLayer`: adaption prompts as a wrapper around one attention layer.

                     hidden_states (b s m)
                              │
                    base_attention_layer  (frozen)
              ┌───────────────┴───────────────┐
     hidden_state (b s m)           query_states (b h s d)    rotated
              │                               │   prompt_embedding (p m), learnt
              │                               │     │ key_layer, value_layer  (frozen)
              │                     gated_prompt_attention  x tanh(adaption_gate), learnt
              │                               │ merge_heads
              │                         output_layer without its bias  (frozen)
              └──────────── + ────────────────┘
                        (b s m)

The class keeps the names and the contract of the slide that lesson 05 starts from. The other way,
`add_adaption_prompts`, computes the same without a wrapper, for more models and with less work.

Shape legend: b batch, s query position, p prompt slot, h query head, d head width, m model width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from llama_adapter_edu.method.attention import merge_heads
from llama_adapter_edu.method.gated_prompts import gated_prompt_attention, prompt_keys_values


class AdaptationPromptAttentionLayer(nn.Module):
    """A frozen attention layer plus what gated prompts add to it (paper eq. 7 and 8).

    It returns what the layer that it wraps returns, so it can stand in that layer's place. The new
    parameters are float32 on the base's device; the gates are zero, so nothing changes at first.

    Args:
        base_attention_layer: has `head_dim`, `key_layer`, `value_layer` and `output_layer`, takes
            `hidden_states` and returns `(hidden_state, query_states)`. It is frozen.
        num_prompt_tokens: number of prompts (p).
        emb_dim: model width (m).

    Raises:
        ValueError: `emb_dim` is not the width that the base layer reads.
    """

    def __init__(
        self, base_attention_layer: nn.Module, num_prompt_tokens: int, emb_dim: int
    ) -> None:
        super().__init__()
        width = base_attention_layer.key_layer.in_features
        if emb_dim != width:
            raise ValueError(f"emb_dim is {emb_dim}, but the base layer reads a width of {width}.")
        output = base_attention_layer.output_layer
        n_heads = output.in_features // base_attention_layer.head_dim
        new = {"device": output.weight.device, "dtype": torch.float32}

        self.base_attention_layer = base_attention_layer.requires_grad_(False)
        self.prompt_embedding = nn.Embedding(num_prompt_tokens, emb_dim, **new)
        self.adaption_gate = nn.Parameter(torch.zeros(n_heads, **new))

    def forward(
        self, hidden_states: Float[Tensor, "b s m"], **kwargs
    ) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
        """Run the base layer with `kwargs` (mask, cache, ...) and add the prompts' part.

        Returns:
            the layer's output and the rotated queries, as the base does.
        """
        base = self.base_attention_layer
        hidden_state, query_states = base(hidden_states=hidden_states, **kwargs)

        prompts = self.prompt_embedding.weight.to(query_states.dtype)
        key, value = prompt_keys_values(prompts, base.key_layer, base.value_layer, base.head_dim)
        added = gated_prompt_attention(query_states, key, value, self.adaption_gate)
        # o(a) + o(b) = o(a + b) only without a bias, and the base has added the bias already.
        added = F.linear(merge_heads(added), base.output_layer.weight)
        return hidden_state + added, query_states
