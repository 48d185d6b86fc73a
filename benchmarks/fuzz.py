"""The fuzz tests with many cases, counted and recorded.

    python benchmarks/fuzz.py [--scale 10]

`pytest` runs some hundreds of cases, the same ones each time. This runs `scale` times as many,
drawn at random, and writes `benchmarks/results/fuzz.json`: how many cases of which kind, with which
versions. What fails is printed with its input, and nothing is recorded then.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/fuzz.json"
TESTS = ["tests/test_fuzz_adapters.py", "tests/test_fuzz_input.py"]
PACKAGES = ("torch", "safetensors", "transformers", "datasets", "nbval", "hypothesis")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=int, default=10, help="times the cases of a normal run")
    scale = parser.parse_args().scale
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts_file = Path(folder, "counts")
        settings = {"FUZZ_SCALE": str(scale), "FUZZ_RECORD": str(counts_file)}
        command = [sys.executable, "-m", "pytest", "-q", "--timeout=7200", *TESTS]
        run = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings})
        if run.returncode:
            return run.returncode
        counts = Counter()
        for line in counts_file.read_text(encoding="utf-8").splitlines():
            counts.update(json.loads(line))
    result = {
        "cases": counts.total(),
        "failures": 0,
        "cases_by_kind": dict(sorted(counts.items())),
        "seconds": round(time.perf_counter() - started),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{counts.total():,} cases, none failed: {RESULT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
