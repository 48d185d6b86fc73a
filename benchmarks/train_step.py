"""One training step of each method, side by side: time, tokens/s, memory, distance to the floor.

    python -m benchmarks.train_step --shape tiny                       # does it run?
    python -m benchmarks.train_step --shape smollm2-real --batches course --batch-sizes 8
    python -m benchmarks.train_step --shape llama-7b --batch-sizes 8 --lengths 512       # 80 GB GPU

A step is forward, backward and AdamW. Ways to run it: eager; `compile` (torch.compile of each
decoder layer, and of our loss, as `finetune(compile_layers=True)` does it); `fused` (ours as
`finetune(fused=True)`, the others with Liger-Kernel as its users apply it). Ours alone also in CUDA
graphs, as `finetune(cuda_graphs=True)`: `graphs`, `compiled graphs`, `fused graphs`; and with a
base in float8: `float8 compile`. The others train as their users train them: `model(**batch).loss`,
logits for all positions.

The floor is the time that the step's matrix products take at the rate of large matrix products,
measured in the same rounds: under load, a GPU lowers its clock. Results go to
`results/train_step.json`; a call replaces its own settings there.
"""

import argparse
import gc
import statistics
import sys
import traceback
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from benchmarks import measure
from benchmarks.methods import (
    BASE,
    FULL,
    LORA,
    OURS,
    PEFTS,
    SHAPES,
    Base,
    Step,
    prepare,
    random_batch,
    step_flops,
    with_liger,
)
from llama_adapter_edu import encode_dataset, fuse_base
from llama_adapter_edu.base_models.float8 import to_float8
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.compiled import compile_layers
from llama_adapter_edu.training.cuda_graphs import GraphedGradients
from llama_adapter_edu.training.loss import answer_loss, cross_entropy_sum, fused_cross_entropy_sum

METHODS = (OURS, PEFTS, LORA, BASE, FULL)
PRODUCTS = "large matrix products"
OF_ALL = ("eager", "compile", "fused")
WAYS = (*OF_ALL, "graphs", "compiled graphs", "fused graphs", "float8 compile")


def make_step(method: str, way: str, model: nn.Module, batch: dict[str, Tensor]) -> Step:
    """A call that does one whole step and returns its loss; of the base, the forward alone."""
    loss_sum, own = cross_entropy_sum, method == OURS
    if "float8" in way:
        to_float8(model)
    if "fused" in way and own:
        fuse_base(model)
        loss_sum = fused_cross_entropy_sum
    if "compile" in way:
        loss_sum = compile_layers(getattr(model, "get_base_model", lambda: model)())
    if method == BASE:
        return torch.no_grad()(lambda: answer_loss(model, batch, loss_sum))

    graphed = way.endswith("graphs")
    if own:  # as the library's loop does it: padding on the right needs no mask
        batch = {name: batch[name] for name in ("input_ids", "labels")}
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-5, fused=learnt[0].is_cuda or None)
    if graphed:
        n_tokens = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        graphs = GraphedGradients(model, pad_token_id=0, loss_sum=loss_sum)
        batch = {name: tensor.cpu() for name, tensor in batch.items()}

    def gradients() -> Tensor:
        if graphed:
            return graphs(batch, n_tokens)
        with nullcontext() if own or way != "fused" else with_liger(model):
            if own:
                loss = answer_loss(model, batch, loss_sum)
            else:
                loss = model(**batch, use_cache=False).loss
            loss.backward()
        return loss

    def step() -> Tensor:
        loss = gradients()
        if not hasattr(
            step, "gradient_norm"
        ):  # of the first step: a way without one learns nothing
            step.gradient_norm = get_total_norm(
                [p.grad for p in learnt if p.grad is not None]
            ).item()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def course_batch(base: Base, rows: int, device: torch.device) -> dict[str, Tensor]:
    """Home commands as the course trains on them: masked labels, real lengths."""
    data = encode_dataset(home_commands("train", rows), base.tokenizer)
    batch = collate(list(data), base.tokenizer.pad_token_id)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def shared_bytes(base: Base, model: nn.Module) -> int:
    """What this model has of the base's weights: in float8 it has its own."""
    of_base = {weight.data_ptr() for weight in base.weights.values()}
    return sum(
        {
            w.data_ptr(): w.nbytes for w in model.state_dict().values() if w.data_ptr() in of_base
        }.values()
    )


def first_steps(step: Step, device: torch.device, times: int = 3) -> tuple[float, int]:
    """Loss of the first of some steps, and the highest memory that they took, in bytes."""
    loss = step().item()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(times):
        step()
    measure.wait(device)
    return loss, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def compare(
    base: Base, batch: dict[str, Tensor], variants: list[tuple[str, str]], options
) -> list[dict]:
    """All variants on one batch: a record each. One that cannot run says why."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64  # each variant is a compilation of its own
    device, config = batch["labels"].device, base.config
    steps, records = {}, []
    dtype = next(iter(base.weights.values())).dtype
    products, product_flops = measure.large_products(device, dtype)
    rows, length = batch["labels"].shape
    n_tokens = rows * length
    for method, way in variants:
        gc.collect()
        before = allocated(device)
        record = {"method": method, "way": way}
        records.append(record)
        model = prepare(method, base.model(), options.adapter_len, options.adapter_layers)
        model.train(method != BASE)
        try:
            step = make_step(method, way, model, batch)
            loss, peak = first_steps(step, device)
        except (RuntimeError, ValueError, torch.OutOfMemoryError) as error:
            record["failed"] = str(error).split("\n")[0][:200]
            traceback.print_exc()
            continue
        lowest = config.num_hidden_layers - options.adapter_layers
        lowest = max(0, lowest) if method in (OURS, PEFTS) else 0
        labelled = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        flops = step_flops(config, n_tokens, labelled, lowest, full=method == FULL)
        if method == BASE:
            flops = step_flops(config, n_tokens, labelled, config.num_hidden_layers)
            flops -= 2 * config.hidden_size * config.vocab_size * labelled  # no backward
        record["flops"] = flops
        record["first_loss"] = round(loss, 4)
        if method != BASE:
            record["gradient_norm"] = float(f"{step.gradient_norm:.3g}")
        if peak and not way.endswith("graphs"):  # a graph's memory is not counted as allocated
            record["peak_gib"] = round((peak - before + shared_bytes(base, model)) / 2**30, 2)
        steps[method, way] = step
    rounds = {"rounds": options.rounds, "times": options.times}
    times = measure.interleaved({PRODUCTS: products, **steps}, device, **rounds)
    rate = product_flops / statistics.median(times[PRODUCTS])
    for record in records:
        record["matmul_tflops"] = round(rate / 1e12, 3)
        if own := times.get((record["method"], record["way"])):
            record |= measure.spread(own) | {"steps_in_a_row": options.times}
            record["floor_ms"] = round(1e3 * record.pop("flops") / rate, 3)
            record["tokens_per_second"] = round(1e3 * n_tokens / record["median_ms"])
            record["times_floor"] = round(record["median_ms"] / record["floor_ms"], 2)
    del steps
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return records


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "smollm2-real"], default="smollm2")
    parser.add_argument("--batches", choices=["labelled", "course"], default="labelled")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128], help="tokens a row")
    parser.add_argument("--adapter-len", type=int, default=10)
    parser.add_argument("--adapter-layers", type=int, default=30)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS[:4]))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["eager"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--times", type=int, default=1, help="steps in a row in each round, as in training"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the base")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "train_step.json")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    on_gpu = torch.cuda.is_available() and not options.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = getattr(torch, options.dtype or ("bfloat16" if on_gpu else "float32"))
    base = Base(options.shape, device, dtype)
    variants = [
        (method, way)
        for method, way in product(options.methods, options.ways)
        if method == OURS or way in OF_ALL
    ]
    about = measure.conditions(device)
    for rows, length in product(options.batch_sizes, options.lengths):
        if options.batches == "course":
            batch = course_batch(base, rows, device)
        else:
            batch = random_batch(base.config.vocab_size, rows, length, device)
        setting = {
            "shape": options.shape,
            "dtype": str(dtype).removeprefix("torch."),
            "batches": options.batches,
            "batch": f"{rows} x {batch['labels'].shape[1]}",
            "adapter_len": options.adapter_len,
        }
        records = compare(base, batch, variants, options)
        rate = f"{records[0]['matmul_tflops']:,.2f} TFLOP/s in large products"
        print(f"\n{setting['shape']}, {setting['batch']} tokens, {setting['dtype']}, {rate}")
        shown = ["method", "way", "median_ms", "lowest_ms", "highest_ms"]
        shown += ["tokens_per_second", "peak_gib", "floor_ms", "times_floor", "gradient_norm"]
        measure.print_table(records, shown)
        measure.keep(options.output, [setting | about | record for record in records])
    return 0


if __name__ == "__main__":
    sys.exit(main())
