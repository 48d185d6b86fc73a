"""Started by torchrun: a tiny run, its losses and adapter written by one process."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny_run import tiny_model, tiny_rows, tiny_run

from llama_adapter_edu import save_adapter
from llama_adapter_edu.sharding import shard_base

folder, way = Path(sys.argv[1]), sys.argv[2]  # "whole" or "sharded"
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
options = {"rows": tiny_rows(n=13), "batch_size": 5, "micro_batch_size": 2, "steps": 6}
model = tiny_model(tie_word_embeddings=False)
if way == "sharded":
    shard_base(model)
history, model = tiny_run(folder / "run", model=model, accelerator=accelerator, **options)
if accelerator.is_main_process:
    save_adapter(model, folder / "adapter")
    facts = {"losses": history.losses, "processes": accelerator.num_processes}
    facts["kind"] = accelerator.distributed_type
    facts["base"] = type(model.model.layers[0].self_attn.q_proj.weight.data).__name__
    (folder / "facts.json").write_text(json.dumps(facts))
accelerator.end_training()
