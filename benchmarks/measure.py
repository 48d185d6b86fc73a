"""What the speed benchmarks share: conditions, ceilings of the hardware, rounds, JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

PACKAGES = ("transformers", "peft", "accelerate")
NUMBERS = ("adapter_len", "gpus", "rows_a_gpu", "checkpointing")
RESULTS = Path(__file__).resolve().parent / "results"


def conditions(device: torch.device) -> dict[str, str | int]:
    """What a figure depends on besides the code."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {_cpu_name()}",
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in PACKAGES if find_spec(name)},
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def wait(device: torch.device) -> None:
    """Let the device finish: work on a GPU goes on after the call that started it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Mean seconds of `times` calls in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - start) / times


def interleaved(
    works: dict[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    times: int,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each work, once a round: what slows the machine for a while slows all of them."""
    for work in works.values():
        for _ in range(warm_up):
            work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work, device, times))
    return found


def spread(times: list[float]) -> dict[str, float | int]:
    """Median, lowest and highest, in milliseconds."""
    return {
        "median_ms": round(1e3 * statistics.median(times), 3),
        "lowest_ms": round(1e3 * min(times), 3),
        "highest_ms": round(1e3 * max(times), 3),
        "rounds": len(times),
    }


def large_products(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """Large matrix products, and their FLOP: no step that multiplies matrices is done faster."""
    size, times = (8192, 20) if device.type == "cuda" else (1536, 3)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def work() -> None:
        for _ in range(times):
            left @ right

    return work, times * 2 * size**3


def copy_rate(device: torch.device) -> float:
    """Bytes/s of a large copy, read and written bytes together."""
    source = torch.randn(2**28 if device.type == "cuda" else 2**25, device=device)
    target: Tensor = torch.empty_like(source)
    copies = interleaved({"": lambda: target.copy_(source)}, device, rounds=9, times=3, warm_up=3)
    return 2 * source.nbytes / statistics.median(copies[""])


def peak_mib(work: Callable[[], object], device: torch.device) -> float | None:
    """The highest memory during one call, above what was taken before, in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest to what is taken now
    before = _highest_kib(status)
    work()
    return round((_highest_kib(status) - before) / 2**10, 1)


def _highest_kib(status: Path) -> int:
    return int(status.read_text().split("VmHWM:")[1].split()[0])


def keep(path: Path, records: list[dict]) -> None:
    """Add records to a JSON file, one a line. They replace those that measured the same."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    known = {_setting(record) for record in records}
    kept = [record for record in found if _setting(record) not in known] + records
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    lines = ",\n ".join(json.dumps(record) for record in kept)
    unfinished.write_text(f"[\n {lines}\n]\n", encoding="utf-8")
    os.replace(unfinished, path)


def _setting(record: dict) -> str:
    """What was measured, on what: all words of a record, and the numbers of NUMBERS."""
    words = {name: value for name, value in record.items() if isinstance(value, str)}
    words.pop("failed", None)
    return json.dumps([words, [record.get(name) for name in NUMBERS]], sort_keys=True)


def print_table(records: list[dict], columns: list[str]) -> None:
    """Records as lines under a head; a column that a record lacks stays empty."""
    rows = [columns] + [[_shown(record.get(name)) for name in columns] for record in records]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _shown(value: object) -> str:
    if isinstance(value, float):
        if 0 < abs(value) < 0.1:
            return f"{value:.3g}"
        return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
