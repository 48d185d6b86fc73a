"""What the course knows of its exercises, read from `reference/lesson_NN.py`.

Read, not imported: neither torch nor a lesson's imports are loaded.
"""

import ast
from pathlib import Path

from llama_adapter_edu.course.checks.source import digest, parse

REFERENCES = Path(__file__).parents[1] / "reference"


def exercises(lesson: int) -> dict[str, str]:
    """{"1.2": "name, name"} of a lesson; empty for a lesson that the course does not have."""
    return _constant(lesson, "EXERCISES")


def checks_in(source: str) -> list[tuple[str, tuple[str, ...]]]:
    """("1.2", ("name", ...)) for each check in a cell, wherever it stands in it."""
    try:
        nodes = list(ast.walk(parse(source)))
    except (SyntaxError, ValueError):
        return []
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    calls = [call for function in functions for call in function.decorator_list]
    return [(values[0], tuple(values[1:])) for call in calls if (values := _strings(call))]


def _strings(call: ast.AST) -> list[str]:
    """The plain arguments of a call `check("1.2", "name")`."""
    if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "check":
        return []
    values = [getattr(argument, "value", None) for argument in call.args]
    return values if len(values) > 1 and all(isinstance(v, str) for v in values) else []


def is_altered(exercise: str, check: str) -> bool:
    """Whether this cell holds another check than the one that the course gives this exercise."""
    digests = _constant(int(exercise.split(".")[0]), "CHECKS")
    return exercise in digests and digests[exercise] != digest(parse(check).body)


def _constant(lesson: int, name: str) -> dict[str, str]:
    path = REFERENCES / f"lesson_{lesson:02d}.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    return {}
