"""What the course knows of its exercises, and which of them a notebook holds.

The course's part is read from `reference/lesson_NN.py`: read, not imported, so that neither torch
nor a lesson's imports are loaded. Cells are compared by their syntax trees: a formatter, a comment
or other quotes change nothing.
"""

import ast
import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path

from llama_adapter_edu.course.checks.source import definitions, digest, parse

REFERENCES = Path(__file__).parents[1] / "reference"
Check = tuple[str, tuple[str, ...]]  # ("1.2", ("name", ...))


def lessons() -> list[int]:
    """The numbers of the course's lessons."""
    return sorted(int(path.stem[-2:]) for path in REFERENCES.glob("lesson_[0-9][0-9].py"))


def exercises(lesson: int) -> dict[str, str]:
    """{"1.2": "name, name"} of a lesson; empty for a lesson that the course does not have."""
    return _constant(lesson, "EXERCISES") or {}


def own_checks(lesson: int) -> dict[str, str]:
    """{"1.2": the source of the course's own check}."""
    return _constant(lesson, "CHECKS") or {}


def puzzle(exercise: str) -> dict | None:
    """The exercise as pieces to put in order; None where the course has none."""
    number = exercise.split(".")[0]
    return (_constant(int(number), "PUZZLES") or {}).get(exercise) if number.isdigit() else None


def is_open(check: Check, sources: Collection[str]) -> bool | None:
    """Whether an exercise's definitions are as they were given; None where that is not known."""
    stub = (_constant(lesson_of(check), "STUBS") or {}).get(check[0])
    found = answer_digest(check, sources)
    return found == stub if stub and found else None


def is_given(lesson: int, source: str) -> bool:
    """Whether a cell is one that the course gives, not the learner's own."""
    known = _constant(lesson, "CELLS")
    return known is None or cell_digest(source) in known


def lesson_of(check: Check) -> int:
    return int(check[0].split(".")[0])


def checks_in(source: str) -> list[Check]:
    """The checks in a cell, wherever they stand in it."""
    try:
        nodes = list(ast.walk(parse(source)))
    except (SyntaxError, ValueError, RecursionError):
        return []
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    calls = [call for function in functions for call in function.decorator_list]
    found = [_strings(call) for call in calls]
    return [(key, tuple(names)) for key, *names in found if re.fullmatch(r"\d{1,3}\.\d{1,3}", key)]


def _strings(call: ast.AST) -> list[str]:
    """The plain arguments of a call `check("1.2", "name")`."""
    if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "check":
        return [""]
    values = [getattr(argument, "value", None) for argument in call.args]
    return values if len(values) > 1 and all(isinstance(v, str) for v in values) else [""]


def defines(source: str, names: Collection[str]) -> bool:
    """Whether a cell defines one of these names, even if it has a syntax error."""
    each = "|".join(map(re.escape, names))
    return re.search(rf"^(?:async )?(?:def|class) (?:{each})\b", source, re.M) is not None


def answer_digest(check: Check, sources: Collection[str]) -> str:
    """The digest of an exercise's definitions in a notebook's cells, the last of each name.

    It is what a check's box carries of the code that it judged; "" where a name is not defined.
    """
    found = {}
    for source in sources:
        if defines(source, check[1]):
            try:
                found |= definitions(source)
            except (SyntaxError, ValueError, RecursionError):
                return ""
    if not set(check[1]) <= set(found):
        return ""
    return digest(found[name] for name in check[1])


def is_altered(exercise: str, source: str) -> bool:
    """Whether this cell holds another check than the one that the course gives this exercise."""
    own = own_checks(int(exercise.split(".")[0])).get(exercise)
    return own is not None and cell_digest(own) != cell_digest(source)


def cell_digest(source: str) -> str:
    """The same for cells of the same code."""
    try:
        return digest(parse(source).body)
    except (SyntaxError, ValueError, RecursionError):
        return hashlib.sha256(source.strip().encode("utf-8", "replace")).hexdigest()[:12]


def code_in(path: Path) -> list[str]:
    """The sources of a notebook's code cells; none where it cannot be read."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8-sig"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def _constant(lesson: int, name: str) -> object:
    path = REFERENCES / f"lesson_{lesson:02d}.py"
    if not path.is_file():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    return None
