"""The gate dial on a model of yours: every turn runs the model."""

import html
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.inspect import gate_openings
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.figures.turned import Reading, read, thirds, turned_gates

NEEDS = (
    "The live dial needs ipywidgets in the notebook's kernel: run `%pip install ipywidgets`, then "
    "load this page again. Until then, `gate_dial()` shows stored stops."
)


def dial(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_new_tokens: int = 32,
):
    """Sliders and switches for the active adapter's gates, and what the model answers then.

    The model runs at each turn, and its gates are afterwards as they were.

    Args:
        rows: a few with `instruction` and `output`: the loss is their mean, the answer and the next
            tokens are those of the first row.

    Returns:
        a widget for the last line of a cell. Without ipywidgets: None, and one sentence is printed.

    Raises:
        ValueError: no rows, or no adapter is active.
    """
    rows = list(rows)
    if not rows or not len(gate_openings(model)):
        raise ValueError("dial needs a model with an active adapter, and at least one row.")
    if find_spec("ipywidgets") is None:
        print(NEEDS)
        return None
    return _widget(model, tokenizer, rows, max_new_tokens)


def factors_of(
    shape: tuple[int, int],
    all_gates: float,
    parts: Sequence[float],
    off: Sequence[tuple[int, int]],
) -> Float[Tensor, "l h"]:
    """The factor of each gate: that of all, times that of its third; 0 for those in `off`."""
    factors = torch.full(shape, float(all_gates))
    for rows, factor in zip(thirds(shape[0]), parts, strict=True):
        factors[rows] *= factor
    for row, head in off:
        factors[row, head] = 0
    return factors


def _widget(model, tokenizer, rows: list, max_new_tokens: int):
    import ipywidgets as widgets

    openings = gate_openings(model)
    shape = tuple(openings.shape)
    layers = list(adapter_prompts(model, active_adapter(model)))

    def slider(name: str):
        look = {"description": name, "style": {"description_width": "9em"}}
        return widgets.FloatSlider(1, min=-1, max=2, step=0.05, continuous_update=False, **look)

    every = slider("all gates")
    thirds_of = [[layers[row] for row in part] for part in thirds(shape[0])]
    parts = [slider(f"layers {part[0]} to {part[-1]}") for part in thirds_of]
    names = [
        (f"layer {layers[row]}, head {head}: {openings[row, head]:+.3f}", (row, head))
        for row in range(shape[0])
        for head in range(shape[1])
    ]
    off = widgets.SelectMultiple(options=names, rows=6, description="heads off")
    result = widgets.HTML()

    def turn(_=None) -> None:
        values = [part.value for part in parts]
        with turned_gates(model, factors_of(shape, every.value, values, off.value)):
            reading = read(model, tokenizer, rows, max_new_tokens=max_new_tokens)
        result.value = text_of(reading, rows)

    for control in (every, *parts, off):
        control.observe(turn, names="value")
    turn()
    return widgets.VBox([every, *parts, off, result])


def text_of(reading: Reading, rows: Sequence[Mapping[str, Any]]) -> str:
    """A reading as HTML: the first row's answer and next tokens, the loss of all."""
    answer, expected = reading.answers[0], rows[0]["output"].strip()
    mark = "✓ right" if answer == expected else "✗ wrong"
    tokens = "".join(
        f"<tr><td><code>{html.escape(repr(token))}</code></td><td>{chance:.1%}</td></tr>"
        for token, chance in reading.next_tokens[0]
    )
    pairs = zip(reading.answers, rows, strict=True)
    right = sum(answer == row["output"].strip() for answer, row in pairs)
    return (
        f"<p>{html.escape(rows[0]['instruction'])}</p>"
        f"<p>{mark}: <code>{html.escape(answer)}</code></p>"
        f"<p>loss <b>{reading.loss:.3g}</b> nats per token; {right} of {len(rows)} rows right</p>"
        f"<table><caption>likeliest first tokens</caption>{tokens}</table>"
    )
