"""A training run small enough to be killed often: a random Llama, random rows, one thread."""

import os
import random
import signal
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llama_adapter_edu import AdaptionPromptConfig, TrainingConfig, add_adaption_prompts, finetune

try:
    from datasets import Dataset
except ImportError:  # a GPU machine without it: the rows stay a list
    Dataset = None

TOKENIZER = SimpleNamespace(pad_token_id=0)
OPTIONS = ("save_every", "compile_layers", "document_ids", "share_start")
FILE_OPERATIONS = ("mkdir", "fsync", "rename", "replace", "rmdir", "unlink")


def tiny_model(adapter=True, seed=0, **settings):
    sizes = dict(vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=3)
    heads = dict(num_attention_heads=6, num_key_value_heads=2, pad_token_id=0)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**sizes | heads | settings)).eval()
    return add_adaption_prompts(model, AdaptionPromptConfig(5, 2)) if adapter else model


def tiny_rows(n=37, longest=12, seed=0):
    """Rows of 3 to `longest` tokens, of which the last ones are labelled."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        length = rng.randint(3, longest)
        ids = [rng.randint(3, 95) for _ in range(length)]
        asked = rng.randint(1, length - 1)
        rows.append({"input_ids": ids, "labels": [-100] * asked + ids[asked:]})
    return Dataset.from_list(rows) if Dataset else rows


def save_base(folder, model, **options):
    """A folder that load_llama takes: the model, and a tokenizer that knows one token."""
    model.save_pretrained(folder, **options)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")), eos_token="x"
    )
    tokenizer.save_pretrained(folder)
    return folder


def tiny_run(folder=None, *, model=None, rows=None, accelerator=None, **settings):
    """`finetune` on these; returns the history and the model."""
    options = {"save_every": 20, "progress": False, "resume_folder": folder}
    options |= {name: settings.pop(name) for name in OPTIONS if name in settings}
    model = model or tiny_model()
    config = TrainingConfig(**{"steps": 6, "batch_size": 8, **settings})
    accelerator = accelerator or Accelerator(cpu=True)
    rows = tiny_rows() if rows is None else rows
    return finetune(model, TOKENIZER, rows, config, accelerator=accelerator, **options), model


def run_in_process(folder, started=None, die_at=None, **settings):
    """A run with dropout in a process of its own; `die_at` kills it at that file operation."""
    torch.set_num_threads(1)  # processes that are forked must not start threads
    model, accelerator = tiny_model(attention_dropout=0.2), Accelerator(cpu=True)
    if started is not None:
        started.set()
    if die_at is not None:
        _kill_at(die_at)
    tiny_run(folder, model=model, accelerator=accelerator, **settings)


def run_with_limits(folder, said, *, user=None, largest_file=None):
    """A run as another user, or whose files may grow so far after step 2; sends what stopped it."""
    torch.set_num_threads(1)
    model, calls = tiny_model(), []

    def limit(*inputs):
        calls.append(1)
        if len(calls) == 3 and largest_file is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    model.register_forward_pre_hook(limit)
    if user is not None:
        os.seteuid(user)
    try:
        tiny_run(folder, model=model, accelerator=Accelerator(cpu=True), save_every=2)
        said.send("nothing")
    except OSError as error:
        said.send(str(error))


def _kill_at(last):
    """SIGKILL to this process instead of the file operation of that number."""
    count = 0

    def counted(operation):
        def call(*args, **options):
            nonlocal count
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return operation(*args, **options)

        return call

    for name in FILE_OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
