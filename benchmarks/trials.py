"""Ideas that did not make it faster, measured beside the way that it is done.

    python -m benchmarks.trials --shapes tiny --rounds 2 --cpu   # does it run?
    python -m benchmarks.trials                                  # a GPU of 80 GB, about 5 minutes

Training steps and eager decoding. What came of it is told in NOTES.md; the figures go to
`results/trials.json`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import measure
from benchmarks.decode import make_generate, open_gates
from benchmarks.methods import BASE, OURS, PEFTS, Base, prepare, random_batch
from benchmarks.train_step import make_step
from llama_adapter_edu.adapters import attach
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.method import gated_prompts

AS_IT_IS = "as it is"
# Shape, batch and ways of the steps; rows of the decoding.
SETTINGS = {
    "llama-7b": ((8, 512), ("eager", "compile"), 1),
    "smollm2": ((16, 64), ("compiled graphs",), 1),
    "tiny": ((2, 8), ("eager",), 1),
}


def matrix_products(
    query: Tensor, key: Tensor, value: Tensor, mask: None = None, scale: float | None = None
) -> Tensor:
    """`attend_to_heads` without PyTorch's kernel; tokens last: rows begin at even places."""
    if key.ndim == 4:  # in a generation, the same ones for each row
        key, value = key[0], value[0]
    words = rearrange(query, "b h s d -> h d (b s)")
    weights = ((key * scale) @ words).float().softmax(dim=1).to(query.dtype)
    attended = rearrange(weights, "h p w -> h w p") @ value.to(query.dtype)
    return rearrange(attended, "h (b s) d -> b h s d", b=len(query))


def no_attention(query: Tensor, *heads_and_mask: Tensor, scale: float | None = None) -> Tensor:
    return query


@contextmanager
def attending(with_: Callable):
    """Inside, the prompts are attended to with this function."""
    with ExitStack() as stack:
        for module in (gated_prompts, attach):
            stack.enter_context(patch.object(module, "attend_to_heads", with_))
        yield


def first(kernel: SDPBackend):
    """Inside, PyTorch takes this attention kernel where it can."""
    return sdpa_kernel([kernel, SDPBackend.MATH], set_priority=True)


TRIALS = {
    AS_IT_IS: ExitStack,
    "matrix products instead of an attention kernel": partial(attending, matrix_products),
    "flash attention": partial(first, SDPBackend.FLASH_ATTENTION),
    "memory-efficient attention": partial(first, SDPBackend.EFFICIENT_ATTENTION),
    "cuDNN's attention": partial(first, SDPBackend.CUDNN_ATTENTION),
}
LIMIT = "limit: prompts in the lowest layer alone"
NOTHING = "limit: no attention to the prompts"


def lowest_layer_alone(model: nn.Module) -> nn.Module:
    """Gradients still go through all layers above it."""
    adapted = [a for a in attention_layers(model) if hasattr(a, "adaption_prompts")]
    for attention in adapted[1:]:
        attention.adaption_prompts.clear()
    return model


def inside(context: Callable, work: Callable[[], object]) -> Callable[[], object]:
    def done() -> object:
        with context():
            return work()

    return done


def training(base: Base, batch: dict[str, Tensor], way: str) -> dict[str, Callable]:
    """A step of each trial, and of PEFT's prompts."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64

    def step(method: str = OURS, change: Callable = lambda model: model) -> Callable:
        model = prepare(method, base.model(), 10, 30).train()
        open_gates(model)
        return make_step(method, way, change(model), batch)

    works = {name: inside(context, step()) for name, context in TRIALS.items()}
    works[LIMIT] = step(change=lowest_layer_alone)
    if way == "eager":
        works[PEFTS] = step(PEFTS)
    return works


def decoding(base: Base, rows: int, device: torch.device, new_tokens: int) -> dict[str, Callable]:
    model, bare = (prepare(method, base.model(), 10, 30).eval() for method in (OURS, BASE))
    open_gates(model)
    answer = make_generate(model, "eager", rows, new_tokens, device)
    trials = TRIALS | {NOTHING: partial(attending, no_attention)}
    works = {name: inside(context, answer) for name, context in trials.items()}
    return works | {BASE: make_generate(bare, "eager", rows, new_tokens, device)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SETTINGS, default=["llama-7b", "smollm2"])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "trials.json")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    for shape in options.shapes:
        base = Base(shape, device, torch.bfloat16 if on_gpu else torch.float32)
        (rows, length), ways, answers = SETTINGS[shape]
        batch = random_batch(base.config.vocab_size, rows, length, device)
        made = {way: partial(training, base, batch, way) for way in ways}
        made["generate"] = partial(decoding, base, answers, device, options.new_tokens)
        for way, make in made.items():
            works, records = make(), []
            times = measure.interleaved(works, device, rounds=options.rounds, times=1)
            for name, own in times.items():
                ratio = statistics.median(a / b for a, b in zip(times[AS_IT_IS], own, strict=True))
                about = {"shape": shape, "way": way, "trial": name} | measure.conditions(device)
                speed = {"speed_of_as_it_is": round(ratio, 3)}
                records.append(about | measure.spread(own) | speed)
            columns = ["shape", "way", "trial", "median_ms", "lowest_ms", "highest_ms"]
            measure.print_table(records, [*columns, "speed_of_as_it_is"])
            measure.keep(options.output, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
