"""What matters in LLaMA-Adapter: a grid of short fine-tunings on home commands, several seeds each.

    python -m benchmarks.ablations --cpu --tiny --output /tmp/ablations.json        # about a minute
    python -m benchmarks.ablations --workers 8 --seeds 5 --budget-seconds 420       # one GPU

`ablation_grid.py` says what is compared, `ablation_run.py` trains and scores, and
`ablation_variants.py` holds the adapters that the library leaves out on purpose. Each run draws its
training rooms, prompts and order of rows from its seed, so cells with the same seed can be compared
pair by pair. It is scored on the same commands of the validation split: no room and no phrasing of
them occurs in training.

A finished run is written to OUTPUT.runs.jsonl at once; a second call goes on from there. The JSON
with hardware, versions and all runs is package data: lesson 08 draws it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import accelerate
import torch
import transformers

from benchmarks.ablation_grid import STUDIES, TINY_STUDIES, Cell, grid
from benchmarks.ablation_run import run_cell, start_worker

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu" / "results" / "ablations.json"


def hardware(cpu: bool, workers: int) -> dict:
    """What the runs ran on, and the versions that matter."""
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
