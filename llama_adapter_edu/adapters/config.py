"""Settings of an adapter."""

import math
from dataclasses import asdict, dataclass, fields, replace

from llama_adapter_edu.method.bias_scale import SCALED
from llama_adapter_edu.method.gated_prompts import GATE_ACTIVATIONS

GATES = ("per_head", "per_layer")
V2_SETTINGS = ("bias_scale", "norms", "scaled")
PAPER_LAYERS = 30  # L in the paper, of the 32 layers of LLaMA-7B


def _check_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


@dataclass(frozen=True)
class AdaptionPromptConfig:
    """Settings of one adapter. `adapter_len` and `adapter_layers` are PEFT's names.

    LLaMA-Adapter V2 (arXiv 2304.15010) is `bias_scale=True, norms=True`.

    Args:
        adapter_len: number of prompts per layer (K in the paper). 0 for V2 without prompts.
        adapter_layers: how many of the topmost layers get prompts (L in the paper). If None: the
            paper's 30, or all layers of a shallower model.
        gate: "per_head" as in the paper, or one gate "per_layer" as in PEFT.
        gate_activation: "tanh" as in eq. 7 of the ICLR 2024 edition, or "identity" as in arXiv v1.
        init_std: standard deviation of the prompts' normal start.
        bias_scale: V2's bias and scale for every linear layer of the model, its head included.
        norms: V2's norms: the adapter has weights of its own for all of them.
        scaled: "output", scale * (W x + bias), as in V2's paper, or "input", W (scale * x) + bias,
            as in its authors' code.

    Raises:
        ValueError: a setting is out of range; the message says which and what is allowed.
    """

    adapter_len: int = 10
    adapter_layers: int | None = None
    gate: str = "per_head"
    gate_activation: str = "tanh"
    init_std: float = 1.0
    bias_scale: bool = False
    norms: bool = False
    scaled: str = "output"

    def __post_init__(self) -> None:
        for name in ("bias_scale", "norms"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        _check_number("adapter_len", self.adapter_len, 0 if self.bias_scale or self.norms else 1)
        if self.adapter_layers is not None:
            _check_number("adapter_layers", self.adapter_layers, 1)
        choices = {"gate": GATES, "gate_activation": tuple(GATE_ACTIVATIONS), "scaled": SCALED}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        if not isinstance(self.init_std, (int, float)) or not 0 < self.init_std < math.inf:
            raise ValueError(
                f"init_std must be a finite number above 0, got {self.init_std!r}. "
                "Prompts of zero behind a gate of zero would never get a gradient."
            )

    def settings(self) -> dict:
        """The settings by name, as files hold them: those of V2 only if they are in use."""
        defaults = {f.name: f.default for f in fields(self) if f.name in V2_SETTINGS}
        return {n: v for n, v in asdict(self).items() if n not in defaults or v != defaults[n]}

    def for_depth(self, n_layers: int) -> "AdaptionPromptConfig":
        """The same settings with `adapter_layers` as a number, for a model of `n_layers` layers."""
        if self.adapter_layers is not None:
            return self
        return replace(self, adapter_layers=min(PAPER_LAYERS, n_layers))


@dataclass(frozen=True)
class CartridgeConfig:
    """Settings of a cartridge, under PEFT's names (see `add_cartridge`).

    Args:
        num_virtual_tokens: how many of the document's first tokens the cartridge starts from (p);
            all of them if None.
        num_frozen_tokens: how many of these, from the first on, do not train.

    Raises:
        ValueError: a number is out of range.
    """

    num_virtual_tokens: int | None = None
    num_frozen_tokens: int = 1

    def __post_init__(self) -> None:
        tokens, frozen = self.num_virtual_tokens, self.num_frozen_tokens
        if tokens is not None and (not isinstance(tokens, int) or tokens < 1):
            raise ValueError(f"num_virtual_tokens must be at least 1, or None, got {tokens!r}.")
        if not isinstance(frozen, int) or not 0 <= frozen <= (tokens or frozen):
            raise ValueError(
                f"num_frozen_tokens must be 0 to num_virtual_tokens ({tokens}), got {frozen!r}."
            )

    def settings(self) -> dict:
        """The settings by name."""
        return asdict(self)
