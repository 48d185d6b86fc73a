"""Training on several GPUs: data parallel, spread over processes, spread by a device map.

    python -m benchmarks.several_gpus --shape llama-7b --gpus 1 2 4 --bases whole spread
    python -m benchmarks.several_gpus --shape llama-70b --gpus 4 --bases spread map --rows 2
    python -m benchmarks.several_gpus --shape tiny --gpus 1 2 --bases whole spread map   # on CPUs

A base is "whole" in each process, "spread" over them, or spread by a device "map" over the GPUs of
one process. Each process makes its part of the same random weights in place, so a base may be too
large for any one GPU. Every run is `finetune` itself, with random rows of which all tokens are
labelled. Rows a GPU stay the same.

efficiency: tokens/s of n GPUs, divided by n times those of one. of_whole: those of a spread base,
divided by those of a whole one on as many GPUs. Results go to `results/several_gpus.json` or
--output; a call replaces its own settings there.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator, dispatch_model, infer_auto_device_map, init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks import measure
from llama_adapter_edu import AdaptionPromptConfig, TrainingConfig, add_adaption_prompts, finetune
from llama_adapter_edu.adapters.manage import remove_adapter
from llama_adapter_edu.base_models.sharded import allocate, shard_base

TOKENIZER = SimpleNamespace(pad_token_id=0)
EIGHTHS = 8  # a weight is made in so many parts: 1, 2, 4 or 8 processes make the same one
SHAPES = {
    "llama-7b": (LlamaConfig(), 30),
    "llama-70b": (
        LlamaConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            vocab_size=128256,
        ),
        70,
    ),
    "tiny": (
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=160,
        ),
        3,
    ),
}
COLUMNS = [
    "shape",
    "base",
    "way",
    "gpus",
    "rows_a_gpu",
    "length",
    "checkpointing",
    "spreading",
    "median_ms",
]
COLUMNS += ["tokens_per_second", "efficiency", "of_whole", "peak_gib", "first_loss", "last_loss"]


def make_base(base: str, options, accelerator: Accelerator) -> PreTrainedModel:
    """The shape with random weights in bfloat16: "whole", "spread", or over GPUs by a "map"."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(SHAPES[options.shape][0], dtype=torch.bfloat16)
    model.requires_grad_(False).eval()
    if base == "spread":
        shard_base(model, drop_after_forward=not options.kept, prefetch=options.prefetch)
    places = {}
    if base == "map":
        # Even parts: each GPU needs room for what its layers keep for the backward pass.
        gpus = torch.cuda.device_count()
        whole, layer = (list(m.parameters()) for m in (model, model.model.layers[0]))
        n_bytes, of_layer = (2 * sum(p.numel() for p in part) for part in (whole, layer))
        limits = {n: n_bytes // gpus + 2 * of_layer for n in range(gpus)} or {"cpu": 2 * n_bytes}
        places = infer_auto_device_map(model, limits, ["LlamaDecoderLayer"], dtype=torch.bfloat16)
        rotary = model.model.rotary_emb  # its buffers are no weights
        model.model.rotary_emb = nn.Identity()
        for name, place in places.items():
            model.get_submodule(name).to_empty(device=place)
        model.model.rotary_emb = rotary.to(accelerator.device)
    else:
        allocate(model)
    for number, weight in enumerate(model.parameters()):
        fill(weight, number, accelerator)
    return dispatch_model(model, places, force_hooks=True) if places else model


def fill(weight: nn.Parameter, number: int, accelerator: Accelerator) -> None:
    """The random weight of that number, or this process's part of it."""
    local, first, parts = weight.detach(), 0, EIGHTHS
    if hasattr(weight, "to_local"):
        local, parts = weight.to_local(), EIGHTHS // accelerator.num_processes
        first = accelerator.process_index * parts
    if weight.ndim == 1:
        local.fill_(1)
        return
    for part, eighth in enumerate(local.chunk(parts)):
        generator = torch.Generator(eighth.device).manual_seed(EIGHTHS * number + first + part)
        eighth.normal_(std=0.02, generator=generator)


def train(model: PreTrainedModel, options, accelerator: Accelerator, way: str) -> dict:
    """One run of `finetune`: time of a step, tokens/s, memory of each GPU, losses."""
    stamps, on_gpu = [], accelerator.device.type == "cuda"
    rows_a_step = options.rows * options.gpus[0]
    generator = torch.Generator().manual_seed(0)
    size = (2 * rows_a_step, options.length)
    ids = torch.randint(1, model.config.vocab_size, size, generator=generator).tolist()
    torch.manual_seed(0)  # the same first prompts in every run
    add_adaption_prompts(model, AdaptionPromptConfig(10, SHAPES[options.shape][1]))
    stamp = model.register_forward_pre_hook(lambda *_: stamps.append(time.perf_counter()))
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    devices = range(torch.cuda.device_count()) if on_gpu else []
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    history = finetune(
        model,
        TOKENIZER,
        [{"input_ids": row, "labels": row} for row in ids],
        TrainingConfig(steps=options.steps, batch_size=rows_a_step, learning_rate=1e-3),
        accelerator=accelerator,
        progress=False,
        compile_layers=way == "compile",
    )
    stamp.remove()
    remove_adapter(model, "default")
    seconds = [after - before for before, after in pairwise(stamps)]
    spread = measure.spread(seconds[options.warm_up :])
    peaks = [torch.cuda.max_memory_allocated(device) / 2**30 for device in devices]
    tokens = rows_a_step * options.length
    return {
        **spread,
        "tokens_per_second": round(1e3 * tokens / spread["median_ms"]),
        "peak_gib": round(max(peaks), 1) if peaks else None,
        "first_loss": round(history.losses[0], 5),
        "last_loss": round(history.losses[-1], 5),
        "losses": [round(loss, 5) for loss in history.losses],
    }


def work(options) -> None:
    """What each process does; the main one writes the records."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    for base in options.bases:
        model = make_base(base, options, accelerator)
        for way in options.ways:
            record = {
                "shape": options.shape,
                "base": base,
                "way": way,
                "gpus": options.gpus[0],
                "rows_a_gpu": options.rows,
                "length": options.length,
                "checkpointing": options.checkpointing,
                "spreading": spreading(options) if base == "spread" else "",
                "parameters": sum(p.numel() for p in model.parameters()),
                **measure.conditions(accelerator.device),
            }
            try:
                record |= train(model, options, accelerator, way)
            except Exception as error:  # it is told in the record, and ends this process
                record["failed"] = f"{type(error).__name__}: {error}"[:400]
                raise
            finally:
                if accelerator.is_main_process:
                    print(json.dumps(record), flush=True)
                    measure.keep(options.output, [record])
        del model
        gc.collect()
        torch.cuda.empty_cache()
    accelerator.end_training()


def spreading(options) -> str:
    """How a spread base travels, in words."""
    kept = "kept until the backward pass" if options.kept else "gathered twice"
    channels = os.environ.get("NCCL_MAX_NCHANNELS", "NCCL's own number of")
    return f"{kept}, {options.prefetch} ahead, {channels} channels"


def launch(options, gpus: int, bases: list[str]) -> None:
    """The runs of so many GPUs, each in a process of its own; a device map takes one for all."""
    command = [sys.executable]
    if bases != ["map"]:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    command += ["-m", "benchmarks.several_gpus", "--work", "--gpus", str(gpus), "--bases", *bases]
    command += ["--ways", *options.ways, "--shape", options.shape, "--output", str(options.output)]
    for name in ("rows", "length", "steps", "warm_up", "prefetch"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += [f"--{name}" for name in ("checkpointing", "kept") if getattr(options, name)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(gpus)))
    subprocess.run(command, env=environment, check=False)


def with_ratios(records: list[dict]) -> list[dict]:
    """The records with `efficiency` and `of_whole`, where there is what to compare with."""
    same = ("shape", "way", "rows_a_gpu", "length", "checkpointing", "device")

    def speed(like: dict, base: str, gpus: int) -> int | None:
        wanted = {name: like[name] for name in same} | {"base": base, "gpus": gpus}
        found = [r for r in records if wanted.items() <= r.items() and "failed" not in r]
        return found[0]["tokens_per_second"] if found else None

    for record in records:
        own = record.get("tokens_per_second")
        if own and (one := speed(record, "whole", 1)):
            record["efficiency"] = round(own / one / record["gpus"], 3)
        if own and record["base"] != "whole" and (whole := speed(record, "whole", record["gpus"])):
            record["of_whole"] = round(own / whole, 3)
    return records


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], choices=[1, 2, 4, 8])
    parser.add_argument("--bases", nargs="+", choices=["whole", "spread", "map"], required=True)
    parser.add_argument("--ways", nargs="+", choices=["eager", "compile"], default=["eager"])
    parser.add_argument("--rows", type=int, default=8, help="a GPU, in each step")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=6, help="first steps, not measured")
    parser.add_argument("--checkpointing", action="store_true", help="of the layers' activations")
    parser.add_argument("--kept", action="store_true", help="a spread base stays for the backward")
    parser.add_argument("--prefetch", type=int, default=0, help="layers of a spread base ahead")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "several_gpus.json")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.work:
        work(options)
        return
    for gpus in options.gpus:
        of_processes = [base for base in options.bases if base != "map"]
        if gpus == 1:
            of_processes = [base for base in of_processes if base == "whole"]
        for bases in (of_processes, ["map"] if "map" in options.bases else []):
            if bases:
                launch(options, gpus, bases)
    records = json.loads(options.output.read_text(encoding="utf-8"))
    measure.print_table(with_ratios(records), COLUMNS)


if __name__ == "__main__":
    main()
