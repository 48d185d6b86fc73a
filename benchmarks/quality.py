"""How good, how small, how fast: adaption prompts beside PEFT's, LoRA and full fine-tuning.

    python -m benchmarks.quality --cpu --tiny --output /tmp/quality.json      # does the script run?
    python -m benchmarks.quality --minutes 8                                  # one GPU

A finished run is written to OUTPUT at once; a second call does what is missing. The parts:

    bar         the `gpu` profile on home commands, 3 seeds: exact match on unseen commands
    telegrams   the same profile on the second expert: share of answers in a telegram's style
    rates       each method's learning rate, chosen on the validation split from candidates
    methods     each method with that rate, 3 seeds, float32, the same rows in the same order
    speed       the first steps of each method once more, alone on the machine
    t4          the `t4` profile (float16 base, gradient scaler), one seed

Seconds and peak memory count only in the parts that run alone: bar, speed, t4.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import mean

import accelerate
import peft
import torch
import transformers

from benchmarks.quality_run import base_answers, run
from llama_adapter_edu import TrainingConfig
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.profiles import PROFILES, Profile
from llama_adapter_edu.course.tasks.telegrams import telegrams

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu/course/results" / "quality.json"
SEEDS = (0, 1, 2)
RATE_SEED = 100
BUDGET = TrainingConfig(steps=100, batch_size=32)  # of every method; the rate is its own
RATES = {
    "adaption prompts": (1e-2, 3e-2, 1e-1),
    "PEFT adaption prompts": (1e-2, 3e-2, 1e-1),
    "V2": (3e-3, 1e-2, 3e-2),
    "cartridge": (1e-2, 3e-2, 1e-1),
    "PEFT LoRA": (1e-3, 3e-3, 1e-2),
    "full fine-tuning": (3e-5, 1e-4, 3e-4),
}


@dataclass(frozen=True)
class Job:
    """One run: which part of the benchmark, which method, seed, learning rate, profile."""

    part: str
    method: str
    seed: int
    profile: Profile
    training: TrainingConfig
    test_rows: int
    split: str = "test"
    model_name: str | None = None

    @property
    def name(self) -> str:
        rate = f"/{self.training.learning_rate:g}" if self.part == "rates" else ""
        return f"{self.part}/{self.method}{rate}/{self.seed}"

    def __call__(self) -> dict:
        if self.method == "base":
            return base_answers(self.profile, self.test_rows, self.model_name)
        return run(
            self.method,
            self.training,
            self.profile,
            self.seed,
            data=telegrams if self.part == "telegrams" else home_commands,
            split=self.split,
            test_rows=self.test_rows,
            model_name=self.model_name,
        )


def take_a_gpu(count, gpus: int) -> None:
    """Let this process use one GPU, where there are several the next one in turn."""
    with count.get_lock():
        number, count.value = count.value, count.value + 1
    if gpus > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)


def do(job: Job) -> dict:
    return job()


class Results:
    """The runs so far, in a file that is whole at every moment."""

    def __init__(self, path: Path, conditions: dict, deadline: float) -> None:
        self.path, self.deadline = path, deadline
        self.content = {"conditions": conditions, "runs": {}}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["conditions"] != conditions:
                sys.exit(f"{path} holds runs under other conditions: take another --output.")
            self.content = found

    def do_alone(self, jobs: list[Job]) -> None:
        """The missing ones, one after the other: for runs that are timed."""
        for job in self._missing(jobs):
            if time.monotonic() < self.deadline:
                self._keep(job, job())

    def do_together(self, jobs: list[Job], workers: int) -> None:
        """The missing ones, several at a time."""
        missing = self._missing(jobs)
        context = multiprocessing.get_context("spawn")
        arguments = context.Value("i", 0), torch.cuda.device_count()
        workers = min(workers, len(missing) or 1)
        with ProcessPoolExecutor(workers, context, take_a_gpu, arguments) as pool:
            running = {pool.submit(do, job): job for job in missing}
            for future in as_completed(running):
                if not future.cancelled():
                    self._keep(running[future], future.result())
                if time.monotonic() > self.deadline:
                    pool.shutdown(wait=False, cancel_futures=True)

    def best_rate(self, jobs: list[Job]) -> float | None:
        """Of jobs that differ in the learning rate; None if one was not run."""
        if self._missing(jobs):
            return None
        runs = self.content["runs"]
        best = max(jobs, key=lambda job: (runs[job.name]["exact_match"], -runs[job.name]["loss"]))
        return best.training.learning_rate

    def _missing(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.name not in self.content["runs"]]

    def _keep(self, job: Job, result: dict) -> None:
        self.content["runs"][job.name] = result
        shown = {k: v for k, v in result.items() if k in ("exact_match", "style", "seconds")}
        print(job.name, shown, flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, self.path)


def benchmark(results: Results, *, cpu: bool, tiny: bool, model: str | None, workers: int) -> None:
    """All runs. What is timed runs alone."""
    plain = replace(PROFILES["gpu"], name="float32", dtype=torch.float32)
    gpu, t4 = PROFILES["gpu"], PROFILES["t4"]
    budget, seeds = BUDGET, SEEDS
    if cpu:
        plain, gpu, t4 = (replace(p, name="cpu", mixed_precision="no") for p in (plain, gpu, gpu))
    if tiny:
        budget, seeds = replace(BUDGET, steps=2, batch_size=2), SEEDS[:1]
        gpu, t4 = (replace(p, steps=2, batch_size=2) for p in (gpu, t4))

    def in_profile(part: str, seed: int, profile: Profile = gpu) -> Job:
        training, rows = profile.training(seed=seed), 4 if tiny else 400
        return Job(part, "adaption prompts", seed, profile, training, rows, model_name=model)

    def compared(part: str, method: str, seed: int, rate: float, steps: int, split: str) -> Job:
        training = replace(budget, learning_rate=rate, seed=seed, steps=steps)
        rows = 4 if tiny else 200
        return Job(part, method, seed, plain, training, rows, split, model)

    results.do_alone([in_profile("bar", seed) for seed in seeds])
    base = Job("base", "base", 0, plain, budget, 4 if tiny else 200, model_name=model)
    half = budget.steps // 2
    trials = {
        method: [compared("rates", method, RATE_SEED, r, half, "validation") for r in rates]
        for method, rates in RATES.items()
    }
    styles = [in_profile("telegrams", seed) for seed in seeds]
    results.do_together([*styles, base, *chain.from_iterable(trials.values())], workers)
    rates = {method: results.best_rate(jobs) for method, jobs in trials.items()}
    found = [(method, rate) for method, rate in rates.items() if rate]
    jobs = [compared("methods", m, s, r, budget.steps, "test") for s in seeds for m, r in found]
    results.do_together(jobs, workers)
    speed = [compared("speed", m, 0, r, min(30, budget.steps), "test") for m, r in found]
    results.do_alone([*speed, in_profile("t4", 0, t4)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--minutes", type=float, default=8, help="start no run after this time")
    parser.add_argument("--workers", type=int, default=4, help="runs at a time where none is timed")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--tiny", action="store_true", help="two steps of everything: a trial")
    parser.add_argument("--model", default=None, help="a hub id or folder instead of our Llama")
    options = parser.parse_args()
    gpu = torch.cuda.is_available() and not options.cpu
    conditions = {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {platform.machine()}",
        "tiny": options.tiny,
        "model": options.model or "SmolLM2-135M-Instruct",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "accelerate": accelerate.__version__,
    }
    results = Results(options.output, conditions, time.monotonic() + 60 * options.minutes)
    benchmark(
        results,
        cpu=options.cpu,
        tiny=options.tiny,
        model=options.model,
        workers=options.workers,
    )
    runs = results.content["runs"]
    for part, score in (("bar", "exact_match"), ("telegrams", "style")):
        scores = [run[score] for name, run in runs.items() if name.startswith(f"{part}/")]
        if scores:
            print(f"{part}: mean {score} {mean(scores):.2%} of {len(scores)} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
