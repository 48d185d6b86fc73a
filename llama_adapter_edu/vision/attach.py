"""A Llama that sees: a picture becomes a vector that is added to an adapter's prompts.

     images ── encoder ── features (b f), one tensor for each scale
                              │ side by side, then projected              eq. 9
                          image vector (b m)
                              │ added to every prompt of every layer      eq. 10, image_prompts.py
                          prompts (b p m)

`add_vision` gives a model with adaption prompts the argument `images`, in its forward and in
`generate`. Without images it is the text adapter; with all gates at zero it is the base model.

Shape legend: b batch, f feature width, p prompt slot, m model width.
"""

import inspect
from collections.abc import Callable, Sequence
from types import MethodType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.method.gated_prompts import Projection


def image_vector(
    features: Sequence[Float[Tensor, "b f"]], projection: Projection
) -> Float[Tensor, "b m"]:
    """One vector a picture: the features of all scales side by side, then projected (eq. 9)."""
    return projection(torch.cat(list(features), dim=-1))


class ImagePrompt(nn.Module):
    """An image encoder, and the projection of its features into the width of a model (eq. 9).

    The projection norms the features first: encoders differ in scale, and prompts start at about 1.
    All parameters stay float32 when the model is cast, as those of `AdaptionPrompt`.

    Args:
        encoder: turns images (b, *encoder.image_shape) into a list of features, one (b f) tensor
            for each width f of `encoder.feature_widths`. `encoders.py` has some.
        model_width: m.
    """

    def __init__(self, encoder: nn.Module, model_width: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = sum(encoder.feature_widths)
        self.projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, model_width))

    def forward(self, images: Float[Tensor, "b ..."]) -> Float[Tensor, "b m"]:
        """The image vector of each picture.

        Raises:
            ValueError: images of another shape or type than the encoder takes.
        """
        check_images(images, tuple(self.encoder.image_shape))
        return image_vector(self.encoder(images.to(self.projection[0].weight)), self.projection)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ImagePrompt":
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)


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


def add_vision(
    model: PreTrainedModel, encoder: nn.Module, adapter_name: str | None = None
) -> PreTrainedModel:
    """Let one adapter of the model, the active one if no name is given, take pictures; in place.

    Afterwards `model(**batch, images=images)` and `model.generate(**batch, images=images)` show
    row i of the batch picture i. Encoder and projection train with the prompts; freeze the encoder
    with `encoder.requires_grad_(False)` if it is trained already.

    Args:
        encoder: see `ImagePrompt`. It is moved to the model's device.

    Raises:
        ValueError: the model has no such adapter, or the adapter has an encoder already.
    """
    name = check_can_see(model, adapter_name)
    if not hasattr(model, "vision"):
        model.vision = nn.ModuleDict()
        model.forward = MethodType(_forward_with_images(type(model)), model)
    width = decoder_of(model).config.hidden_size
    model.vision[name] = ImagePrompt(encoder, width).to(model.device)
    return model


def check_can_see(model: PreTrainedModel, adapter_name: str | None = None) -> str:
    """The adapter's name; ValueError if the model lacks it or it has an image encoder already."""
    name = adapter_name or getattr(getattr(model, "adapter_state", None), "active", None)
    if name is None:
        raise ValueError("the model has no active adapter: call add_adaption_prompts(model) first.")
    adapter_prompts(model, name)
    if name in getattr(model, "vision", {}):
        raise ValueError(
            f"adapter {name!r} has an image encoder already. "
            f"Take it out first: del model.vision[{name!r}]."
        )
    return name


def image_prompt_of(model: PreTrainedModel, adapter_name: str | None = None) -> ImagePrompt:
    """The `ImagePrompt` of an adapter, of the active one if no name is given.

    Raises:
        ValueError: it has none.
    """
    name = adapter_name or getattr(getattr(model, "adapter_state", None), "active", None)
    seeing = getattr(model, "vision", {})
    if name not in seeing:
        raise ValueError(
            f"adapter {name!r} has no image encoder; of this model {sorted(seeing)} have one. "
            "Call add_vision, or choose another adapter."
        )
    return seeing[name]


def _forward_with_images(model_class: type) -> Callable:
    """The forward of a model class, with `images` among its arguments.

    `generate` refuses arguments that the signature of forward does not list.
    """

    def forward(self: PreTrainedModel, *args, images: Tensor | None = None, **kwargs):
        if images is not None and self.adapter_state.active is not None:
            words = kwargs.get("cache", kwargs.get("past_key_values"))
            kwargs["image_vector"] = _seen(self, images, words)
        return model_class.forward(self, *args, **kwargs)

    plain = inspect.signature(model_class.forward)
    *named, last = plain.parameters.values()
    argument = inspect.Parameter("images", inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = plain.replace(parameters=[*named, argument, last])
    return forward


def _seen(model: PreTrainedModel, images: Tensor, words: Cache | None) -> Float[Tensor, "b m"]:
    """The image vector of these pictures; computed once in a generation, kept with its words."""
    look = image_prompt_of(model)
    if not isinstance(words, Cache) or torch.is_grad_enabled():
        return look(images)
    seen = getattr(words, "images_seen", None)
    if seen is None or seen[0] is not images or seen[1] is not look:
        seen = words.images_seen = images, look, look(images)
    return seen[2]
