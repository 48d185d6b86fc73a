"""Looking inside an adapted model: which prompts does each head attend to?"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.decoder import brought_here
from llama_adapter_edu.adapters.generation import of_thread
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.method.gated_prompts import prompt_scores


def prompt_weights(
    model: PreTrainedModel, input_ids: Int[Tensor, "b s"], **inputs
) -> dict[int, Float[Tensor, "b h s p"]]:
    """The softmax over the prompts in each adapted layer, before the gate: eq. 7 without g.

    The weights of a token sum to 1 over p, whatever the gate is. What reaches the layer is
    these weights times `gate_opening` (h) of the layer's prompt (see `adapter_prompts`).

    Args:
        model: a model with an active adapter. It runs once, without gradients and without a cache.
        inputs: what else its forward takes, as `attention_mask`. Padding gets weights too.

    Returns:
        {number of the layer, 0 at the bottom: float32 weights}.

    Raises:
        ValueError: no adapter is active.
    """
    active = active_adapter(model)
    if active is None:
        raise ValueError(
            "the model has no active adapter to look into: add one with add_adaption_prompts or "
            "load_adapter, choose one with set_adapter, or leave the disable_adapter block."
        )
    if not all(hasattr(p, "gate") for p in adapter_prompts(model, active).values()):
        raise ValueError(
            f"adapter {active!r} is a cartridge: it has no softmax of its own. "
            'Take the model\'s own output_attentions, with attn_implementation="eager".'
        )
    weights: dict[int, Tensor] = {}

    def listen(number: int, query: Tensor, heads: tuple, scale: float | None) -> None:
        key = heads[0].expand(len(query), -1, -1, -1)  # with pictures, each row has its own
        rows = zip(query.split(1), key, strict=True)
        scores = torch.cat([prompt_scores(row, row_key, scale) for row, row_key in rows])
        weights[number] = scores.float().softmax(dim=-1)

    of_thread.listener = listen
    try:
        with torch.no_grad():
            model(input_ids=input_ids, **{"use_cache": False, **inputs})
    finally:
        of_thread.listener = None
    return weights


def gate_openings(model: PreTrainedModel) -> Float[Tensor, "l h"]:
    """How far the active adapter's gates are open, a row per adapted layer (l), 0 is closed.

    A copy on the CPU; no rows if no adapter is active, or the active one has no gates.
    """
    active = active_adapter(model)
    if active is None:
        return torch.zeros(0, 0)
    openings = []
    gated = (p for p in adapter_prompts(model, active).values() if hasattr(p, "gate"))
    for prompt in gated:
        with brought_here(prompt):
            openings.append(prompt.gate_opening.detach())
    if not openings:
        return torch.zeros(0, 0)
    # Layers may lie on several devices. One copy to the CPU: each would wait for the GPU.
    return torch.stack([opening.to(openings[0].device) for opening in openings]).cpu()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many numbers train, and how many there are in all (shared weights count once)."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


def parameter_report(model: nn.Module) -> str:
    """One line: what trains, of how much."""
    trainable, total = count_parameters(model)
    return f"{trainable:,} of {total:,} parameters train ({trainable / total:.3%})"
