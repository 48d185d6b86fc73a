"""A transformers attention layer with the names and the contract of lesson 05's slide."""

from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention

from llama_adapter_edu.method.attention import apply_rotary, split_heads


class LlamaAttentionWithQueries(nn.Module):
    """A transformers `LlamaAttention` with the names and the contract that the wrapper expects.

    Raises:
        TypeError: another kind of attention, which may scale or normalise its queries differently.
    """

    def __init__(self, attention: LlamaAttention) -> None:
        super().__init__()
        if not isinstance(attention, LlamaAttention):
            raise TypeError(
                f"expected a transformers LlamaAttention, got {type(attention).__name__}. "
                "For other models use add_adaption_prompts(model)."
            )
        self.attention = attention

    # Properties, not attributes: a module set twice would stand twice in the state dict.
    head_dim = property(lambda self: self.attention.head_dim)
    key_layer = property(lambda self: self.attention.k_proj)
    value_layer = property(lambda self: self.attention.v_proj)
    output_layer = property(lambda self: self.attention.o_proj)

    def forward(
        self,
        hidden_states: Float[Tensor, "b s m"],
        position_embeddings: tuple[Float[Tensor, "b s d"], Float[Tensor, "b s d"]],
        **kwargs,
    ) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
        """The attention's output, and its queries, rotated by `position_embeddings` (cos, sin)."""
        queries = []

        def listen(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            queries.append(output)

        hook = self.attention.q_proj.register_forward_hook(listen)
        try:
            hidden_state, _ = self.attention(hidden_states, position_embeddings, **kwargs)
        finally:
            hook.remove()
        query_states = split_heads(queries.pop(), self.head_dim)
        return hidden_state, apply_rotary(query_states, *position_embeddings)
