"""Runs a solved lesson and takes its outputs, refusing those a notebook must not keep."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from tools.lesson import Lesson, MasterError
from tools.notebook import code_cells

CELL_TIMEOUT = 600
ALT = re.compile(r"# alt: (\S.*)")
BAD_OUTCOME = re.compile(r"The outcome .* is (?:none of the options|no number)\.")
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def run_solved(lesson: Lesson, notebook: NotebookNode) -> NotebookNode:
    """Execute the notebook as pytest --nbval does; MasterError if a cell fails."""
    with tempfile.TemporaryDirectory() as folder:
        _execute(lesson, notebook, folder)
    return clean_outputs(lesson, notebook)


def clean_outputs(lesson: Lesson, notebook: NotebookNode) -> NotebookNode:
    """Merge streams, describe pictures, and refuse what must not be stored."""
    for cell in code_cells(notebook):
        cell.outputs = [_checked(lesson, notebook, cell, o) for o in _merge_streams(cell.outputs)]
    return notebook


def _execute(lesson: Lesson, notebook: NotebookNode, folder: str) -> None:
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": folder}},
    )
    try:
        # stderr: what the kernel's own process says, not what the cells write
        client.execute(env=_environment(), stderr=subprocess.DEVNULL)
    except CellExecutionError:
        failed = next(cell for cell in code_cells(notebook) if _error(cell))
        refuse(lesson, notebook, failed, _words(failed))
    except (CellTimeoutError, DeadKernelError) as error:
        raise MasterError(lesson.path, str(error).splitlines()[0]) from None
    notebook.metadata["language_info"] = {"name": "python"}  # the run wrote Python's version there


def _environment() -> dict[str, str]:
    """As in a kernel under pytest, where checks raise; with figures in the notebook."""
    own = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return {**own, "PYTEST_CURRENT_TEST": "tools/build.py"}


def _error(cell: NotebookNode) -> NotebookNode | None:
    return next((output for output in cell.outputs if output.output_type == "error"), None)


def _words(cell: NotebookNode) -> str:
    output = _error(cell)
    if output.ename == "CheckFailed":
        return output.evalue
    trace = "\n".join(output.traceback)
    return f"{output.ename}: {output.evalue}\n{ANSI.sub('', trace)}"


def refuse(lesson: Lesson, notebook: NotebookNode, cell: NotebookNode, reason: str) -> None:
    """Raise for the master's cell from which this cell of the notebook comes."""
    position = next(i for i, other in enumerate(notebook.cells) if other is cell)
    raise MasterError(lesson.path, reason, lesson.cells[position])


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """One stream output for each run of text; how the kernel cuts it differs between runs."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _checked(
    lesson: Lesson, notebook: NotebookNode, cell: NotebookNode, output: NotebookNode
) -> NotebookNode:
    if output.get("name") == "stderr":
        refuse(lesson, notebook, cell, f"writes to stderr: {output.text.strip()[:300]}")
    for text in _texts(output):
        if ADDRESS.search(text):
            refuse(lesson, notebook, cell, f"prints a memory address: {text.strip()[:80]}")
        if found := BAD_OUTCOME.search(text):
            refuse(lesson, notebook, cell, f"compares with what was not asked for: {found[0]}")
        for place in (Path.home(), lesson.path.resolve().parents[1], tempfile.gettempdir()):
            if len(str(place)) > 1 and str(place) in text:
                refuse(lesson, notebook, cell, f"prints a path of this machine: {place}")
    if kinds := _pictures(output):
        alt = ALT.match(cell.source)
        if not alt:
            refuse(lesson, notebook, cell, "draws a picture: start with `# alt: what it shows`")
        if sum(bool(_pictures(other)) for other in cell.outputs) > 1:
            refuse(lesson, notebook, cell, "draws several pictures; one in a cell has alt text")
        output.metadata = NotebookNode({kind: {"alt": alt[1]} for kind in kinds})
    return output


def _pictures(output: NotebookNode) -> list[str]:
    return [kind for kind in output.get("data", {}) if kind.startswith("image/")]


def _texts(output: NotebookNode) -> list[str]:
    if output.output_type == "stream":
        return [output.text]
    return [text for kind, text in output.data.items() if kind.startswith("text/")]
