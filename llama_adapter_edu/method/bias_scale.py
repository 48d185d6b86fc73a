"""The bias and scale of LLaMA-Adapter V2 (arXiv 2304.15010, section 4.1).

     x (… n) ── frozen linear layer ── y (… m) ── scale * (y + bias)      eq. 1, as in litgpt
     x (… n) ── scale * x ── frozen linear layer ── y + bias              the authors' code

bias (m) starts at 0 and scale (m, or n on the input) at 1 (eq. 2): the layer starts as it was.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llama_adapter_edu.method.float32 import Float32Module

SCALED = "output", "input"


def biased_and_scaled(
    y: Float[Tensor, "... m"], bias: Float[Tensor, "m"], scale: Float[Tensor, "m"]
) -> Float[Tensor, "... m"]:
    """scale * (y + bias), in V2's eq. 1 around the output y = W x of a frozen linear layer.

    Computed in the wider of the two number formats, returned in that of y.
    """
    return (scale * (y + bias)).to(y.dtype)


class BiasScale(Float32Module):
    """What V2 learns at one linear layer: `bias` (m), at first 0, and `scale`, at first 1.

    Args:
        n_inputs, n_outputs: of the linear layer, n and m.
        scaled: "output", as in the paper, or "input", as in the authors' code: scale is (n) then.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        scaled: str = "output",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        width = {"output": n_outputs, "input": n_inputs}[scaled]
        self.bias = nn.Parameter(torch.zeros(n_outputs, dtype=torch.float32, device=device))
        self.scale = nn.Parameter(torch.ones(width, dtype=torch.float32, device=device))
        self.scaled = scaled

    def before(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """What the linear layer gets."""
        return (self.scale * x).to(x.dtype) if self.scaled == "input" else x

    def after(self, y: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
        """What comes of the linear layer's output."""
        if self.scaled == "output":
            return biased_and_scaled(y, self.bias, self.scale)
        return (y + self.bias).to(y.dtype)
