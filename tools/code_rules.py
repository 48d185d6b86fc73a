"""Rules for the code of a lesson: exercises, checks, answers."""

import ast
from collections.abc import Iterator

from nbformat import NotebookNode

from tools import names
from tools.lesson import Exercise, Lesson
from tools.regions import solve

ANSWERS = 2  # how many wrong and right answers prove an exercise, at least
Problem = tuple[NotebookNode, str]


def definitions(source: str) -> list[str]:
    """The functions and classes that a cell defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in names.parse(source).body if isinstance(node, kinds)]


def signatures(source: str) -> str | None:
    """An exercise's definition without docstring or types, if any."""
    for node in names.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            return "an exercise holds functions and classes only"
        if not ast.get_docstring(node):
            return f"{node.name} needs a docstring with its shapes"
        if isinstance(node, ast.FunctionDef) and not _typed(node):
            return f"{node.name} needs types for all arguments and its result"
    return None


def _typed(node: ast.FunctionDef) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return node.returns is not None and all(a.annotation is not None for a in arguments)


def check_call(source: str) -> list[str] | None:
    """["1.2", "name", ...] of a cell that is one `with check(...)` block."""
    body = names.parse(source).body
    if len(body) != 1 or not isinstance(body[0], ast.With) or len(body[0].items) != 1:
        return None
    call = body[0].items[0].context_expr
    if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "check":
        return None
    values = [getattr(argument, "value", None) for argument in call.args]
    return values if len(values) > 1 and all(isinstance(v, str) for v in values) else None


def answers(lesson: Lesson) -> Iterator[Problem]:
    """Exercises with too few answers, or with the solution itself as a right answer."""
    for exercise in lesson.exercises:
        cell = lesson.cells[exercise.check]
        for kind, found in (("wrong", exercise.wrong), ("right", exercise.right)):
            if len(set(found)) < ANSWERS:
                yield cell, f"{ANSWERS} different {kind} answers follow a check, not {len(found)}"
        if _is_the_solution(lesson, exercise):
            yield cell, "a right answer is the solution itself; write it differently"


def _is_the_solution(lesson: Lesson, exercise: Exercise) -> bool:
    solution = normal_form(lesson.solution(exercise), types=False)
    return any(normal_form(right, types=False) == solution for right in exercise.right)


def normal_form(source: str, types: bool = True) -> str:
    """The code in one layout, without docstrings and comments, with or without its types."""
    tree = names.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef) and not types:
            node.returns = None
        if isinstance(node, ast.arg) and not types:
            node.annotation = None
    return ast.unparse(tree)


def shared_names(lesson: Lesson) -> Iterator[Problem]:
    """A failed check stops half way, so nothing below may rest on the names it defines."""
    checks = {exercise.check: exercise.id for exercise in lesson.exercises}
    shared: dict[str, str] = {}
    for number, cell in enumerate(lesson.cells):
        if cell.cell_type != "code":
            continue
        source = solve(cell.source)
        for name in sorted(names.loaded_before_stored(source) & set(shared)):
            yield cell, f"uses {name}, which the check {shared[name]} defines; define it here again"
        own = names.stored(source)
        shared = {name: check for name, check in shared.items() if name not in own}
        if number in checks:
            shared |= dict.fromkeys(own, checks[number])
