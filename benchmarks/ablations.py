"""What matters in LLaMA-Adapter: a grid of short fine-tunings on home commands, several seeds each.

    python -m benchmarks.ablations --cpu --tiny --output /tmp/ablations.json        # about a minute
    python -m benchmarks.ablations --workers 8 --seeds 3 --budget-seconds 400       # one GPU

`ablation_grid.py` says what is compared, `ablation_run.py` trains and scores, and
`ablation_variants.py` holds the adapters that the library leaves out on purpose. Each run draws its
training rooms, prompts and order of rows from its seed, so cells with the same seed can be compared
pair by pair. It is scored on the same commands of the validation split: no room and no phrasing of
them occurs in training.

The JSON holds hardware, versions and all runs, and is written again after every run. A later call
with the same conditions adds what is missing: more seeds, or cells that there was no time for. It
is package data: lesson 08 draws it.
"""

import argparse
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import accelerate
import torch
import transformers

from benchmarks.ablation_grid import STUDIES, TINY_STUDIES, Cell, grid
from benchmarks.ablation_run import base_dtype, run_cell, start_worker

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu/course/results" / "ablations.json"


def conditions(options: argparse.Namespace) -> dict:
    """What has to be the same for runs to be compared, and what they ran on."""
    on_gpu = torch.cuda.is_available() and not options.cpu
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {platform.machine()}",
        "processes_side_by_side": options.workers,
        "base_dtype": base_dtype(options.cpu),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "model": options.model or "the course's Llama",
        "scored_rows": options.scored_rows,
        "defaults": asdict(Cell()),
    }


def earlier_runs(path: Path, about: dict) -> list[dict]:
    """The runs that an earlier call wrote, if any.

    Raises:
        ValueError: they were made under other conditions.
    """
    if not path.exists():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for name in ("base_dtype", "torch", "transformers", "model", "scored_rows", "defaults"):
        if earlier[name] != about[name]:
            raise ValueError(
                f"{path} holds runs with {name} {earlier[name]}, this call has {about[name]}: "
                "they cannot be compared. Choose another --output."
            )
    if earlier["device"] != about["device"]:
        about["device"] = f"{earlier['device']} and {about['device']}"
    return earlier["runs"]


def write_json(path: Path, runs: list[dict], studies: dict, about: dict) -> None:
    """All runs as one small JSON file, one run a line; never half a file."""
    cells = {name: [cell.changes() for cell in members] for name, members in studies.items()}
    head = json.dumps(about | {"studies": cells}, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(run) for run in runs)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(f'{head},\n "runs": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    unfinished.replace(path)


def missing_jobs(jobs: list[tuple[Cell, int]], runs: list[dict]) -> list[tuple[Cell, int]]:
    """The jobs that no run has done yet."""
    done = [(run["settings"], run["seed"]) for run in runs]
    return [(cell, seed) for cell, seed in jobs if (cell.changes(), seed) not in done]


def run_jobs(jobs: list[tuple[Cell, int]], setup: tuple, workers: int) -> Iterator[dict]:
    """The results of the jobs as they come. A job that fails is reported and leaves the others."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(workers, context, start_worker, setup) as pool:
        futures = {pool.submit(run_cell, job): job for job in jobs}
        for future in as_completed(futures):
            if error := future.exception():
                cell, seed = futures[future]
                print(f"failed: seed {seed} {cell.changes()}: {error!r}", file=sys.stderr)
            elif run := future.result():
                yield run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the JSON file to write")
    parser.add_argument("--model", help="a folder or a hub id instead of the course's Llama")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scored-rows", type=int, default=200, help="unseen commands to answer")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="then start no more"
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--tiny", action="store_true", help="two cells, one seed, four commands")
    options = parser.parse_args(arguments)
    deadline = time.time() + options.budget_seconds
    studies = STUDIES
    if options.tiny:
        studies, options.studies, options.seeds, options.scored_rows = (
            TINY_STUDIES,
            ["layers"],
            1,
            4,
        )

    about = conditions(options)
    try:
        runs = earlier_runs(options.output, about)
    except ValueError as error:
        parser.error(str(error))
    jobs = grid({name: studies[name] for name in options.studies}, options.seeds)
    jobs = missing_jobs(jobs, runs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, runs, studies, about)

    threads = max(1, torch.get_num_threads() // options.workers)
    setup = options.model, options.cpu, options.scored_rows, deadline, threads
    for run in run_jobs(jobs, setup, options.workers):
        runs.append(run)
        write_json(options.output, runs, studies, about)
        figures = f"{len(runs):3} {run['exact_match']:6.1%} {run['seconds']:6.1f} s"
        print(figures, f"seed {run['seed']} {run['settings']}", flush=True)
    left = len(missing_jobs(jobs, runs))
    print(f"{len(runs)} runs in {options.output}; {left} of this call not done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
