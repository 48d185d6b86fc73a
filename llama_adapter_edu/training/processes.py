"""What the processes of a run do together.

Each has all that trains, about a million numbers, and works on its share of a step's rows. So one
sum over the processes a step is all they need, whether the base is whole in each of them, spread
over them (FSDP), or spread over the GPUs of each.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Float
from torch import Tensor, nn

Result = TypeVar("Result")
KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise ValueError for an accelerator that would do a part of the training itself."""
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "the accelerator has gradient_accumulation_steps. Leave it out, and set "
            "micro_batch_size in TrainingConfig: the step's rows are cut into as many parts."
        )
    if accelerator.distributed_type not in KINDS:
        raise ValueError(
            f"the accelerator uses {accelerator.distributed_type.value}, which would cut the "
            "adapters into pieces. Start without it; load_llama(..., shard=True) spreads the base."
        )


@contextmanager
def trains_there(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Inside, the model trains on the accelerator's device, and random numbers are our own."""
    was_training = model.training
    spread = hasattr(model, "hf_device_map") or hasattr(model, "_hf_hook")
    places = [(device.type, device.index or 0) for device in (model.device, accelerator.device)]
    if not spread and places[0] != places[1]:
        model.to(accelerator.device)
    model.train()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        model.train(was_training)


def sum_over_processes(
    parameters: Sequence[nn.Parameter], numbers: Float[Tensor, "n"], accelerator: Accelerator
) -> Float[Tensor, "n"]:
    """Add up gradients, in place, and some numbers. All processes have the same sums."""
    if accelerator.num_processes == 1:
        return numbers
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    parts = [part.to(numbers).reshape(-1) for part in (numbers, *gradients)]
    sums = accelerator.reduce(torch.cat(parts)).split([part.numel() for part in parts])
    for parameter, part in zip(parameters, sums[1:], strict=True):
        parameter.grad = part.view_as(parameter).to(parameter)
    return sums[0]


def on_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """What `work` returns or raises in the main process, in every process."""
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except Exception as raised:
            error = raised
    result, error = broadcast_object_list([result, error])
    if error is not None:
        raise error
    return result


def check_same(about: dict, accelerator: Accelerator) -> None:
    """Raise ValueError, in every process, if one of them has other data or settings."""
    for number, other in enumerate(gather_object([about])):
        names = [name for name in about if other.get(name) != about[name]]
        if names:
            raise ValueError(
                f"processes {accelerator.process_index} and {number} differ in {', '.join(names)}: "
                "each needs the same rows in the same order, and the same settings."
            )
