"""What a function does besides its values: gradients reach its inputs, and it follows a device."""

import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

STEP = 1e-2  # how far an input is moved to see how the result moves
TOLERANCE = 0.03  # of the gradient's length
SMALL = 1e-3
NONE_ARRIVES = (
    "no gradient reaches `{}`, so nothing could be learnt through it: detach, no_grad, .data, "
    ".item() or a new Parameter cuts it, or the result is not made from the input of this call"
)
PART_IS_CUT = (
    "the gradient of `{}` does not tell how the result moves with it: on one of its ways detach, "
    "no_grad, .data or .item() cuts it, or the result is not made from the input of this call"
)
ONE_DEVICE = (
    "it works on the CPU only: give the tensors that it makes the device of its inputs, "
    "device=x.device"
)


def assert_gradients(function: Callable, *args, what: str = "", tol: float = TOLERANCE, **kwargs):
    """Each float tensor among the inputs gets the gradient that its influence deserves.

    The function is called with copies of the inputs, also of those in lists and dictionaries. The
    gradient of a random sum of its results is compared with what the sum does when one input is
    moved a little to both sides, so nothing has to be known about the function.

    what: is put before the message. tol: the error allowed, as a share of the gradient's length.
    Raises AssertionError with the name of the input that gets no gradient or a wrong one.
    """
    inputs = dict(_named_tensors(function, args, kwargs))
    leaves = {id(x): x.detach().clone().requires_grad_() for x in inputs.values()}

    def total(**moved: Tensor) -> Tensor:
        return _weighted_sum(
            function, args, kwargs, leaves | {id(inputs[k]): x for k, x in moved.items()}
        )

    result = total()
    if not result.requires_grad:
        raise AssertionError(f"{what}: {NONE_ARRIVES}".removeprefix(": ").format(*inputs))
    wanted = [leaves[id(x)] for x in inputs.values()]
    gradients = torch.autograd.grad(result, wanted, allow_unused=True)
    for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
        step = torch.randn_like(x)
        step *= STEP / step.norm().clamp(min=1e-12)
        ends = total(**{name: leaves[id(x)] + step}), total(**{name: leaves[id(x)] - step})
        moved = float(ends[0].detach() - ends[1].detach()) / (2 * STEP)
        gradient = torch.zeros_like(x) if gradient is None else gradient
        predicted = float((gradient * step).sum()) / STEP
        if abs(moved - predicted) > tol * max(abs(moved), float(gradient.norm())) + SMALL:
            problem = NONE_ARRIVES if not gradient.any() else PART_IS_CUT
            raise AssertionError(f"{what}: {problem}".removeprefix(": ").format(name))


def assert_any_device(function: Callable, *args, **kwargs) -> None:
    """The function makes its new tensors on the device of its inputs (tried without a GPU)."""
    tensors = dict(_tensors("", [args, kwargs], floats=False))
    elsewhere = {id(x): x.to("meta") for x in tensors.values()}
    try:
        function(*_replaced(args, elsewhere), **_replaced(kwargs, elsewhere))
    except (RuntimeError, TypeError, ValueError) as error:  # else it asks for values: not judged
        if "same device" in str(error) or "on device" in str(error):
            raise AssertionError(ONE_DEVICE) from None


def _named_tensors(function: Callable, args: tuple, kwargs: dict) -> Iterator[tuple[str, Tensor]]:
    try:
        arguments = inspect.signature(function).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        arguments = {f"argument {number}": value for number, value in enumerate(args)} | kwargs
    for name, value in arguments.items():
        yield from _tensors(name, value)


def _tensors(name: str, value: object, floats: bool = True) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor) and (value.is_floating_point() or not floats):
        yield name, value
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _tensors(f"{name}[{place}]", item, floats)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(f"{name}[{key!r}]", item, floats)


def _weighted_sum(function: Callable, args: tuple, kwargs: dict, leaves: dict) -> Tensor:
    """The sum of all results, each number times a random weight that is always the same."""
    torch.manual_seed(0)
    result = function(*_replaced(args, leaves), **_replaced(kwargs, leaves))
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for _, x in _tensors("", result):
        total = total + (x.double() * torch.randn(x.shape, generator=generator)).sum()
    return total


def _replaced(value, leaves: dict):
    if isinstance(value, Tensor):
        return leaves.get(id(value), value)
    if type(value) in (list, tuple):
        return type(value)(_replaced(item, leaves) for item in value)
    if isinstance(value, dict):
        return {key: _replaced(item, leaves) for key, item in value.items()}
    return value
