"""Every number of the lessons has a source, and every quoted one is in `paper.json`."""

import ast
import json
import re
from pathlib import Path

import pytest

from tools import claims, known_numbers
from tools.quantities import quantities, sentences

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
UPDATE = "run `python tools/claims.py {}` after a build, and commit what it writes"
# Numbers of our own that stand in a sentence which names the paper: the sentence's words.
OURS = json.loads((ROOT / "solutions/claims/pages.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_number_of_a_lesson_has_a_source(path):
    number = path.name[:2]
    by_hand = claims.read(number)
    found = claims.inventory(path, by_hand)
    assert claims.unclear(found) == [], UPDATE.format(number)
    assert list(claims.faults(by_hand, found)) == []
    written = (claims.CLAIMS / f"{number}.json").read_text(encoding="utf-8")
    assert written == claims.text_of(by_hand, found), UPDATE.format(number)


def pages() -> dict[str, list[str]]:
    """{file: sentences} of the written pages, docstrings and comments outside the lessons."""
    texts = {ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")}
    found = {str(p.relative_to(ROOT)): sentences(p.read_text(encoding="utf-8")) for p in texts}
    for folder in ("llama_adapter_edu", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            if "reference" not in path.parts:
                found[str(path.relative_to(ROOT))] = sentences("\n\n".join(words_of(path)))
    return found


def words_of(path: Path) -> list[str]:
    """A program's docstrings and comments."""
    source = path.read_text(encoding="utf-8")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [ast.get_docstring(node) or "" for node in nodes] + re.findall(r"# (.*)", source)


def not_in_the_paper(texts: list[str]) -> list[tuple[str, str]]:
    """(number, sentence) of what a text quotes from the paper and `paper.json` does not have."""
    return [
        (quantity.text, text)
        for text in texts
        if known_numbers.is_quoted(text)
        for quantity in quantities(text)
        if claims.is_sharp(quantity) or quantity.unit
        if not quantity.is_one_of(known_numbers.paper_values())
    ]


def test_the_pages_quote_nothing_that_is_not_in_paper_json():
    problems = [
        f"{name}: {number} in {text!r}"
        for name, texts in pages().items()
        for number, text in not_in_the_paper(texts)
        if not any(entry["number"] == number and entry["near"] in text for entry in OURS)
    ]
    assert problems == []


def test_code_of_lessons_that_quotes_the_paper_quotes_paper_json():
    """A line such as `paper_layers = {10: 0.5595}  # Table 4`."""
    wrong = []
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                lines = [line for line in cell["source"] if not line.startswith("# alt")]
                quoting = "".join(x for x in lines if re.search(r"# .*(Table \d|paper|ICLR)", x))
                found = re.findall(r"(?<![\w.])0\.\d{3,}|\d\d\.\d\d(?!\d)", quoting)
                known = known_numbers.paper_values()
                wrong += [v for v in found if not any(abs(float(v) - k) < 1e-9 for k in known)]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("In the paper, 83.85 % are right.", []),
        ("In the paper, 83.86 % are right.", ["83.86 %"]),
        ("In the paper, 84 % are right.", []),
        ("The paper's three values are 82.08, 83.85 and 84.94 %.", ["84.94 %"]),
        ("| Alpaca-LoRA | 4.2 million |", []),
        ("The paper says 1.2 million in Table 3 (arXiv 2303.16199, section 4.1).", []),
        ("The paper says 1.3 million.", ["1.3 million"]),
        ("Our run has 83.86 %.", []),
    ],
)
def test_a_quoted_number_is_compared_with_paper_json(text, numbers):
    assert [number for number, _ in not_in_the_paper(sentences(text))] == numbers


def test_each_entry_of_paper_json_names_table_or_section_and_edition():
    stored = json.loads(known_numbers.PAPER.read_text(encoding="utf-8"))
    for entry in stored["paper"]["values"]:
        assert set(entry["where"]) <= {"ICLR 2024", "arXiv v1"}
        assert entry["where"] and entry["what"]
        assert all(re.fullmatch(r"(Table|section) [\d.]+", x) for x in entry["where"].values())
    for other in stored["others"]:
        assert other["source"] and other["values"]


TEXTS = {
    "Each of 9 heads is 64 wide; lesson 03 has exercise 3.1.": ["64"],
    "Tables 4, 5 and 6 and equations 2 to 15 say it.": [],
    "It took 3 hours, twice 1.5 h, in 2024.": ["3 hours", "1.5 h"],
    "1,229,760 numbers, `x = 99` and $y = 98$ (arXiv 2303.16199)": ["1,229,760"],
    "*easy ●○○ · 15 minutes*": [],
    "PEFT 0.21.2 has 13 GB; a 16-bit base of LLaMA-7B has 26.": ["13 GB", "26"],
    "![In 20 rows](figures/a_30.svg)": ["20"],
    "Prompts get 72 and 80 %, LoRA with rank 64 has 14,614, layers 15 to 20 none.": [
        "72",
        "80 %",
        "14,614",
    ],
}


@pytest.mark.parametrize(("text", "numbers"), TEXTS.items())
def test_which_numbers_say_how_much(text, numbers):
    assert [q.text for s in sentences(text) for q in quantities(s)] == numbers


@pytest.mark.parametrize(
    ("written", "value", "is_it"),
    [
        ("98.6 %", 0.98611, True),
        ("98.6 %", 0.9873, False),
        ("1.2 million", 1_229_760, True),
        ("1.2 million", 1_290_000, False),
        ("4,000", 4000, True),
        ("4,000", 4600, False),
        ("0.136", 0.136, True),
        ("-2.5 %", -0.025, True),
    ],
)
def test_a_number_is_a_value_if_rounding_gives_it(written, value, is_it):
    [quantity] = quantities(f"it is {written} here")
    assert quantity.is_one_of([value]) == is_it


def test_an_entry_by_hand_is_recomputed_and_must_be_about_something():
    found = [{"text": "2 · 3 · 64 · 30 = 11,520.", "numbers": {"11,520": None}}]
    good = {"number": "11,520", "near": "64", "expression": "2 * 3 * 64 * 30"}
    assert list(claims.faults([good], found)) == []
    assert "is 11521" in next(claims.faults([{**good, "expression": "11521"}], found))
    assert "no such number" in next(claims.faults([{**good, "near": "65"}], found))
    assert "one of source" in next(claims.faults([{"number": "11,520", "near": "64"}], found))
