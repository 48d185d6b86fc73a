"""What does a base in float8 cost in answers? The course's Llama in bfloat16 and in float8.

    python -m benchmarks.float8_quality --cpu --tiny --output /tmp/float8.json   # does it run?
    python -m benchmarks.float8_quality --workers 6                              # one H100

Each run trains adaption prompts (10 prompts in each layer, the `gpu` profile) in one of the bases,
answers unseen rows there, and once more with the adapter moved to the other base. Home commands
count where they are right to the letter, telegrams where they have a telegram's style.

Both bases learn from the same rows in the same order and answer the same rows; each seed has rows
of its own. So differences are taken seed by seed, and their 95 % interval is Student's over the
seeds: it holds the noise of training and of the rows. It has no width where all seeds agree.

A finished run is written to OUTPUT at once; a second call does what is missing.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from accelerate.utils import set_seed
from datasets import Dataset

from benchmarks import measure
from benchmarks.quality import Results
from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    encode_dataset,
    finetune,
    generate_answers,
    load_adapter,
    load_llama,
    save_adapter,
)
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.profiles import PROFILES, Profile
from llama_adapter_edu.course.tasks.telegrams import style_score, telegrams
from llama_adapter_edu.data.evaluate import exact_match, longest_answer

TASKS = {"home commands": home_commands, "telegrams": telegrams}
BASES = {"bfloat16": None, "float8": "float8"}  # name: base_precision
ROWS_AT_ONCE = 500  # answered in one batch
# Student's 97.5 % quantiles, for 2, 3, ... seeds.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Job:
    """One run: which task, in which base the adapter is trained, and its seed."""

    task: str
    base: str
    seed: int
    profile: Profile
    test_rows: int
    model_name: str | None = None

    @property
    def name(self) -> str:
        return f"{self.task}/{self.base}/{self.seed}"

    def load(self, base: str):
        """(model, tokenizer) of the base, where this profile computes."""
        options = {"dtype": self.profile.dtype, "base_precision": BASES[base]}
        return load_llama(self.model_name, device=self.profile.accelerator().device, **options)

    def __call__(self) -> dict:
        """Train, answer here, answer in the other base: {"answered in ...": score from 0 to 1}."""
        start = time.perf_counter()
        model, tokenizer = self.load(self.base)
        test = TASKS[self.task]("test", self.test_rows, seed=self.seed)
        losses = self.train(model, tokenizer)
        scores = {f"answered in {self.base}": self.score(model, tokenizer, test)}
        other = next(base for base in BASES if base != self.base)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(model, folder)
            del model
            moved = load_adapter(self.load(other)[0], folder)
        scores[f"answered in {other}"] = self.score(moved, tokenizer, test)
        seconds = round(time.perf_counter() - start, 1)
        return {"first_loss": losses[0], "loss": mean(losses[-5:]), **scores, "seconds": seconds}

    def train(self, model, tokenizer) -> list[float]:
        """Fine-tune new prompts in place; the loss of each step."""
        training, accelerator = self.profile.training(seed=self.seed), self.profile.accelerator()
        n_rows = training.steps * training.batch_size
        train = encode_dataset(TASKS[self.task]("train", n_rows, seed=self.seed), tokenizer)
        set_seed(self.seed)
        layers = min(30, model.config.num_hidden_layers)
        add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=10, adapter_layers=layers))
        options = {"accelerator": accelerator, "cuda_graphs": accelerator.device.type == "cuda"}
        return finetune(model, tokenizer, train, training, progress=False, **options).losses

    def score(self, model, tokenizer, test: Dataset) -> float:
        """Share of right answers, or of answers in a telegram's style."""
        longest = longest_answer(test, tokenizer)
        options = {"max_new_tokens": longest, "batch_size": ROWS_AT_ONCE}
        answers = generate_answers(model, tokenizer, test, **options)
        return (
            style_score(answers)
            if self.task == "telegrams"
            else exact_match(answers, test["output"][:])
        )


def table(runs: dict[str, dict]) -> list[dict]:
    """For each task: the mean of each base, and its difference from bfloat16 in points.

    A seed counts if it was run in both bases.
    """
    lines = []
    for task in TASKS:
        done = [{name.split("/")[2] for name in runs if name.startswith(f"{task}/{base}/")}
                for base in BASES]  # fmt: skip
        seeds = sorted(set.intersection(*done), key=int)
        plain = [_score(runs, task, "bfloat16", "bfloat16", seed) for seed in seeds]
        for trained in BASES if seeds else ():
            for answered in BASES:
                scores = [_score(runs, task, trained, answered, seed) for seed in seeds]
                line = {"task": task, "trained in": trained, "answered in": answered}
                line |= {"seeds": len(seeds), "mean %": 100 * mean(scores)}
                if (trained, answered) != ("bfloat16", "bfloat16"):
                    points = [100 * (a - b) for a, b in zip(scores, plain, strict=True)]
                    line |= {"points": mean(points), "95 %": interval(points)}
                lines.append(line)
    return lines


def _score(runs: dict[str, dict], task: str, trained: str, answered: str, seed: str) -> float:
    return runs[f"{task}/{trained}/{seed}"][f"answered in {answered}"]


def interval(points: list[float]) -> str:
    """Student's 95 % interval of the mean of the seeds' differences; "" for one seed."""
    n = len(points)
    if n < 2:
        return ""
    half = STUDENT[min(n - 2, len(STUDENT) - 1)] * stdev(points) / n**0.5
    return f"{mean(points) - half:+.2f} to {mean(points) + half:+.2f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "float8_quality.json")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each task in each base")
    parser.add_argument("--rows", type=int, default=1000, help="unseen rows to answer")
    parser.add_argument("--workers", type=int, default=5, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=4, help="start no run after this time")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--tiny", action="store_true", help="2 steps, 4 rows, 1 seed: a trial")
    parser.add_argument("--model", default=None, help="a hub id or folder instead of our Llama")
    o = parser.parse_args(arguments)
    profile, device = PROFILES["gpu"], torch.device("cpu" if o.cpu else "cuda")
    if o.cpu:
        profile = replace(profile, name="cpu")
    if o.tiny:
        profile, o.seeds, o.rows = replace(profile, steps=2, batch_size=2), 1, 4
    rows = {task: min(o.rows, len(data("test"))) for task, data in TASKS.items()}
    conditions = {
        **measure.conditions(device),
        "model": o.model or "SmolLM2-135M-Instruct",
        "steps": profile.steps,
        "batch_size": profile.batch_size,
        "test_rows": rows,
    }
    results = Results(o.output, conditions, time.monotonic() + 60 * o.minutes)
    jobs = [
        Job(task, base, seed, profile, rows[task], o.model)
        for seed in range(o.seeds)  # first all of a seed: stopped early, whole seeds are done
        for task in TASKS
        for base in BASES
    ]
    results.do_together(jobs, o.workers)
    columns = ["task", "trained in", "answered in", "seeds", "mean %", "points", "95 %"]
    measure.print_table(table(results.content["runs"]), columns)
    print("points: minus bfloat16 in bfloat16; Student's interval over the seeds")
    for name, value in conditions.items():
        print(f"{name}: {value}")
    for task, n in rows.items():
        if n < o.rows:
            print(f"{task}: {o.rows} rows were asked for, its test split has {n}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
