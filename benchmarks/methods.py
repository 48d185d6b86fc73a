"""The ways to fine-tune that the speed benchmarks compare, on one set of base weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import peft
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama

OURS, PEFTS, LORA = "adaption prompts", "PEFT adaption prompts", "PEFT LoRA"
FULL, BASE = "full fine-tuning", "base"
SHAPES = {
    "llama-7b": LlamaConfig(),  # the defaults of the config are the shape of LLaMA-7B
    "smollm2": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(
        vocab_size=199,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
    ),
}


class Base:
    """Base weights that all methods share, so that several large models fit side by side."""

    def __init__(self, shape: str, device: torch.device, dtype: torch.dtype) -> None:
        if shape == "smollm2-real":
            model, self.tokenizer = load_llama(device=device, dtype=dtype)
        else:
            torch.manual_seed(0)
            with device:
                model = LlamaForCausalLM(SHAPES[shape]).to(dtype)
        self.config, self.weights = model.config, model.state_dict()
        self.buffers = {name: buffer for name, buffer in model.named_buffers()}

    def model(self) -> LlamaForCausalLM:
        """A model of its own around the shared weights, all frozen."""
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**self.config.to_diff_dict()))
        model.load_state_dict(self.weights, assign=True)
        model.tie_weights()
        for name, buffer in self.buffers.items():  # the rotary frequencies are in no state dict
            where, _, last = name.rpartition(".")
            model.get_submodule(where).register_buffer(last, buffer, persistent=False)
        return model.requires_grad_(False).eval()


def prepare(method: str, model: nn.Module, adapter_len: int, adapter_layers: int) -> nn.Module:
    """What this method makes of a frozen model; what it trains is trainable."""
    torch.manual_seed(0)
    layers = min(adapter_layers, model.config.num_hidden_layers)
    if method == OURS:
        return add_adaption_prompts(model, AdaptionPromptConfig(adapter_len, layers))
    if method == PEFTS:
        config = peft.AdaptionPromptConfig(
            adapter_len=adapter_len, adapter_layers=layers, task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(model, config)
    if method == LORA:
        config = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(model, config)
    return model.requires_grad_(method == FULL)


@contextmanager
def with_liger(model: nn.Module) -> Iterator[None]:
    """Inside, the model runs as users of Liger-Kernel run it: their patch, with its defaults.

    It changes transformers' Llama for all models of the process, so that is taken back.
    """
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    names = ("LlamaRMSNorm", "LlamaMLP", "apply_rotary_pos_emb")
    with patch.multiple(modeling_llama, **{name: getattr(modeling_llama, name) for name in names}):
        if not getattr(model, "has_liger", False):
            apply_liger_kernel_to_llama(model=getattr(model, "get_base_model", lambda: model)())
            model.has_liger = True
        else:
            from liger_kernel.transformers.rope import liger_rotary_pos_emb

            modeling_llama.apply_rotary_pos_emb = liger_rotary_pos_emb
        yield


def random_batch(
    vocabulary: int, rows: int, tokens: int, device: torch.device
) -> dict[str, Tensor]:
    """Random words (b s), all labelled."""
    ids = torch.randint(1, vocabulary, (rows, tokens), device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def step_flops(
    config: LlamaConfig, n_tokens: int, n_labelled: int, lowest_layer: int, full: bool = False
) -> int:
    """The matrix products that a training step cannot do without, 2 FLOP a weight and token.

    Forward through all layers; backward to what enters the layers from `lowest_layer` on, and, in
    full fine-tuning, to the weights too. The head works on labelled tokens. The products between
    queries and keys are left out.
    """
    heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.head_dim or config.hidden_size // heads[0]
    attention = config.hidden_size * head_dim * 2 * (heads[0] + heads[1])
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    head = config.hidden_size * config.vocab_size
    forward = config.num_hidden_layers * layer * n_tokens + head * n_labelled
    above = (config.num_hidden_layers - lowest_layer) * layer * n_tokens + head * n_labelled
    return 2 * (forward + above * (2 if full else 1))


Step = Callable[[], Tensor]
