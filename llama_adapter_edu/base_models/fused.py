"""An option for NVIDIA GPUs: the base's own small operations in fewer kernels.

    norm         x / rms(x) * weight     PyTorch's one kernel
    attention    rotary embedding        Liger-Kernel's, in training
    mlp          silu(gate) * up         Liger-Kernel's, in training

Between two matrix products a Llama reads and writes its hidden states a dozen times. One kernel
does so once. This changes the modules of one model, each only if it computes what stands above: a
trial of small numbers tells. Results are those of before, up to rounding.

Liger-Kernel (arXiv 2410.10989) is optional. Without it, or on a CPU, norms alone are fused. Its
kernels take longer to launch than PyTorch's, so decoding does without them.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType, MethodType, ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from llama_adapter_edu.base_models.fusable import eps_of, is_gated_mlp, is_plain_norm, is_rotary

ROTARY = "apply_rotary_pos_emb"  # as each model file of transformers calls it
PLACES = "forward", "_old_forward"  # the second one is of accelerate's hooks


def fuse_base(model: nn.Module) -> nn.Module:
    """Let the norms, rotary embeddings and MLPs of this model run in fewer kernels, in place.

    The model may have adapters, or get them afterwards. Copies stay fused; a pickled model comes
    back as it was before. A graph can go backward once: Liger writes over what it kept.

    Raises:
        ValueError: no module of the model computes what can be fused.
    """
    if not any([_fuse(module) for module in model.modules()]):
        raise ValueError("nothing in this model is of a kind that can be fused. Leave it out.")
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    if on_gpu and liger() is None:
        warnings.warn(
            "liger-kernel is not installed, so only norms are fused: pip install liger-kernel",
            stacklevel=2,
        )
    return model


def unfuse_base(model: nn.Module) -> nn.Module:
    """Take `fuse_base` back."""
    _unfuse(model.modules())
    return model


@contextmanager
def fused_base(model: nn.Module) -> Iterator[None]:
    """Inside, the model is fused; afterwards, what was not fused before is so no longer."""
    plain = [module for module in model.modules() if not any(_is_fused(module, p) for p in PLACES)]
    try:
        fuse_base(model)
        yield
    finally:
        _unfuse(plain)


def _unfuse(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for name in PLACES:
            if _is_fused(module, name):
                if name == "forward":
                    del vars(module)[name]
                else:
                    vars(module)[name] = MethodType(type(module).forward, module)


@cache
def liger() -> ModuleType | None:
    """Liger-Kernel's operations, if they are installed and can be loaded."""
    try:
        from liger_kernel import ops
    except (ImportError, RuntimeError):  # Triton looks for a GPU's driver
        return None
    return ops


def in_training(x: Tensor) -> bool:
    """Whether Liger's kernels are to compute: on a GPU, with gradients, and not being compiled."""
    usual = x.is_cuda and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return usual and liger() is not None


def _is_fused(module: nn.Module, place: str) -> bool:
    return hasattr(getattr(vars(module).get(place), "__func__", None), "fused")


def _fuse(module: nn.Module) -> bool:
    """Let this module compute in fewer kernels, if it is of a kind that can."""
    function = _fused_forward(module)
    place = PLACES["_old_forward" in vars(module)]
    # A model that was pickled has its class's own forward there.
    own = getattr(module.forward, "__func__", None) is type(module).forward
    others = place in vars(module) and not own and not _is_fused(module, place)
    if function is None or (place == "forward" and others):
        return False
    vars(module)[place] = MethodType(function, module)
    return True


def _fused_forward(module: nn.Module) -> Callable | None:
    forward = inspect.unwrap(type(module).forward)
    function, code = None, getattr(forward, "__code__", None)
    if code is None or type(module).forward is nn.Module.forward:
        return None
    if is_plain_norm(module):
        function = _normed
    elif is_gated_mlp(module):
        function = _gated
    elif ROTARY in code.co_names and is_rotary(forward.__globals__.get(ROTARY)):
        function = _with_rotary(type(module).forward)
    if function is not None:
        function.fused = True
        function.__name__ = "forward"  # by this name a pickle finds it again in the module's class
    return function


def _normed(self: nn.Module, hidden_states: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
    return F.rms_norm(hidden_states, self.weight.shape, self.weight, eps_of(self))


def _gated(self: nn.Module, x: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
    gate, up = self.gate_proj(x), self.up_proj(x)
    product = _silu_product() if in_training(x) else lambda gate, up: self.act_fn(gate) * up
    return self.down_proj(product(gate, up))


@cache
def _silu_product() -> Callable[[Tensor, Tensor], Tensor]:
    kernel = liger().LigerSiLUMulFunction

    class SiLUProduct(kernel):
        """Liger's, whose backward pass writes over what it kept: a second one is an error."""

        @staticmethod
        def backward(ctx, *gradients):
            kept = ctx.saved_tensors
            found = kernel.backward(ctx, *gradients)
            torch.autograd.graph.increment_version(kept)
            return found

    return SiLUProduct.apply


@cache
def _with_rotary(own: Callable) -> Callable:
    """An attention's forward that, in training, has Liger's rotary embedding by the name of its."""

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return liger().LigerRopeFunction.apply(q, k, cos, sin)

    plain = inspect.unwrap(own)
    names = {**plain.__globals__, ROTARY: rotary}
    parts = plain.__name__, plain.__defaults__, plain.__closure__
    with_liger = FunctionType(plain.__code__, names, *parts)
    with_liger.__kwdefaults__ = plain.__kwdefaults__

    def attend(self: nn.Module, hidden_states: Tensor, *others, **more):
        forward = with_liger if in_training(hidden_states) else own
        return forward(self, hidden_states, *others, **more)

    return attend
