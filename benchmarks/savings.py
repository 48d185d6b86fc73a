"""What each saving of a training step saves: forward and backward with it and without it, in turns.

    python -m benchmarks.savings --shape tiny --rounds 2    # does it run?
    python -m benchmarks.savings                            # the course's Llama, about 10 minutes

Both ways must give the same loss. Memory is the highest of a first step, above what the model
itself takes; on a CPU it is measured in a process of its own (Linux only). Results go to
`results/savings.json`.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.decode import open_gates
from benchmarks.methods import OURS, SHAPES, Base, prepare
from benchmarks.paper_run import alpaca_like_row
from benchmarks.train_step import course_batch
from llama_adapter_edu import encode_dataset
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.packing import collate_packed, pack
from llama_adapter_edu.data.batches import collate, length_grouped_batches
from llama_adapter_edu.data.token_rows import Rows
from llama_adapter_edu.training import loss as the_loss
from llama_adapter_edu.training.loss import answer_loss_sum, columns_loss_sum, cross_entropy_sum
from llama_adapter_edu.training.shared_start import SharedStart

Work = Callable[[], Tensor]
LONG, BATCHES = 4096, 6


class Bench:
    """A model with open gates, and batches for it."""

    def __init__(self, shape: str, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.base, self.device = Base(shape, device, dtype), device
        self.rows = 16 if device.type == "cuda" else 4  # a GPU would wait for Python with fewer

    def model(self, adapter_layers: int = 30) -> nn.Module:
        model = prepare(OURS, self.base.model(), 10, adapter_layers).train()
        open_gates(model)  # closed ones would hide what the prompts do to the loss
        return model

    def to_device(self, batch: dict) -> dict:
        return {n: x.to(self.device) if isinstance(x, Tensor) else x for n, x in batch.items()}

    def home_commands(self) -> dict[str, Tensor]:
        """Masked labels and real lengths; random words if the shape has no tokenizer."""
        if hasattr(self.base, "tokenizer"):
            return course_batch(self.base, 2 * self.rows, self.device)
        return self.to_device(collate(self.alpaca_like()[: 2 * self.rows], 0))

    def alpaca_like(self) -> list[dict[str, list[int]]]:
        rng = random.Random(0)
        vocabulary = self.base.config.vocab_size
        return [alpaca_like_row(rng, vocabulary) for _ in range(BATCHES * self.rows)]

    def batches(self, numbers: Iterable[list[int]]) -> list[dict]:
        """Batches of the Alpaca-like rows with these numbers."""
        rows = self.alpaca_like()
        return [self.to_device(collate([rows[n] for n in some], 0)) for some in numbers]

    def as_they_come(self) -> list[dict]:
        starts = range(0, BATCHES * self.rows, self.rows)
        return self.batches(list(range(start, start + self.rows)) for start in starts)


def learn(model: nn.Module, *batches: dict[str, Tensor]) -> Tensor:
    """Forward and backward; the sum of the loss over all labelled tokens."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for batch in batches:
        loss, _ = answer_loss_sum(model, batch)
        loss.backward()
        total += loss.detach()
    model.zero_grad()
    return total


def labelled_logits(bench: Bench) -> tuple[Work, Work]:
    model, batch = bench.model(), bench.home_commands()

    def all_logits() -> Tensor:
        columns = torch.arange(1, batch["labels"].shape[1], device=batch["labels"].device)
        loss = columns_loss_sum(model, batch, columns)
        loss.backward()
        model.zero_grad()
        return loss.detach()

    return partial(learn, model, batch), all_logits


def nothing_kept_below(bench: Bench) -> tuple[Work, Work]:
    model, batch = bench.model(adapter_layers=8), bench.home_commands()

    def keep_all() -> Tensor:
        embeddings = model.get_input_embeddings()
        hook = embeddings.register_forward_hook(lambda _m, _i, output: output.requires_grad_())
        try:
            return learn(model, batch)
        finally:
            hook.remove()

    return partial(learn, model, batch), keep_all


def prompts_once(bench: Bench) -> tuple[Work, Work]:
    model, batch = bench.model(), bench.home_commands()
    rows, width = len(batch["input_ids"]), bench.base.config.hidden_size
    nothing = torch.zeros(rows, width, device=bench.device, dtype=model.dtype)

    def for_each_row() -> Tensor:  # as prompts that carry a picture need it; here the picture is 0
        loss, _ = answer_loss_sum(partial(model, image_vector=nothing), batch)
        loss.backward()
        model.zero_grad()
        return loss.detach()

    return partial(learn, model, batch), for_each_row


def no_mask(bench: Bench) -> tuple[Work, Work]:
    model, batch = bench.model(), bench.home_commands()
    bare = {name: batch[name] for name in ("input_ids", "labels")}
    return partial(learn, model, bare), partial(learn, model, batch)


def similar_lengths(bench: Bench) -> tuple[Work, Work]:
    model, lengths = bench.model(), [len(row["input_ids"]) for row in bench.alpaca_like()]
    grouped = bench.batches(length_grouped_batches(lengths, bench.rows, seed=0))
    return partial(learn, model, *grouped), partial(learn, model, *bench.as_they_come())


def packed_rows(bench: Bench) -> tuple[Work, Work]:
    model, packed, at_once = bench.model(), pack(bench.alpaca_like(), length=512), bench.rows // 4
    batches = [
        bench.to_device(collate_packed(packed[start : start + at_once], 0))
        for start in range(0, len(packed), at_once)
    ]
    return partial(learn, model, *batches), partial(learn, model, *bench.as_they_come())


def start_once(bench: Bench) -> tuple[Work, Work]:
    model, n_rows = bench.model(), 2 * bench.rows
    if hasattr(bench.base, "tokenizer"):
        dataset = encode_dataset(home_commands("train", n_rows, seed=0), bench.base.tokenizer)
    else:
        dataset = [
            row | {"input_ids": [3] * 24 + row["input_ids"][24:]} for row in bench.alpaca_like()
        ]
    rows = Rows(dataset, 0, bench.device)
    together = SharedStart(rows, model).batch(range(n_rows))
    return partial(learn, model, together), partial(learn, model, rows.batch(range(n_rows)))


def chunked_loss(bench: Bench) -> tuple[Work, Work]:
    """The model's head and the loss alone, on random hidden states."""
    model, config = bench.model(), bench.base.config
    states = torch.randn(LONG, config.hidden_size, device=bench.device, dtype=model.dtype)
    states.requires_grad_()
    labels = torch.randint(0, config.vocab_size, (LONG,), device=bench.device)

    def in_chunks() -> Tensor:
        loss = cross_entropy_sum(model.lm_head(states), labels)
        loss.backward()
        states.grad = None
        return loss.detach()

    def at_once() -> Tensor:
        with patch.object(the_loss, "CHUNK", LONG):
            return in_chunks()

    return in_chunks, at_once


SAVINGS = {
    "logits of labelled columns only": labelled_logits,
    "nothing kept below the lowest of 8 adapted layers": nothing_kept_below,
    "prompts' keys and values once, not for each row": prompts_once,
    "no mask for padding on the right": no_mask,
    "rows of similar length share a batch": similar_lengths,
    "rows packed into 512 tokens": packed_rows,
    "tokens with which all rows begin, once": start_once,
    f"head and loss of {LONG} labelled tokens, in chunks": chunked_loss,
}


def peak_in_a_new_process(name: str, way: int, shape: str) -> float | None:
    command = [sys.executable, "-m", "benchmarks.savings", "--cpu", "--shape", shape]
    command += ["--peak", name, str(way)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def measured(name: str, bench: Bench, shape: str, rounds: int) -> dict:
    """Times and memory of one saving.

    Raises:
        ValueError: the losses with and without it differ, so it is no saving.
    """
    works = dict(zip(("with", "without"), SAVINGS[name](bench), strict=True))
    losses = [work().item() for work in works.values()]
    bound = 1e-2 if bench.device.type == "cuda" else 1e-4
    if abs(losses[0] - losses[1]) > bound * losses[1]:
        raise ValueError(f"{name}: loss {losses[0]} with it, {losses[1]} without it")
    times = measure.interleaved(works, bench.device, rounds=rounds, times=1)
    record: dict = {"saving": name, "rows_at_once": bench.rows}
    for number, (way, work) in enumerate(works.items()):
        on_gpu = bench.device.type == "cuda"
        peak = measure.peak_mib(work, bench.device) if on_gpu else None
        record |= {f"{way}_{what}": value for what, value in measure.spread(times[way]).items()}
        record[f"{way}_mib"] = peak if on_gpu else peak_in_a_new_process(name, number, shape)
    return record


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "smollm2-real"], default="smollm2-real")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--savings", nargs="+", choices=SAVINGS, default=list(SAVINGS))
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # one way's memory, then end
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "savings.json")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available() and not options.cpu
    bench = Bench(options.shape, torch.device("cuda" if on_gpu else "cpu"))
    if options.peak:
        name, way = options.peak
        print(json.dumps(measure.peak_mib(SAVINGS[name](bench)[int(way)], bench.device)))
        return 0

    about = {"shape": options.shape} | measure.conditions(bench.device)
    columns = [
        "saving",
        *(f"{way}_{x}" for x in ("median_ms", "mib") for way in ("with", "without")),
    ]
    records = []
    for name in options.savings:
        records.append(measured(name, bench, options.shape, options.rounds))
        measure.keep(options.output, [about | records[-1]])
    measure.print_table(records, columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
