"""A frozen base in float8, forward and backward: faster steps on NVIDIA GPUs since Ada and Hopper.

    y  = x w^T     (n i), (o i) -> (n o)     a scale for each row of x, and each output of w
    dx = dy w      (n o), (i o) -> (n i)     a scale for each row of dy, and each input of w

A frozen weight has no gradient, so these two products are all. Float8 tensor cores want both
factors in rows of what is summed: each weight is cast once into either layout, 2 bytes a weight,
as in bfloat16. x and dy are cast at each product; with compiled layers (`compile_layers=True`) that
costs little. e4m3 keeps 4 significant bits (1 + 3): a number moves by up to 1/16 of itself, so an
adapter learns around a slightly different base. It can be moved to the same base in 16 bits.

Own code, because torchao 0.18's float8 training keeps the 16-bit weight and casts it in every step,
and its float8 inference has no backward pass.

Shape legend: n rows (tokens of a batch, or prompts), i inputs and o outputs of a linear layer,
k what a product sums over.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float8e4m3fn
from torch import Tensor, nn
from transformers import PreTrainedModel

E4M3, LARGEST = torch.float8_e4m3fn, 448.0  # the type's largest number
MULTIPLE = 16  # float8 tensor cores take widths that are multiples of this


def cast_rows(x: Float[Tensor, "n k"]) -> tuple[Float8e4m3fn[Tensor, "n k"], Float[Tensor, "n 1"]]:
    """Each row in float8, and its float32 scale: x is about float8 * scale.

    A row's largest number becomes 448. Rounding moves it by a millionth, and all up to 464 are
    rounded to 448, so nothing overflows.
    """
    x = x.contiguous()  # tensor cores want rows, and a cast would keep columns
    largest = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12)  # a row may be all zeros
    scale = largest / LARGEST
    return (x.float() / scale).to(E4M3), scale


def product(
    a: Float8e4m3fn[Tensor, "n k"],
    a_scale: Float[Tensor, "n 1"],
    b: Float8e4m3fn[Tensor, "m k"],
    b_scale: Float[Tensor, "m 1"],
    dtype: torch.dtype,
) -> Float[Tensor, "n m"]:
    """a b^T, both factors times the scales of their rows.

    A GPU writes bfloat16, whatever `dtype` is. A CPU multiplies the same numbers in float32, for
    tests: it is not faster.
    """
    if a.is_cuda:
        scales = {"scale_a": a_scale, "scale_b": b_scale.t()}
        y = torch._scaled_mm(a, b.t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    else:
        y = (a.float() @ b.float().t()) * a_scale * b_scale.t()
    # torch 2.11 compiles a product that ends in a cast to its own type without a gradient.
    return y if y.dtype == dtype else y.to(dtype)


class _FrozenProduct(torch.autograd.Function):
    """y = x w^T, of which only x gets a gradient."""

    @staticmethod
    def forward(ctx, x, weight8, scale, turned8, turned_scale):
        ctx.save_for_backward(turned8, turned_scale)
        return product(*cast_rows(x), weight8, scale, x.dtype)

    @staticmethod
    def backward(ctx, dy):
        return product(*cast_rows(dy), *ctx.saved_tensors, dy.dtype), None, None, None, None


class _ToRead(Tensor):
    """A copy. What is written into it, or into a view of it, would be lost: PEFT merges a LoRA so.

    What is computed from it is a plain tensor.
    """

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name, kwargs = function.__name__, kwargs or {}
        writes = name in WRITING or (name.endswith("_") and not name.endswith("__"))
        if function in FREEZING and (*args[1:], *kwargs.values())[:1] == (False,):
            writes = False  # it is frozen
        written = (*args[:1], *kwargs.values())[0] if writes else kwargs.get("out")
        if isinstance(written, cls):
            raise RuntimeError(
                "a weight in float8 cannot be changed: what is seen of it is a copy. Merge or "
                "initialise in 16 bits, and call to_float8 afterwards."
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
            view = isinstance(result, Tensor) and result._is_view()
            return result.as_subclass(cls) if view or function in SHARING else result

    def __deepcopy__(self, memo: dict) -> Tensor:
        return self.clone()


WRITING = {
    f"__i{name}__"
    for name in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"]
}
WRITING |= {"__setitem__", "__set__"}
FREEZING = {Tensor.requires_grad.__set__, Tensor.requires_grad_}
SHARING = {Tensor.detach, Tensor.data.__get__}


class Float8Linear(nn.Linear):
    """A frozen linear layer in float8. Casts of the model, as `.half()`, leave its weight so.

    Attributes:
        weight8 (o i), scale (o 1): the weight, for y.
        turned8 (i o), turned_scale (i 1): the transposed weight, rounded for itself, for dx.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would make a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        weight8, scale = cast_rows(weight)
        turned8, turned_scale = cast_rows(weight.t())
        # One layout is a parameter: so a weight counts once, and tells on which device it is.
        self.weight8 = nn.Parameter(weight8, requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_buffer("turned8", turned8)
        self.register_buffer("turned_scale", turned_scale)
        self.register_buffer("typed", weight.new_empty(0), persistent=False)  # casts change it
        self.register_parameter("bias", linear.bias)
        self.train(linear.training)

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """A copy of y's weight in the model's own type, to read."""
        return (self.weight8.float() * self.scale).to(self.typed.dtype).as_subclass(_ToRead)

    def _in_float8(self) -> tuple[Tensor, ...]:
        return self.weight8, self.scale, self.turned8, self.turned_scale

    def forward(self, input: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        if self.weight8.requires_grad:
            raise ValueError("weights in float8 cannot train: call model.requires_grad_(False).")
        rows = input.reshape(-1, self.in_features)
        y = _FrozenProduct.apply(rows, *self._in_float8())
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.reshape(*input.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Float8Linear":
        fixed = self._in_float8()

        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            cast = moved.dtype != tensor.dtype and any(tensor is kept for kept in fixed)
            return tensor.to(moved.device) if cast else moved

        return super()._apply(move_only, recurse)


def to_float8(model: PreTrainedModel) -> PreTrainedModel:
    """Put the frozen linear layers of a decoder's layers into float8, in place, one by one.

    Embedding, head and norms stay. The model may have prompts or a cartridge, or get adapters of
    any kind afterwards. Adapters are exchanged with the base in 16 or 32 bits.

    Raises:
        ValueError: the device computes no float8, or the model is no plain transformers decoder
            whose linear layers are frozen, whole, and of widths that are multiples of 16. The
            model is as it was.
    """
    paths = _checked_paths(model)
    check_float8(model.get_submodule(paths[0]).weight.device)
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, Float8Linear(model.get_submodule(path)))
    return model


def _checked_paths(model: PreTrainedModel) -> list[str]:
    """Where the linear layers of the decoder's layers are; ValueError if one cannot be cast."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a transformers model, got {type(model).__name__}: wrap later.")
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError("the base is quantised: for float8, load one in 16 or 32 bits.")
    inside = {m for layer in getattr(model.get_decoder(), "layers", ()) for m in layer.modules()}
    plain = {path: m for path, m in model.named_modules() if m in inside and type(m) is nn.Linear}
    for path, linear in plain.items():
        if why := _refusal(linear):
            raise ValueError(f"{path} {why}.")
    if not plain:
        raise ValueError("the model's layers have no nn.Linear: are they in float8 already?")
    return list(plain)


def _refusal(linear: nn.Linear) -> str | None:
    """Why this layer cannot be put into float8, and what to do; None if it can."""
    widths = linear.in_features, linear.out_features
    if hasattr(linear.weight, "placements"):
        return "is spread over processes: load the base whole"
    if linear.weight.is_meta or hasattr(linear, "_hf_hook"):
        return "is offloaded: load the base on one device"
    if linear.weight.requires_grad:
        return (
            "trains, but float8 cannot: call model.requires_grad_(False) before to_float8, and add "
            "PEFT's adapters after it"
        )
    hooks = linear._forward_hooks, linear._forward_pre_hooks
    hooks += linear._backward_hooks, linear._backward_pre_hooks
    left_by_v2 = len(getattr(linear, "changes", (1,))) == 0  # its adapters are gone
    if any(hooks) and not left_by_v2:
        return "has hooks, as of V2's adapters: call to_float8 before you add them"
    if "forward" in vars(linear):
        return "has a forward of its own, which would be lost: call to_float8 first"
    if any(width % MULTIPLE for width in widths):
        return f"has the widths {widths}, float8 needs multiples of {MULTIPLE}: take bfloat16"
    return None


def check_float8(device: torch.device | str) -> None:
    """Raise ValueError if a small product in float8 does not work on this device."""
    try:
        ones = cast_rows(torch.ones(MULTIPLE, MULTIPLE, device=device))
        product(*(x[:1] for x in ones), *ones, torch.bfloat16)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"float8 does not work on {str(device)!r}: {reason}. It needs an NVIDIA GPU of compute "
            "capability 8.9 or more (L4, RTX 40, H100), or a CPU for tests. Else take bfloat16."
        ) from error
