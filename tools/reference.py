"""What failed checks fall back to: `course/reference/lesson_NN.py`, made from the master."""

import ast
import builtins
import difflib
from pathlib import Path

from nbformat import NotebookNode

from llama_adapter_edu.course.checks.scope import names_set_by
from llama_adapter_edu.course.checks.source import definitions, digest
from llama_adapter_edu.course.progress.exercises import cell_digest
from tools import names
from tools.code_rules import normal_form
from tools.lesson import Exercise, Lesson, MasterError
from tools.pieces import puzzle
from tools.regions import blank

HEADER = '''"""Solutions of lesson {number:02d}: what a failed check falls back to.

Generated from solutions/{file} by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {exercises}
STUBS = {stubs}
GIVEN = {given}
CELLS = {cells}
CHECKS = {checks}
PUZZLES = {puzzles}
'''


def reference_path(root: Path, lesson: Lesson) -> Path:
    return root / "llama_adapter_edu/course/reference" / f"lesson_{lesson.number:02d}.py"


def reference_text(lesson: Lesson, root: Path) -> str:
    """The generated module; MasterError if an exercise and the library disagree."""
    imported = [_import_from_library(lesson, e, root) for e in lesson.exercises if e.library]
    own = [e for e in lesson.exercises if not e.library]
    exercises = {e.id: ", ".join(e.names) for e in lesson.exercises}
    checks = {e.id: lesson.cells[e.check].source for e in lesson.exercises}
    text = HEADER.format(
        number=lesson.number,
        file=lesson.path.name,
        exercises=exercises,
        checks=checks,
        puzzles={e.id: puzzle(lesson, e) for e in lesson.exercises if e.assemble},
        stubs={e.id: _stub(lesson, e) for e in lesson.exercises},
        given=_given_values(lesson),
        cells=tuple(cell_digest(cell.source) for cell in _given_cells(lesson)),
    )
    imports = _needed_imports(lesson, own)
    if imports or imported:
        text += "\n" + "\n".join(imports + imported) + "\n"
    for exercise in own:
        text += f"\n\n{lesson.solution(exercise).strip()}\n"
    return text


def _stub(lesson: Lesson, exercise: Exercise) -> str:
    """The digest of what the learner is given to fill in."""
    found = definitions(blank(lesson.cells[exercise.code].source))
    return digest(found[name] for name in exercise.names)


def _given_values(lesson: Lesson) -> tuple[str, ...]:
    """The names of the values that given cells set: an answer must not read them."""
    return tuple(sorted(set().union(*(names_set_by(c.source) for c in _given_cells(lesson)))))


def _given_cells(lesson: Lesson) -> list[NotebookNode]:
    """The code cells that are neither exercises nor checks."""
    own = {number for exercise in lesson.exercises for number in (exercise.code, exercise.check)}
    cells = enumerate(lesson.cells)
    return [cell for number, cell in cells if cell.cell_type == "code" and number not in own]


def _import_from_library(lesson: Lesson, exercise: Exercise, root: Path) -> str:
    cell = lesson.cells[exercise.code]
    path = root / (exercise.library.replace(".", "/") + ".py")
    if not path.is_file():
        raise MasterError(lesson.path, f"there is no module {exercise.library}", cell)
    library = _definitions(path.read_text(encoding="utf-8"))
    taught = _definitions(lesson.solution(exercise))
    for name in exercise.names:
        difference = _difference(library.get(name, ""), taught[name])
        if difference:
            reason = f"{name} differs from {exercise.library}.{name}:\n{difference}"
            raise MasterError(lesson.path, reason, cell)
    return f"from {exercise.library} import {', '.join(exercise.names)}"


def _definitions(source: str) -> dict[str, str]:
    """{name: its code without comments and docstrings} of the functions and classes."""
    body = ast.parse(normal_form(source)).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: ast.unparse(node) for node in body if isinstance(node, kinds)}


def _difference(library: str, taught: str) -> str:
    lines = difflib.unified_diff(
        library.splitlines(), taught.splitlines(), "library", "lesson", lineterm="", n=1
    )
    return "\n".join(f"    {line}" for line in lines)


def _needed_imports(lesson: Lesson, exercises: list[Exercise]) -> list[str]:
    """The lesson's import lines that the copied solutions need."""
    available = _imports(lesson)
    known = {name for exercise in lesson.exercises for name in exercise.names} | set(dir(builtins))
    needed = set()
    for exercise in exercises:
        free = names.loaded_before_stored(lesson.solution(exercise)) - known
        if unknown := sorted(free - set(available)):
            reason = (
                f"the answer uses {', '.join(unknown)} of the notebook; pass it as an argument "
                "or import it, since the reference must work without the notebook"
            )
            cell = lesson.cells[exercise.code]
            raise MasterError(lesson.path, reason, cell)
        needed |= free
    return list(dict.fromkeys(line for name, line in available.items() if name in needed))


def _imports(lesson: Lesson) -> dict[str, str]:
    """{name: import line} of the imports at the top level of the lesson's cells."""
    lines = {}
    for cell in lesson.cells:
        body = names.parse(cell.source).body if cell.cell_type == "code" else []
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    one = type(node)(**{**dict(ast.iter_fields(node)), "names": [alias]})
                    lines[alias.asname or alias.name.split(".")[0]] = ast.unparse(one)
    return lines
