"""`load_llama()`: the course's Llama, or any other, with its tokenizer.

The course's Llama is SmolLM2-135M-Instruct, a `LlamaForCausalLM` of 134.5 million parameters:

    30 layers, model width m = 576, query heads h = 9, key/value heads g = 3, head width d = 64,
    vocabulary v = 49,152

It is downloaded and converted once and loads from the cache afterwards, without a network.
`course_llama.py` says where it comes from, where it is kept, and how to put it there by hand.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llama_adapter_edu.base_models.course_llama import course_llama
from llama_adapter_edu.base_models.names import check_model_name
from llama_adapter_edu.base_models.sharded import load_sharded
from llama_adapter_edu.hub_names import quiet


def load_llama(
    name: str | os.PathLike | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    shard: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model, ready to use and to adapt, and its tokenizer.

    `name`: nothing for the course's Llama, else a model's id on the Hugging Face hub or its folder.
    `dtype`: the type of the weights, as `torch.float32` or `torch.bfloat16`.
    `device`: where the model is put, as "cpu", "cuda" or "mps".
    `attn_implementation`: "sdpa", "eager", "flash_attention_2", ...; nothing: transformers' choice.
    `cache_dir`: where downloads are kept. Nothing, for the course's Llama: the folder named by the
        environment variable LLAMA_ADAPTER_EDU_CACHE, else the user's cache folder. Nothing, for
        others: the hub's own cache.
    `shard`: spread the weights over the processes that `accelerate launch` or torchrun started.
        Each reads only its part, to its own device, whatever `device` is. Adapters come afterwards.

    The model is in eval mode. A tokenizer without a pad token gets one. Code from a repository is
    never run, and only safetensors weights are read.

    Raises TypeError for a `dtype` that is no floating point type, ValueError for a device that does
    not work here or a malformed name, and FileNotFoundError, PermissionError, ConnectionError or
    another OSError when the model cannot be had. Each message says what to do next.
    """
    _check_dtype(dtype)
    _check_device(device)
    if name is None:
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
    _check_complete(source, report["missing_keys"])
    _fill_pad_token(model, tokenizer)
    return (model if shard else model.to(device)).eval(), tokenizer


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{source} needs Python code from its own repository, which load_llama never runs. "
            "Choose a model that transformers itself has."
        ) from error


def _check_complete(source: str, missing: Iterable[str]) -> None:
    """transformers only warns of a missing weight, and goes on with random numbers."""
    if missing := sorted(missing):
        raise OSError(
            f"{source} lacks {len(missing)} of the model's weights, the first is {missing[0]}. "
            "Download or save the model again."
        )


def _check_dtype(dtype: torch.dtype) -> None:
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"dtype is {dtype!r}. Expected a floating point type, as torch.float32, torch.bfloat16."
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


def _fill_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Padding is masked, so any token serves. "unknown" is the one least confused with a word."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
