"""The measured results in README.md and NOTES.md, from the JSON files that the benchmarks wrote.

python -m benchmarks.report            # print them
python -m benchmarks.report --write    # put them into the two files
"""

import json
import sys
from pathlib import Path
from statistics import mean

from benchmarks.measure import RESULTS
from benchmarks.report_speed import speed, trials

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "llama_adapter_edu/course/results"
START, END = "<!-- results: python -m benchmarks.report --write -->", "<!-- end of results -->"


def quality(stored: dict) -> list[str]:
    """Accuracy, size, speed and memory of each way to fine-tune."""
    about, runs = stored["conditions"], stored["runs"]

    def values(part: str, method: str, name: str) -> list[float]:
        return [run[name] for key, run in runs.items() if key.startswith(f"{part}/{method}/")]

    lines = [
        f"On one {about['device']} (torch {about['torch']}, transformers {about['transformers']}, "
        f"PEFT {about['peft']}), from "
        "[quality.json](llama_adapter_edu/course/results/quality.json), written by "
        "[`python -m benchmarks.quality`](benchmarks/quality.py): home commands, 100 steps of 32, "
        "base in float32, each way with the best of three learning rates, mean of 3 seeds.",
        "",
        "| way | exact match, unseen | that train | file | tokens/s | memory |",
        "|---|---|---|---|---|---|",
        f"| the bare Llama | {values('base', 'base', 'exact_match')[0]:.1%} | 0 | | | |",
    ]
    for method in ("adaption prompts", "PEFT adaption prompts", "PEFT LoRA", "full fine-tuning"):
        scores = values("methods", method, "exact_match")
        (trained,) = values("speed", method, "trainable_parameters")
        (size,) = values("speed", method, "file_bytes")
        (speed,) = values("speed", method, "tokens_per_second")
        (peak,) = values("speed", method, "peak_memory_bytes")
        name = method + (" (ours)" if method == "adaption prompts" else "")
        lines.append(
            f"| {name} | {mean(scores):.1%} | {trained:,} | {size / 1e6:.1f} MB "
            f"| {speed:,} | {peak / 2**30:.1f} GiB |"
        )
    bar, style = (
        values(part, "adaption prompts", name)
        for part, name in (("bar", "exact_match"), ("telegrams", "style"))
    )
    slowest = max(values("bar", "adaption prompts", "seconds"))
    (t4,) = values("t4", "adaption prompts", "exact_match")
    return [
        *lines,
        "",
        f"With the `gpu` profile of lesson 10 (200 steps, base in bfloat16): {mean(bar):.1%} exact "
        f"match (mean of {len(bar)} seeds, at most {slowest:.0f} s of training); the second "
        f"expert writes {mean(style):.1%} of its answers in a telegram's style. With the `t4` "
        f"profile (base in float16), on the same card: {t4:.1%}.",
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
    """All results as Markdown."""
    stored = read(STORED, "quality", "vision")
    timed = read(RESULTS, "train_step", "decode", "load", "paper_run", "savings", "time_to_95")
    parts = quality(stored["quality"]), vision(stored["vision"]), speed(timed)
    return "\n\n".join("\n".join(part) for part in parts)


def for_notes() -> str:
    """What did not help, as Markdown."""
    return "\n".join(trials(read(RESULTS, "trials")["trials"]))


FILES = {"README.md": for_readme, "benchmarks/NOTES.md": for_notes}


def written(name: str) -> str:
    """One of the files, with the results of now between its two markers."""
    before, _, rest = (ROOT / name).read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{name} needs a line {START!r} and after it a line {END!r}.")
    return f"{before}{START}\n{FILES[name]()}\n{END}{after}"


def main() -> int:
    for name, text in FILES.items():
        if "--write" in sys.argv[1:]:
            (ROOT / name).write_text(written(name), encoding="utf-8")
        else:
            print(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
