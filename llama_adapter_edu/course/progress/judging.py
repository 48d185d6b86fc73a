"""Judges one notebook as the class report does: the student's cells, the course's own checks."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from llama_adapter_edu.course.checks.source import digest, parse
from llama_adapter_edu.course.progress import verdicts
from llama_adapter_edu.course.progress.exercises import (
    cell_digest,
    checks_in,
    defines,
    exercises,
    lessons,
    own_checks,
)
from llama_adapter_edu.course.progress.hand_ins import LARGEST
from llama_adapter_edu.course.progress.verdicts import MARKS, Row

CHANGED = "judged by the course's own check: the one in the notebook was changed"
MISSING = "judged by the course's own check: the one of the notebook is missing"
NO_EXERCISE = "it holds no exercise of the course"
LIMIT = "it did not end within {seconds:g} seconds"
NOTHING = "pytest made no report: {words}"
KEY = re.compile(r"\d{1,3}\.\d{1,3}|cell|notebook")
PLUGINS = ("nbval.plugin", "llama_adapter_edu.course.progress.pytest_plugin")  # and no others


def judge_notebook(
    path: Path, seconds: float, helpers: list[Path] = (), stop: threading.Event | None = None
) -> list[Row]:
    """What the course's checks say about a notebook, in a process and a folder of its own."""
    if path.stat().st_size > LARGEST:
        return [broken(f"{path.name} is larger than {LARGEST // 1_000_000} MB")]
    try:
        notebook, notes = judged_copy(path)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        is_told = type(error) is ValueError
        return [broken(str(error) if is_told else verdicts.unreadable(path))]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for helper in helpers:
            shutil.copyfile(helper, Path(folder) / helper.name)
        copy = json.dumps(notebook)
        (Path(folder) / "notebook.ipynb").write_text(copy, encoding="utf-8")
        problem = _run(Path(folder), seconds, stop or threading.Event())
        rows = _read_rows(Path(folder) / "rows.json")
    for row in rows:
        if row.key in notes:
            row.reason = f"{row.reason} ({notes[row.key]})".strip()
    return rows or [broken(problem)]


def broken(reason: str) -> Row:
    return Row("notebook", "", "broken", reason)


def sound_rows(found: object) -> list[Row]:
    """Rows as pytest writes them; none if they are not sound."""
    try:
        rows = [Row(**row) for row in found]
        sound = all(KEY.fullmatch(row.key) and row.status in MARKS for row in rows)
        return rows if sound else []
    except (TypeError, AttributeError):
        return []


def _read_rows(path: Path) -> list[Row]:
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return []
        return sound_rows(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return []


def judged_copy(path: Path) -> tuple[dict, dict[str, str]]:
    """(the notebook to run, {exercise: a note on its check}).

    A check that is not the course's is replaced, and one that is missing is put below the cell
    with the answer. Outputs are dropped, and so are the cells below the last check. Raises
    ValueError if the file is no notebook or holds no exercise.
    """
    notebook = json.loads(path.read_text(encoding="utf-8-sig"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    lesson = _lesson(sources)
    if lesson is None:
        raise ValueError(NO_EXERCISE)
    sources, notes = _with_own_checks(sources, lesson)
    last = max((i for i, source in enumerate(sources) if checks_in(source)), default=-1)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = [_cell(number, source) for number, source in enumerate(sources[: last + 1])]
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, notes


def _cell(number: int, source: str) -> dict:
    own = {"cell_type": "code", "id": f"cell{number}", "metadata": {}, "source": source}
    return own | {"outputs": [], "execution_count": None}


def _lesson(sources: list[str]) -> int | None:
    """The lesson by the checks in a notebook; without any, by the names it defines."""
    found = Counter(key.split(".")[0] for source in sources for key, _ in checks_in(source))
    if found:
        return int(found.most_common(1)[0][0])
    for lesson in lessons():
        names = ", ".join(exercises(lesson).values()).split(", ")
        found[str(lesson)] = sum(defines(source, names) for source in sources if any(names))
    best = found.most_common(1)
    return int(best[0][0]) if best and best[0][1] else None


def _with_own_checks(sources: list[str], lesson: int) -> tuple[list[str], dict[str, str]]:
    notes, names = {}, exercises(lesson)
    for key, own in own_checks(lesson).items():
        places = [i for i, x in enumerate(sources) if key in {k for k, _ in checks_in(x)}]
        if any(_holds(sources[i], own) for i in places):
            continue
        answers = [i for i, x in enumerate(sources) if defines(x, names[key].split(", "))]
        if places and len(parse(sources[places[-1]]).body) == 1:
            sources[places[-1]], notes[key] = own, CHANGED
        elif places or answers:
            sources.insert(max(places or answers) + 1, own)
            notes[key] = CHANGED if places else MISSING
    return sources, notes


def _holds(source: str, check: str) -> bool:
    """Whether one of a cell's statements, at any depth, is this check."""
    wanted = cell_digest(check)
    return any(digest([x]) == wanted for x in ast.walk(parse(source)) if isinstance(x, ast.stmt))


def _run(folder: Path, seconds: float, stop: threading.Event) -> str:
    """Run pytest on folder/notebook.ipynb; why it made no report, should it have made none."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "notebook.ipynb", "-q"]
    command += [f"-p{plugin}" for plugin in PLUGINS]
    command += ["-p", "no:cacheprovider", "--rootdir=.", "--progress-report=rows.json"]
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    own["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
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
        if not _ended(pytest, seconds, stop):
            _stop(pytest)
            return LIMIT.format(seconds=seconds)
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return NOTHING.format(words=next((line for line in reversed(lines) if line.strip()), "silence"))


def _ended(process: subprocess.Popen, seconds: float, stop: threading.Event) -> bool:
    waited = 0.0
    while waited < seconds and not stop.is_set():
        try:
            process.wait(0.5)
            return True
        except subprocess.TimeoutExpired:
            waited += 0.5
    return False


def _stop(process: subprocess.Popen) -> None:
    """Ctrl-C first: pytest then ends its kernel, too."""
    try:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        process.wait(10)
    except (subprocess.TimeoutExpired, OSError):
        process.kill()
        process.wait()
