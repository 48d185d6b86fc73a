"""After how much training does the demo's Llama get 95 % of unseen commands right?

    python -m benchmarks.time_to_95 --seed 1        # about 4 minutes on a CPU

Trains as `python -m llama_adapter_edu finetune` does and keeps the prompts of every tenth step.
When the training is over, the Llama answers with each of them in turn: answering counts as no time.
Results go to `results/time_to_95.json`. An older version is measured in a worktree of its commit,
with this file and `measure.py` copied there, `--version` and an `--output` for both.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from benchmarks import measure
from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    encode_dataset,
    generate_answers,
    load_llama,
)
from llama_adapter_edu.__main__ import _parser
from llama_adapter_edu.course.demo import STEPS
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.evaluate import exact_match, longest_answer

GOAL = 0.95
the_loop = importlib.import_module("llama_adapter_edu.training.loop")


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(model, tokenizer, rows, config, accelerator, every: int) -> list[dict]:
    """Step, seconds since the start and prompts, of every so many steps."""
    kept, openings = [], the_loop.gate_openings
    steps = iter(range(1, config.steps + 1))

    def after_a_step(model: nn.Module) -> Tensor:
        if (step := next(steps)) % every == 0:
            prompts = {name: p.detach().clone() for name, p in trained(model).items()}
            kept.append({"step": step, "seconds": time.perf_counter() - start, "prompts": prompts})
        return openings(model)

    start = time.perf_counter()
    with patch.object(the_loop, "gate_openings", after_a_step):
        the_loop.finetune(model, tokenizer, rows, config, accelerator=accelerator)
    return kept


def main(arguments: list[str] | None = None) -> int:
    demo = _parser().parse_args(["finetune"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=demo.batch_size)
    parser.add_argument("--seed", type=int, default=demo.seed)
    parser.add_argument("--test-rows", type=int, default=100)
    parser.add_argument("--adapter-layers", type=int, help="default: as the demo")
    parser.add_argument("--every", type=int, default=10, help="steps between answers")
    parser.add_argument("--model", help="folder of another model")
    parser.add_argument("--version", default="now", help="what the results call this version")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "time_to_95.json")
    options = parser.parse_args(arguments)

    accelerator = Accelerator()
    model, tokenizer = load_llama(options.model, device=accelerator.device)
    commands = home_commands("train", options.steps * options.batch_size, seed=options.seed)
    test = home_commands("test", options.test_rows, seed=options.seed)
    set_seed(options.seed)
    prompts = AdaptionPromptConfig(demo.adapter_len, options.adapter_layers, init_std=demo.init_std)
    add_adaption_prompts(model, prompts)
    config = the_loop.TrainingConfig(
        options.steps, options.batch_size, demo.learning_rate, seed=options.seed
    )
    rows = encode_dataset(commands, tokenizer)
    kept = train(model, tokenizer, rows, config, accelerator, options.every)

    record = {"version": options.version, "seed": f"seed {options.seed}"}
    record |= measure.conditions(accelerator.device)
    record |= {"steps": options.steps, "batch_size": options.batch_size, "shares": []}
    longest = longest_answer(test, tokenizer)
    for at in kept:
        with torch.no_grad():
            for name, parameter in trained(model).items():
                parameter.copy_(at["prompts"][name])
        answers = generate_answers(model, tokenizer, test, max_new_tokens=longest)
        share = exact_match(answers, test["output"])
        record["shares"].append([at["step"], round(at["seconds"], 3), share])
        print(f"step {at['step']:4}  {at['seconds']:6.1f} s  {share:6.1%} right", flush=True)
        if share >= GOAL:
            record |= {"goal_step": at["step"], "goal_seconds": round(at["seconds"], 3)}
            break
    record["training_seconds"] = round(kept[-1]["seconds"], 3)
    measure.keep(options.output, [record])
    return 0


if __name__ == "__main__":
    sys.exit(main())
