"""Rules for the code of a lesson: exercises, checks, answers."""

import ast
from collections.abc import Iterator

from nbformat import NotebookNode

from llama_adapter_edu.course.progress.exercises import checks_in
from tools import names
from tools.lesson import Exercise, Lesson

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
    """["1.2", "name", ...] of a cell that is one function under `@check(...)`."""
    body = names.parse(source).body
    if len(body) != 1:
        return None
    found = checks_in(source)
    return [found[0][0], *found[0][1]] if len(found) == 1 else None


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
