"""`python -m llama_adapter_edu report FOLDER`: a class's notebooks as a table, student x exercise.

Each notebook runs in a process and an empty folder of its own, under a time limit, so a broken one
costs its student's row and nothing else. But it RUNS THE STUDENTS' CODE, with your rights: it is no
sandbox. A check that a student has changed is not believed; a student who sets out to deceive the
machinery can. It is a report for teaching, not an exam.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_adapter_edu.course.progress import verdicts
from llama_adapter_edu.course.progress.class_table import Class, as_text, table, write
from llama_adapter_edu.course.progress.exercises import is_altered
from llama_adapter_edu.course.progress.verdicts import MARKS, Row, check_in

WARNING = (
    "This runs the students' code on this machine, with your rights. If you do not trust it, use "
    "a machine or container that holds nothing of value."
)
LIMIT = "it did not end within {seconds:g} seconds"
NOTHING = "pytest made no report: {words}"
ALTERED = "its check is not the course's: someone has changed it"
LARGEST = 50_000_000  # bytes of a notebook
KEY = re.compile(r"\d{1,2}\.\d{1,2}|cell|notebook")


def class_report(
    folder: str, output: str = "class-report", seconds: float = 900, jobs: int = 1
) -> int:
    """Run all notebooks below `folder`; print a table, and write output.csv and output.html.

    A student is a subfolder (FOLDER/ada/03_soft_prompts.ipynb), or a notebook's name if it lies in
    FOLDER itself. `seconds` is the time a notebook may take, `jobs` how many run at once.
    """
    root = Path(folder)
    paths = find_notebooks(root)
    if not paths:
        raise ValueError(f"there is no notebook in {folder}; expected is {folder}/STUDENT/*.ipynb")
    print(f"{WARNING}\n", flush=True)
    students: Class = {}
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        found = pool.map(lambda path: judge_notebook(path, seconds), paths)
        for number, (path, rows) in enumerate(zip(paths, found, strict=True), start=1):
            name = _printable(path.relative_to(root).as_posix())
            print(f"{number} of {len(paths)}  {name}: {verdicts.total(rows)}", flush=True)
            students.setdefault(_student(root, path), {})[name] = rows
    print(f"\n{as_text(table(students))}\n")
    write(students, Path(output))
    print(f"written: {output}.csv, {output}.html")
    return 0


def find_notebooks(root: Path) -> list[Path]:
    """All notebooks below the folder, without Jupyter's own copies and without links."""
    found = [path for path in root.rglob("*.ipynb") if path.is_file() and not path.is_symlink()]
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def _student(root: Path, path: Path) -> str:
    parts = path.relative_to(root).parts
    return _printable(parts[0] if len(parts) > 1 else path.stem)


def _printable(name: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in name)


def judge_notebook(path: Path, seconds: float) -> list[Row]:
    """What `pytest --nbval` says about a notebook, in a process and an empty folder of its own."""
    if path.stat().st_size > LARGEST:
        return [_broken(f"{path.name} is larger than {LARGEST // 1_000_000} MB")]
    altered = _altered_checks(path)  # read before the notebook's code can write anywhere
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shutil.copyfile(path, Path(folder) / "notebook.ipynb")
        problem = _run(Path(folder), seconds)
        rows = _read_rows(Path(folder) / "rows.json")
    for row in rows:
        if row.status == "solved" and row.key in altered:
            row.set("not judged", ALTERED)
    return rows or [_broken(problem)]


def _broken(reason: str) -> Row:
    return Row("notebook", "", "broken", reason)


def _read_rows(path: Path) -> list[Row]:
    """The rows that pytest wrote; none if it wrote none, or if somebody else wrote there."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return []
        rows = [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        sound = all(KEY.fullmatch(row.key) and row.status in MARKS for row in rows)
        return rows if sound else []
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def _run(folder: Path, seconds: float) -> str:
    """Run pytest on folder/notebook.ipynb; why it made no report, should it have made none."""
    command = [sys.executable, "-m", "pytest", "--nbval", "notebook.ipynb", "-q"]
    command += ["-p", "no:cacheprovider", "--rootdir=.", "--progress-report=rows.json"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    log = folder / "log.txt"
    with log.open("wb") as stream:
        pytest = subprocess.Popen(
            command,
            cwd=folder,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            pytest.wait(seconds)
        except subprocess.TimeoutExpired:
            _stop(pytest)
            return LIMIT.format(seconds=seconds)
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return NOTHING.format(words=next((line for line in reversed(lines) if line.strip()), "silence"))


def _stop(process: subprocess.Popen) -> None:
    """Ctrl-C first: pytest then ends its kernel, too."""
    try:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        process.wait(10)
    except (subprocess.TimeoutExpired, OSError):
        process.kill()
        process.wait()


def _altered_checks(notebook: Path) -> set[str]:
    """The exercises whose check is another one than the course's."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return set()  # pytest will not be able to read it either
    found = [(exercise[0], source) for source in sources if (exercise := check_in(source))]
    return {exercise for exercise, source in found if is_altered(exercise, source)}
