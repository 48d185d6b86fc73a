"""`python -m llama_adapter_edu report FOLDER`: a class's notebooks as a table, student x exercise.

Each notebook runs in a process and a folder of its own, under a time limit, so a broken one costs
its student's row and nothing else. But it RUNS THE STUDENTS' CODE, with your rights: it is no
sandbox. Checks that a student has changed or deleted are replaced by the course's own; a student
who sets out to deceive the machinery can. It is a report for teaching, not an exam.
"""

import hashlib
import json
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from llama_adapter_edu.course.progress import verdicts
from llama_adapter_edu.course.progress.class_table import Class, as_text, table, write
from llama_adapter_edu.course.progress.exercises import lessons, own_checks
from llama_adapter_edu.course.progress.hand_ins import PLATFORMS, HandIn, find, read_roster
from llama_adapter_edu.course.progress.judging import broken, judge_notebook, sound_rows
from llama_adapter_edu.course.progress.tables import printable
from llama_adapter_edu.course.progress.verdicts import Row

WARNING = (
    "This runs the students' code on this machine, with your rights. If you do not trust it, use "
    "a machine or container that holds nothing of value."
)
STOPPED = "Stopped: {done} of {all} notebooks are judged. The same command goes on from here."


def class_report(
    folder: str,
    output: str = "class-report",
    seconds: float = 900,
    jobs: int = os.cpu_count() or 1,
    roster: str | None = None,
    pattern: str = PLATFORMS,
) -> int:
    """Judge all notebooks below `folder`; print a table, and write it with a page a student.

    A student is a subfolder (FOLDER/ada/03_soft_prompts.ipynb), a zip, or a file of FOLDER itself.
    What has been judged is kept in output.judged.json: a second run does only what is new.

    seconds: the time a notebook may take. jobs: how many run at once. roster: a file of names,
    so that those who handed in nothing have a row. pattern: see `hand_ins.find`.
    """
    root, target = Path(folder), Path(output)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as unpacked:
        found = find(root, Path(unpacked), pattern)
        if not found.hand_ins:
            raise ValueError(
                f"there is no notebook in {folder}; expected is {folder}/STUDENT/*.ipynb"
            )
        _print(f"{WARNING}\n")
        for name, reason in found.skipped:
            _print(f"left out: {name}: {reason}")
        names = [*(read_roster(Path(roster)) if roster else []), *found.students]
        students: Class = {name: {} for name in _without_doubles(names)}
        spelling = {name.casefold(): name for name in students}
        finished = True
        try:
            for one, rows in _judge_all(found.hand_ins, _Kept(target), seconds, jobs):
                students[spelling[one.student.casefold()]][one.name] = rows
        except KeyboardInterrupt:
            finished = False
    _print(f"\n{as_text(table(students))}\n")
    for path in write(students, target):
        _print(f"written: {path}")
    if not finished:
        done = sum(map(len, students.values()))
        _print(STOPPED.format(done=done, all=len(found.hand_ins)))
    return 0 if finished else 1


def _print(text: str) -> None:
    print(printable(text, sys.stdout.encoding), flush=True)


def _without_doubles(names: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name.casefold(), name)
    return list(first.values())


def _judge_all(hand_ins: list[HandIn], kept: "_Kept", seconds: float, jobs: int):
    """(hand-in, its rows), in the order in which they are judged."""
    pool, stop = ThreadPoolExecutor(max(1, jobs)), threading.Event()
    futures = {pool.submit(_judge_or_keep, one, kept, seconds, stop): one for one in hand_ins}
    try:
        for number, future in enumerate(as_completed(futures), start=1):
            one, rows = futures[future], future.result()
            _print(f"{number} of {len(hand_ins)}  {one.name}: {verdicts.total(rows)}")
            yield one, rows
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _judge_or_keep(one: HandIn, kept: "_Kept", seconds: float, stop: threading.Event) -> list[Row]:
    try:
        key = kept.key(one)
        rows = kept.get(key)
        if rows is None:
            rows = judge_notebook(one.path, seconds, one.helpers, stop)
            kept.put(key, rows)
        return rows
    except Exception as error:  # whatever a file holds, it costs one row
        return [broken(f"{type(error).__name__}: {error}")]


class _Kept:
    """What an earlier run has judged, by the content of the notebook and of the course's checks."""

    def __init__(self, output: Path):
        self.path = output.with_name(f"{output.name}.judged.json")
        self.lock, self.found = threading.Lock(), {}
        self.course = repr([own_checks(lesson) for lesson in lessons()]).encode()
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.found = found if isinstance(found, dict) else {}
        except (OSError, ValueError, RecursionError):
            pass

    def key(self, one: HandIn) -> str:
        files = [one.path, *one.helpers]
        return hashlib.sha256(
            b"\0".join([self.course, *(p.read_bytes() for p in files)])
        ).hexdigest()

    def get(self, key: str) -> list[Row] | None:
        return sound_rows(self.found.get(key, [])) or None

    def put(self, key: str, rows: list[Row]) -> None:
        if any(row.key == "notebook" for row in rows):
            return  # stopped or broken: it may go better next time
        with self.lock:
            self.found[key] = [vars(row) for row in rows]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".unfinished")
            beside.write_text(json.dumps(self.found), encoding="utf-8")
            os.replace(beside, self.path)
