"""Image encoders for `add_vision`: pictures -> features, one tensor for each scale (eq. 9).

An encoder is a module with `image_shape` (what one picture looks like, without the batch axis) and
`feature_widths` (one number for each scale). Any module with these two fits.

Shapes: b batch, c channels, y and x a picture's rows and columns, f feature width.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModel


class DigitEncoder(nn.Module):
    """A small convolutional net for scikit-learn's digits: 8 x 8 pictures, numbers from 0 to 1.

    Two scales: strokes at 4 x 4 places, and combinations of strokes at 2 x 2 places.
    """

    image_shape = (8, 8)
    feature_widths = (32 * 4 * 4, 64 * 2 * 2)

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.coarse = nn.Conv2d(32, 64, kernel_size=3, padding=1)

    def forward(self, images: Float[Tensor, "b y x"]) -> list[Float[Tensor, "b f"]]:
        """Features of both scales."""
        fine = F.max_pool2d(F.gelu(self.fine(rearrange(images, "b y x -> b 1 y x"))), 2)
        coarse = F.max_pool2d(F.gelu(self.coarse(fine)), 2)
        return [rearrange(features, "b c y x -> b (c y x)") for features in (fine, coarse)]


class ClipEncoder(nn.Module):
    """A CLIP's view of a picture: its class token after several layers, as in the paper's Fig. 3.

        clip = CLIPVisionModel.from_pretrained("openai/clip-vit-base-patch16")
        add_vision(model, ClipEncoder(clip, layers=(4, 8, 12)))

    CLIP is frozen; only the projection behind it trains. Pictures are what CLIP's own image
    processor returns as `pixel_values` (b c y x).

    Args:
        clip: the image half of a CLIP.
        layers: after which of its layers the class token is taken; 0 is before the first.

    Raises:
        ValueError: no layers, or the CLIP has not that many.
    """

    def __init__(self, clip: CLIPVisionModel, layers: Sequence[int]) -> None:
        super().__init__()
        config = clip.config
        if not layers or not all(0 <= layer <= config.num_hidden_layers for layer in layers):
            raise ValueError(
                f"layers={tuple(layers)}: choose at least one of 0 to {config.num_hidden_layers}."
            )
        self.clip, self.layers = clip.requires_grad_(False), tuple(layers)
        self.image_shape = (config.num_channels, config.image_size, config.image_size)
        self.feature_widths = (config.hidden_size,) * len(self.layers)

    def forward(self, images: Float[Tensor, "b c y x"]) -> list[Float[Tensor, "b f"]]:
        """The class token after each of the chosen layers."""
        states = self.clip(pixel_values=images, output_hidden_states=True).hidden_states
        return [states[layer][:, 0] for layer in self.layers]
