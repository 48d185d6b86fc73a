"""Do the tests still find the faults of `fault_list.py`?  `make faults`, or some: `ARGS=attention`.

Each fault is put into a copy of the project, alone, and its tests must fail there. Run `make test`
first: a test that fails without the fault, too, finds nothing.

Every run of pytest is a fork of this process, which has the heavy libraries loaded already.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import accelerate  # noqa: F401
import datasets  # noqa: F401
import peft  # noqa: F401
import pytest
import transformers.models.llama.modeling_llama  # noqa: F401
from fault_list import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
RESULTS = {pytest.ExitCode.TESTS_FAILED: "found", pytest.ExitCode.OK: "MISSED"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="faults whose file or tests hold one of these")
    words = parser.parse_args().words
    chosen = [f for f in FAULTS if not words or any(word in f.file + f.tests for word in words)]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        whole = copy_project(Path(folder, "whole"))
        for fault in chosen:
            changed(whole, fault)  # all texts are there, before anything is run
        found = 0
        for fault, code in run_all(whole, chosen):
            result = RESULTS.get(code, f"not judged, pytest returned {code}:")
            found += result == "found"
            print(f"{result:6}  {fault.file}: {fault.new!r:.70}  [{fault.tests}]", flush=True)
    print(f"{found} of {len(chosen)} faults found")
    return 0 if found == len(chosen) else 1


def copy_project(to: Path) -> Path:
    """What git knows or would take, without the history."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def changed(root: Path, fault: Fault) -> str:
    """The file's text with the fault in it."""
    text = (root / fault.file).read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        sys.exit(
            f"{fault.file} holds {text.count(fault.old)} times, expected once:\n    {fault.old}\n"
            "Write the fault anew in tests/fault_list.py, or take another one of its kind."
        )
    return text.replace(fault.old, fault.new)


def run_all(whole: Path, faults) -> Iterator[tuple[Fault, int]]:
    """(fault, what pytest returns for its tests), as they end; one process on each core."""
    running: dict[int, Fault] = {}
    for fault in faults:
        if len(running) == (os.cpu_count() or 1):
            yield ended(running)
        if not (process := os.fork()):
            os._exit(run(whole, fault))
        running[process] = fault
    while running:
        yield ended(running)


def ended(running: dict[int, Fault]) -> tuple[Fault, int]:
    process, status = os.wait()
    return running.pop(process), os.waitstatus_to_exitcode(status)


def run(whole: Path, fault: Fault) -> int:
    """In a process of its own: the tests of a fault, up to the first that fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        copy = shutil.copytree(whole, Path(folder, "copy"))
        (copy / fault.file).write_text(changed(whole, fault), encoding="utf-8")
        os.environ["PYTHONPATH"] = str(copy)
        os.chdir(copy)
        sys.path[:1] = [str(copy)]
        tests = [f"tests/{w}" if w.endswith(".py") else w for w in shlex.split(fault.tests)]
        return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))


if __name__ == "__main__":
    sys.exit(main())
