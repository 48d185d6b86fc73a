"""Tokens per second of `generate` with each kind of adapter, and what swapping adapters costs.

    python -m benchmarks.decode --shape tiny --new-tokens 8                  # does it run?
    python -m benchmarks.decode --shape smollm2 --batch-sizes 1 32

Greedy, from a prompt of 32 random tokens. Ways: eager with a growing cache; `static`, transformers'
static cache, which compiles the decoding step on a GPU; base and ours also with a base that is
`fused`. `speed_of_base` is the base's time over the method's, in the same way and over rounds the
median; `speed_of_plain_base` is that of the base that is not fused. The floor is the time to read
the weights once for each token, at the rate of a large copy. Results go to `results/decode.json`.
"""

import argparse
import statistics
import sys
from itertools import product
from pathlib import Path

import torch
from transformers import GenerationConfig

from benchmarks import measure
from benchmarks.methods import BASE, LORA, OURS, PEFTS, SHAPES, Base, prepare
from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, fuse_base, set_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts

METHODS = (BASE, OURS, PEFTS, LORA)
FUSED = " fused"
WAYS = ("eager", "static", "eager fused", "static fused")


def open_gates(model: torch.nn.Module) -> None:
    """Gates away from zero, as after training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".gate", ".adaption_gate")):
                parameter.fill_(0.1)


def make_generate(model, way: str, rows: int, new_tokens: int, device: torch.device):
    ids = torch.randint(1, model.config.vocab_size, (rows, 32), device=device)
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        cache_implementation="static" if way.startswith("static") else None,
    )
    mask = torch.ones_like(ids)
    return lambda: model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)


def swap_seconds(base: Base, device: torch.device, rounds: int) -> list[float]:
    """`set_adapter` from one of two adapters to the other."""
    model = prepare(OURS, base.model(), 10, 30)
    layers = len(adapter_prompts(model, "default"))
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_layers=layers), "other")
    names = ["default", "other"] * rounds
    return [measure.seconds(lambda name=name: set_adapter(model, name), device) for name in names]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "smollm2-real"], default="smollm2")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["eager"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "decode.json")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    base, rate = Base(options.shape, device, dtype), measure.copy_rate(device)
    weights = sum({t.data_ptr(): t.nbytes for t in base.weights.values()}.values())
    about = {"shape": options.shape, "dtype": str(dtype).removeprefix("torch.")}
    about |= measure.conditions(device) | {"copy_gb_per_s": round(rate / 1e9, 1)}

    variants = [
        (m, w)
        for m, w in product(options.methods, options.ways)
        if FUSED not in w or m in (BASE, OURS)
    ]
    for rows in options.batch_sizes:
        works, records = {}, []
        for method, way in variants:
            record = {"method": method, "way": way, "batch": str(rows)}
            records.append(record)
            model = prepare(method, base.model(), 10, 30).eval()
            open_gates(model)
            if FUSED in way:
                fuse_base(model)
            work = make_generate(model, way, rows, options.new_tokens, device)
            try:
                work()
                works[method, way] = work
            except Exception as error:  # of other libraries too: one that cannot run says why
                record["failed"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        times = measure.interleaved(works, device, rounds=options.rounds, times=1)
        for record in records:
            method, way = record["method"], record["way"]
            if own := times.get((method, way)):
                record |= measure.spread(own)
                per_second = 1e3 * rows * options.new_tokens / record["median_ms"]
                record["tokens_per_second"] = round(per_second, 1)
                floor = 1e3 * options.new_tokens * weights / rate
                record["floor_ms"] = round(floor, 2)
                record["times_floor"] = round(record["median_ms"] / floor, 2)
                compared = {"speed_of_base": way}
                if FUSED in way:
                    compared["speed_of_plain_base"] = way.removesuffix(FUSED)
                for name, way_of_base in compared.items():
                    if bare := times.get((BASE, way_of_base)):
                        ratios = [one / other for one, other in zip(bare, own, strict=True)]
                        record[name] = round(statistics.median(ratios), 3)
        columns = ["method", "way", "batch", "median_ms", "lowest_ms", "highest_ms"]
        columns += ["tokens_per_second", "speed_of_base", "speed_of_plain_base", "times_floor"]
        measure.print_table(records, columns)
        measure.keep(options.output, [about | record for record in records])

    swap = {"method": OURS, "way": "set_adapter"} | measure.spread(swap_seconds(base, device, 20))
    measure.print_table([swap], ["way", "median_ms", "lowest_ms", "highest_ms"])
    measure.keep(options.output, [about | swap])
    return 0


if __name__ == "__main__":
    sys.exit(main())
