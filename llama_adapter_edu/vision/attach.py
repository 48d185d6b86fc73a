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

from torch import nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.choice import active_adapter, state_of
from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.adapters.manage import adapter_prompts, vision_of
from llama_adapter_edu.vision.image_prompt import ImagePrompt


def add_vision(
    model: PreTrainedModel,
    encoder: nn.Module,
    adapter_name: str | None = None,
    *,
    layers: int | None = None,
) -> PreTrainedModel:
    """Let one adapter of the model, the active one if no name is given, take pictures; in place.

    Afterwards `model(**batch, images=images)` and `model.generate(**batch, images=images)` show
    row i of the batch picture i. Encoder and projection train with the prompts; freeze the encoder
    with `encoder.requires_grad_(False)` if it is trained already.

    Args:
        encoder: see `ImagePrompt`. It is moved to the model's device.
        layers: how many of the adapted layers see the picture, from the lowest on. All if None, as
            in the paper. 1 is the early fusion of LLaMA-Adapter V2 (its section 4.3), for an
            adapter in all layers. V2's visual prompts are another 20 of the first layer alone; here
            they are those that the layer has.

    Raises:
        ValueError: the model has no such adapter, the adapter has an encoder already, or it is not
            in so many layers.
    """
    name, decoder = adapter_name or active_adapter(model), decoder_of(model)
    if name is None:
        raise ValueError("the model has no active adapter: call add_adaption_prompts(model) first.")
    prompts = adapter_prompts(model, name).values()
    if not prompts or not all(hasattr(prompt, "prompts") for prompt in prompts):
        raise ValueError(f"adapter {name!r} has no prompts, to which a picture is added.")
    if name in vision_of(model):
        raise ValueError(f"adapter {name!r} has an image encoder already.")
    n_adapted = len(prompts)
    if layers is not None and not 1 <= layers <= n_adapted:
        raise ValueError(f"layers must be 1 to {n_adapted}, as many have prompts, got {layers!r}.")
    if not hasattr(decoder, "vision"):
        decoder.vision = nn.ModuleDict()
    decoder.vision[name] = ImagePrompt(encoder, decoder.config.hidden_size, layers).to(model.device)
    if name != state_of(model).active:
        decoder.vision[name].set_trains(False)
    return model


def image_prompt_of(model: PreTrainedModel, adapter_name: str | None = None) -> ImagePrompt:
    """The `ImagePrompt` of an adapter, of the active one if no name is given.

    Raises:
        ValueError: it has none.
    """
    name = adapter_name or active_adapter(model)
    seeing = vision_of(model)
    if name not in seeing:
        raise ValueError(
            f"adapter {name!r} has no image encoder; {sorted(seeing.keys())} have one. "
            "Call add_vision, or choose another adapter."
        )
    return seeing[name]
