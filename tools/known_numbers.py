"""What numbers of texts are compared with: the paper's, the stored results, the Llamas' shapes."""

import importlib
import json
import re
from functools import cache
from pathlib import Path

from tools.quantities import values_in

ROOT = Path(__file__).resolve().parents[1]
RESULTS = (ROOT / "llama_adapter_edu/course/results", ROOT / "benchmarks/results")
PAPER = RESULTS[0] / "paper.json"
NAMES_PAPER = re.compile(
    r"\b(?:the|this) paper\b|\bpaper's\b|\bICLR\b|\barXiv v\d|\bTables? \d|Alpaca-LoRA|ScienceQA"
    r"|MetaMathQA|VTAB|SQuAD|\bA100",
    re.I,
)
LLAMAS = (  # shapes of the course's Llama and of LLaMA-7B, and what follows from them
    *(30, 9, 3, 64, 576, 192, 1536, 49_152, 49_151, 30 * 9, 30 * (10 * 576 + 9), 134_515_008),
    *(32, 128, 4096, 11_008, 32_000, 6_738_415_616, 30 * (10 * 4096 + 32)),
)
ABOUT_LLAMAS = re.compile(r"llama|head|layer|width|vocabulary|weights|gate|table with", re.I)


@cache
def result(name: str) -> object:
    """A stored JSON file of results, by its name."""
    [path] = [p for folder in RESULTS if (p := folder / f"{name}.json").is_file()]
    return json.loads(path.read_text(encoding="utf-8"))


def record(name: str, **keys: object) -> dict:
    """The one entry of a stored list of results with these values."""
    [found] = [r for r in result(name) if all(r.get(k) == value for k, value in keys.items())]
    return found


def code(place: str) -> object:
    """A value of the library: "module:NAME"."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


@cache
def paper_values() -> list[float]:
    """The quoted numbers; a percentage as a share."""
    stored = json.loads(PAPER.read_text(encoding="utf-8"))
    parts = [stored["paper"], *stored["others"]]
    entries = [entry for part in parts for entry in part["values"]]
    return [e["value"] * (0.01 if e["unit"] == "%" else 1) for e in entries]


@cache
def result_values() -> list[float]:
    paths = [path for folder in RESULTS for path in folder.glob("*.json") if path != PAPER]
    return [v for path in paths for v in values_in(path.read_text(encoding="utf-8"))]


def is_quoted(sentence: str) -> bool:
    """Whether a sentence, a list item or a table's row speaks of the paper or its tasks."""
    return NAMES_PAPER.search(sentence) is not None
