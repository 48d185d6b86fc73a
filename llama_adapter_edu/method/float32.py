"""Modules whose parameters stay float32 when the model around them is cast."""

from collections.abc import Callable

from torch import Tensor, nn


class Float32Module(nn.Module):
    """Moves with its model (`.to`, `.cuda`), but `.half()` and `.bfloat16()` leave it float32.

    In half precision small updates would be rounded away.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float32Module":
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)
