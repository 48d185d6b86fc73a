"""Lesson pages: a notebook with its stored output, and each solution behind a click."""

import copy
import re

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from tools.lesson import Lesson
from tools.site import assembling

SOLUTION = """<details class="solution"><summary>Solution of exercise {id}</summary>

```python
{code}
```

</details>"""
NOTE = """:::{{note}}
The numbers and pictures are those of the solved lesson. To work on it yourself, open
{{download}}`{name}.ipynb </notebooks/{name}.ipynb>` in Jupyter.
:::"""


def lesson_page(lesson: Lesson, notebook: NotebookNode) -> NotebookNode:
    """The notebook as a page of the site; the notebook itself stays as it is.

    Raises:
        ValueError: the notebook has other exercises than the lesson.
    """
    page = copy.deepcopy(notebook)
    answers = iter(lesson.exercises)
    page.cells = []
    for cell in notebook.cells:
        buttons = assembling.form(lesson, cell.source)
        page.cells.append(new_markdown_cell(buttons) if buttons else copy.deepcopy(cell))
        page.cells[-1].source = page.cells[-1].source.replace("](../docs/", "](../")
        if "exercise" in cell.metadata.get("tags", []):
            page.cells.append(_solution(lesson, next(answers, None)))
    if next(answers, None):
        raise ValueError(f"{lesson.name}.ipynb lacks an exercise: python tools/build.py")
    page.cells.insert(1, new_markdown_cell(NOTE.format(name=lesson.name), id="note"))
    return page


def row(lesson: Lesson, page: NotebookNode) -> str:
    """The lesson in the table of lessons: title with link, minutes, exercises."""
    title = re.match(r"# (.*)", page.cells[0].source)
    minutes = re.search(r"^\*(\d+) minutes", page.cells[0].source, re.M)
    numbers = f"{minutes[1] if minutes else ''} | {len(lesson.exercises)}"
    return f"| [{title[1]}]({lesson.name}.ipynb) | {numbers} |"


def _solution(lesson: Lesson, exercise) -> NotebookNode:
    if exercise is None:
        raise ValueError(f"{lesson.name}.ipynb has too many exercises: python tools/build.py")
    text = SOLUTION.format(id=exercise.id, code=lesson.solution(exercise).strip("\n"))
    return new_markdown_cell(text, id=f"solution-{exercise.id.replace('.', '-')}")
