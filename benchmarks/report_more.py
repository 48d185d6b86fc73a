"""Tables of several GPUs, and of batches with several adapters, for docs/measured.md."""

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
