"""The pictures show the numbers they are given."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from llama_adapter_edu.course import figures as plots

matplotlib.use("Agg")


@pytest.fixture
def ax():
    with plt.rc_context():
        plots.use_style()
        yield plt.subplots()[1]
    plt.close("all")


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_heatmap_shows_the_matrix_its_axes_and_words(ax):
    matrix = torch.tensor([[0.0, 0.25, 0.5], [1.0, float("-inf"), -0.001]], requires_grad=True)
    drawn = plots.heatmap(
        ax, matrix, rows="s", columns="t", column_labels=["The", "cat", "sat"], values=True
    )
    assert drawn is ax
    assert ax.images[0].get_array()[1, 0] == 1
    assert ax.images[0].get_array().mask.sum() == 1
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("s", "t")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["The", "cat", "sat"]
    assert texts(ax) == ["0.00", "0.25", "0.50", "1.00", "−∞", "0.00"]


def test_heatmap_takes_any_dtype_and_matplotlib_options(ax):
    matrix = torch.ones(2, 3, dtype=torch.bfloat16)
    plots.heatmap(ax, matrix, vmin=0, vmax=4, cmap="viridis")
    assert ax.images[0].get_clim() == (0, 4)
    assert ax.images[0].get_cmap().name == "viridis"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"matrix": torch.ones(2, 3, 4)}, "pick a slice"),
        ({"matrix": torch.ones(2, 3), "row_labels": ["one"]}, "expected 2 labels"),
        ({"matrix": torch.ones(2, 3), "column_labels": ["a", "b"]}, "expected 3 labels"),
    ],
)
def test_heatmap_refuses_what_does_not_fit(ax, arguments, words):
    with pytest.raises(ValueError, match=words):
        plots.heatmap(ax, **arguments)


def test_draw_tensors_draws_blocks_below_each_other_in_shared_colours():
    x, heads = torch.arange(12).reshape(2, 6), torch.arange(12).reshape(3, 2, 2)
    fig = plots.draw_tensors(x=(x, "s (h d)"), two_heads=(heads, "h s d"))
    left, right = fig.axes
    assert texts(left) == texts(right) == [str(n) for n in range(12)]
    assert (left.get_ylabel(), left.get_xlabel()) == ("s", "(h d)")
    assert (right.get_ylabel(), right.get_xlabel()) == ("s", "d")
    assert [label.get_text() for label in right.get_yticklabels()] == ["h=0", "h=1", "h=2"]
    assert right.get_title() == "two heads"
    assert left.images[0].norm is right.images[0].norm
    # rows 0-1 are head 0, row 2 is empty, rows 3-4 are head 1
    positions = {text.get_text(): text.get_position() for text in right.texts}
    assert positions["5"] == (1, 3)
    plt.close(fig)


def test_draw_tensors_takes_a_bare_tensor_of_one_axis_and_stays_narrow():
    fig = plots.draw_tensors(x=torch.zeros(60))
    assert texts(fig.axes[0]) == ["0"] * 60
    assert fig.get_figwidth() <= plots.WIDEST
    plt.close(fig)


@pytest.mark.parametrize(
    "item", [torch.tensor(1.0), torch.ones(1, 2, 3, 4), (torch.ones(2, 3), "b s d")]
)
def test_draw_tensors_refuses_what_it_cannot_draw(item):
    with pytest.raises(ValueError, match="one to three axes"):
        plots.draw_tensors(x=item)


def test_plot_loss_adds_a_running_mean_to_long_runs(ax):
    assert plots.plot_loss(ax, [3.0, torch.tensor(2.0), 1.0]) is ax
    assert [list(line.get_ydata()) for line in ax.lines] == [[3, 2, 1]]
    assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
    plots.plot_loss(ax, [1.0, 3.0, 5.0, 7.0, 9.0], window=2)
    assert list(ax.lines[-1].get_ydata()) == [2, 4, 6, 8]
    assert list(ax.lines[-1].get_xdata()) == [2, 3, 4, 5]


def test_plot_loss_needs_losses(ax):
    with pytest.raises(ValueError, match="no losses"):
        plots.plot_loss(ax, [])


def test_plot_gates_centres_the_colours_at_zero_and_marks_negative_gates(ax):
    gates = torch.tensor([[0.1, -0.4, 0.0], [0.2, 0.3, -0.1]])
    assert plots.plot_gates(ax, gates, layers=[28, 29]) is ax
    assert ax.images[0].get_clim() == pytest.approx((-0.4, 0.4))
    assert [text.get_position() for text in ax.texts] == [(1, 0), (2, 1)]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["28", "29"]


def test_plot_gates_draws_gates_that_are_all_closed(ax):
    plots.plot_gates(ax, torch.zeros(2, 3))
    assert ax.images[0].get_clim() == (-1, 1)
    assert texts(ax) == []


def test_plot_gates_refuses_wrong_layers(ax):
    with pytest.raises(ValueError, match="expected 2 labels"):
        plots.plot_gates(ax, torch.zeros(2, 3), layers=[1])


def test_minus_signs_are_readable_on_dark_and_light_cells(ax):
    plots.plot_gates(ax, torch.tensor([[-1.0, -0.01, 1.0]]))
    assert [(t.get_text(), t.get_color()) for t in ax.texts] == [("−", "white"), ("−", "black")]
