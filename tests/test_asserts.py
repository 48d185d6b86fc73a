"""The course's asserts: what they accept, and in which words they refuse."""

import numpy as np
import pytest
import torch

from llama_adapter_edu.course import (
    assert_any_device,
    assert_close,
    assert_gradients,
    assert_results,
    assert_shape,
    unpacked,
)

SIZES = {"b": 2, "h": 3, "s": 5, "d": 4}
RIGHT = torch.arange(120.0).reshape(2, 3, 5, 4)


def words(actual, expected=RIGHT, axes="b h s d", **options) -> str:
    with pytest.raises(AssertionError) as error:
        assert_close(actual, expected, axes, **options)
    return str(error.value)


def test_equal_values_pass():
    assert_close(RIGHT + 1e-6, RIGHT, "b h s d")
    assert_close(RIGHT.clone().requires_grad_(), RIGHT)
    assert_close(0.5, 0.5)
    assert_close(torch.tensor(0.5), 0.5, "")
    assert_close(
        torch.tensor([float("nan"), -float("inf")]), torch.tensor([float("nan"), -torch.inf])
    )
    assert_close(torch.tensor([1j]), torch.tensor([1j]), "d")
    assert_shape(RIGHT, "b h s d", **SIZES)


SHAPES = {
    "heads and positions look swapped": (2, 5, 3, 4),
    "the axes look ordered s d b h, not b h s d": (5, 4, 2, 3),
    "the axis of batch (b) is missing": (3, 5, 4),
    "heads (h) should be 3, not 1": (2, 1, 5, 4),
    "positions and head width look merged": (2, 3, 20),
    "there is an axis of size 1 too many or too few": (2, 3, 1, 5, 4),
}


@pytest.mark.parametrize(("guess", "shape"), SHAPES.items())
def test_a_wrong_shape_is_explained_in_the_legends_words(guess, shape):
    expected = f"expected (b=2, h=3, s=5, d=4), got {shape}: {guess}"
    assert words(torch.zeros(shape)) == expected
    with pytest.raises(AssertionError) as error:
        assert_shape(torch.zeros(shape), "b h s d", **SIZES)
    assert str(error.value) == expected


def test_shapes_without_a_guess_or_letters():
    expected = "expected (b=2, h=3, s=5, d=4), got (7,): 4 axes are expected, not 1"
    assert words(torch.zeros(7)) == expected
    assert words(torch.zeros(7), axes=None) == "expected (2, 3, 5, 4), got (7,)"


def test_queries_and_keys_are_told_apart():
    expected = torch.zeros(2, 5, 7)
    message = words(torch.zeros(2, 7, 5), expected, "b s t")
    assert "query positions and key positions look swapped" in message


def test_nothing_is_broadcast():
    assert "got ()" in words(torch.tensor(1.0), torch.ones(3), "d")
    assert "got (1,)" in words(torch.ones(1), torch.ones(3), "d")
    assert "got (1,)" in words(torch.ones(1), torch.tensor(1.0), "")


@pytest.mark.parametrize(
    ("actual", "found"),
    [
        (None, "got None: is the `return` missing?"),
        ([1.0], "got list"),
        (RIGHT.numpy(), "got ndarray"),
        (1.0, "got float"),
        ((RIGHT, RIGHT), "got tuple"),
    ],
)
def test_a_wrong_type(actual, found):
    expected = "expected a tensor (b=2, h=3, s=5, d=4), "
    assert words(actual) == expected + found
    with pytest.raises(AssertionError, match="expected a tensor"):
        assert_shape(actual, "b h s d", **SIZES)


def test_shape_comes_before_dtype_dtype_before_values():
    assert "heads and positions" in words(torch.zeros(2, 5, 3, 4, dtype=torch.int64))
    assert words(RIGHT.double() + 1) == "expected dtype float32, got float64"
    assert words(RIGHT > 3, RIGHT) == "expected dtype float32, got bool"


def test_nan_is_counted():
    actual = RIGHT.clone()
    actual[0, 0, :2] = float("nan")
    assert words(actual).startswith("8 of 120 values are NaN: 0 times infinity")


def test_a_constant_factor_is_found():
    assert words(2 * RIGHT) == "all values are 2 times the expected ones"
    assert words(-RIGHT) == "all values are -1 times the expected ones"


def test_the_first_difference_is_shown_with_its_place():
    actual = RIGHT.clone()
    actual[1, 2, 3, 0] += 1
    message = "1 of 120 values differ; the first at (b=1, h=2, s=3, d=0): expected 112, got 113"
    assert words(actual) == f"{message}. Only b=1 is wrong"
    assert words(0.25, 0.5, None) == "expected 0.5, got 0.25"
    assert "1 of 1 values differ" in words(torch.tensor([1j]), torch.tensor([2 + 0j]), "d")


def test_infinities_differ_from_large_numbers():
    expected = torch.tensor([1.0, -torch.inf])
    assert "expected -inf, got -1e+09" in words(torch.tensor([1.0, -1e9]), expected, "t")


def test_a_known_mistake_has_the_word():
    swapped = RIGHT.transpose(1, 2)
    mistakes = {"times two": 2 * RIGHT, "move the heads": swapped}
    assert words(swapped.clone(), mistakes=mistakes) == "move the heads"
    assert words(2 * RIGHT, mistakes=mistakes) == "times two"
    assert words(RIGHT + 1, mistakes=mistakes, what="the keys").startswith(
        "the keys: all values are 1 too large"
    )
    assert_close(RIGHT, RIGHT, "b h s d", mistakes=mistakes)


def test_mistakes_of_the_author_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        assert_close(RIGHT, RIGHT, "b h")
    with pytest.raises(ValueError, match="sizes are given"):
        assert_shape(RIGHT, "b h s d", b=2)


def said_of(function, *args, **kwargs) -> str:
    with pytest.raises(AssertionError) as error:
        function(*args, **kwargs)
    return str(error.value)


def test_numbers_of_numpy_are_numbers():
    assert_close(np.int64(3), 3)
    assert_close(np.float64(0.5), 0.5)


PAIR = {"the keys": torch.tensor([1.0, 2.0]), "the values": torch.tensor([3.0, 5.0])}


def test_several_results_in_a_tuple_or_a_list():
    keys, values = PAIR.values()
    assert_results((keys, values), PAIR, "p")
    assert_results([keys, values], PAIR, "p")
    assert said_of(assert_results, (values, keys), PAIR) == "the keys and the values look swapped"
    assert "the values: all values are 2 times" in said_of(assert_results, (keys, 2 * values), PAIR)
    mistakes = {"not projected": (None, values + 7)}
    said = said_of(assert_results, (keys, values + 7), PAIR, mistakes=mistakes)
    assert said == "the values: not projected"


@pytest.mark.parametrize(
    ("actual", "words"),
    [(None, "is the `return` missing?"), (RIGHT, "got one tensor"), ((1, 2, 3), "got 3")],
)
def test_another_number_of_results_is_told(actual, words):
    assert words in said_of(unpacked, actual, "keys", "values")


CUT = {
    "detached": lambda x, y: (x * y).detach(),
    "from the first call": lambda x, y, kept=[]: (kept.append(x * y), kept[0])[1],
    "one input cut": lambda x, y: x * y.detach(),
    "one way cut": lambda x, y: x * y + x.detach() ** 2,
    "a number": lambda x, y: torch.tensor((x * y).sum().item()),
}


@pytest.mark.parametrize("function", CUT.values(), ids=CUT)
def test_a_gradient_that_is_cut_is_found(function):
    said = said_of(assert_gradients, function, torch.randn(3), torch.randn(3), what="here")
    assert said.startswith("here: ") and "radient" in said
    assert "`x`" in said or "`y`" in said


def test_gradients_that_arrive_pass():
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert_gradients(lambda x, y: (x.softmax(-1), [y.exp() * x]), x, y)
    assert_gradients(lambda rows, scale: rows[0]["a"] * scale, [{"a": x}], scale=2.0)
    closed = torch.zeros(3)
    assert_gradients(lambda gate, x: gate.tanh() * x, closed, x)
    assert_gradients(lambda ids, x: x[ids], torch.tensor([0, 1]), x)


def test_a_tensor_on_a_fixed_device_is_found():
    x = torch.randn(3)
    assert "on the CPU only" in said_of(assert_any_device, lambda x: x + torch.ones(3), x)
    assert_any_device(lambda x: x + torch.ones(3, device=x.device), x)
    assert_any_device(lambda x: x * x.sum().item(), x)  # asks for a value: cannot be judged


def test_the_pattern_of_a_mistake_is_named():
    assert words(RIGHT.flip(2)).startswith("the numbers are the right ones, but in other places")
    one_row = RIGHT.clone()
    one_row[:, :, 3] = 7.0
    assert words(one_row).endswith("Only s=3 is wrong")
    assert words(torch.zeros_like(RIGHT)) == "all values are 0"
    assert "heads (h) should be 3, not 7" in words(torch.zeros(2, 7, 5, 4))
    assert "got the `...` of the exercise" in words(...)
    assert "a comma too many" in words((RIGHT,))
