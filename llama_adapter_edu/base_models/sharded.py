"""A frozen base spread over several processes (FSDP2): each holds, and reads, only its part.

    process 0    first half of the rows of every weight     all prompts and gates
    process 1    second half                                all prompts and gates

A layer's weights are put together while it computes, and dropped again. So a base that fits on no
single GPU can be trained around. Adapters are added afterwards, as to any model; they are small and
stay whole in every process.
"""

import os
from collections.abc import Iterable

import torch
from accelerate import PartialState, init_empty_weights
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from llama_adapter_edu.base_models.float8 import Float8Linear
from llama_adapter_edu.method.float32 import Float32Module

FILES = ["model*.safetensors", "*.json"]


def load_sharded(
    source: str | os.PathLike, *, dtype: torch.dtype, attn_implementation: str | None, **hub: object
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """A frozen model whose weights no process ever holds as a whole, in memory or on its GPU.

    Args:
        source: a folder with safetensors files, or an id on the hub: each node downloads it once.
        hub: `cache_dir`, `local_files_only`.

    Returns:
        the model, and `missing_keys` and `unexpected_keys`: weights that only the model, or only
        the files have.

    Raises:
        RuntimeError: there is only one process, or torch is older than 2.8.
        ValueError: the weights are quantised.
    """
    _check_processes()
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    folder = source
    if not os.path.isdir(source):
        folder = snapshot_download(str(source), allow_patterns=FILES, **hub)
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{source} is quantised. Only 16 or 32 bit weights can be spread.")
    config.name_or_path = str(source)
    # Buffers, as the rotary frequencies, are computed when a model is built and stand in no file.
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    shard_base(model.requires_grad_(False))
    allocate(model)
    reader = HuggingFaceStorageReader(str(folder))
    in_files = reader.read_metadata().state_dict_metadata.keys()
    weights = model.state_dict()
    dcp.load({n: w for n, w in weights.items() if n in in_files}, storage_reader=reader)
    filled = {id(weight) for name, weight in _all_names(model) if name in in_files}
    missing = [name for name, weight in _all_names(model) if id(weight) not in filled]
    if os.path.exists(os.path.join(folder, "generation_config.json")):
        model.generation_config = GenerationConfig.from_pretrained(folder)
    unexpected = sorted(in_files - weights.keys())
    return model, {"missing_keys": missing, "unexpected_keys": unexpected}


def shard_base(
    model: PreTrainedModel, *, drop_after_forward: bool = True, prefetch: int = 0
) -> PreTrainedModel:
    """Spread the frozen parameters over all processes, in place: the model is in memory already.

    It has its adapters, or gets them afterwards. What trains stays whole, and adapters do.

    Args:
        drop_after_forward: put a layer's weights together once more in the backward pass. False
            keeps all of them from the forward to the backward pass: faster, for a base that fits.
        prefetch: layers whose weights are asked for before one computes; 0 for torch's own order,
            which asks for the next while one computes, too.

    Raises:
        RuntimeError: there is only one process, or torch is older than 2.8.
        ValueError: nothing in the model is frozen, or it is in float8.
    """
    _check_processes()
    from torch.distributed.fsdp import fully_shard

    if any(isinstance(module, Float8Linear) for module in model.modules()):
        raise ValueError("a base in float8 cannot be spread: load it in 16 bits.")
    if all(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing is frozen: call add_adaption_prompts(model) first.")
    adapters = [module for module in model.modules() if isinstance(module, Float32Module)]
    whole = {p for p in model.parameters() if p.requires_grad}
    whole |= {p for adapter in adapters for p in adapter.parameters(recurse=False)}
    state = _processes()
    mesh = torch.distributed.init_device_mesh(state.device.type, (state.num_processes,))
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for module in (*layers, model):
        # The head and the embedding, which are the model's own, stay until the backward pass.
        drop = drop_after_forward and module is not model
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=drop)
    for number, layer in enumerate(layers):
        layer.set_modules_to_forward_prefetch(layers[number + 1 : number + 1 + prefetch])
        before = layers[max(0, number - prefetch) : number]
        layer.set_modules_to_backward_prefetch(before[::-1])
    return model


def allocate(model: nn.Module) -> None:
    """Give the parameters of a model on the meta device memory of this process, not yet filled."""
    device = _processes().device
    # As `to_empty`, which would drop what the buffers hold.
    model._apply(lambda x: torch.empty_like(x, device=device) if x.is_meta else x.to(device))
    model.tie_weights()


def _all_names(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters with every name they have: a tied head is its embedding once more."""
    return model.named_parameters(remove_duplicate=False)


def _processes() -> PartialState:
    """This process among the others, as accelerate has found or now finds them."""
    return PartialState(cpu=not torch.accelerator.is_available())


def _check_processes() -> None:
    if _processes().num_processes < 2:
        raise RuntimeError("there is only one process: start several, with accelerate launch.")
    if torch.__version__ < "2.8":  # compares as versions do
        raise RuntimeError(f"torch {torch.__version__} is too old to spread a base: take 2.8.")
