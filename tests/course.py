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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FIXTURE = ROOT / "tests" / "lessons_fixture"
sys.path.insert(0, str(ROOT))

from tools import names  # noqa: E402
from tools.lesson import Lesson  # noqa: E402
from tools.notebook import code_cells, make_notebook, notebook_path  # noqa: E402

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
    """The fixture course, built once for all tests; never changed by them."""
    folder = Path(tempfile.mkdtemp(prefix="fixture-course-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = copy_fixture(folder / "course")
    build_course(root)
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


def nbval(notebooks: dict[str, NotebookNode], folder: Path, root: Path) -> dict[str, dict]:
    """Run notebooks with nbval, one on each core: {name: {index of a code cell: why it failed}}."""

    def run(name: str, again: bool = True) -> dict[int, str]:
        nbformat.write(notebooks[name], folder / f"{name}.ipynb")
        options = ("--nbval", f"{name}.ipynb", f"--junitxml={name}.xml")
        output = run_pytest(folder, *options, root=root)
        cases = list(ET.parse(folder / f"{name}.xml").iter("testcase"))
        assert len(cases) == len(code_cells(notebooks[name])), output
        if any(case.find("error") is not None for case in cases):
            # No kernel: two that start at the same moment may have chosen the same port.
            assert again, output
            return run(name, again=False)
        found = {i: case.find("failure") for i, case in enumerate(cases)}
        return {i: failure.get("message") for i, failure in found.items() if failure is not None}

    with ThreadPoolExecutor(os.cpu_count()) as cores:
        return dict(zip(notebooks, cores.map(run, notebooks), strict=True))


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
