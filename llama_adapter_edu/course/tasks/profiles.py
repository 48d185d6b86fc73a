"""Where to train: settings for a CPU, a T4 and a newer GPU, and how much memory a run will take.

profile  base weights  adapters  gradient scaler   for
cpu      float32       float32   no                any machine; few steps
t4       float16       float32   yes               16 GB GPUs without bfloat16 (T4, V100)
gpu      bfloat16      float32   no                GPUs since 2020 (A100, RTX 30, L4, H100)
"""

from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, PretrainedConfig

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.training.config import TrainingConfig

ADAM_BYTES = 16  # of a float32 parameter: itself, its gradient, two moments


@dataclass(frozen=True)
class Profile:
    """How a run fits a kind of machine.

    Args:
        dtype: of the frozen base. Adapters are float32 everywhere.
        mixed_precision: for accelerate; "fp16" brings the gradient scaler.
        steps, batch_size, micro_batch_size: as in `TrainingConfig`.
        test_rows: how many unseen rows to score with.
    """

    name: str
    dtype: torch.dtype
    mixed_precision: str
    steps: int
    batch_size: int
    micro_batch_size: int | None
    test_rows: int

    def accelerator(self) -> Accelerator:
        """An `Accelerator` for this profile, also after one for another profile."""
        # All accelerators of a process share one state, which refuses another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=self.name == "cpu", mixed_precision=self.mixed_precision)

    def training(self, **changes: object) -> TrainingConfig:
        """The profile's `TrainingConfig`, with other settings where you name them."""
        own = TrainingConfig(
            self.steps, self.batch_size, micro_batch_size=self.micro_batch_size, seed=0
        )
        return replace(own, **changes)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("cpu", torch.float32, "no", 36, 4, None, 24),
        Profile("t4", torch.float16, "fp16", 200, 32, 16, 200),
        Profile("gpu", torch.bfloat16, "no", 200, 32, None, 200),
    )
}


def choose_profile(name: str | None = None) -> Profile:
    """The profile of that name, or the one that fits this machine.

    Raises:
        ValueError: unknown name, or this machine cannot run it.
    """
    name = name or _fitting()
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}.")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"profile {name!r} needs a GPU that torch can use; choose 'cpu' here.")
    if name == "gpu" and _fitting() == "t4":
        raise ValueError("this GPU computes no bfloat16 in hardware; choose 't4'.")
    return PROFILES[name]


def _fitting() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    newer = torch.version.hip or torch.cuda.get_device_capability()[0] >= 8
    return "gpu" if newer else "t4"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes on the device, by what they are for."""

    base_weights: int
    adapters: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.base_weights + self.adapters + self.activations + self.logits

    def __str__(self) -> str:
        parts = {
            "base weights": self.base_weights,
            "adapters, gradients, Adam": self.adapters,
            "activations": self.activations,
            "logits": self.logits,
            "in all, about": self.total,
        }
        return "\n".join(f"{name:26} {size / 2**30:7.2f} GiB" for name, size in parts.items())


def estimate_memory(
    config: PretrainedConfig,
    profile: Profile,
    adapter: AdaptionPromptConfig,
    *,
    row_tokens: int,
    answer_tokens: int,
) -> MemoryEstimate:
    """What fine-tuning a Llama with adaption prompts will take, before anything is allocated.

    Frozen linear layers keep nothing for the backward pass. What is kept, in each adapted layer and
    for each token: the norms' inputs, queries, keys, values, the MLP's two halves, and the prompts'
    attention. Layers below the lowest adapted one keep nothing.

    Args:
        config: of the base, as from `AutoConfig.from_pretrained`.
        row_tokens, answer_tokens: length of a typical row, and of its labelled end.
    """
    with torch.device("meta"):  # shapes without memory
        base = AutoModelForCausalLM.from_config(config)
    n_base = sum(parameter.numel() for parameter in base.parameters())
    width, n_heads, mlp = config.hidden_size, config.num_attention_heads, config.intermediate_size
    heads_width = n_heads * (getattr(config, "head_dim", None) or width // n_heads)
    n_adapter = adapter.adapter_layers * (adapter.adapter_len * width + n_heads)

    size, rows = profile.dtype.itemsize, profile.micro_batch_size or profile.batch_size
    norms = 2 * width * 4  # their inputs, in float32
    attention = 5 * heads_width * size  # query, key, value, output, the prompts' output
    prompts = n_heads * adapter.adapter_len * (4 + size)  # softmax in float32, cast
    per_token = norms + attention + prompts + 3 * mlp * size  # gate, its SiLU, and up
    # Logits in the base's type and in float32, log-probabilities, and their gradient.
    per_answer_token = config.vocab_size * (3 * 4 + size)
    return MemoryEstimate(
        base_weights=n_base * size,
        adapters=n_adapter * ADAM_BYTES,
        activations=adapter.adapter_layers * rows * row_tokens * per_token,
        logits=rows * (answer_tokens + 1) * per_answer_token,
    )
