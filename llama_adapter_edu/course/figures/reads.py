"""The prompt microscope: what each token reads from each prompt, layer by layer, head by head.

What a head reads from a prompt is its weight in the softmax over the prompts, times the opening of
the head's gate: the factor in front of that prompt's value in eq. 7.
"""

import base64
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.inspect import gate_openings, prompt_weights
from llama_adapter_edu.course.figures.page import Page
from llama_adapter_edu.course.figures.plots import heatmap

INSTEAD = "A still picture of one token stands above it."
LEVELS = 255  # a weight is kept as one byte: exact to 0.002


def prompt_reads(
    model: PreTrainedModel, input_ids: Int[Tensor, "1 s"], **inputs: Any
) -> tuple[list[int], Float[Tensor, "l h s p"]]:
    """What each head of each adapted layer reads from each prompt: opening times weight, signed.

    Returns:
        the numbers of the adapted layers, 0 at the bottom, and the reads.

    Raises:
        ValueError: no adapter is active, or not exactly one row is given.
    """
    layers, weights, openings = _look(model, input_ids, inputs)
    return layers, rearrange(openings, "l h -> l h 1 1") * weights


def microscope(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Int[Tensor, "1 s"],
    **inputs: Any,
) -> Page:
    """Point at a token, or tab to it: which layers and heads read which prompts, and how much.

    Args:
        input_ids: one row, as from `tokenizer(text, return_tensors="pt").input_ids`. With 30
            adapted layers of 9 heads and 10 prompts about 45 tokens fit.
        inputs: what else the model's forward takes, as `attention_mask`.

    Returns:
        a figure for the last line of a cell.

    Raises:
        ValueError: no adapter is active, not exactly one row is given, or the row is too long.
    """
    layers, weights, openings = _look(model, input_ids, inputs)
    rounded = (rearrange(weights, "l h s p -> s l h p") * LEVELS).round().to(torch.uint8)
    data = {
        "tokens": [tokenizer.decode([token]) for token in input_ids[0].tolist()],
        "layers": layers,
        "openings": [[round(float(x), 4) for x in layer] for layer in openings],
        "prompts": weights.shape[-1],
        "weights": base64.b64encode(rounded.numpy().tobytes()).decode(),
    }
    return Page("microscope", data, INSTEAD)


def plot_reads(
    ax: Axes, model: PreTrainedModel, input_ids: Int[Tensor, "1 s"], token: int = -1, **inputs: Any
) -> Axes:
    """Draw what one token reads: a row for each layer, a column for each prompt.

    A cell is the sum of the sizes of all heads' reads, whatever their signs.

    Raises:
        ValueError: as `prompt_reads`.
    """
    layers, reads = prompt_reads(model, input_ids, **inputs)
    strip = reduce(reads[:, :, token].abs(), "l h p -> l p", "sum")
    heatmap(ax, strip, rows="layer", columns="prompt", vmin=0)
    every = 1 + len(layers) // 16
    ax.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    ax.set_xticks(range(strip.shape[1]))
    ax.figure.colorbar(ax.images[0], ax=ax, label="|opening| · weight, sum over heads")
    return ax


def _look(model: PreTrainedModel, input_ids: Tensor, inputs: dict):
    if input_ids.ndim != 2 or len(input_ids) != 1:
        raise ValueError(
            f"expected one row of token ids (1 s), not shape {tuple(input_ids.shape)}."
        )
    weights = prompt_weights(model, input_ids, **inputs)
    stacked = torch.stack([layer[0].cpu() for layer in weights.values()])
    openings = gate_openings(model)
    openings = openings.expand(-1, stacked.shape[1])  # one gate of a layer serves all heads
    return list(weights), stacked, openings
