"""Pictures of tensors, losses and gates. Nothing here calls `plt.show()` or prints.

    heatmap        a 2-D tensor; axis letters, texts along the axes, the numbers in the cells
    mark_negative  a minus sign in the cells of a heatmap that are below 0
    draw_tensors   small tensors side by side, each cell with its number
    plot_loss      the loss at each training step, and its running mean
    plot_gates     how far each head of each layer has opened its gate

Colours are safe for colour-blind readers (Okabe and Ito; cividis; PuOr). None stands alone.
"""

import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # orange: the palette's darker one
PINK, SKY, GREY = "#CC79A7", "#56B4E9", "#808080"

CELL = 0.38  # inches, in draw_tensors
WIDEST = 7.0  # inches


def use_style() -> None:
    """Set matplotlib up for the course: a white face for dark pages too, readable sizes."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, GREY]),
            "image.cmap": "cividis",
        }
    )


def heatmap(
    ax: Axes,
    matrix: Tensor,
    *,
    rows: str | None = None,
    columns: str | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str = "",
    values: bool = False,
    **imshow,
) -> Axes:
    """Draw a 2-D tensor, row 0 on top. Cells that are not finite stay white.

    rows, columns: what the axes are, as "s, query position".
    row_labels, column_labels: a text for each row and each column.
    values: write the numbers into the cells.
    imshow: anything else that `ax.imshow` takes, as `vmin=0`.

    Raises ValueError for a tensor that is not 2-D, or labels that do not fit its size.
    """
    grid = _array(matrix)
    if grid.ndim != 2:
        raise ValueError(f"heatmap draws a 2-D tensor, got shape {grid.shape}: pick a slice of it.")
    options = {"cmap": "cividis", "aspect": "auto", "interpolation": "nearest", **imshow}
    image = ax.imshow(np.ma.masked_invalid(grid), **options)
    ax.set(title=title, xlabel=columns, ylabel=rows)
    _label(ax.set_xticks, column_labels, grid.shape[1], rotation=60, ha="right", va="top")
    _label(ax.set_yticks, row_labels, grid.shape[0])
    ax.tick_params(length=0)
    if values:
        _write_values(image, grid, fontsize=9)
    return ax


def mark_negative(ax: Axes) -> Axes:
    """Write a minus sign into each cell of a heatmap that is below 0: not all see its colour."""
    image = ax.images[0]
    grid = np.ma.filled(image.get_array().astype(float), np.nan)
    for row, column in np.argwhere(grid < 0):
        ink = _ink(image, grid[row, column])
        ax.text(column, row, "−", ha="center", va="center", fontsize=9, color=ink)
    return ax


def draw_tensors(**named: Tensor | tuple[Tensor, str]) -> Figure:
    """Draw small tensors side by side. The same number has the same colour in all of them.

        draw_tensors(x=(x, "s (h d)"), heads=(heads, "h s d"))

    Each is a tensor with one to three axes, or a pair of it and its axes as in an einops pattern.
    A 3-D tensor is drawn as one grid for each index of its first axis, below each other.

    Raises ValueError for a tensor with other axes, or a pattern that does not fit.
    """
    blocks = {name: _blocks(name, item) for name, item in named.items()}
    canvases = [_canvas(grid) for grid, _ in blocks.values()]
    columns = [canvas.shape[1] for canvas in canvases]
    width = sum(columns) + 2.2 * len(canvases)
    height = max(canvas.shape[0] for canvas in canvases) + 2.5
    cell = min(CELL, WIDEST / width)
    fig, axes = plt.subplots(
        ncols=len(canvases),
        figsize=(width * cell, height * cell),
        width_ratios=columns,
        squeeze=False,
        layout="constrained",
    )
    numbers = np.concatenate([canvas[np.isfinite(canvas)] for canvas in canvases])
    norm = colors.Normalize(numbers.min(initial=0), numbers.max(initial=0))
    for ax, canvas, (name, (grid, letters)) in zip(axes[0], canvases, blocks.items(), strict=True):
        image = ax.imshow(np.ma.masked_invalid(canvas), cmap="cividis", norm=norm)
        _write_values(image, canvas, fontsize=min(10, 26 * cell))
        _name_axes(ax, grid, letters)
        ax.set_title(name.replace("_", " "))
    return fig


def plot_loss(ax: Axes, losses: Sequence[float], *, window: int = 20) -> Axes:
    """Draw the loss of each step; with more than two windows of steps, its running mean too.

    Raises ValueError if there are no losses.
    """
    losses = np.asarray([float(loss) for loss in losses])
    if not len(losses):
        raise ValueError("There are no losses to draw: has the training taken a step?")
    steps = np.arange(1, len(losses) + 1)
    long = len(losses) > 2 * window
    ax.plot(steps, losses, color=SKY if long else BLUE, lw=1 if long else 1.8, label="loss")
    if long:
        mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        ax.plot(steps[window - 1 :], mean, color=BLUE, lw=2, label=f"mean of {window} steps")
        ax.legend(frameon=False)
    ax.set(xlabel="training step", ylabel="loss (nats per token)", ylim=(0, None))
    return ax


def plot_gates(ax: Axes, gates: Tensor, *, layers: Sequence[int] | None = None) -> Axes:
    """Draw gate openings (layers, heads), 0 in the middle of the colours. Below 0: a minus sign.

    layers: the numbers of the model's layers that the rows stand for.

    Raises ValueError for gates that are not 2-D, or `layers` of another number.
    """
    grid = _array(gates)
    limit = float(np.abs(grid).max(initial=0.0)) or 1.0
    heatmap(ax, gates, rows="layer", columns="head", cmap="PuOr", vmin=-limit, vmax=limit)
    ax.set_xticks(range(grid.shape[1]))
    if layers is not None:
        every = 1 + len(layers) // 16
        names = [str(layer) if i % every == 0 else "" for i, layer in enumerate(layers)]
        _label(ax.set_yticks, names, grid.shape[0])
    mark_negative(ax)
    ax.figure.colorbar(ax.images[0], ax=ax, label="gate opening")
    return ax


def _array(x: Tensor) -> np.ndarray:
    return torch.as_tensor(x).detach().cpu().double().numpy()


def _label(set_ticks, labels: Sequence[str] | None, size: int, **style) -> None:
    if labels is None:
        return
    if len(labels) != size:
        raise ValueError(f"expected {size} labels, one a row or column; {len(labels)} were given.")
    set_ticks(range(size), labels, **style)


def _blocks(name: str, item: Tensor | tuple[Tensor, str]) -> tuple[np.ndarray, list[str]]:
    """A tensor as 3-D array, with a name for each of its axes."""
    tensor, pattern = item if isinstance(item, tuple) else (item, "")
    grid = _array(tensor)
    letters = re.findall(r"\([^)]*\)|\S+", pattern) or [""] * grid.ndim
    if not 1 <= grid.ndim <= 3 or len(letters) != grid.ndim:
        raise ValueError(
            f"{name} has shape {grid.shape}, its axes are {pattern!r}. "
            "Expected one to three axes, and a name for each."
        )
    missing = 3 - grid.ndim
    return grid.reshape((1,) * missing + grid.shape), [""] * missing + letters


def _canvas(grid: np.ndarray) -> np.ndarray:
    """The blocks of a 3-D array below each other, with an empty row (NaN) between them."""
    spaced = np.pad(grid, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
    return rearrange(spaced, "block row column -> (block row) column")[:-1]


def _write_values(image: AxesImage, canvas: np.ndarray, **style) -> None:
    finite = canvas[np.isfinite(canvas)]
    decimals = 0 if np.array_equal(finite, finite.round()) else 2
    for (row, column), value in np.ndenumerate(canvas):
        if np.isnan(value):
            continue
        ink = _ink(image, value)
        text = f"{round(value, decimals) + 0.0:.{decimals}f}".replace("inf", "∞").replace("-", "−")
        image.axes.text(column, row, text, ha="center", va="center", color=ink, **style)


def _ink(image: AxesImage, value: float) -> str:
    """Black or white, whichever has more contrast with the cell of this value: at least 4.5 : 1."""
    if not np.isfinite(value):
        return "black"
    rgb = np.array(image.cmap(image.norm(value))[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)  # as WCAG defines it
    return "black" if luminance > 0.179 else "white"


def _name_axes(ax: Axes, grid: np.ndarray, letters: list[str]) -> None:
    blocks, rows, _ = grid.shape
    ax.set(xticks=[], xlabel=letters[2], ylabel=letters[1])
    names = [f"{letters[0]}={k}" for k in range(blocks)] if letters[0] else []
    ax.set_yticks([k * (rows + 1) + (rows - 1) / 2 for k in range(len(names))], names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
