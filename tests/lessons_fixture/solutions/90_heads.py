# %% [markdown]
# # Fixture lesson 90: Heads
#
# A small lesson for the tests of the exercise machinery.

# %%
import matplotlib.pyplot as plt
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from llama_adapter_edu.course import assert_close, assert_shape, check

# %% [markdown]
# ## Split
#
# ![A row of twelve numbers, cut into three heads of four](figures/heads.svg)

# %% [markdown] tags=["card"]
# ### Exercise 90.1 · Split the heads
#
# *easy ●○○ · 5 minutes*
#
# Cut the last axis into heads and move the heads before the positions.
#
# <details><summary>Hint 1: direction</summary>
#
# `rearrange` cuts an axis when the left side names **two** axes in brackets.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The last axis holds `h` and `d`; `h` is the outer one.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `rearrange(x, "b s (_ _) -> b _ s d", h=_____)`
#
# </details>


# %% tags=["exercise"] library="fixture_library" assemble=true
def split_heads(x: Float[Tensor, "b s hd"], n_heads: int) -> Float[Tensor, "b h s d"]:
    """Cut the last axis into heads."""
    ### BEGIN SOLUTION
    # ~ x_bhsd = ...
    return rearrange(x, "b s (h d) -> b h s d", h=n_heads)
    ### END SOLUTION


# %% tags=["check"]
@check("90.1", "split_heads")
def _():
    x = torch.randn(2, 5, 12)
    heads = split_heads(x, n_heads=3)
    assert_shape(heads, "b h s d", b=2, h=3, s=5, d=4)
    every_third = rearrange(x, "b s (d h) -> b h s d", h=3)
    right = torch.stack([x[:, :, 4 * h : 4 * h + 4] for h in range(3)], dim=1)
    assert_close(heads, right, "b h s d", mistakes={"write (h d), not (d h)": every_third})


# %% [raw] tags=["wrong"] says="heads and positions look swapped"
"""
def split_heads(x, n_heads):
    return rearrange(x, "b s (h d) -> b s h d", h=n_heads)
"""

# %% [raw] tags=["wrong"] says="write (h d), not (d h)"
"""
def split_heads(x, n_heads):
    return rearrange(x, "b s (d h) -> b h s d", h=n_heads)
"""

# %% [raw] tags=["wrong"] says="changes its input x in place"
"""
def split_heads(x, n_heads):
    x += 1
    return rearrange(x, "b s (h d) -> b h s d", h=n_heads)
"""

# %% [raw] tags=["right"]
"""
def split_heads(x, n_heads):
    return torch.stack(x.chunk(n_heads, dim=-1), dim=1)
"""

# %% [raw] tags=["right"]
"""
def split_heads(x, n_heads):
    '''With another docstring.'''
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
"""

# %%
torch.manual_seed(0)
print(split_heads(torch.randn(1, 2, 6), n_heads=3).shape)

# %% [markdown] tags=["card"]
# ### Exercise 90.2 · Two functions
#
# *medium ●●○ · 5 minutes*
#
# Double and halve a tensor.
#
# <details><summary>Hint 1: direction</summary>
#
# Multiply.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# None matters.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return __ * x`
#
# </details>


# %% tags=["exercise"]
def double(x: Tensor) -> Tensor:
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


def halve(x: Tensor) -> Tensor:
    """Half of x."""
    ### BEGIN SOLUTION
    return torch.mul(x, 0.5)
    ### END SOLUTION


# %% tags=["check"]
@check("90.2", "double", "halve")
def _():
    x = torch.randn(3, 4)
    assert_close(double(x), x + x, "s d", what="double")
    assert_close(halve(double(x)), x, "s d", what="halve")


# %% [raw] tags=["wrong"] says="double: all values are 1.5 times the expected ones"
"""
def double(x): return 3 * x
def halve(x): return x / 2
"""

# %% [raw] tags=["wrong"] says="got None: is the `return` missing?"
"""
def double(x): return x * 2
def halve(x): x / 2
"""

# %% [raw] tags=["right"]
"""
def double(x): return x + x
def halve(x): return x / 2
"""

# %% [raw] tags=["right"]
"""
def halve(x): return x.clone().div_(2)
def double(x): return x.mul(2)
"""

# %%
# alt: A line that rises from 0 to 6.
plt.figure(figsize=(2, 2))
plt.plot(double(torch.arange(4)))
plt.show()

# %% [markdown] tags=["card"]
# ### Exercise 90.3 · A gate
#
# *hard ●●● · 10 minutes*
#
# Write a gate that starts at zero and scales each head.
#
# ![Three heads, each with a scale of its own](figures/heads.svg)
#
# <details><summary>Hint 1: direction</summary>
#
# One number for each head, in an `nn.Parameter`.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `h -> h 1 1`
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return rearrange(self.____, "h -> h 1 1") * heads`
#
# </details>


# %% tags=["exercise"]
class Gate(nn.Module):
    """Scales each head by tanh of a learned number."""

    def __init__(self, n_heads: int):
        super().__init__()
        ### BEGIN SOLUTION
        self.gate = nn.Parameter(torch.zeros(n_heads))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "b s hd"]) -> Float[Tensor, "b h s d"]:
        """Split x into heads and scale them."""
        ### BEGIN SOLUTION
        heads = split_heads(x, len(self.gate))
        return rearrange(self.gate.tanh(), "h -> h 1 1") * heads
        ### END SOLUTION


# %% tags=["check"]
@check("90.3", "Gate")
def _():
    gate = Gate(3)
    x = torch.randn(2, 5, 12)
    assert_close(gate(x), torch.zeros(2, 3, 5, 4), "b h s d")
    nn.init.ones_(gate.gate)
    assert_close(gate(x)[:, 2], 0.7615942 * x[:, :, 8:], "b s d", what="the last head, opened")


# %% [raw] tags=["wrong"] says="values differ; the first at (b=0, h=0, s=0, d=0)"
"""
class Gate(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(n_heads))
    def forward(self, x):
        return rearrange(self.gate.tanh(), "h -> h 1 1") * split_heads(x, len(self.gate))
"""

# %% [raw] tags=["wrong"] says="all values are 1.313 times the expected ones"
"""
class Gate(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(n_heads))
    def forward(self, x):
        return rearrange(self.gate, "h -> h 1 1") * split_heads(x, len(self.gate))
"""

# %% [raw] tags=["right"]
"""
class Gate(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(n_heads))
    def forward(self, x):
        heads = split_heads(x, n_heads=self.gate.numel())
        return torch.einsum("h,bhsd->bhsd", torch.tanh(self.gate), heads)
"""

# %% [raw] tags=["right"]
"""
class Gate(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.register_parameter("gate", nn.Parameter(torch.tensor([0.0] * n_heads)))
    def forward(self, x):
        return split_heads(x, len(self.gate)) * self.gate.tanh()[:, None, None]
"""

# %%
print(Gate(2)(torch.ones(1, 1, 4)).detach().abs().sum().item())
