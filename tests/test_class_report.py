"""The report of a class: a row for each student, whatever the students hand in."""

import csv
import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from llama_adapter_edu import __main__ as command_line
from llama_adapter_edu.course.progress import class_report, class_table, exercises
from llama_adapter_edu.course.progress.verdicts import Row

# A stand-in for the course's check, so that no kernel has to load torch.
SETUP = "import contextlib, os\ncheck = lambda *names: contextlib.nullcontext()"
CHECK = '@check("91.1", "add_one")\ndef _():\n    assert add_one(1) == 2'
RIGHT = "def add_one(n):\n    return n + 1"


def hand_in(path, answer: str, check: str = CHECK) -> None:
    path.parent.mkdir(exist_ok=True)
    cells = [new_code_cell(source) for source in (SETUP, answer, check)]
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture
def lesson_91(monkeypatch, tmp_path):
    """The course knows two exercises of lesson 91, and the check of the first."""
    folder = tmp_path / "reference"
    folder.mkdir()
    known = "EXERCISES = {'91.1': 'add_one', '91.2': 'more'}\n"
    known += f"CHECKS = {{'91.1': {exercises.digest(CHECK)!r}}}\n"
    (folder / "lesson_91.py").write_text(known)
    monkeypatch.setattr(exercises, "REFERENCES", folder)


def test_each_student_has_a_row_whatever_they_hand_in(tmp_path, capsys, lesson_91):
    root = tmp_path / "class"
    root.mkdir()
    hand_in(root / "ada" / "91_second.ipynb", RIGHT)
    hand_in(root / "=mallory" / "91.ipynb", "def add_one(n): ...", CHECK.partition("\n")[0] + " 1")
    hand_in(root / "kim.ipynb", "os._exit(1)")
    hand_in(root / "ada" / ".ipynb_checkpoints" / "old.ipynb", "1 / 0")
    (root / "lee").mkdir()
    (root / "lee" / "91.ipynb").write_text("{ broken")
    (root / "link.ipynb").symlink_to(root / "kim.ipynb")

    assert command_line.main(["report", str(root), "--output", str(tmp_path / "out" / "r")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("This runs the students' code on this machine, with your rights.")
    assert "4 of 4  lee/91.ipynb: 1 broken notebook" in printed
    assert "1 of 4  =mallory/91.ipynb: 0 of 1 solved, 1 not judged" in printed
    assert [line.split() for line in printed.splitlines() if line.startswith("ada")] == [
        ["ada", "✓", "1", "of", "1"]
    ]
    with (tmp_path / "out" / "r.csv").open(encoding="utf-8-sig") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert rows["ada"] == {
        "student": "ada",
        "91.1": "solved",
        "in all": "1 of 1",
        "broken cells": "",
    }
    assert rows["'=mallory"]["91.1"] == "not judged"
    assert rows["kim"]["91.1"] == "wrong"
    assert (rows["lee"]["91.1"], rows["lee"]["broken cells"]) == ("", "1")
    page = (tmp_path / "out" / "r.html").read_text(encoding="utf-8")
    assert "<td>✓ solved</td>" in page
    assert class_report.ALTERED.replace("'", "&#x27;") in page
    assert "the kernel died" in page
    assert "is not a notebook: it is not JSON" in page


def test_a_notebook_that_never_ends_is_stopped(tmp_path):
    hand_in(tmp_path / "a.ipynb", "while True: pass")
    [row] = class_report.judge_notebook(tmp_path / "a.ipynb", seconds=1)
    assert (row.status, row.reason) == ("broken", "it did not end within 1 seconds")


def test_a_notebook_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(class_report, "LARGEST", 10)
    (tmp_path / "a.ipynb").write_text('{"cells": []}')
    [row] = class_report.judge_notebook(tmp_path / "a.ipynb", seconds=1)
    assert "larger than" in row.reason


FORGED = [
    "[",
    "3",
    "[3]",
    '[{"key": "1.1"}]',
    '[{"key": "<b>", "name": "", "status": "solved"}]',
    '[{"key": "1.1", "name": "", "status": "excellent"}]',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", FORGED, ids=range(len(FORGED)))
def test_rows_that_somebody_else_wrote_are_no_report(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    assert class_report._read_rows(tmp_path / "rows.json") == []


def test_sound_rows_are_read(tmp_path):
    rows = [Row("1.1", "f", "wrong", "why", ["at"], "a.ipynb")]
    (tmp_path / "rows.json").write_text(json.dumps([vars(row) for row in rows]))
    assert class_report._read_rows(tmp_path / "rows.json") == rows
    assert class_report._read_rows(tmp_path) == []


def test_the_better_one_of_two_notebooks_counts_and_columns_are_in_order():
    old = [Row("1.10", "f", "wrong"), Row("1.2", "g", "solved")]
    new = [Row("1.10", "f", "solved"), Row("1.2", "g", "not attempted"), Row("cell", "", "broken")]
    header, ada, bob = class_table.table({"ada": {"a": old, "b": new}, "bob": {}})
    assert header == ["student", "1.2", "1.10", "in all", "broken cells"]
    assert ada == ["ada", "solved", "solved", "2 of 2", "1"]
    assert bob == ["bob", "", "", "0 of 2", ""]


def test_half_a_character_is_written_as_its_number(tmp_path):
    class_table.write({"ada": {"a": [Row("1.1", "f", "wrong", "\ud800")]}}, tmp_path / "r")
    assert "\\ud800" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_folder_without_notebooks_is_told(tmp_path, capsys):
    assert command_line.main(["report", str(tmp_path)]) == 1
    assert "there is no notebook in" in capsys.readouterr().err
