"""The five ways of `many_papers.py`: what each of them adds to a frozen Llama.

    prompts    10 prompts a layer behind a gate that starts at 0, in a softmax of their own
    V2         scale * (W x + bias) for every linear layer of the blocks, and the norms
    cartridge  trained keys and values, begun as those of the document's first tokens; the first one
               stays as it is
    LoRA       PEFT's, rank 8, on the query and value projections
    prefix     trained keys and values, begun at random as in PEFT's prefix tuning (N(0, 1))

Cartridge and prefix stand in the same softmax as the tokens.
"""

import peft
import torch
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu import (
    AdaptionPromptConfig,
    CartridgeConfig,
    add_adaption_prompts,
    add_cartridge,
)
from llama_adapter_edu.adapters.cartridge import document_cache, put_cartridge

WAYS = ("prompts", "V2", "cartridge", "LoRA", "prefix")
SLOTS = 16  # of a cartridge and a prefix


def prepare(way: str, model: PreTrainedModel, document_ids: Tensor) -> torch.nn.Module:
    """The adapted model; what requires a gradient trains."""
    if way == "LoRA":
        model.requires_grad_(False)
        config = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(model, config)
    if way == "prompts":
        layers = min(30, model.config.num_hidden_layers)
        return add_adaption_prompts(model, AdaptionPromptConfig(10, layers))
    if way == "V2":
        add_adaption_prompts(model, AdaptionPromptConfig(0, bias_scale=True, norms=True))
        del model.get_output_embeddings().changes["default"]  # V2's paper: the blocks alone
        return model
    if way == "cartridge":
        return add_cartridge(model, document_ids, CartridgeConfig(SLOTS))
    start = document_cache(model, document_ids[:, :SLOTS])
    noise = {n: tuple(map(torch.randn_like, pair)) for n, pair in start.items()}
    return put_cartridge(model, CartridgeConfig(SLOTS, num_frozen_tokens=0), noise, "default")
