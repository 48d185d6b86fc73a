"""Whether a base is the one it was: a fingerprint of its weights."""

import hashlib

import torch
from accelerate import Accelerator
from accelerate.utils import align_module_device
from torch import Tensor, nn

from llama_adapter_edu.base_models.float8 import Float8Linear
from llama_adapter_edu.method.float32 import Float32Module

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def base_fingerprint(model: nn.Module, accelerator: Accelerator) -> str:
    """Changes with any frozen weight; the same if the base is whole, spread, or offloaded.

    For each weight, the sum of its bits, read as whole numbers: exact in any order.
    """
    sums = []
    for module in model.modules():
        with align_module_device(module):  # offloaded weights come here and go again
            # Of buffers, the whole numbers, quantised weights, and float8 with its scales. Others
            # are computed, and rounded.
            weights = [p for p in module.parameters(recurse=False) if not p.requires_grad]
            every = isinstance(module, Float8Linear)
            buffers = module.buffers(recurse=False)
            weights += [b for b in buffers if every or not b.is_floating_point()]
            for weight in weights if not isinstance(module, Float32Module) else []:
                spread = hasattr(weight, "to_local")
                counts = spread or accelerator.is_main_process
                local = weight.to_local() if spread else weight
                sums.append(_sum_of_bits(local.detach()) if counts else 0)
    total = accelerator.reduce(torch.tensor(sums, dtype=torch.int64, device=accelerator.device))
    return hashlib.sha256(repr(total.tolist()).encode()).hexdigest()[:16]


def _sum_of_bits(weight: Tensor) -> int:
    bits = weight.contiguous().view(INTEGERS[weight.element_size()]).flatten()
    return sum(int(part.sum(dtype=torch.int64)) for part in bits.split(2**26))
