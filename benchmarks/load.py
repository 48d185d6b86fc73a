"""How long the library makes you wait: import, `--help`, and the Llama from its cache.

    python -m benchmarks.load

Each is a new process, measured several times. Results go to `results/load.json`.
"""

import json
import subprocess
import sys
import time

import torch

from benchmarks import measure

LOAD = """
import json, time
import torch, transformers
from llama_adapter_edu import load_llama
start = time.perf_counter()
load_llama()
print(json.dumps(time.perf_counter() - start))
"""
COMMANDS = {
    "import llama_adapter_edu": ["-c", "import llama_adapter_edu"],
    "python -c pass": ["-c", "pass"],
    "python -m llama_adapter_edu --help": ["-m", "llama_adapter_edu", "--help"],
}


def process_seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def load_seconds() -> float:
    """Seconds inside `load_llama()`, after the imports, in a new process."""
    run = subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> int:
    load_seconds()  # the first one may download and convert
    times: dict[str, list[float]] = {name: [] for name in (*COMMANDS, "load_llama()")}
    for _ in range(5):
        for name, arguments in COMMANDS.items():
            times[name].append(process_seconds(arguments))
        times["load_llama()"].append(load_seconds())
    records = [{"what": name} | measure.spread(own) for name, own in times.items()]
    measure.print_table(records, ["what", "median_ms", "lowest_ms", "highest_ms"])
    about = measure.conditions(torch.device("cpu"))
    measure.keep(measure.RESULTS / "load.json", [about | record for record in records])
    return 0


if __name__ == "__main__":
    sys.exit(main())
