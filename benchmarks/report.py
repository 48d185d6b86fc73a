"""The measured results in README.md, docs/measured.md and NOTES.md, from the stored JSON files.

python -m benchmarks.report            # print them
python -m benchmarks.report --write    # put them into the three files
"""

import json
import re
import sys
from pathlib import Path
from statistics import mean

from benchmarks.measure import RESULTS
from benchmarks.report_more import (
    five_ways,
    float8_quality,
    mixed_adapters,
    several_gpus,
    swapped_halves,
)
from benchmarks.report_speed import speed, trials
from tools.marked import replace_marked

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "llama_adapter_edu/course/results"
START, END = "<!-- results: python -m benchmarks.report --write -->", "<!-- end of results -->"


OURS, LORA = "adaption prompts", "PEFT LoRA"
METHODS = (OURS, "PEFT adaption prompts", "V2", "cartridge", LORA, "full fine-tuning")


def values(runs: dict, part: str, method: str, name: str) -> list[float]:
    return [run[name] for key, run in runs.items() if key.startswith(f"{part}/{method}/")]


def methods(stored: dict) -> list[str]:
    """Accuracy, size, speed and memory of each way to fine-tune."""
    about, runs = stored["conditions"], stored["runs"]
    (base,) = values(runs, "base", "base", "exact_match")
    lines = [
        "| way | exact match, unseen | parameters that train | file | tokens/s | memory |",
        "|---|--:|--:|--:|--:|--:|",
        f"| the bare Llama | {base:.1%} | 0 | | | |",
    ]
    for method in METHODS:
        scores = values(runs, "methods", method, "exact_match")
        if not scores:
            continue
        (trained,) = values(runs, "speed", method, "trainable_parameters")
        (size,) = values(runs, "speed", method, "file_bytes")
        (speed,) = values(runs, "speed", method, "tokens_per_second")
        (peak,) = values(runs, "speed", method, "peak_memory_bytes")
        name = method + (" (ours)" if method == OURS else "")
        lines.append(
            f"| {name} | {mean(scores):.1%} | {trained:,} | {size / 1e6:.1f} MB "
            f"| {speed:,} | {peak / 2**30:.1f} GiB |"
        )
    return [
        *lines,
        "",
        f"Home commands, 100 steps of 32 rows, the best of three learning rates for each way, mean "
        f"of 3 seeds, on one {about['device']}.",
    ]


def against_lora(stored: dict) -> str:
    """What LoRA reached more, or less, than this library's prompts, in the runs of `methods`."""
    runs = stored["runs"]
    ours, lora = (mean(values(runs, "methods", m, "exact_match")) for m in (OURS, LORA))
    fast, faster = (values(runs, "speed", m, "tokens_per_second")[0] for m in (OURS, LORA))
    small, large = (values(runs, "speed", m, "file_bytes")[0] for m in (OURS, LORA))
    return (
        f"LoRA, against our prompts: {100 * (lora - ours):+.1f} points of exact match, "
        f"{faster / fast:.2f} times the speed in training, {large / small:.1f} times the size of "
        "the file."
    )


def quality(stored: dict) -> list[str]:
    """The ways side by side, and what the profiles of lesson 11 reach."""
    about, runs = stored["conditions"], stored["runs"]
    bar, style, t4 = (
        values(runs, part, OURS, name)
        for part, name in (("bar", "exact_match"), ("telegrams", "style"), ("t4", "exact_match"))
    )
    slowest = max(values(runs, "bar", OURS, "seconds"))
    return [
        "## Accuracy",
        "",
        *methods(stored),
        "",
        "V2 and the cartridge were measured later, on another machine with the same card. "
        f"The base is in float32. Versions: torch {about['torch']}, transformers "
        f"{about['transformers']}, PEFT {about['peft']}. All runs: "
        "[quality.json](llama_adapter_edu/course/results/quality.json), written by "
        "[`python -m benchmarks.quality`](benchmarks/quality.py).",
        "",
        f"With the `gpu` profile of lesson 11 (200 steps, base in bfloat16): {mean(bar):.1%} exact "
        f"match (mean of {len(bar)} seeds, at most {slowest:.0f} s of training); the second "
        f"expert writes {mean(style):.1%} of its answers in a telegram's style. With the `t4` "
        f"profile (base in float16), on the same card: {mean(t4):.1%}.",
    ]


def vision(stored: dict) -> list[str]:
    """What the digits lesson reaches with its longer training."""
    scores = stored["mean"]["seen_pairs"]
    named = f"{scores['digit']:.1%} of the digits named, {scores['parity']:.1%} even or odd"
    return [
        f"Digits that it never saw, lesson 09 with {stored['settings']['steps']} steps on "
        f"{stored['hardware']}, {len(stored['runs'])} seeds: {named} "
        "([vision.json](llama_adapter_edu/course/results/vision.json), "
        "[`python -m benchmarks.vision`](benchmarks/vision.py))."
    ]


def read(folder: Path, *names: str) -> dict:
    return {n: json.loads((folder / f"{n}.json").read_text(encoding="utf-8")) for n in names}


def for_readme() -> str:
    """The ways side by side, and LoRA against ours."""
    stored = read(STORED, "quality")["quality"]
    return "\n".join([*methods(stored), "", against_lora(stored)])


def for_docs() -> str:
    """All results; links lead from docs/ to the files."""
    stored = read(STORED, "quality", "vision", "many_papers", "swap_experts")
    timed = read(RESULTS, "train_step", "decode", "load", "paper_run", "savings", "time_to_95")
    more = read(RESULTS, "several_gpus", "mixed_adapters", "float8_quality")
    parts = [quality(stored["quality"]), vision(stored["vision"]), speed(timed)]
    parts += [several_gpus(more["several_gpus"]), mixed_adapters(more["mixed_adapters"])]
    parts += [float8_quality(more["float8_quality"])]
    parts += [five_ways(stored["many_papers"]), swapped_halves(stored["swap_experts"])]
    text = "\n\n".join("\n".join(part) for part in parts)
    return re.sub(r"\]\((?!https?:)", "](../", text)


def for_notes() -> str:
    """What did not help."""
    return "\n".join(trials(read(RESULTS, "trials")["trials"]))


FILES = {
    "README.md": for_readme,
    "docs/measured.md": for_docs,
    "benchmarks/NOTES.md": for_notes,
}


def written(name: str) -> str:
    """One of the files, with the results of now between its two markers."""
    return replace_marked((ROOT / name).read_text(encoding="utf-8"), START, END, FILES[name]())


def main() -> int:
    for name, text in FILES.items():
        if "--write" in sys.argv[1:]:
            (ROOT / name).write_text(written(name), encoding="utf-8")
        else:
            print(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
