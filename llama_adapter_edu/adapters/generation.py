"""From a call of the model to its layers: which adapter acts, and what a generation keeps.

    model.generate(...) ── opens a `Generation`
        step 1      decoder ── Call ──> each adapted layer computes its prompts' keys and values
        later ones  decoder ── Call ──> they are ready

A `Call` is made when the decoder is called, and handed to its layers. So a layer that is computed
again in the backward (gradient checkpointing), in whatever thread, uses the same adapter.

Keys and values of prompts are kept inside one `generate` alone, and without gradients. Outside,
whoever holds a cache may train, load or change an adapter between two calls. Keys kept in training
would stop the prompts from learning (litgpt issue 1287).
"""

import threading
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.choice import AdapterState, Choice, acting, check_names, for_rows
from llama_adapter_edu.adapters.positions import after_prefix, prefix_lengths

TEXTS = "input_ids", "inputs_embeds"
IN_THREADS = "generate_batch", "init_continuous_batching"


@dataclass(eq=False)
class Call:
    """What the adapted layers need to know of one call of their decoder.

    Args:
        choice: the adapter that acts, or one for each row.
        image: a picture's vector for each row (b m).
        blind_from: the number of the lowest layer that does not see the picture, and those above.
        kept: what layers have computed for this choice in this generation, by layer number. A layer
            that is not in there adds its own.
        listener: is told the layer number, the queries and the prompts' heads of each layer.
        has_cartridge: whether one acts in some row.
    """

    choice: Choice
    image: Tensor | None = None
    kept: dict[int, tuple] | None = None
    listener: Callable | None = None
    blind_from: float = inf
    has_cartridge: bool = False

    def image_of(self, number: int) -> Tensor | None:
        """The picture as this layer sees it."""
        if self.image is None:  # compiled layers would else be compiled for each number
            return None
        return self.image if number < self.blind_from else None


class Generation:
    """One call of `generate`: its pictures, and what it has computed of its prompts."""

    def __init__(self, state: AdapterState, images: Tensor | None) -> None:
        self.state, self.images = state, images
        # By choice: layer numbers, and the parts of their heads.
        self.kept: dict[Choice, tuple] = {}
        # By choice and number of rows: the heads of each row, by layer number.
        self.of_rows: dict[tuple[Choice, int], dict[int, tuple]] = {}

    def heads(self, choice: Choice, n_rows: int) -> dict[int, tuple]:
        """What has been computed for this choice, by layer number, for each of so many rows."""
        compiling = torch.compiler.is_compiling()
        if not compiling and (choice, n_rows) in self.of_rows:
            return self.of_rows[choice, n_rows]
        numbers, *parts = self.kept[choice]
        heads = zip(numbers, zip(*parts, strict=True), strict=True)
        shape = n_rows, -1, -1, -1
        of_rows = {n: (k.expand(shape), v.expand(shape), mask) for n, (k, v, mask) in heads}
        if not compiling:  # there it costs nothing, and each tensor kept would have to be checked
            self.of_rows[choice, n_rows] = of_rows
        return of_rows


class _OfThread(threading.local):
    # Not as attributes of the class: torch.compile would read those, whatever the thread has set.
    def __init__(self) -> None:
        self.generation: Generation | None = None
        self.listener: Callable | None = None
        self.call: Call | None = None  # of the layer that computes (see `layers/changes.py`)


of_thread = _OfThread()


class Generate:
    """`model.generate` of an adapted model: as before, but prompts are computed once for it.

    It also takes `images`, one for each row, if the acting adapter sees (see `add_vision`).
    """

    def __init__(self, model: PreTrainedModel, state: AdapterState) -> None:
        self.model, self.state = model, state

    @property
    def __wrapped__(self) -> Callable:
        """The method of the model's class, with its signature and docstring."""
        return type(self.model).generate.__get__(self.model)

    def __call__(self, *args, images: Tensor | None = None, **kwargs):
        given = (*args[:1], *map(kwargs.get, ("inputs", *TEXTS)))
        texts = next((x for x in given if isinstance(x, Tensor)), None)
        if texts is not None:  # beams come later, so here each text is one row
            for_rows(acting(self.state), len(texts), in_generation=False)
            if isinstance(images, Tensor) and len(images) != len(texts):
                raise ValueError(_unequal(images, texts))
        outer = of_thread.generation
        of_thread.generation = Generation(self.state, images)
        try:
            return self.__wrapped__(*args, **kwargs)
        finally:
            of_thread.generation = outer


def in_thread_of_its_own(model: PreTrainedModel, state: AdapterState, name: str, *args, **kwargs):
    """Call a method of the model, as `generate_batch`, that answers in a thread it starts itself.

    Blocks of the caller's thread do not reach that one, so inside such a block it is refused.
    """
    if acting(state) != state.active:
        raise ValueError(
            f"{name} answers in a thread of its own, which this use_adapter or disable_adapter "
            "block does not reach. Choose with set_adapter(model, name)."
        )
    if any(prefix_lengths(state, state.active)):
        raise ValueError(
            f"{name} packs texts side by side, where a cartridge has no place. Call generate, or "
            "choose another adapter."
        )
    return getattr(type(model), name)(model, *args, **kwargs)


def hand_calls_to_layers(decoder: nn.Module) -> None:
    """From now on each call of the decoder hands a `Call` to its layers, as `adapter_call`."""
    decoder.register_forward_pre_hook(_before, with_kwargs=True)
    decoder.register_forward_hook(_after, with_kwargs=True)


def call_of(state: AdapterState, n_rows: int) -> Call:
    """The `Call` of a layer whose decoder hands nothing on."""
    generation = _generation_of(state)
    choice = for_rows(acting(state), n_rows, in_generation=generation is not None)
    return Call(choice, has_cartridge=any(prefix_lengths(state, choice)))


def _generation_of(state: AdapterState) -> Generation | None:
    """The `generate` of this model that runs in this thread, unless something trains inside it."""
    generation = of_thread.generation
    ours = generation is not None and generation.state is state and not torch.is_grad_enabled()
    return generation if ours else None


def _before(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    state, images = decoder.adapter_state, kwargs.pop("images", None)
    generation = _generation_of(state)
    texts = next(x for x in (*args, *map(kwargs.get, TEXTS)) if x is not None)
    choice = for_rows(acting(state), len(texts), in_generation=generation is not None)
    check_names(state, choice)
    kept = None
    if generation is not None:
        images = generation.images
        if choice in generation.kept:
            kept, images = generation.heads(choice, len(texts)), None
        elif not torch.compiler.is_compiling():
            kept = {}
    image, blind_from = None, inf
    if images is not None and choice is not None:
        image = _look(decoder, choice, images, len(texts), in_generation=generation is not None)
        if (layers := decoder.vision[choice].layers) is not None:
            blind_from = len(decoder.layers) - state.configs[choice].adapter_layers + layers
    lengths, listener = prefix_lengths(state, choice), of_thread.listener
    kwargs["adapter_call"] = Call(choice, image, kept, listener, blind_from, any(lengths))
    return after_prefix(lengths, texts, args, kwargs)


def _look(
    decoder: nn.Module, choice: Choice, images: Tensor, n_rows: int, *, in_generation: bool
) -> Tensor:
    """The acting adapter's vector of each row's picture (b m)."""
    seeing = getattr(decoder, "vision", {})
    if choice not in seeing:
        raise ValueError(
            f"adapter {choice!r} has no image encoder; of this model {sorted(seeing)} have one. "
            "Call add_vision, or choose one such adapter for all rows."
        )
    vectors = seeing[choice](images)
    times, rest = divmod(n_rows, len(vectors))
    if rest or (times != 1 and not in_generation):
        raise ValueError(_unequal(vectors, range(n_rows)))
    return vectors.repeat_interleave(times, dim=0) if times != 1 else vectors


def _unequal(images: Sized, texts: Sized) -> str:
    return f"{len(images)} images for {len(texts)} texts: show each text one image."


def _after(decoder: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
    """Keep what the layers have computed in the first step of a generation."""
    call, generation = kwargs["adapter_call"], _generation_of(decoder.adapter_state)
    if generation is not None and call.kept and call.choice not in generation.kept:
        parts = zip(*call.kept.values(), strict=True)
        generation.kept[call.choice] = tuple(call.kept), *map(_joined, parts)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | Sequence[Tensor | None]:
    """One part of all layers' heads as one tensor: all that a compiled model then has to check."""
    if any(part is None for part in parts):
        return parts
    alike = len({(part.shape, part.dtype, part.device) for part in parts}) == 1
    return torch.stack(tuple(parts)) if alike else parts
