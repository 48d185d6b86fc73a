"""Tables of several GPUs, mixed adapters, float8, five ways and swapped halves."""

from statistics import mean

from benchmarks.float8_quality import table
from benchmarks.report_speed import rounded, source, where

BASES = {"whole": "whole on each", "spread": "sharded", "map": "device map, one process"}


def several_gpus(records: list[dict]) -> list[str]:
    """Tokens per second and memory of each way past one GPU."""
    machines = sorted({where(record) for record in records})
    rows = [several_gpus_row(r, records) for r in sorted(records, key=order)]
    return [
        "## Several GPUs",
        "",
        f"`finetune` with random weights in bfloat16, prompts in 30 layers of the LLaMA-7B shape "
        f"and in 70 of the LLaMA-70B shape, 20 steps ({source('several_gpus')}). "
        f"On {'; '.join(machines)}.",
        "",
        "| shape | base | layers | GPUs | rows a GPU | step ms | tokens/s | memory a GPU | share |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        "Share: for whole bases, of so many times the tokens/s of one GPU; for sharded ones, of "
        "what the whole base reaches on as many GPUs. Rows have 512 tokens.",
    ]


def order(record: dict) -> tuple:
    names = "shape", "base", "way", "gpus", "rows_a_gpu", "spreading"
    return tuple(record[name] for name in names)


def several_gpus_row(record: dict, records: list[dict]) -> str:
    same = {name: record[name] for name in ("shape", "way", "rows_a_gpu")} | {"base": "whole"}
    gpus = 1 if record["base"] == "whole" else record["gpus"]
    to = [r for r in records if same.items() <= r.items() and r["gpus"] == gpus]
    share = ""
    if to and record is not to[0]:
        times = record["gpus"] / gpus
        share = f"{record['tokens_per_second'] / to[0]['tokens_per_second'] / times:.0%}"
    base = BASES[record["base"]]
    if record["base"] == "spread":
        base += f", {record['spreading']}"
    return (
        f"| {record['shape']} | {base} | {'compiled' if record['way'] == 'compile' else 'eager'} "
        f"| {record['gpus']} | {record['rows_a_gpu']} | {rounded(record['median_ms'])} "
        f"| {record['tokens_per_second']:,} | {record['peak_gib']:.1f} GiB | {share} |"
    )


def mixed_adapters(records: list[dict]) -> list[str]:
    """A batch whose rows have adapters of their own, beside the other ways."""
    ways = {record["way"]: record for record in records if record["shape"] == "course"}
    one = ways["one by one"]["median_ms"]
    rows = [
        f"| {name} | {rounded(r['median_ms'])} | {r['tokens_per_second']:,.0f} "
        f"| {one / r['median_ms']:.1f} |"
        for name, r in ways.items()
    ]
    about = ways["mixed"]
    return [
        "## Adapters row by row",
        "",
        f"`generate` of {about['new_tokens']} tokens for {about['adapters']} rows with the "
        f"course's Llama ({source('mixed_adapters')}), on {where(about)}. In `mixed`, each row "
        f"has its own of {about['adapters']} adapters (`use_adapter` with a list).",
        "",
        "| way | ms | tokens/s | times as fast as one by one |",
        "|---|--:|--:|--:|",
        *rows,
    ]


def best_runs(stored: dict, way: str) -> list[dict]:
    """The runs of one of five ways, with the learning rate that was chosen on seed 0."""
    tried = [run for run in stored["runs"] if run["way"] == way]
    first = [run for run in tried if run["seed"] == 0]
    rate = min(first, key=lambda run: run["kl_trained"])["learning_rate"]
    return [run for run in tried if run["learning_rate"] == rate]


def five_ways(stored: dict) -> list[str]:
    """How near five ways bring the Llama to one that has the document in its context."""
    about = stored["conditions"]
    steps = f"{about['steps']} step{'s' if about['steps'] > 1 else ''}"
    n_seeds = len({run["seed"] for run in stored["runs"]})
    ways = dict.fromkeys(run["way"] for run in stored["runs"])
    rows = [(way, best_runs(stored, way)) for way in ways]
    return [
        "## A document in five ways",
        "",
        f"The task of lesson 10 ([many_papers.json](llama_adapter_edu/course/results/"
        f"many_papers.json), [`python -m benchmarks.many_papers`](benchmarks/many_papers.py)): "
        f"{steps} of distillation, the best of three learning rates, the mean of "
        f"{n_seeds} seeds, on {about['device']}. KL in nats to the Llama that has the "
        "document in its context, in the trained questions' words and in other words.",
        "",
        "| way | parameters that train | learning rate | KL, trained words | KL, other words |",
        "|---|--:|--:|--:|--:|",
        f"| the bare Llama | 0 | | {_both(stored['bare'])} |",
        *(
            f"| {way} | {runs[0]['trainable_parameters']:,} | {runs[0]['learning_rate']:g} "
            f"| {_both(runs)} |"
            for way, runs in rows
        ),
    ]


def swapped_halves(stored: dict) -> list[str]:
    """What a Llama answers with the keys of one expert and the values of another."""
    about, training = stored["conditions"], stored["runs"][0]["training"]
    mixes = dict.fromkeys((run["keys"], run["values"]) for run in stored["runs"])
    n_seeds = len({run["seed"] for run in stored["runs"]})
    return [
        "## Keys of one expert, values of another",
        "",
        "Two experts of one Llama, home commands and telegrams ([swap_experts.json]"
        "(llama_adapter_edu/course/results/swap_experts.json), "
        "[`python -m benchmarks.swap_experts`](benchmarks/swap_experts.py)): "
        f"{training['steps']} steps of {training['batch_size']} rows each, {n_seeds} seeds, on "
        f"{about['device']}. Gates go with the values. Losses in nats a token on {about['rows']} "
        "unseen rows of each kind; marks: the share of all answers that have a brace, or STOP. "
        "Means of the seeds, in brackets the lowest and the highest.",
        "",
        "| keys | values and gates | loss, commands | loss, telegrams | brace | STOP |",
        "|---|---|--:|--:|--:|--:|",
        *(f"| {keys} | {values} | {_halves(stored, keys, values)} |" for keys, values in mixes),
    ]


def _halves(stored: dict, keys: str, values: str) -> str:
    runs = [run for run in stored["runs"] if (run["keys"], run["values"]) == (keys, values)]
    asked = [(run["asked for commands"], run["asked for telegrams"]) for run in runs]
    losses = ([of["loss"] for of in kind] for kind in zip(*asked, strict=True))
    said = [first["answers"] + second["answers"] for first, second in asked]
    marked = ([mean(mark in text for text in texts) for texts in said] for mark in ("{", "STOP"))
    shown = [f"{mean(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in losses]
    shown += [f"{mean(x):.0%} ({min(x):.0%} to {max(x):.0%})" for x in marked]
    return " | ".join(shown)


def _both(runs: list[dict]) -> str:
    return " | ".join(f"{mean(r[name] for r in runs):.2f}" for name in ("kl_trained", "kl_other"))


def float8_quality(stored: dict) -> list[str]:
    """What a base in float8 costs in answers, in percentage points, and how sure that is."""
    about, rows = stored["conditions"], []
    for line in table(stored["runs"]):
        words = [line[name] for name in ("task", "trained in", "answered in")]
        points = f"{line['points']:+.2f} ({line['95 %']})" if "points" in line else ""
        rows.append(f"| {' | '.join(words)} | {line['mean %']:.2f} | {points} |")
    return [
        "## A base in float8",
        "",
        f"The course's Llama ({source('float8_quality')}), {about['steps']} steps of "
        f"{about['batch_size']} rows, on {about['device']}. Each adapter answers in the base that "
        "it was trained in, and in the other one. Home commands count where they are right to the "
        f"letter, telegrams where they have a telegram's style, of "
        f"{about['test_rows']['home commands']:,} unseen rows a seed. Points: minus bfloat16 in "
        "bfloat16, with Student's 95 % interval over the seeds.",
        "",
        "| task | trained in | answered in | mean, % | points |",
        "|---|---|---|--:|--:|",
        *rows,
    ]
