"""The report of a class: a row for each student, whatever the students hand in."""

import csv
import json
import zipfile

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from llama_adapter_edu import __main__ as command_line
from llama_adapter_edu.course.progress import class_report, class_table, exercises, judging
from llama_adapter_edu.course.progress.hand_ins import PLATFORMS, find, read_roster
from llama_adapter_edu.course.progress.verdicts import Row

# A stand-in for the course's check, so that no kernel has to load torch.
SETUP = "import os\ncheck = lambda *names: lambda body: body()"
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
    known += f"CHECKS = {{'91.1': {CHECK!r}}}\n"
    (folder / "lesson_91.py").write_text(known)
    monkeypatch.setattr(exercises, "REFERENCES", folder)


@pytest.mark.heavy
def test_each_student_has_a_row_whatever_they_hand_in(tmp_path, capsys, lesson_91):
    root = tmp_path / "class"
    root.mkdir()
    hand_in(root / "ada" / "91_second.ipynb", RIGHT)
    changed = '@check("91.1", "add_one")\ndef _():\n    pass'
    hand_in(root / "=mallory" / "91.ipynb", "def add_one(n): return 7", changed)
    hand_in(root / "nora" / "91.ipynb", RIGHT, "# the check is deleted")
    hand_in(root / "kim.ipynb", "os._exit(1)")
    hand_in(root / "ada" / ".ipynb_checkpoints" / "old.ipynb", "1 / 0")
    (root / "lee").mkdir()
    (root / "lee" / "91.ipynb").write_text("{ broken")
    (root / "link.ipynb").symlink_to(root / "kim.ipynb")

    assert command_line.main(["report", str(root), "--output", str(tmp_path / "out" / "r")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("This runs the students' code on this machine, with your rights.")
    assert "lee/91.ipynb: 1 broken notebook" in printed
    assert "left out: link.ipynb: it is a link" in printed
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
    assert rows["'=mallory"]["91.1"] == "not judged"  # the stand-in's assert has no words
    assert rows["nora"]["91.1"] == "solved"
    assert rows["kim"]["91.1"] == "wrong"
    assert (rows["lee"]["91.1"], rows["lee"]["broken cells"]) == ("", "1")
    page = (tmp_path / "out" / "r.html").read_text(encoding="utf-8")
    assert "<td>✓ solved</td>" in page
    assert judging.CHANGED.replace("'", "&#x27;") in page
    assert judging.MISSING.replace("'", "&#x27;") in page
    own = (tmp_path / "out" / "r-students" / "ada.html").read_text(encoding="utf-8")
    assert "<h1>ada</h1>" in own and "lee" not in own
    assert "the kernel died" in page
    assert "is not a notebook: it is not JSON" in page


def test_a_notebook_that_never_ends_is_stopped(tmp_path):
    hand_in(tmp_path / "a.ipynb", "while True: pass")
    [row] = judging.judge_notebook(tmp_path / "a.ipynb", seconds=1)
    assert (row.status, row.reason) == ("broken", "it did not end within 1 seconds")


def test_a_notebook_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "LARGEST", 10)
    (tmp_path / "a.ipynb").write_text('{"cells": []}')
    [row] = judging.judge_notebook(tmp_path / "a.ipynb", seconds=1)
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
    assert judging._read_rows(tmp_path / "rows.json") == []


def test_sound_rows_are_read(tmp_path):
    rows = [Row("1.1", "f", "wrong", "why", ["at"], "a.ipynb")]
    (tmp_path / "rows.json").write_text(json.dumps([vars(row) for row in rows]))
    assert judging._read_rows(tmp_path / "rows.json") == rows
    assert judging._read_rows(tmp_path) == []


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


def test_a_second_run_judges_only_what_is_new_and_the_roster_names_the_others(
    tmp_path, capsys, lesson_91, monkeypatch
):
    root, output = tmp_path / "class", tmp_path / "r"
    root.mkdir()
    hand_in(root / "ada" / "91.ipynb", RIGHT)
    roster = tmp_path / "roster.csv"
    roster.write_text("\ufeffAda,1\nGrace,2\n", encoding="utf-8")
    arguments = ["report", str(root), "--output", str(output), "--roster", str(roster)]
    assert command_line.main(arguments) == 0

    def never(*args):
        raise AssertionError("it was judged already")

    monkeypatch.setattr(class_report, "judge_notebook", never)
    assert command_line.main(arguments) == 0
    assert "Grace" in capsys.readouterr().out
    with output.with_name("r.csv").open(encoding="utf-8-sig") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["Ada", "Grace"]
    assert (rows["Ada"]["91.1"], rows["Grace"]["91.1"]) == ("solved", "")
    assert "Nothing was handed in" in (tmp_path / "r-students" / "Grace.html").read_text()


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 3}', '{"a": [{"key": 1}]}'])
def test_a_spoilt_memory_costs_nothing(tmp_path, content):
    (tmp_path / "r.judged.json").write_text(content)
    assert class_report._Kept(tmp_path / "r").get("a") is None


def zipped(path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def students_in(root, tmp_path) -> dict[str, str]:
    found = find(root, tmp_path / "unpacked")
    return {one.name: one.student for one in found.hand_ins}


def test_exports_of_course_platforms_are_understood(tmp_path):
    root = tmp_path / "class"
    root.mkdir()
    zipped(
        root / "export.zip",
        {
            "Ada Lovelace_123_assignsubmission_file_/01_shapes.ipynb": "{}",
            "hoppergrace_LATE_12_345_01_shapes.ipynb": "{}",
            "noether/01_shapes.ipynb.json": "{}",
            "__MACOSX/._noether.ipynb": "x",
            "../outside.ipynb": "{}",
        },
    )
    assert sorted(students_in(root, tmp_path).values()) == [
        "Ada Lovelace",
        "hoppergrace",
        "noether",
    ]
    assert not (tmp_path / "outside.ipynb").exists()


def test_each_students_own_zip_and_helper_files_are_taken_along(tmp_path):
    root = tmp_path / "class"
    root.mkdir()
    zipped(root / "ada.zip", {"01.ipynb": "{}", "helper.py": "x = 1"})
    (root / "bad.zip").write_text("no zip")
    (root / "empty").mkdir()
    (root / "essay.pdf").write_text("")
    hand_in(root / "bob" / "01.ipynb", RIGHT)
    found = find(root, tmp_path / "unpacked", PLATFORMS)
    assert [one.student for one in found.hand_ins] == ["ada", "bob"]
    assert [path.name for path in found.hand_ins[0].helpers] == ["helper.py"]
    assert "empty" in found.students
    assert dict(found.skipped).keys() == {"bad.zip", "essay.pdf"}


def test_a_pattern_of_the_teachers_own(tmp_path):
    hand_in(tmp_path / "hw1-ada.ipynb", RIGHT)
    found = find(tmp_path, tmp_path / "unpacked", r"hw\d-(?P<student>\w+)\.ipynb")
    assert [one.student for one in found.hand_ins] == ["ada"]


def test_the_names_of_a_roster(tmp_path):
    (tmp_path / "r.txt").write_text('Ada Lovelace\n\n"Hopper";x\n', encoding="utf-8")
    assert read_roster(tmp_path / "r.txt") == ["Ada Lovelace", "Hopper"]


def test_mistakes_that_differ_in_numbers_alone_are_one():
    def wrong(reason):
        return {"a": [Row("1.1", "f", "wrong", reason), Row("1.2", "g", "solved")]}

    said = {
        "ada": wrong("expected 3, got 4"),
        "bob": wrong("expected 3, got 5"),
        "eve": wrong("no"),
    }
    assert class_table.mistakes_table(said)[1:] == [
        ["1.1", "2", "expected 3, got 4"],
        ["1.1", "1", "no"],
    ]
