"""Where does each number of a lesson come from? The inventory, `solutions/claims/NN.json`.

python tools/claims.py         all lessons: writes the inventories, names what has no source
python tools/claims.py 04      lesson 04

A number of a text or an alt text has a source by itself if it stands in `paper.json` (in a sentence
that names the paper), in an output or a code cell of the built notebook, or in a stored result.
Every other one needs an entry under "by hand": the number, words near it, and one of
    source       where it can be looked up
    expression   Python that gives it; `result("quality")` is a stored JSON file,
                 `record("train_step", way="graphs")` the one entry of a stored list, and
                 `code("llama_adapter_edu.course.tasks.profiles:PROFILES")` a value of the code
    reason       why it needs none: an example, a rule of thumb, an opinion
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.known_numbers import (  # noqa: E402
    ABOUT_LLAMAS,
    LLAMAS,
    code,
    is_quoted,
    paper_values,
    record,
    result,
    result_values,
)
from tools.quantities import Quantity, quantities, sentences, values_in  # noqa: E402

CLAIMS = ROOT / "solutions" / "claims"
NEAR = 5  # cells: how far a short number may be from its output or code
LONG = 3  # significant digits from which a number is found anywhere in the lesson
KINDS = ("source", "expression", "reason")
ALT = re.compile(r"\A# alt: (.*)|<img alt=\"([^\"]*)\"", re.M)


def texts(notebook: nbformat.NotebookNode) -> Iterator[tuple[int, str]]:
    """(cell, text) of what readers read: Markdown, and the alt texts of pictures and figures."""
    for place, cell in enumerate(notebook.cells):
        yield from ((place, a or b) for a, b in ALT.findall(cell.source))
        if cell.cell_type == "markdown":
            yield place, cell.source


def values_of_cells(notebook: nbformat.NotebookNode) -> list[list[float]]:
    """For each cell, the numbers of its code and of its outputs."""
    found = []
    for cell in notebook.cells:
        shown = [cell.source] if cell.cell_type == "code" else []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            shown += [output.get("text", ""), data.get("text/plain", "")]
        found.append([v for text in shown for v in values_in(text)])
    return found


def inventory(path: Path, by_hand: list[dict]) -> list[dict]:
    """One entry for each sentence with numbers: {"text", "numbers": {number: where from}}."""
    notebook = nbformat.read(path, as_version=4)
    cells, found = values_of_cells(notebook), []
    everywhere = [value for values in cells for value in values]
    for place, text in texts(notebook):
        near = [v for values in cells[max(0, place - NEAR) : place + NEAR + 1] for v in values]
        for sentence in sentences(text):
            numbers = {
                quantity.text: _origin(quantity, sentence, near, everywhere, by_hand)
                for quantity in quantities(sentence)
            }
            if numbers:
                found.append({"text": sentence, "numbers": numbers})
    return found


def _origin(
    quantity: Quantity,
    sentence: str,
    near: list[float],
    everywhere: list[float],
    by_hand: list[dict],
) -> str | None:
    """Where a number comes from; None if that is not known."""
    if any(_is_about(entry, quantity.text, sentence) for entry in by_hand):
        return "by hand"
    quoted = is_quoted(sentence)
    if (quoted or quantity.digits >= LONG) and quantity.is_one_of(paper_values()):
        return "paper"
    if quoted and is_sharp(quantity):
        return None
    if ABOUT_LLAMAS.search(sentence) and quantity.is_one_of(LLAMAS):
        return "shape"
    share = [value for v in near for value in (v, v / 100 if quantity.unit == "%" else v)]
    if quantity.is_one_of(share):
        return "this lesson"
    if is_sharp(quantity) and quantity.is_one_of(everywhere):
        return "this lesson"
    if quantity.digits > LONG or (quantity.digits == LONG and "." in quantity.text):
        return "results" if quantity.is_one_of(result_values()) else None
    return None


def is_sharp(quantity: Quantity) -> bool:
    """Whether a number is a result, which a quoting sentence has from the paper."""
    return quantity.unit == "%" or quantity.digits >= LONG


def _is_about(entry: dict, number: str, sentence: str) -> bool:
    return entry["number"] == number and entry["near"] in sentence


def unclear(found: list[dict]) -> list[tuple[str, str]]:
    """(number, sentence) of numbers without a source."""
    pairs = ((n, e["text"]) for e in found for n, origin in e["numbers"].items() if not origin)
    return list(pairs)


def faults(by_hand: list[dict], found: list[dict]) -> Iterator[str]:
    """What is wrong with the entries by hand."""
    for entry in by_hand:
        if sum(kind in entry for kind in KINDS) != 1:
            yield f"{entry}: one of {', '.join(KINDS)}"
        if not any(_is_about(entry, n, e["text"]) for e in found for n in e["numbers"]):
            yield f"{entry}: the lesson has no such number"
        if "expression" in entry:
            yield from _recomputed(entry)


def _recomputed(entry: dict) -> Iterator[str]:
    names = {"math": math, "result": result, "record": record, "code": code}
    text = entry["number"]
    [quantity] = quantities(f"{text} times" if text.isdigit() else text)
    try:
        value = eval(entry["expression"], names)
    except Exception as error:
        yield f"{entry['expression']} stops: {error!r}"
        return
    if not quantity.is_one_of([value]):
        yield f"{entry['expression']} is {value}, not {text}"


def read(number: str) -> list[dict]:
    """The entries by hand of a lesson."""
    path = CLAIMS / f"{number}.json"
    return json.loads(path.read_text(encoding="utf-8"))["by hand"] if path.is_file() else []


def text_of(by_hand: list[dict], found: list[dict]) -> str:
    """The inventory as the text of its file: an entry a line."""

    def lines(entries: list[dict]) -> str:
        return ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in entries)

    return f'{{\n "by hand": [\n{lines(by_hand)}\n ],\n "numbers": [\n{lines(found)}\n ]\n}}\n'


def main(arguments: list[str] | None = None) -> int:
    """Write the inventories; 1 if a number has no source or an entry is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN", help="lesson numbers; default: all")
    asked = parser.parse_args(arguments).lessons
    problems = []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        number = path.name[:2]
        if asked and number not in asked:
            continue
        by_hand = read(number)
        found = inventory(path, by_hand)
        problems += [f"{number}: {n}  in  {text}" for n, text in unclear(found)]
        problems += [f"{number}: {fault}" for fault in faults(by_hand, found)]
        CLAIMS.mkdir(exist_ok=True)
        (CLAIMS / f"{number}.json").write_text(text_of(by_hand, found), encoding="utf-8")
    print("\n".join(problems) or "every number has a source")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
