"""`load_llama()`: the course's Llama, or any other, with its tokenizer.

The course's Llama is SmolLM2-135M-Instruct, a `LlamaForCausalLM` of 134.5 million parameters:

    30 layers, model width m = 576, query heads h = 9, key/value heads g = 3, head width d = 64,
    vocabulary v = 49,152

It is downloaded and converted once and loads from the cache afterwards, without a network.
`course_llama.py` says where it comes from, where it is kept, and how to put it there by hand.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llama_adapter_edu.base_models.course_llama import course_llama
from llama_adapter_edu.base_models.float8 import check_float8, to_float8
from llama_adapter_edu.base_models.names import check_model_name
from llama_adapter_edu.base_models.sharded import load_sharded
from llama_adapter_edu.base_models.sources import HUB_REPOSITORY
from llama_adapter_edu.hub_names import quiet


def load_llama(
    name: str | os.PathLike | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    shard: bool = False,
    base_precision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model, ready to use and to adapt, and its tokenizer.

    `name`: nothing for the course's Llama, else a model's id on the Hugging Face hub or its folder.
        The id of the repository that the course's Llama comes from means the course's Llama.
    `dtype`: the type of the weights, as `torch.float32` or `torch.bfloat16`.
    `device`: where the model is put, as "cpu", "cuda" or "mps".
    `attn_implementation`: "sdpa", "eager", "flash_attention_2", ...; nothing: transformers' choice.
    `cache_dir`: where downloads are kept. Nothing, for the course's Llama: the folder named by the
        environment variable LLAMA_ADAPTER_EDU_CACHE, else the user's cache folder. Nothing, for
        others: the hub's own cache.
    `shard`: spread the weights over the processes that `accelerate launch` or torchrun started.
        Each reads only its part, to its own device, whatever `device` is. Adapters come afterwards.
    `base_precision`: "float8" puts the linear layers of the decoder's layers into float8, and
        freezes the model; the rest stays in `dtype`. For faster training of adapters, with
        `compile_layers`, on NVIDIA GPUs of compute capability 8.9 or more (see `float8.py`).

    The model is in eval mode. A tokenizer without a pad token gets one. Code from a repository is
    never run, and only safetensors weights are read.

    Raises TypeError for a `dtype` that is no floating point type, ValueError for a device that does
    not work here, a malformed name or a base that cannot be in float8, and FileNotFoundError,
    PermissionError, ConnectionError or another OSError when the model cannot be had. Each message
    says what to do next.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype is {dtype!r}. Expected a floating point type, as torch.bfloat16.")
    _check_device(device)
    _check_precision(base_precision, device, shard)
    cache_dir = os.path.expanduser(cache_dir) if cache_dir else None
    if name is None or name == HUB_REPOSITORY:
        source, offline = str(course_llama(cache_dir)), True
    else:
        source, offline = os.path.expanduser(name), check_model_name(name, cache_dir)
    hub_options = {"cache_dir": cache_dir, "local_files_only": offline}
    options = {**hub_options, "trust_remote_code": False}
    model_options = {"dtype": dtype, "attn_implementation": attn_implementation}
    with quiet(), _explained(source):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if shard:
            model, report = load_sharded(source, **model_options, **hub_options)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, **model_options, **options
            )
    _check_complete(source, model, report)
    # Padding is masked, so any token serves. "unknown" is the one that texts hold least.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model = model if shard else model.to(device)
    if base_precision == "float8":
        to_float8(model.requires_grad_(False))
    return model.eval(), tokenizer


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """transformers' errors that advise to run code, list all its models, or name no remedy."""
    try:
        yield
    except (SafetensorError, json.JSONDecodeError, RuntimeError, ValueError) as error:
        said = str(error).strip().split("\n")[0][:200]
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{source} needs Python code from its own repository, which load_llama never runs. "
                "Choose a model that transformers itself has."
            ) from error
        if "Unrecognized configuration class" in said:
            raise ValueError(f"{source} is no language model: {said}") from error
        if "mismatch" in str(error):
            said = "its weights have other shapes than its config.json says"
        elif not isinstance(error, (SafetensorError, json.JSONDecodeError)):
            raise
        raise OSError(
            f"{source} cannot be loaded, its files are broken or of different models: {said}. "
            "Download or save the model again."
        ) from error


def _check_complete(source: str, model: PreTrainedModel, report: dict) -> None:
    """transformers only warns of weights that are missing, made up then, or left out."""
    if any(name.endswith(".weight8") for name in report["unexpected_keys"]):
        raise OSError(
            f"{source} was saved from a model in float8, which cannot be read. Load its base, with "
            'base_precision="float8", and call load_adapter.'
        )
    if missing := sorted(report["missing_keys"]):
        raise OSError(
            f"{source} lacks {len(missing)} of the model's weights, the first is {missing[0]}. "
            "Download or save the model again."
        )
    modules = {name for name, _ in model.named_modules()}
    # Whole modules more, as a head for other tasks, change nothing; more in a layer does.
    for name in sorted(report["unexpected_keys"]):
        inside = re.search(r"\.(?:adaption_prompts|changes)\.([^.]+)", name)
        if inside:
            adapter = inside[1]
            raise OSError(
                f"{source} was saved with the adapter {adapter!r} in the model, and would load "
                "without it. Where you saved it, call save_adapter(model, folder) instead; then "
                "load the base model, and load_adapter(model, folder)."
            )
        if name.endswith((".weight", ".bias")) and name.rpartition(".")[0] in modules:
            raise OSError(
                f"{source} has weights that {type(model).__name__} leaves out, the first is {name}."
                " Its config.json is of another model."
            )


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(
            f"The device {str(device)!r} does not work here: {reason}. Pass device='cpu', or run "
            "`python -m llama_adapter_edu doctor`."
        ) from error


def _check_precision(base_precision: str | None, device: str | torch.device, shard: bool) -> None:
    if base_precision not in (None, "float8"):
        raise ValueError(f"base_precision is {base_precision!r}. Expected 'float8' or None.")
    if base_precision == "float8" and shard:
        raise ValueError("a spread base cannot be in float8: leave out shard or base_precision.")
    if base_precision == "float8":
        check_float8(device)
