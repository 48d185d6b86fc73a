"""The gate dial with stored stops: what the demo's adapter does when its gates are turned.

Each stop is one setting of the gates and what came of it. `benchmarks/gate_dial.py` measures them;
`course/results/gate_dial.json` keeps them. One control is turned at a time, the others stay at 1:
all combinations would be far too many to store. `live_dial.py` has them all.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from matplotlib.axes import Axes

from llama_adapter_edu.course.figures.page import Page
from llama_adapter_edu.course.figures.plots import BLUE, ORANGE

INSTEAD = "The picture shows the slider for all gates, stop by stop."


@cache
def stored_stops() -> dict[str, Any]:
    """The stored file: `conditions`, `rows`, `stops` and what they refer to by number.

    `stops` holds one list for each control: "all gates", one for each third of the layers, and
    "single heads". A stop has the `factor`, the mean `loss` in nats per token of the expected
    answers, and for each row the number of its answer in `answers` and `next`: five pairs, flat, of
    a number in `tokens` and a probability in thousandths.
    """
    place = files("llama_adapter_edu.course").joinpath("results", "gate_dial.json")
    return json.loads(place.read_text(encoding="utf-8"))


def gate_dial() -> Page:
    """The dial: one slider for all gates, one for each third of the layers, a switch for each head.

    Returns:
        a figure for the last line of a cell. It needs no model, no kernel and no network.
    """
    return Page("gateDial", stored_stops(), INSTEAD)


def plot_dial(loss: Axes, right: Axes) -> None:
    """Draw the stops of the slider for all gates: the loss above, the share of right answers below.

    Args:
        loss, right: axes of their own, with the same x axis.
    """
    stored = stored_stops()
    stops = stored["stops"]["all gates"]
    factors = [stop["factor"] for stop in stops]
    expected = [row["output"] for row in stored["rows"]]
    shares = [
        sum(stored["answers"][n] == text for n, text in zip(stop["answers"], expected, strict=True))
        for stop in stops
    ]
    loss.plot(factors, [stop["loss"] for stop in stops], "o-", color=BLUE)
    loss.set(ylabel="loss (nats per token)", yscale="log")
    right.plot(factors, shares, "s-", color=ORANGE)
    right.set(xlabel="all gate openings are multiplied by", ylabel=f"right of {len(expected)}")
    for ax in (loss, right):
        ax.axvline(1, color="black", lw=1, ls=":")
