"""What the tests of the exercise machinery share: lessons, variants of notebooks, nbval runs."""

import atexit
import copy
import functools
import linecache
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
from filelock import FileLock
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests" / "lessons_fixture"
sys.path.insert(0, str(ROOT))

from tools import names  # noqa: E402
from tools.lesson import Lesson  # noqa: E402
from tools.notebook import code_cells, make_notebook, notebook_path  # noqa: E402


def shared_folder() -> Path:
    """One for all processes of a run of pytest: the first to come here makes and deletes it."""
    variable = "LLAMA_ADAPTER_EDU_TESTS"
    if variable not in os.environ:
        os.environ[variable] = tempfile.mkdtemp(prefix="fixture-course-")
        atexit.register(shutil.rmtree, os.environ[variable], ignore_errors=True)
    return Path(os.environ[variable])


SHARED = shared_folder()

# Python runs this at its start: the fixture lessons' references are found beside the course's own.
SITE = "import llama_adapter_edu.course.reference as r\nr.__path__.append({folder!r})\n"


def copy_fixture(folder: Path) -> Path:
    """The fixture course in a folder of its own, without what the build makes."""
    shutil.copytree(FIXTURE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    reference = folder / "llama_adapter_edu/course/reference"
    reference.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(SITE.format(folder=str(reference)))
    return folder


@functools.cache
def built_fixture() -> Path:
    """The fixture course, built once for all tests of a run; never changed by them."""
    root = SHARED / "course"
    with FileLock(SHARED / "lock"):
        if not (SHARED / "built").exists():
            shutil.rmtree(root, ignore_errors=True)
            build_course(copy_fixture(root))
            (SHARED / "built").touch()
    return root


def build_course(root: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "build.py"), "--root", str(root)]
    run = subprocess.run(command, env=environment(root), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def copy_built_fixture(folder: Path) -> Path:
    """A built course that a test may spoil."""
    return Path(shutil.copytree(built_fixture(), folder))


def environment(root: Path) -> dict[str, str]:
    """The environment of a learner's pytest run, with the modules of the course in `root`."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_", "MPLB"))}
    return {**own, "PYTHONPATH": f"{root}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def run_pytest(folder: Path, *arguments: str, root: Path = ROOT, timeout: float = 1800) -> str:
    """What `pytest arguments` prints when a learner runs it in a folder."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment(root),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )
    return run.stdout + run.stderr


def nbval(notebook: NotebookNode, folder: Path, root: Path, again: bool = True) -> dict[int, str]:
    """Run a notebook with nbval, in that folder: {index of a code cell: why it failed}."""
    nbformat.write(notebook, folder / "lesson.ipynb")
    output = run_pytest(folder, "--nbval", "lesson.ipynb", "--junitxml=lesson.xml", root=root)
    cases = list(ET.parse(folder / "lesson.xml").iter("testcase"))
    assert len(cases) == len(code_cells(notebook)), output
    if any(case.find("error") is not None for case in cases):
        # No kernel: two that start at the same moment may have chosen the same port.
        assert again, output
        return nbval(notebook, folder, root, again=False)
    found = {i: case.find("failure") for i, case in enumerate(cases)}
    return {i: failure.get("message") for i, failure in found.items() if failure is not None}


def committed(lesson: Lesson, root: Path) -> NotebookNode:
    return nbformat.read(notebook_path(root, lesson), as_version=4)


def with_answers(lesson: Lesson, root: Path, answers: dict[str, str]) -> NotebookNode:
    """The committed notebook, in which some exercises hold an answer."""
    notebook = copy.deepcopy(committed(lesson, root))
    for cell, answered in zip(notebook.cells, make_notebook(lesson, answers).cells, strict=True):
        cell.source = answered.source
    return notebook


def check_indices(lesson: Lesson) -> list[int]:
    """Where the checks stand among the code cells, in the exercises' order."""
    code = [i for i, cell in enumerate(lesson.cells) if cell.cell_type == "code"]
    return [code.index(exercise.check) for exercise in lesson.exercises]


def execute(source: str, name: str, notebook: dict) -> None:
    """Run a cell without a kernel; its lines are known to tracebacks."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(names.parse(source), name, "exec"), notebook)
