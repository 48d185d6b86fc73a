"""Makes notebooks from a lesson: open or solved, with or without the output of a run."""

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from llama_adapter_edu.course import assembly, boxes
from tools import pieces
from tools.colab import badge, machine
from tools.lesson import Lesson
from tools.regions import blank
from tools.text_rules import IMAGE, PICTURE_KINDS

OPEN = "○ exercise {} {}: open\n"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def make_notebook(lesson: Lesson, answers: Mapping[str, str] | None = None) -> NotebookNode:
    """The lesson's notebook without output; `answers` maps exercise ids to the cell's source."""
    exercises = {exercise.code: exercise.id for exercise in lesson.exercises}
    opened = open_outputs(lesson)
    cells, ids = [], Counter()
    for number, cell in enumerate(lesson.cells):
        if cell.cell_type == "markdown":
            make, source = new_markdown_cell, _embed(cell.source, lesson.path.parent)
            source = source if number else _with_badge(source, lesson)
        else:
            make, source = new_code_cell, blank(cell.source)
        cell_id = _content_id(source, ids)
        source = (answers or {}).get(exercises.get(number), source)
        cells.append(make(source, id=cell_id, metadata=_metadata(cell.tags)))
        cells[-1].update({"outputs": opened[number]} if number in opened else {})
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    metadata |= machine(lesson.settings, lesson.number)
    return new_notebook(cells=cells, metadata=metadata, nbformat_minor=5)


def _with_badge(title_cell: str, lesson: Lesson) -> str:
    """The lesson's first cell, with the badge below its title."""
    link = badge(lesson.settings, lesson.name)
    title, _, rest = title_cell.partition("\n")
    return f"{title}\n\n{link}\n{rest}" if link else title_cell


def _content_id(source: str, ids: Counter) -> str:
    """An id from the cell's text, so that a new cell moves nobody else's."""
    cell_id = hashlib.sha256(source.encode()).hexdigest()[:8]
    ids[cell_id] += 1
    return cell_id if ids[cell_id] == 1 else f"{cell_id}-{ids[cell_id]}"


def notebook_path(root: Path, lesson: Lesson) -> Path:
    return root / "notebooks" / f"{lesson.name}.ipynb"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def open_outputs(lesson: Lesson) -> dict[int, list[NotebookNode]]:
    """{cell: outputs} of checks and assemble forms in a notebook where nothing is solved yet."""
    found = {}
    for exercise in lesson.exercises:
        text = OPEN.format(exercise.id, ", ".join(exercise.names))
        found[exercise.check] = [new_output("stream", name="stdout", text=text)]
        if exercise.assemble:
            shown = assembly.lines_and(
                assembly.SAYS["start"], exercise.id, pieces.puzzle(lesson, exercise)
            )
            found[exercise.code - 1] = [new_output("display_data", boxes.data(*shown))]
    return found


def copy_output(source: NotebookNode, target: NotebookNode) -> None:
    """Give the target's cells the outputs and counts of the same lesson's run in `source`.

    What `open_outputs` gave them stays.
    """
    for ran, cell in zip(code_cells(source), code_cells(target), strict=True):
        cell.outputs, cell.execution_count = cell.outputs or ran.outputs, ran.execution_count


def write_text(notebook: NotebookNode) -> str:
    """The notebook as the bytes of its file."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def _metadata(tags: list[str]) -> dict:
    tags = list(tags)
    if "check" in tags and "nbval-ignore-output" not in tags:
        tags.append("nbval-ignore-output")  # an old red output in a saved file does not count
    return {"tags": tags} if tags else {}


def _embed(source: str, folder: Path) -> str:
    """Put the picture files into the text, so that a notebook alone shows them.

    As HTML, since markdown-it, with which VS Code reads notebooks, takes no SVG data in Markdown.
    """

    def with_data(image) -> str:
        path = folder / image["target"]
        if not path.is_file():
            return image[0]
        data = base64.b64encode(path.read_bytes()).decode()
        alt = html.escape(" ".join(image["alt"].split()))
        return f'<img alt="{alt}" src="data:{PICTURE_KINDS[path.suffix]};base64,{data}">'

    return IMAGE.sub(with_data, source)
