"""What matters in LLaMA-Adapter: a grid of short fine-tunings on home commands, several seeds each.

    python -m benchmarks.ablations --cpu --tiny --output /tmp/ablations.json        # about a minute
    python -m benchmarks.ablations --workers 8 --seeds 5 --budget-seconds 420       # one GPU

`ablation_grid.py` says what is compared, `ablation_variants.py` holds the adapters that the library
leaves out on purpose. Each run draws its training rooms, prompts and order of rows from its seed,
so cells with the same seed can be compared pair by pair. It is scored on the same commands of the
validation split: no room and no phrasing of them occurs in training.

A finished run is written to OUTPUT.runs.jsonl at once; a second call goes on from there. The JSON
with hardware, versions and all runs is package data: lesson 08 draws it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from benchmarks.ablation_grid import STUDIES, TINY_STUDIES, Cell, grid

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu" / "results" / "ablations.json"

_worker: dict = {}  # what each process loads once: the Llama, its tokenizer, the rows to score


def training_rows(n_rooms: int, n_rows: int, seed: int) -> list[dict[str, str]]:
    """The first `n_rows` training commands about `n_rooms` rooms, both drawn from the seed."""
    from llama_adapter_edu.home_commands import generate, rooms

    chosen = set(random.Random(seed).sample(rooms("train"), n_rooms))
    rows = [
        row for row in generate("train", seed=seed) if json.loads(row["output"])["room"] in chosen
    ]
    return rows[:n_rows]


def start_worker(model: str | None, cpu: bool, n_rows: int, deadline: float, threads: int) -> None:
    """Load the Llama into this process."""
    import torch
    from accelerate import Accelerator

    from llama_adapter_edu.data import encode_dataset, home_commands
    from llama_adapter_edu.llama import load_llama

    torch.set_num_threads(threads)
    accelerator = Accelerator(cpu=cpu)
    llama, tokenizer = load_llama(model, device=accelerator.device)
    llama.requires_grad_(False)
    scored = encode_dataset(home_commands("validation", n_rows), tokenizer)
    _worker.update(
        llama=llama,
        tokenizer=tokenizer,
        accelerator=accelerator,
        scored=scored,
        deadline=deadline,
    )


def run_cell(job: tuple[Cell, int]) -> dict | None:
    """Train and score one cell with one seed. None if the time is up."""
    if time.time() > _worker["deadline"]:
        return None
    from accelerate.utils import set_seed

    from benchmarks.ablation_variants import apply_variant
    from llama_adapter_edu import evaluate
    from llama_adapter_edu.adapt import AdaptionPromptConfig, add_adaption_prompts, remove_adapter
    from llama_adapter_edu.data import encode_dataset
    from llama_adapter_edu.finetune import TrainingConfig, finetune

    cell, seed = job
    llama, tokenizer, scored = (_worker[name] for name in ("llama", "tokenizer", "scored"))
    start = time.perf_counter()
    train = encode_dataset(training_rows(cell.rooms, cell.rows, seed), tokenizer)
    problem = first = None
    if cell.adapter_layers:
        set_seed(seed)
        config = AdaptionPromptConfig(
            **{name: getattr(cell, name) for name in AdaptionPromptConfig.__dataclass_fields__}
        )
        add_adaption_prompts(llama, config)
        attention = llama.config._attn_implementation
        apply_variant(llama, cell.gate_start, cell.softmax, cell.dtype)
        training = TrainingConfig(
            steps=cell.steps,
            batch_size=cell.batch_size,
            learning_rate=cell.learning_rate,
            seed=seed,
        )
        try:
            options = {"accelerator": _worker["accelerator"], "progress": False}
            first = finetune(llama, tokenizer, train, training, **options).losses[0]
        except FloatingPointError as error:
            problem = str(error)
    trained = time.perf_counter()
    answers = evaluate.generate_answers(
        llama,
        tokenizer,
        scored.select_columns(["instruction", "input", "output"]),
        max_new_tokens=evaluate.longest_answer(scored, tokenizer),
        batch_size=200,
    )
    result = {
        "settings": cell.changes(),
        "seed": seed,
        "exact_match": evaluate.exact_match(answers, scored["output"][:]),
        "first_loss": first,
        "train_loss": mean_loss(llama, tokenizer, train.select(range(min(200, len(train))))),
        "validation_loss": mean_loss(llama, tokenizer, scored),
        "train_seconds": round(trained - start, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if problem:
        result |= {"diverged": problem, "train_loss": None, "validation_loss": None}
    if cell.adapter_layers:
        remove_adapter(llama, "default")
        llama.set_attn_implementation(attention)
    return result


def mean_loss(llama, tokenizer, dataset) -> float:
    """Mean cross entropy (nats per token) of the answers, all labelled tokens alike."""
    import torch

    from llama_adapter_edu.data import IGNORE_INDEX, collate
    from llama_adapter_edu.finetune import answer_loss

    total, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(dataset), 50):
            rows = [dataset[i] for i in range(start, min(start + 50, len(dataset)))]
            batch = collate(rows, tokenizer.pad_token_id)
            batch = {name: tensor.to(llama.device) for name, tensor in batch.items()}
            n = int((batch["labels"] != IGNORE_INDEX).sum())
            total, tokens = total + n * answer_loss(llama, batch).item(), tokens + n
    return total / tokens


def hardware(cpu: bool, workers: int) -> dict:
    """What the runs ran on, and the versions that matter."""
    import accelerate
    import torch
    import transformers

    on_gpu = torch.cuda.is_available() and not cpu
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {platform.machine()}",
        "processes_side_by_side": workers,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def write_json(path: Path, runs: list[dict], studies: dict, about: dict) -> None:
    """All runs as one small JSON file, one run a line."""
    head = about | {
        "defaults": asdict(Cell()),
        "studies": {name: [cell.changes() for cell in cells] for name, cells in studies.items()},
    }
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    text = json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n  {lines}\n ]\n}}\n'
    path.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the JSON file to write")
    parser.add_argument("--model", help="the course's Llama; else a folder or a hub id")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scored-rows", type=int, default=200, help="unseen commands to answer")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="start no run later"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--tiny", action="store_true", help="two cells, one seed, four commands")
    options = parser.parse_args(arguments)

    deadline = time.time() + options.budget_seconds
    studies = {name: STUDIES[name] for name in options.studies}
    if options.tiny:
        studies, options.seeds, options.scored_rows = TINY_STUDIES, 1, 4
    options.output.parent.mkdir(parents=True, exist_ok=True)
    scratch = options.output.with_suffix(".runs.jsonl")
    runs = []
    if scratch.exists():
        runs = [json.loads(line) for line in scratch.read_text(encoding="utf-8").splitlines()]
    done = {json.dumps([run["settings"], run["seed"]]) for run in runs}
    jobs = [
        job
        for job in grid(studies, options.seeds)
        if json.dumps([job[0].changes(), job[1]]) not in done
    ]
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    setup = options.model, options.cpu, options.scored_rows, deadline, threads
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with (
        ProcessPoolExecutor(options.workers, context, start_worker, setup) as pool,
        scratch.open("a", encoding="utf-8") as lines,
    ):
        for future in as_completed([pool.submit(run_cell, job) for job in jobs]):
            if (run := future.result()) is None:
                continue
            lines.write(json.dumps(run) + "\n")
            lines.flush()
            runs.append(run)
            print(
                f"{len(runs):3} {run['exact_match']:6.1%} {run['seconds']:6.1f} s  "
                f"seed {run['seed']} {run['settings']}",
                flush=True,
            )

    about = hardware(options.cpu, options.workers) | {"scored_rows": options.scored_rows}
    write_json(options.output, runs, studies, about)
    left = len(grid(studies, options.seeds)) - len(runs)
    print(
        f"{len(runs)} runs in {options.output}" + (f"; {left} not started in time" if left else "")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
