"""Base models that are held in other ways than whole, in one place, and in 16 or 32 bits.

What the adapter makes of each:

    in 8 or 4 bits (bitsandbytes)       works: prompts stay float32, the base stays as it is
    gradient checkpointing              works
    spread by device_map="auto"         works: prompts are where their layer computes
    offloaded to CPU or disk            works: each layer's weights come when it computes
    cut by a tensor-parallel plan       refused: heads are on several devices, prompts would need a
                                        part of each
    cut by `shard_base` (FSDP)          works if the adapters are added before
"""

import torch
from torch import nn


def check_uncut(layers: list[nn.Module]) -> None:
    """Raise ValueError if one of these attention layers holds only a part of its weights."""
    for number, attention in enumerate(layers):
        if any(hasattr(parameter, "placements") for parameter in attention.parameters()):
            raise ValueError(
                f"the weights of layer {number} are cut into pieces, one for each process. Load "
                "the model without a tensor-parallel plan (tp_plan), add the adapters to the whole "
                "model, and then call shard_base(model) if it must be spread over several GPUs."
            )


def compute_device(attention: nn.Module) -> torch.device:
    """Where this layer computes: where its weights are, or are brought to when they are needed."""
    for projection in attention.children():
        hook = getattr(projection, "_hf_hook", None)  # accelerate's, on offloaded weights
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(attention.parameters()).device


def check_gradients(model: nn.Module) -> None:
    """Raise ValueError if, after a backward, nothing that trains has got a gradient.

    Training would go on without learning. Known ways there: on some CPUs bitsandbytes repacks 4-bit
    weights when the model computes in evaluation mode, for a kernel without gradients; and
    reentrant checkpoints pass no gradient on where their input needs none.
    """
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if training and all(parameter.grad is None for parameter in training):
        raise ValueError(
            "no gradient reaches what trains, so nothing would be learnt. Is the base in 4 bits on "
            "a CPU, and has it generated before? Load it anew and train it first, or take 8 bits. "
            "Gradient checkpointing? Take use_reentrant=False."
        )
