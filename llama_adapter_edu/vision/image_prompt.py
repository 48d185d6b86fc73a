"""From pictures to vectors as wide as the model, one for each picture (paper, eq. 9).

Shape legend: b batch, f feature width, m model width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llama_adapter_edu.method.float32 import Float32Module
from llama_adapter_edu.method.gated_prompts import Projection


def image_vector(
    features: Sequence[Float[Tensor, "b f"]], projection: Projection
) -> Float[Tensor, "b m"]:
    """One vector a picture: the features of all scales side by side, then projected (eq. 9)."""
    return projection(torch.cat(list(features), dim=-1))


class ImagePrompt(Float32Module):
    """An image encoder, and the projection of its features into the width of a model (eq. 9).

    The projection norms the features first: encoders differ in scale, and prompts start at about 1.
    All parameters stay float32 when the model is cast, as those of `AdaptionPrompt`.

    Args:
        encoder: turns images (b, *encoder.image_shape) into a list of features, one (b f) tensor
            for each width f of `encoder.feature_widths`. `encoders.py` has some.
        model_width: m.
        layers: how many of the adapted layers, from the lowest on, see the picture; all if None.
    """

    def __init__(self, encoder: nn.Module, model_width: int, layers: int | None = None) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers
        self.paused: set[str] = set()  # parameters that only wait for another adapter's training
        width = sum(encoder.feature_widths)
        self.projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, model_width))

    def forward(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b m"]:
        """The image vector of each picture.

        Raises:
            ValueError: images of another shape or type than the encoder takes.
        """
        check_images(images, tuple(self.encoder.image_shape))
        return image_vector(self.encoder(images.to(self.projection[0].weight)), self.projection)

    def trained(self) -> dict[str, nn.Parameter]:
        """What trains when its adapter is the active one, by name: not a frozen encoder."""
        named = self.named_parameters()
        return {name: p for name, p in named if p.requires_grad or name in self.paused}

    def set_trains(self, trains: bool) -> None:
        """Stop training for as long as another adapter trains, then go on with what trained before.

        So an encoder that was frozen stays frozen.
        """
        for name, parameter in self.named_parameters():
            if not trains and parameter.requires_grad:
                self.paused.add(name)
            if name in self.paused:
                parameter.requires_grad_(trains)
        if trains:
            self.paused.clear()


def check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `images` is a batch of floating point pictures of this shape."""
    expected = f"expected a tensor of shape (batch, {', '.join(map(str, shape))})"
    if not isinstance(images, Tensor):
        raise ValueError(f"{expected}, got {type(images).__name__}: torch.as_tensor makes one.")
    if images.ndim != 1 + len(shape) or tuple(images.shape[1:]) != shape:
        hint = "one picture needs a batch axis too" if tuple(images.shape) == shape else "resize"
        raise ValueError(f"{expected}, got {tuple(images.shape)}: {hint}.")
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}, expected floating point numbers. Scale them as the "
            "encoder's training pictures were: bytes / 255, the digits' counts / 16."
        )
