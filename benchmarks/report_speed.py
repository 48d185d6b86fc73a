"""Training steps, decoding and loading as Markdown, from what the benchmarks stored."""

from statistics import median

from benchmarks.methods import BASE, LORA, OURS, PEFTS

COMPARED = (OURS, PEFTS, LORA)
USUAL_PROMPTS = 10
SHAPES = {"llama-7b": "LLaMA-7B shape", "smollm2": "SmolLM2 shape", "smollm2-real": "SmolLM2"}
WAYS = {
    "eager": "eager",
    "fused": "fused, with Liger-Kernel",
    "compile": "compiled layers",
    "float8 compile": "base in float8, compiled layers",
    "graphs": "CUDA graphs",
    "fused graphs": "CUDA graphs, fused",
    "compiled graphs": "CUDA graphs of compiled layers",
    "eager fused": "eager, fused",
    "static": "static cache, compiled",
    "static fused": "static cache, compiled and fused",
}


def where(record: dict) -> str:
    """The machine and the versions behind a record."""
    versions = f"torch {record['torch']}, transformers {record['transformers']}"
    return f"{record['device']}, {versions}, PEFT {record['peft']}"


def source(name: str) -> str:
    """Links to the stored records of a benchmark and to the script that wrote them."""
    return (
        f"[{name}.json](benchmarks/results/{name}.json), "
        f"[`python -m benchmarks.{name}`](benchmarks/{name}.py)"
    )


def grouped(records: list[dict], names: tuple[str, ...]) -> dict[tuple, dict[str, dict]]:
    """Records by what was measured, and in each of these by method."""
    groups: dict[tuple, dict[str, dict]] = {}
    for record in records:
        if "median_ms" in record:
            key = tuple(record.get(name) for name in names)
            groups.setdefault(key, {})[record["method"]] = record
    return groups


def rounded(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def milliseconds(record: dict | None) -> str:
    """Median and, in brackets, lowest and highest; on a GPU the memory too."""
    if record is None:
        return ""
    shown = [rounded(record[name]) for name in ("median_ms", "lowest_ms", "highest_ms")]
    memory = f", {record['peak_gib']:.1f} GiB" if record.get("peak_gib") else ""
    return f"{shown[0]} ({shown[1]}–{shown[2]}){memory}"


def training(records: list[dict]) -> list[str]:
    """One line for each batch and way, the three kinds of adapters side by side."""
    lines = ["| training step, ms | ours | PEFT's prompts | PEFT's LoRA | ours / floor |"]
    lines.append("|---|---|---|---|---|")
    compared = grouped(records, ("device", "shape", "batch", "adapter_len", "batches", "way"))
    order = list(WAYS)
    by_shape = sorted(compared.items(), key=lambda x: (*x[0][:4], order.index(x[0][5])))
    for (device, shape, batch, prompts, batches, way), found in by_shape:
        labels = "" if batches == "labelled" else ", home commands"
        length = "" if prompts == USUAL_PROMPTS else f", {prompts} prompt{'s'[: prompts != 1]}"
        in_a_row = found[OURS].get("steps_in_a_row", 1)
        several = "" if in_a_row == 1 else f", {in_a_row} steps in a row"
        what = f"{SHAPES[shape]}, {batch}{labels}{length}, {WAYS[way]}{several}"
        cells = [milliseconds(found.get(method)) for method in COMPARED]
        floor = found[OURS]["times_floor"]
        cells.append(f"{floor:.0f}" if floor >= 100 else f"{floor:.2f}")
        where_ = "CPU" if device.startswith("CPU") else "GPU"
        lines.append(f"| {where_}: {what} | {' | '.join(cells)} |")
    return lines


def decoding(records: list[dict]) -> list[str]:
    """Tokens/s with the base model, and what share of it is left with each kind of adapter."""
    lines = ["| decoding | base, tokens/s | ours | PEFT's prompts | PEFT's LoRA |"]
    lines.append("|---|---|---|---|---|")
    compared = grouped(records, ("device", "shape", "batch", "way"))
    by_shape = sorted(compared.items(), key=lambda x: (*x[0][:2], x[0][3], x[0][2] or ""))
    for (device, shape, batch, way), found in by_shape:
        if BASE not in found:
            continue
        shares = [found[m]["speed_of_base"] if m in found else None for m in COMPARED]
        cells = ["" if share is None else f"{share:.0%}" for share in shares]
        where_ = "CPU" if device.startswith("CPU") else "GPU"
        what = f"{where_}: {SHAPES[shape]}, batch {batch}, {WAYS[way]}"
        lines.append(f"| {what} | {found[BASE]['tokens_per_second']:,} | {' | '.join(cells)} |")
    return lines


def savings(records: list[dict]) -> list[str]:
    """One line for each saving: time and memory with it and without it."""
    lines = ["| saving | with it | without it |", "|---|---|---|"]
    for record in records:
        cells = [
            f"{rounded(record[f'{way}_median_ms'])} ms, {record[f'{way}_mib']:,.0f} MiB"
            for way in ("with", "without")
        ]
        where_ = "CPU" if record["device"].startswith("CPU") else "GPU"
        what = f"{where_}: {SHAPES[record['shape']]}, {record['saving']}"
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def demo(records: list[dict]) -> str:
    """When the demo gets 95 % right, in each version on its machine: median, lowest, highest."""
    groups: dict[tuple[str, str], list[float]] = {}
    for record in records:
        key = record["version"], where(record)
        groups.setdefault(key, []).append(record["goal_seconds"])

    def seconds(version: str, machine: str) -> str:
        found = groups[version, machine]
        spread = f"{min(found):.0f}–{max(found):.0f}, {len(found)} seeds"
        return f"{median(found):.0f} s ({spread}) of training on {machine}"

    now = " and ".join(seconds(*key) for key in groups if key[0] == "now")
    others = "; ".join(f"{seconds(*key)}, {key[0]}" for key in groups if key[0] != "now")
    return (
        f"The demo's Llama gets 95 % of unseen commands right after {now}. "
        f"Earlier: {others} ({source('time_to_95')})."
    )


def trials(records: list[dict]) -> list[str]:
    """What was tried instead, and how much of the speed it has, a line for each kind of work."""
    groups: dict[tuple, dict[str, float]] = {}
    for record in records:
        key = where(record), record["shape"], record["way"]
        groups.setdefault(key, {})[record["trial"]] = record["speed_of_as_it_is"]
    kinds = {"generate": "`generate`, eager, one row"}
    heads = [f"{SHAPES[s]}, {kinds.get(way) or f'step, {WAYS[way]}'}" for _, s, way in groups]
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    lines = [
        "Speed relative to the way that it is done, the median over rounds, on "
        + "; ".join(sorted({machine for machine, *_ in groups}))
        + " ([trials.json](results/trials.json), [`python -m benchmarks.trials`](trials.py)):",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for name in names:
        cells = [f"{found[name]:.2f}" if name in found else "" for found in groups.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def papers_run(records: list[dict]) -> str:
    """The paper's headline, the best without rounding the base and the best in float8.

    It says from how short a run they are extrapolated.
    """
    exact, float8 = (
        one(records, "NVIDIA", shape="llama-7b", dtype=dtype) for dtype in ("bfloat16", "float8")
    )

    def speed(record: dict) -> str:
        return f"{record['tokens_per_second']:,} tokens/s, {record['peak_gib']} GiB"

    hours = "extrapolated_hours_of_the_papers_run"
    return (
        f"**The paper's run** (52K examples, 5 epochs; the paper: one hour on 8 A100) would take "
        f"{exact[hours]:.2f} hours on one {exact['device']}, and {float8[hours]:.2f} with the base "
        f"in float8. This is **extrapolated** from {exact['measured_seconds']:.0f} seconds each: "
        f"random weights of LLaMA-7B's shape, rows as long as Alpaca's, {exact['batch_size']} rows "
        f"a step, compiled layers, {speed(exact)}, in float8 {speed(float8)} "
        f"({source('paper_run')}; "
        f"torch {exact['torch']}, transformers {exact['transformers']})."
    )


def one(records: list[dict], device: str, **wanted: str) -> dict:
    """The one record with these words, on a device whose name begins so, with the usual prompts.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [
        record
        for record in records
        if record["device"].startswith(device)
        and all(record.get(name) == word for name, word in wanted.items())
        and record.get("adapter_len", USUAL_PROMPTS) == USUAL_PROMPTS
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} stored records of {device} have {wanted}, expected one.")
    return found[0]


def headlines(train: list[dict], decode: list[dict]) -> list[str]:
    """The few figures that most readers want."""

    def step(method: str, way: str, batch: str, device: str = "NVIDIA") -> str:
        record = one(train, method=method, way=way, batch=batch, device=device)
        return f"{rounded(record['median_ms'])} ms"

    def share(way: str, shape: str, device: str) -> str:
        of = {"method": OURS, "way": way, "shape": shape, "device": device, "batch": "1"}
        return f"{one(decode, **of)['speed_of_base']:.0%}"

    large, small, course = "8 x 512", "16 x 64", "8 x 67"
    return [
        f"* A training step of LLaMA-7B's shape, {large} tokens on the GPU: "
        f"{step(OURS, 'eager', large)}, with compiled layers {step(OURS, 'compile', large)}. "
        f"PEFT's prompts take {step(PEFTS, 'eager', large)}, its LoRA "
        f"{step(LORA, 'eager', large)}.",
        f"* SmolLM2's shape, {small} tokens: {step(OURS, 'compiled graphs', small)} in CUDA graphs "
        f"of compiled layers, PEFT's prompts {step(PEFTS, 'eager', small)} (eager).",
        "* The same step of LLaMA-7B's shape with Liger-Kernel's fused operations on all sides, "
        f"ready at once: ours {step(OURS, 'fused', large)}, PEFT's prompts "
        f"{step(PEFTS, 'fused', large)}, its "
        f"LoRA {step(LORA, 'fused', large)}. With the base in float8 and compiled layers: "
        f"{step(OURS, 'float8 compile', large)}.",
        f"* The course's own batches on the CPU: {step(OURS, 'eager', course, 'CPU')}, PEFT's "
        f"prompts {step(PEFTS, 'eager', course, 'CPU')}.",
        f"* `generate` with an adapter keeps {share('eager', 'smollm2-real', 'CPU')} of the base "
        f"model's speed on the CPU, and on the GPU {share('static', 'llama-7b', 'NVIDIA')} at "
        f"LLaMA-7B's shape with a static cache. Eager, the GPU waits for Python: "
        f"{share('eager', 'smollm2', 'NVIDIA')} at SmolLM2's shape.",
    ]


def speed(stored: dict[str, list[dict]]) -> list[str]:
    """All of it, with the machines and the commands that the figures come from."""
    train, decode, load = (stored[name] for name in ("train_step", "decode", "load"))
    machines = sorted({where(record) for record in train + decode + load + stored["savings"]})
    waits = {record["what"]: record["median_ms"] / 1e3 for record in load}
    swaps = [record for record in decode if record["way"] == "set_adapter"]
    return [
        "## Speed",
        "",
        "On " + "; ".join(machines) + ".",
        "",
        *headlines(train, decode),
        "",
        papers_run(stored["paper_run"]),
        "",
        demo(stored["time_to_95"]),
        "",
        "### A training step",
        "",
        "Median (lowest–highest) of interleaved rounds "
        f"({source('train_step')}). The floor is the time of the step's matrix "
        "products alone, at the rate of large ones in the same run, in bfloat16 on a GPU: a base "
        "in float8 can be faster. Under load a GPU lowers its clock, so that rate is not the same "
        "in all rows.",
        "",
        *training(train),
        "",
        "### What each saving is worth",
        "",
        f"Forward and backward ({source('savings')}), in batches of 4 or 8 rows on the CPU, 16 or "
        "32 on the GPU. The memory is what a step takes above the model.",
        "",
        *savings(stored["savings"]),
        "",
        "### Decoding",
        "",
        f"What is left of the base model's speed in `generate` with an adapter, compared in each "
        f"round, the median over rounds ({source('decode')}):",
        "",
        *decoding(decode),
        "",
        "### Waiting",
        "",
        f"`set_adapter` takes {max(s['median_ms'] for s in swaps):.2f} ms (the highest median), "
        f"`load_llama()` from its cache {waits['load_llama()']:.2f} s on the CPU, "
        f"`import llama_adapter_edu` {waits['import llama_adapter_edu']:.2f} s, "
        f"with `python -m` and `--help` {waits['python -m llama_adapter_edu --help']:.2f} s, "
        f"of which Python itself takes {waits['python -c pass']:.2f} s ({source('load')}).",
    ]
