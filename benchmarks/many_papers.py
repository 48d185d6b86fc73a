"""Five ways to put a short document into a frozen Llama: what each costs and reaches.

    python -m benchmarks.many_papers --workers 5                    # GPUs, 3 seeds, 200 steps
    python -m benchmarks.many_papers --device cpu --steps 15        # the figures of lesson 10
    python -m benchmarks.many_papers --device cpu --shape tiny --steps 2 --output /tmp/tiny.json

The teacher is the Llama with the document in its context. Each way learns from the questions of
`train` to answer like the teacher, without the document: the loss is KL(teacher || student) in nats
at temperature 1, the mean over the tokens of the answers. "other" are questions about the same
facts in other words. A seed is another order of the document's sentences and another random start.
Each way runs with three learning rates on seed 0; the one with the lowest KL on `train` goes on.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.five_ways import WAYS, prepare
from benchmarks.measure import conditions
from benchmarks.methods import Base
from benchmarks.report_more import best_runs, five_ways
from llama_adapter_edu import load_llama
from llama_adapter_edu.course.tasks.document import Rows, document, question_rows
from llama_adapter_edu.training.distillation import kl_divergence

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu/course/results/many_papers.json"
RATES = {
    "prompts": (3e-3, 1e-2, 3e-2),
    "V2": (1e-3, 3e-3, 1e-2),
    "cartridge": (1e-2, 3e-2, 1e-1),
    "LoRA": (1e-3, 3e-3, 1e-2),
    "prefix": (1e-2, 3e-2, 1e-1),
}


class Task:
    """Document, questions and the teacher's answers for one seed."""

    def __init__(self, base: Base, tokenizer, seed: int, device: torch.device) -> None:
        def fitting(ids: Tensor) -> Tensor:  # a tiny trial has a smaller vocabulary
            return ids.to(device) % base.config.vocab_size

        text = tokenizer(document(seed), return_tensors="pt").input_ids
        self.document = fitting(text)
        self.rows, self.teacher = {}, {}
        for split, name in (("train", "trained"), ("test", "other")):
            rows = Rows(*(part.to(device) for part in question_rows(tokenizer, split)))
            self.rows[name] = rows._replace(input_ids=fitting(rows.input_ids))
            self.teacher[name] = self._with_document(base.model(), self.rows[name])

    @torch.no_grad()
    def _with_document(self, model, rows: Rows) -> Tensor:
        context = self.document.expand(len(rows.input_ids), -1)
        ids = torch.cat([context, rows.input_ids], dim=1)
        mask = torch.cat([torch.ones_like(context), rows.attention_mask], dim=1)
        return model(ids, attention_mask=mask).logits[:, context.shape[1] :]

    def kl(self, name: str, logits: Tensor) -> Tensor:
        """KL(teacher || student) in nats, the mean over the tokens of the answers."""
        of_answers = self.rows[name].predicts
        return kl_divergence(logits[of_answers], self.teacher[name][of_answers]).mean()

    def right(self, name: str, logits: Tensor) -> float:
        """The share of answers that greedy decoding gives: each token is the likeliest one."""
        rows = self.rows[name]
        hit = logits.argmax(-1)[:, :-1] == rows.input_ids[:, 1:]
        return (hit | ~rows.predicts[:, :-1]).all(1).float().mean().item()

    def logits(self, model: nn.Module, name: str) -> Tensor:
        rows = self.rows[name]
        return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits

    def scores(self, model: nn.Module) -> dict[str, float]:
        found = {}
        for name in self.rows:
            with torch.no_grad():
                logits = self.logits(model, name)
            found[f"kl_{name}"] = round(self.kl(name, logits).item(), 4)
            found[f"right_{name}"] = self.right(name, logits)
        return found


def run(way: str, base: Base, task: Task, seed: int, rate: float, steps: int) -> dict:
    """Train once and score."""
    torch.manual_seed(seed)
    model = prepare(way, base.model(), task.document)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learnt, lr=rate)
    start, first = time.perf_counter(), task.scores(model)
    for _ in range(steps):
        loss = task.kl("trained", task.logits(model, "trained"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        "way": way,
        "seed": seed,
        "learning_rate": rate,
        **task.scores(model),
        **{f"first_{name}": score for name, score in first.items() if name.startswith("kl")},
        "trainable_parameters": sum(p.numel() for p in learnt),
        "seconds": round(time.perf_counter() - start, 1),
    }


def runs_of(number: int, settings: argparse.Namespace, done: list[dict]) -> list[dict]:
    """All runs of one way that are not done: each rate on seed 0, the best on the other seeds."""
    way, runs = WAYS[number], [run for run in done if run["way"] == WAYS[number]]
    known = {(run["seed"], run["learning_rate"]) for run in runs}
    base, tokenizer, device = start(settings, number)
    for seed in range(settings.seeds):
        task = Task(base, tokenizer, seed, device)
        best = [] if seed == 0 else best_runs({"runs": runs}, way)
        for rate in [best[0]["learning_rate"]] if best else RATES[way]:
            if (seed, rate) in known:
                continue
            runs.append(run(way, base, task, seed, rate, settings.steps))
            print(json.dumps(runs[-1]), flush=True)
    return runs


def start(settings: argparse.Namespace, number: int = 0) -> tuple:
    """Base, tokenizer and device; of several GPUs, each way in turn takes the next."""
    device = torch.device(settings.device)
    if device.type == "cuda":
        device = torch.device("cuda", number % torch.cuda.device_count())
    base = Base(settings.shape, device, torch.float32)
    return base, getattr(base, "tokenizer", None) or load_llama()[1], device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="smollm2-real", help="or tiny, smollm2: random weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="ways that run at the same time")
    parser.add_argument(
        "--done", type=Path, help="runs of the same settings: lines that it printed"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    settings = parser.parse_args()

    base, tokenizer, device = start(settings)
    done = [json.loads(line) for line in settings.done.open()] if settings.done else []
    chosen = {name: getattr(settings, name) for name in ("shape", "seeds", "steps", "workers")}
    result = {"conditions": conditions(device) | chosen, "teacher": [], "bare": [], "runs": []}
    for seed in range(settings.seeds):
        task = Task(base, tokenizer, seed, device)
        right = {f"right_{name}": task.right(name, task.teacher[name]) for name in task.rows}
        result["teacher"].append({"tokens": task.document.shape[1], **right})
        result["bare"].append(task.scores(base.model()))
    with ProcessPoolExecutor(settings.workers, multiprocessing.get_context("spawn")) as pool:
        for runs in pool.map(runs_of, range(len(WAYS)), repeat(settings), repeat(done)):
            result["runs"] += runs
            text = json.dumps(result, indent=1) + "\n"
            settings.output.write_text(text, encoding="utf-8")
    print(*five_ways(result), sep="\n")


if __name__ == "__main__":
    main()
