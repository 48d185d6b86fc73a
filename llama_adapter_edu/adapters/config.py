"""Settings of an adapter."""

import math
from dataclasses import dataclass, replace

from llama_adapter_edu.method.gated_prompts import GATE_ACTIVATIONS

GATES = ("per_head", "per_layer")
PAPER_LAYERS = 30  # L in the paper, of the 32 layers of LLaMA-7B


@dataclass(frozen=True)
class AdaptionPromptConfig:
    """Settings of one adapter. `adapter_len` and `adapter_layers` are PEFT's names.

    Args:
        adapter_len: number of prompts per layer (K in the paper).
        adapter_layers: how many of the topmost layers get prompts (L in the paper). If None: the
            paper's 30, or all layers of a shallower model.
        gate: "per_head" as in the paper, or one gate "per_layer" as in PEFT.
        gate_activation: "tanh" as in the authors' training code, or "identity" as in eq. 7.
        init_std: standard deviation of the prompts' normal start.

    Raises:
        ValueError: a setting is out of range; the message says which and what is allowed.
    """

    adapter_len: int = 10
    adapter_layers: int | None = None
    gate: str = "per_head"
    gate_activation: str = "tanh"
    init_std: float = 1.0

    def __post_init__(self) -> None:
        for name in ("adapter_len", "adapter_layers"):
            value = getattr(self, name)
            if name == "adapter_layers" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        choices = {"gate": GATES, "gate_activation": tuple(GATE_ACTIVATIONS)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        if not isinstance(self.init_std, (int, float)) or not 0 < self.init_std < math.inf:
            raise ValueError(
                f"init_std must be a finite number above 0, got {self.init_std!r}. "
                "Prompts of zero behind a gate of zero would never get a gradient."
            )

    def for_depth(self, n_layers: int) -> "AdaptionPromptConfig":
        """The same settings with `adapter_layers` as a number, for a model of `n_layers` layers."""
        if self.adapter_layers is not None:
            return self
        return replace(self, adapter_layers=min(PAPER_LAYERS, n_layers))
