"""Stands in for the library in the fixture lessons."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def split_heads(x: Float[Tensor, "b s hd"], n_heads: int) -> Float[Tensor, "b h s d"]:
    """A longer docstring than the lesson's: what, shapes, source."""
    # A comment that the lesson does not have.
    return rearrange(x, "b s (h d) -> b h s d", h=n_heads)
