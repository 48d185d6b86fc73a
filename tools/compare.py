"""Compares what is committed with the masters, without a kernel."""

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools.lesson import MasterError
from tools.master import read_lesson
from tools.notebook import code_cells, make_notebook, notebook_path
from tools.reference import reference_path, reference_text
from tools.teaching import teaching_path, teaching_text


def stale(root: Path, masters: list[Path], everything: bool) -> list[str]:
    """What is missing, differs from its master or has none, in words: file, cell and reason."""
    problems, expected = [], set()
    for path in masters:
        try:
            lesson = read_lesson(path)
            reference = reference_text(lesson, root)
        except MasterError as error:
            problems.append(str(error))
            continue
        texts = {reference_path(root, lesson): reference}
        texts[teaching_path(root, lesson)] = teaching_text(lesson)
        expected |= {notebook_path(root, lesson), *texts}
        for path, text in texts.items():
            problems += _compare_text(path, text)
        problems += _compare_file(notebook_path(root, lesson), make_notebook(lesson))
    if everything and not problems:
        found = {*root.glob("notebooks/*.ipynb")}
        found |= {*root.glob("llama_adapter_edu/course/reference/lesson_*.py")}
        found |= {*root.glob("docs/teaching/[0-9][0-9].md")}
        problems += [f"{_name(path)}: has no master" for path in sorted(found - expected)]
    return problems


def _compare_text(path: Path, text: str) -> list[str]:
    if not path.is_file():
        return [f"{_name(path)}: is missing"]
    same = path.read_text(encoding="utf-8") == text
    return [] if same else [f"{_name(path)}: does not match its master"]


def _compare_file(path: Path, expected: NotebookNode) -> list[str]:
    if not path.is_file():
        return [f"{_name(path)}: is missing"]
    try:
        found = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        return [f"{_name(path)}: cannot be read: {str(error).splitlines()[0]}"]
    return [f"{_name(path)}{problem}" for problem in _differences(found, expected)]


def _differences(found: NotebookNode, expected: NotebookNode) -> list[str]:
    problems = []
    if found.metadata != expected.metadata or found.nbformat_minor != expected.nbformat_minor:
        problems.append(": the notebook's metadata differ")
    if len(found.cells) != len(expected.cells):
        problems.append(f": {len(found.cells)} cells, its master gives {len(expected.cells)}")
    for number, (cell, right) in enumerate(zip(found.cells, expected.cells, strict=False), start=1):
        keys = [k for k in ("cell_type", "source", "id", "metadata") if cell.get(k) != right[k]]
        keys += ["outputs"] if right.get("outputs") and cell.get("outputs") != right.outputs else []
        if keys:
            first = right.source.partition("\n")[0][:60]
            problems.append(f", cell {number} ({first}): {', '.join(keys)} differ")
    for count, cell in enumerate(code_cells(found), start=1):
        if cell.execution_count != count:
            problems.append(f": code cell {count} lacks the output of the solved run")
        if any(o.output_type == "error" or o.get("name") == "stderr" for o in cell.outputs):
            problems.append(f": code cell {count} holds an error or stderr")
    return problems


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
