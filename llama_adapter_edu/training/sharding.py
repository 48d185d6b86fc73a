"""The frozen base spread over several processes (FSDP), adapters whole in each of them.

    process 0   half of each layer's base weights   all prompts and gates
    process 1   the other half                      all prompts and gates

A layer's weights are put together when it computes, and dropped again. So a base that fits on no
single GPU can be trained around. What trains is tiny and stays an ordinary tensor: gradients are
averaged by DDP, and saving, swapping and resuming work as with one process.
"""

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.decoder import decoder_of


def shard_base(model: PreTrainedModel) -> PreTrainedModel:
    """Spread the frozen parameters of the decoder's layers over all processes, in place.

    Call it on the model with its adapters, on the device where it will train, after the processes
    have found each other (`Accelerator()` does that), and before `finetune`. Adapters cannot be
    added afterwards.

    Raises:
        RuntimeError: there is only one process, or torch is older than 2.7.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() < 2:
        raise RuntimeError("there is only one process: start several, with accelerate launch.")
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise RuntimeError(f"torch {torch.__version__} is too old for this: take 2.7.") from error
    device = next(model.parameters()).device
    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in decoder_of(model).layers:
        kept_whole = {p for p in layer.parameters() if p.requires_grad}
        kept_whole |= {
            parameter
            for name, module in layer.named_modules()
            if name.endswith("adaption_prompts")
            for parameter in module.parameters()
        }
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept_whole)
    # DDP only looks after what trains. It must not copy the pieces of process 0 to the others.
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    return model
