"""The five ways of `many_papers.py`: what each of them adds to a frozen Llama.

    prompts    10 prompts a layer behind a gate that starts at 0, in a softmax of their own
    V2         scale * (W x + bias) for every linear layer of the blocks, and the norms
    cartridge  trained keys and values, begun as those of the document's first tokens; the first one
               stays as it is
    LoRA       PEFT's, rank 8, on the query and value projections
    prefix     trained keys and values, begun at random as in PEFT's prefix tuning (N(0, 1))

Cartridge and prefix stand in the same softmax as the tokens, as entries of the model's own cache.
"""

from collections.abc import Callable
from functools import partial

import peft
import torch
from einops import repeat
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts

WAYS = ("prompts", "V2", "cartridge", "LoRA", "prefix")
SLOTS = 16  # of a cartridge and a prefix
Student = Callable[[Tensor, Tensor], Tensor]  # input_ids (b s), attention_mask (b s) -> logits


def prepare(way: str, model: PreTrainedModel, document_ids: Tensor) -> tuple[Student, nn.Module]:
    """The adapted model as a function of tokens, and the module whose parameters train."""
    model.requires_grad_(False)
    plain = as_student(model)
    if way == "prompts":
        layers = min(30, model.config.num_hidden_layers)
        return plain, add_adaption_prompts(model, AdaptionPromptConfig(10, layers))
    if way == "LoRA":
        config = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        tuned = peft.get_peft_model(model, config)
        return as_student(tuned), tuned
    if way == "V2":
        return plain, _bias_scale_and_norms(model)
    cache = DynamicCache()
    with torch.no_grad():
        model(document_ids[:, :SLOTS], None, None, cache)
    start = [(layer.keys, layer.values) for layer in cache.layers]
    if way == "prefix":
        start = [tuple(torch.randn_like(part) for part in layer) for layer in start]
    trained = TrainedCache(start, n_frozen=way == "cartridge")
    return as_student(model, trained), trained


def as_student(model: nn.Module, trained: "TrainedCache | None" = None) -> Student:
    """The model, with a trained cache before the tokens if there is one, as a function."""
    return partial(_logits, model, trained=trained)


def _logits(model: nn.Module, ids: Tensor, mask: Tensor, trained: "TrainedCache | None") -> Tensor:
    if trained is None:
        return model(input_ids=ids, attention_mask=mask).logits
    cache = trained(len(ids))
    seen = torch.cat([mask.new_ones(len(ids), cache.get_seq_length()), mask], dim=1)
    return model(ids, seen, None, cache).logits


class TrainedCache(nn.Module):
    """Keys and values (1 g p d) of each layer that train; the first `n_frozen` slots do not."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], n_frozen: int) -> None:
        super().__init__()
        self.frozen = [[part[:, :, :n_frozen].clone() for part in layer] for layer in layers]
        self.learnt = nn.ParameterList(
            nn.Parameter(part[:, :, n_frozen:].clone()) for layer in layers for part in layer
        )

    def forward(self, n_rows: int) -> DynamicCache:
        """A cache that a batch of `n_rows` rows continues."""
        cache = DynamicCache()
        learnt = iter(self.learnt)
        for index, frozen in enumerate(self.frozen):
            both = [torch.cat([part, next(learnt)], dim=2) for part in frozen]
            rows = [repeat(part, "1 g p d -> b g p d", b=n_rows) for part in both]
            cache.update(*rows, index)
        return cache


def _bias_scale_and_norms(model: PreTrainedModel) -> nn.Module:
    """LLaMA-Adapter V2's tuning (arXiv 2304.15010, section 4.1), without its prompts."""
    for block in model.model.layers:
        for linear in [part for part in block.modules() if isinstance(part, nn.Linear)]:
            linear.added_bias = nn.Parameter(torch.zeros_like(linear.weight[:, 0]))
            linear.added_scale = nn.Parameter(torch.ones_like(linear.weight[:, 0]))
            linear.register_forward_hook(_scaled)
    for norm in [part for name, part in model.named_modules() if name.endswith("norm")]:
        norm.weight = nn.Parameter(norm.weight.detach().clone())  # the base weights are shared
    return model


def _scaled(linear: nn.Linear, _: tuple, output: Tensor) -> Tensor:
    return linear.added_scale * (output + linear.added_bias)
