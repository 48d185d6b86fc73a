"""How long would the paper's run take on one GPU? Measured for a while, then extrapolated.

    python -m benchmarks.paper_run                                      # a GPU of 80 GB
    python -m benchmarks.paper_run --shape tiny --seconds 2 --cpu --eager  # does it run?

The paper: 52K examples of Alpaca, 5 epochs, LLaMA-7B, one hour on 8 A100. Here: random weights of
that shape, random words, and lengths as in Alpaca with its template: about 90 tokens a row, 60 of
them answer (a log-normal with a long tail, cut at 512). Rows of similar length share a batch.
"""

import argparse
import random
import sys
import time
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.methods import OURS, SHAPES, Base, prepare
from llama_adapter_edu.base_models.float8 import to_float8
from llama_adapter_edu.data.batches import collate, length_grouped_batches
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.compiled import compiled_layers
from llama_adapter_edu.training.cuda_graphs import pad_to_bucket
from llama_adapter_edu.training.loss import LossSum, answer_loss, cross_entropy_sum

EXAMPLES, EPOCHS, LONGEST = 52_002, 5, 512


def alpaca_like_row(rng: random.Random, vocabulary: int) -> dict[str, list[int]]:
    prompt = rng.randint(25, 60)
    answer = min(LONGEST - prompt, max(2, round(rng.lognormvariate(3.6, 0.95))))
    ids = [rng.randrange(1, vocabulary) for _ in range(prompt + answer)]
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * prompt + ids[prompt:]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--eager", action="store_true", help="else with compiled layers")
    parser.add_argument("--float8", action="store_true", help="the base")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "paper_run.json")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    base = Base(options.shape, device, dtype)
    model = prepare(OURS, base.model(), 10, 30).train()
    if options.float8:
        to_float8(model)
        del base.weights
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    rng = random.Random(0)
    rows = [alpaca_like_row(rng, base.config.vocab_size) for _ in range(8192)]
    lengths = [len(row["input_ids"]) for row in rows]
    order = length_grouped_batches(lengths, options.batch_size, seed=0)

    def learn(numbers: list[int], loss_sum: LossSum) -> None:
        batch = collate([rows[n] for n in numbers], 0)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        batch, _ = pad_to_bucket(batch, 0)
        answer_loss(model, batch, loss_sum).backward()
        optimizer.step()
        optimizer.zero_grad()

    done, tokens = 0, 0
    compiled = nullcontext(cross_entropy_sum) if options.eager else compiled_layers(model)
    with compiled as loss_sum:
        for numbers in order[:12]:  # libraries set themselves up, the compiler compiles
            learn(numbers, loss_sum)
        measure.wait(device)
        start = time.perf_counter()
        for numbers in cycle(order):
            learn(numbers, loss_sum)
            done += len(numbers)
            tokens += sum(lengths[n] for n in numbers)
            if time.perf_counter() - start > options.seconds:
                break
        measure.wait(device)
        took = time.perf_counter() - start

    record = {
        "shape": options.shape,
        "dtype": "float8" if options.float8 else str(dtype).removeprefix("torch."),
        "way": "eager" if options.eager else "compile",
        "batch_size": options.batch_size,
        "measured_seconds": round(took, 3),
        "rows": done,
        "mean_tokens_a_row": round(tokens / done, 1),
        "tokens_per_second": round(tokens / took),
        "extrapolated_hours_of_the_papers_run": round(EXAMPLES * EPOCHS * took / done / 3600, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if on_gpu else None,
    }
    measure.print_table([record], list(record))
    measure.keep(options.output, [measure.conditions(device) | record])
    return 0


if __name__ == "__main__":
    sys.exit(main())
