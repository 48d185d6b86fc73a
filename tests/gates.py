"""Open gates, for tests that need an adapter that does something."""

import torch

from llama_adapter_edu.adapters.manage import adapter_prompts


def open_gates(model, name: str = "default", std: float = 0.8) -> None:
    """Gates that differ from head to head, so that a mix-up of heads cannot pass; always these."""
    torch.manual_seed(2)
    for prompt in adapter_prompts(model, name).values():
        torch.nn.init.normal_(prompt.gate, std=std)
