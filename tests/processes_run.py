"""Started by accelerate or torchrun: a tiny run; what it did is written into the folder.

    processes_run.py FOLDER whole|sharded|cut [KILLED_AT]

cut loads the base with a tensor-parallel plan. At step KILLED_AT the last process is killed.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny_run import tiny_model, tiny_rows, tiny_run
from transformers import AutoModelForCausalLM

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, save_adapter
from llama_adapter_edu.base_models.sharded import shard_base

OPTIONS = {"rows": tiny_rows(n=13), "batch_size": 5, "micro_batch_size": 2, "steps": 6}


def main(folder: Path, way: str, killed_at: int | None) -> None:
    torch.set_num_threads(1)
    if way == "cut":
        folder.joinpath("facts.json").write_text(json.dumps({"refused": add_to_cut_base(folder)}))
        return
    accelerator = Accelerator(cpu=True)
    model = tiny_model(tie_word_embeddings=False)
    if way == "sharded":
        shard_base(model)
    if killed_at is not None and accelerator.is_last_process:
        kill_at(model, killed_at)
    writes = watch_writes(folder)
    options = OPTIONS | {"accelerator": accelerator, "save_every": 2}
    history, model = tiny_run(folder / "run", model=model, **options)
    if accelerator.is_main_process:
        save_adapter(model, folder / "adapter")
    written = sorted(writes)
    facts = {"losses": history.losses, "processes": accelerator.num_processes, "written": written}
    facts["kind"] = accelerator.distributed_type
    facts["base"] = type(model.model.layers[0].self_attn.q_proj.weight.data).__name__
    name = "facts" if accelerator.is_main_process else f"facts-{accelerator.process_index}"
    (folder / f"{name}.json").write_text(json.dumps(facts))
    accelerator.end_training()


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
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
