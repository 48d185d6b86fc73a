"""Colab, simulated: a notebook alone, Colab's versions, and this project only as a wheel.

python tools/colab_trial.py              lessons 00, 03 and 06
python tools/colab_trial.py 01 02        other lessons
python tools/colab_trial.py --torch 2.11.0

In an environment of its own (build/colab) every notebook runs from top to bottom in an empty folder
with the wheel beside it, the first half of its exercises solved. Expected is: the first setup cell
installs what is missing and changes nothing that was there, the later ones are silent; no cell
fails; solved exercises are green, the others open; every figure is there; and then
`pytest --nbval`, installed as a learner would, says the same.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import nbformat  # noqa: E402

from tools.lesson import Lesson  # noqa: E402
from tools.master import read_lesson  # noqa: E402
from tools.notebook import code_cells, make_notebook, write_text  # noqa: E402

VERSIONS = ROOT / "tools" / "colab_versions.txt"
WORK = ROOT / "build" / "colab"
PYTHON = WORK / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
NOTEBOOK = "lesson.ipynb"
SECONDS = 900  # of a cell, on a busy machine


def main(arguments: list[str] | None = None) -> int:
    """Run the trials; 1 if one of them did not go as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN", default=["00", "03", "06"])
    own = metadata.version("torch").partition("+")[0]
    what = "version of torch (default: the one of this environment)"
    parser.add_argument("--torch", default=own, help=what)
    options = parser.parse_args(arguments)
    before = prepare(options.torch)
    wheel = build_wheel()
    problems, first = [], True
    for number in options.lessons:
        [master] = (ROOT / "solutions").glob(f"{number}_*.py")
        with tempfile.TemporaryDirectory() as folder:
            found = trial(read_lesson(master), wheel, Path(folder), first)
        print(f"lesson {number}: {'; '.join(found) or 'as expected'}", flush=True)
        problems, first = problems + found, False
    after = installed()
    changed = {name for name, version in before.items() if after.get(name) != version}
    print(f"installed: {', '.join(sorted(set(after) - set(before)))}")
    print(f"changed: {', '.join(sorted(changed)) or 'nothing'}")
    return int(bool(problems or changed))


def prepare(torch: str) -> dict[str, str]:
    """The environment with Colab's versions and nothing else: {package: version}."""
    wanted = VERSIONS.read_text(encoding="utf-8") + f"torch=={torch}\n"
    base = WORK / "base.json"
    if not base.is_file() or json.loads(base.read_text())["wanted"] != wanted:
        shutil.rmtree(WORK, ignore_errors=True)
        run(sys.executable, "-m", "venv", WORK / "venv")
        (WORK / "wanted.txt").write_text(wanted, encoding="utf-8")
        run(PYTHON, "-m", "pip", "install", "-q", "-r", WORK / "wanted.txt")
        base.write_text(json.dumps({"wanted": wanted, "installed": installed()}))
    before = json.loads(base.read_text())["installed"]
    if extra := sorted(set(installed()) - set(before)):  # of an earlier trial
        run(PYTHON, "-m", "pip", "uninstall", "-q", "-y", *extra)
    assert installed() == before
    return before


def installed() -> dict[str, str]:
    listed = json.loads(run(PYTHON, "-m", "pip", "list", "--format=json"))
    return {package["name"]: package["version"] for package in listed}


def build_wheel() -> Path:
    shutil.rmtree(WORK / "dist", ignore_errors=True)
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*command, "-w", WORK / "dist", ROOT)
    [wheel] = (WORK / "dist").glob("*.whl")
    return wheel


def trial(lesson: Lesson, wheel: Path, folder: Path, first: bool) -> list[str]:
    """What did not go as expected with one notebook in one empty folder."""
    solved = [exercise.id for exercise in lesson.exercises][: (len(lesson.exercises) + 1) // 2]
    answers = {key: text for key, text in lesson.solutions().items() if key in solved}
    notebook = make_notebook(lesson, answers)
    (folder / NOTEBOOK).write_text(write_text(notebook), encoding="utf-8")
    if first:
        shutil.copy(wheel, folder)
    command = (PYTHON, "-m", "jupyter", "execute", "--inplace", f"--timeout={SECONDS}", NOTEBOOK)
    log = run(*command, folder=folder, check=False)
    ran = nbformat.read(folder / NOTEBOOK, as_version=4)
    if any(cell.execution_count is None for cell in code_cells(ran)):
        return [f"a cell failed: {log[-1500:]}"]
    problems = setup_problems(code_cells(ran)[0], first) + verdicts(lesson, ran, solved)
    stored = nbformat.read(ROOT / "notebooks" / f"{lesson.name}.ipynb", as_version=4)
    if pictures(ran) != pictures(stored):
        problems.append(f"{pictures(ran)} figures, {pictures(stored)} in the repository")
    return problems + checked_by_nbval(lesson, folder, solved)


def setup_problems(cell: nbformat.NotebookNode, first: bool) -> list[str]:
    """The first setup cell installs the course, the others print nothing."""
    text = "".join(output.get("text", "") for output in cell.outputs)
    if "ERROR" in text or (not first and cell.outputs):
        return [f"the setup cell says {text}"]
    return []


def verdicts(lesson: Lesson, ran: nbformat.NotebookNode, solved: list[str]) -> list[str]:
    problems = []
    for exercise in lesson.exercises:
        cell = ran.cells[exercise.check]
        [text] = [output.data["text/plain"] for output in cell.outputs if "data" in output] or [""]
        if not text.startswith("✓" if exercise.id in solved else "○"):
            problems.append(f"the check of {exercise.id} shows {text!r}")
    return problems


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def checked_by_nbval(lesson: Lesson, folder: Path, solved: list[str]) -> list[str]:
    """What the learner's own run of pytest says about the saved notebook."""
    run(PYTHON, "-m", "pip", "install", "-q", "nbval")
    command = ("-m", "pytest", "-q", "--nbval", f"--nbval-cell-timeout={SECONDS}", NOTEBOOK)
    command += ("--progress-report=report.md",)
    printed = run(PYTHON, *command, folder=folder, check=False)
    report = folder / "report.md"
    rows = report.read_text(encoding="utf-8") if report.is_file() else ""
    problems = [f"pytest reports a broken cell:\n{printed}"] if "broken" in rows else []
    for exercise in lesson.exercises:
        word = "✓ solved" if exercise.id in solved else "○ not attempted"
        if not re.search(rf"^\| {re.escape(exercise.id)} \|.*\| {word} \|", rows, re.M):
            problems.append(f"pytest does not say {word} of {exercise.id}:\n{printed}")
    return problems


def run(*command: str | Path, folder: Path | None = None, check: bool = True) -> str:
    """What a command prints, in an environment that knows nothing of this checkout."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=keep,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


if __name__ == "__main__":
    raise SystemExit(main())
