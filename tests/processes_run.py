"""Started by accelerate or torchrun: a tiny run; what it did is written into the folder.

    processes_run.py FOLDER whole|sharded|loaded|cut|memory [--killed-at N] [--base DIR]
                     [--gpu | --as-gpus] [--compiled]

sharded: the base is spread after it was made; loaded: each process reads its part from --base.
cut: a base with a tensor-parallel plan. memory: what a process takes to load --base.
At forward pass N of its first life the last process is killed.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, PartialState
from tiny_run import tiny_model, tiny_rows, tiny_run
from transformers import AutoModelForCausalLM

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama, save_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.base_models.sharded import shard_base

OPTIONS = {"rows": tiny_rows(n=13), "batch_size": 5, "micro_batch_size": 2, "steps": 6}
SHAPE = {"tie_word_embeddings": False}


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    folder, way = options.folder, options.way
    folder.mkdir(parents=True, exist_ok=True)
    if way == "cut":
        tell(folder, "facts", refused=add_to_cut_base(folder))
        return
    accelerator = Accelerator(cpu=not options.gpu)
    if options.as_gpus:  # what accelerate does only with several GPUs, it does here, too
        accelerator.state.distributed_type = DistributedType.MULTI_GPU
        PartialState().distributed_type = DistributedType.MULTI_GPU
    name = "facts" if accelerator.is_main_process else f"facts-{accelerator.process_index}"
    if way == "memory":
        tell(folder, name, **memory_of_loading(options.base))
        accelerator.end_training()
        return
    model = a_model(way, options.base, accelerator)
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    last = accelerator.process_index == accelerator.num_processes - 1
    if options.killed_at is not None and last and first_life:
        kill_at(model, options.killed_at)
    writes = watch_writes(folder)
    run = OPTIONS | {"accelerator": accelerator, "save_every": 2}
    run |= {"compile_layers": options.compiled}
    history, model = tiny_run(folder / "run", model=model, **run)
    ids = torch.arange(3, 9, device=accelerator.device)[None]
    generated = model.generate(ids, max_new_tokens=5, do_sample=False)
    if accelerator.is_main_process:
        save_adapter(model, folder / "adapter")
    tell(
        folder,
        name,
        losses=history.losses,
        processes=accelerator.num_processes,
        written=sorted(writes),
        kind=accelerator.distributed_type,
        base=type(model.model.layers[0].self_attn.q_proj.weight.data).__name__,
        generated=generated.tolist(),
    )
    accelerator.end_training()


def a_model(way: str, base: Path | None, accelerator: Accelerator) -> torch.nn.Module:
    """The tiny model; in processes but the main one, its prompts begin elsewhere."""
    model = tiny_model(**SHAPE).to(accelerator.device)
    if way == "loaded":
        whole = model
        model, _ = load_llama(base, shard=True)
        add_adaption_prompts(model, AdaptionPromptConfig(5, 2))
        for number, prompt in adapter_prompts(whole, "default").items():
            adapter_prompts(model, "default")[number].load_state_dict(prompt.state_dict())
    if not accelerator.is_main_process:
        with torch.no_grad():
            for prompt in adapter_prompts(model, "default").values():
                prompt.prompts.normal_()
    return shard_base(model) if way == "sharded" else model


def memory_of_loading(base: Path) -> dict[str, int]:
    """Bytes that a process takes more while it loads and runs a base: spread, then whole."""
    ids = torch.arange(3, 9)[None]
    tiny_model()(ids)  # libraries set themselves up

    def grown(load) -> int:
        Path("/proc/self/clear_refs").write_text("5")  # the highest is now what is taken now
        before = highest()
        model = load()
        with torch.no_grad():
            model(ids)
        return highest() - before

    spread = grown(lambda: load_llama(base, dtype=torch.bfloat16, shard=True)[0])
    whole = grown(lambda: load_llama(base, dtype=torch.bfloat16)[0])
    return {"spread": spread, "whole": whole}


def highest() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def add_to_cut_base(folder: Path) -> str:
    """What `add_adaption_prompts` says to a base whose heads are on several devices."""
    base = folder / f"base-{os.environ['RANK']}"
    tiny_model(adapter=False).save_pretrained(base)
    try:
        from transformers.distributed import DistributedConfig

        plan = {"distributed_config": DistributedConfig(tp_plan="auto")}
    except (ImportError, TypeError):
        plan = {"tp_plan": "auto"}
    model = AutoModelForCausalLM.from_pretrained(base, **plan)
    try:
        add_adaption_prompts(model, AdaptionPromptConfig(5, 2))
    except ValueError as error:
        return str(error)
    return "not at all"


def tell(folder: Path, name: str, **facts: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(facts))


def kill_at(model: torch.nn.Module, step: int) -> None:
    """SIGKILL to this process in the forward pass of that step."""
    calls = []

    def count(*inputs: object) -> None:
        calls.append(1)
        if len(calls) > step:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(count)


def watch_writes(folder: Path) -> set[str]:
    """The names of the files below the folder that this process opens to write, from now on."""
    seen: set[str] = set()

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | os.PathLike):
            path, flags = Path(os.fsdecode(arguments[0])), arguments[2]
            if flags & (os.O_WRONLY | os.O_RDWR) and folder in path.parents:
                seen.add(path.name)

    sys.addaudithook(watch)
    return seen


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("way", choices=["whole", "sharded", "loaded", "cut", "memory"])
    parser.add_argument("--killed-at", type=int)
    parser.add_argument("--as-gpus", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--base", type=Path)
    main(parser.parse_args())
