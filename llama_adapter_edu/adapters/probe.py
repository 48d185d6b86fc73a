"""Proof, before a model is adapted, that its prompts get the keys and values that they should.

Families change keys and values in ways that names do not tell: norms, clips, scales, sharing
between layers. So each layer is given a few rows in place of its input, on one position, where a
rotary embedding turns nothing, and what arrives at its attention function is compared.
"""

from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from llama_adapter_edu.adapters.decoder import compute_device, evaluation
from llama_adapter_edu.adapters.layers.keys import layer_keys_values

SIZES = 1.0, 30.0, 1000.0  # of the rows: a clip shows in large ones, a norm in the difference


def probe(model: nn.Module, layers: dict[int, nn.Module]) -> None:
    """Compare the keys and values of prompts with those of the attached layers.

    Each layer's view also learns its number of query heads. Weights on the meta device have no
    values to compare; they are believed.

    Args:
        model: what is called to reach the layers: their decoder, or the model around it.
        layers: attached attention layers by number, 0 at the bottom.

    Raises:
        ValueError: a layer makes other keys or values than `layer_keys_values`, or is not reached.
    """
    if any(compute_device(attention).type == "meta" for attention in layers.values()):
        scale = getattr(getattr(model, "rotary_emb", None), "attention_scaling", 1.0)
        for attention in layers.values():
            attention.config.n_query_heads = attention.config.num_attention_heads
            attention.config.key_scale = scale
        return
    problems: list[str] = []
    hooks = []
    for attention in layers.values():
        rows: list[Tensor] = []
        attention.config.heard = partial(_compare, problems, rows)
        hooks.append(
            attention.register_forward_pre_hook(partial(_put_rows, rows), with_kwargs=True)
        )
    try:
        _run(model)
    finally:
        for hook, attention in zip(hooks, layers.values(), strict=True):
            hook.remove()
            attention.config.heard = None
    for number, attention in layers.items():
        if attention.config.n_query_heads is None:
            problems.append(
                f"layer {number} ({type(attention).__name__}) does not go through transformers' "
                "attention interface, so prompts cannot be added to its attention."
            )
    if problems:
        raise ValueError(problems[0])


def _run(model: nn.Module) -> None:
    ids = torch.ones(
        len(SIZES), 1, dtype=torch.long, device=compute_device(model.get_input_embeddings())
    )
    try:
        with torch.no_grad(), evaluation(model):
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # a family that needs more than tokens, or does something unusual
        raise ValueError(
            f"{type(model).__name__} could not be run on single tokens to see how it makes its "
            f"keys and values: {type(error).__name__}: {error}"
        ) from error


def _put_rows(
    kept: list[Tensor], attention: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    """A hook that puts rows of our own in the place of a layer's input."""
    hidden = args[0] if args else kwargs["hidden_states"]
    fixed = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
    rows = torch.randn(len(SIZES), 1, hidden.shape[-1], generator=fixed)
    rows = (rows * torch.tensor(SIZES)[:, None, None]).to(hidden)
    kept.append(rows[:, 0])
    turn = kwargs.get("position_embeddings")
    if isinstance(turn, tuple):  # (cos, sin); on position 0 a cosine is 1, unless it is scaled
        attention.config.key_scale = turn[0].flatten()[0].item()
    if args:
        return (rows, *args[1:]), kwargs
    return args, kwargs | {"hidden_states": rows}


def _compare(
    problems: list[str],
    rows: list[Float[Tensor, "n m"]],
    attention: nn.Module,
    query: Float[Tensor, "n h 1 d"],
    key: Float[Tensor, "n g 1 d"],
    value: Float[Tensor, "n g 1 d"],
) -> tuple[Float[Tensor, "n 1 h d"], None]:
    """Attend to nothing, and note what is wrong with the prompts.

    This runs in place of the layer's attention function, where sharded weights are whole.
    """
    nothing = torch.zeros_like(query).transpose(1, 2), None
    attention.config.n_query_heads = query.shape[1]
    layer = f"layer {attention.config.number} ({type(attention).__name__})"
    if key.shape != value.shape:
        problems.append(
            f"{layer} has an unusual head layout: its keys are of shape {tuple(key.shape)} and its "
            f"values of shape {tuple(value.shape)}."
        )
        return nothing
    ours = layer_keys_values(attention, rows[0])
    for what, theirs, of_prompts in zip(("keys", "values"), (key, value), ours, strict=True):
        theirs = rearrange(theirs, "n g 1 d -> g n d")
        if theirs.shape != of_prompts.shape or not _close(theirs, of_prompts):
            problems.append(
                f"{layer} makes its {what} in a way that is not understood, so prompts would get "
                "others than its tokens do. Its parts: "
                f"{', '.join(name for name, _ in attention.named_children())}."
            )
    return nothing


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, row by row: rows differ in size."""
    tolerance = 1e-4 if a.dtype == torch.float32 else 0.02
    a, b = a.double(), b.double()
    return bool(((a - b).norm(dim=-1) <= tolerance * b.norm(dim=-1) + 1e-6).all())
