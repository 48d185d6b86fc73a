"""Broken and hostile data sets, notebooks and names: refused in words, nothing run or written.

Some hundreds of cases here. `python benchmarks/fuzz.py` tries and records many more.
"""

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import CASES, JSON, TEXTS, guard, mutated, settle
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz_adapters import SCALE, cases, record  # noqa: F401  (a fixture)

from llama_adapter_edu import load_instructions
from llama_adapter_edu.base_models.names import check_model_name
from llama_adapter_edu.course.progress import exercises
from llama_adapter_edu.course.progress import tables as progress_report
from llama_adapter_edu.course.progress import verdicts as progress
from llama_adapter_edu.data import instructions
from llama_adapter_edu.files.download import base_name, download_adapter
from llama_adapter_edu.hub_names import local_path

ROOT = Path(__file__).parents[1]
ROW = {"instruction": "Turn on the lights", "input": "", "output": "{}"}
DEEP = b"[" * 100_000
GOOD = [
    "\n".join([json.dumps(ROW)] * 3).encode(),
    json.dumps([ROW] * 2).encode(),
    json.dumps([ROW], indent=1).encode("utf-16"),
    ("\ufeff" + json.dumps(ROW)).encode(),
    DEEP,
    b'{"instruction":' * 9000,
    b'{"instruction": ' + b"9" * 5000 + b"}",
    b'{"instruction": "\\ud800", "output": "\\udfff"}',
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("input")


def load_file(kind: str, folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with guard(folder):
        rows = settle(kind, lambda: load_instructions(folder / name), ValueError, about=name)
    if rows is not None and rows.column_names == ["messages"]:
        turns = [turn for row in rows for turn in row["messages"]]
        assert all({"role", "content"} == turn.keys() for turn in turns)
        assert all(isinstance(text, str) for turn in turns for text in turn.values())
    elif rows is not None:
        assert rows.column_names == ["instruction", "input", "output"]
        assert all(isinstance(text, str) for row in rows for text in row.values())


SUFFIXES = st.sampled_from(["a.json", "a.jsonl"])


@cases(80)
@given(mutated(GOOD), SUFFIXES)
@example(DEEP, "a.json")
@example(DEEP, "a.jsonl")
@example(b'[{"instruction": "\\ud800", "output": "x"}]', "a.json")
@example(b'{"instruction": ' + b"9" * 5000 + b"}", "a.jsonl")
def test_faulty_bytes_in_a_data_set(folder, content, name):
    load_file("data sets, faulty bytes", folder, name, content)


NAMES_OF_FIELDS = ["instruction", "input", "output", "messages", "conversations"]
FIELDS = st.one_of(st.sampled_from(NAMES_OF_FIELDS), TEXTS)
KEYS = st.one_of(st.sampled_from(["role", "content", "from", "value", "tool_calls"]), TEXTS)
TURN_VALUES = st.one_of(st.sampled_from(["user", "assistant", "human", "gpt", "Hi"]), JSON)
TURNS = st.lists(st.dictionaries(KEYS, TURN_VALUES, max_size=3), max_size=3)
VALUES = st.one_of(JSON, TURNS, st.just("x" * 10**6))


@cases(80)
@given(st.lists(st.one_of(st.dictionaries(FIELDS, VALUES, max_size=5), JSON), max_size=4), SUFFIXES)
def test_strange_rows_of_a_data_set(folder, rows, name):
    good = [ROW | row if isinstance(row, dict) and len(row) % 2 else row for row in rows]
    lines = [json.dumps(row) for row in good]
    text = "\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]"
    load_file("data sets, strange rows", folder, name, text.encode())


PARTS = ["owner", "name", "/", "/", "..", ".", "-", "--", "_", "~", "\\", "%2e", "@", ":", "?", "#"]
PARTS += [" ", "\n", "\0", "ä", "\u202e", "\ud800", "https://huggingface.co/", "hf://", ".git"]
PARTS += [".jsonl", "C:", "file://", "json", "a" * 60]
NAMES = st.one_of(TEXTS, st.lists(st.sampled_from(PARTS), max_size=6).map("".join))
REFUSALS = (ValueError, FileNotFoundError, IsADirectoryError, ConnectionError)


CALLS = {
    "adapters": lambda name: local_path(name) is None and download_adapter(name),
    "models": check_model_name,
    "data sets": load_instructions,
}


class Offline(Exception):
    """Stands for any failure of the network."""


@pytest.fixture
def asked(monkeypatch, folder):
    """The ids that the hub was asked for. It never answers."""
    import huggingface_hub
    from huggingface_hub.utils import validate_repo_id

    names = []

    def ask(name, *args, **kwargs):
        validate_repo_id(name)
        names.append(name)
        raise Offline("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
    monkeypatch.setattr(huggingface_hub, "model_info", ask)
    monkeypatch.setattr(instructions, "load_dataset", ask)
    monkeypatch.chdir(folder)
    return names


@cases(100)
@given(name=NAMES)
@example(name="json/../x")
def test_strange_names_of_adapters_models_and_data_sets(asked, folder, name):
    from huggingface_hub.utils import validate_repo_id

    asked.clear()
    with guard(folder):
        for kind, load in CALLS.items():
            settle(f"names, {kind}", lambda load=load: load(name), *REFUSALS, printable=False)
    for wanted in asked:
        validate_repo_id(wanted)


@cases(40)
@given(NAMES)
def test_a_strange_base_model_is_never_a_path(name):
    from types import SimpleNamespace

    CASES["names, base models"] += 1
    model = SimpleNamespace(config=SimpleNamespace(_name_or_path=name))
    found = base_name(model)
    assert found is None or (found == name and "/" in name and ".." not in name)


SOURCES = ["", "%%bash\ntouch x", '@check("9" * 9, "x")', "\0", "\ud800", "#" * 10**5]
SOURCES += [
    '@check("1.1", "x")\ndef _(): ...\n',
    f'@check("{"9" * 5000}.1", "x")\ndef _(): ...',
    "\x1b[2J",
    "def f(",
]
LINES = [
    "✗ exercise 1.1 x: wrong\n",
    "  at  x = 1\n",
    "Cell In[3], line 4\n",
    "----> 4 x = 1\n",
    "-",
]
LINES += ["SyntaxError: bad\n", "\x1b[31m", "○ exercise 1.2 y: not solved yet\n", "mismatch"]
TRACES = st.lists(st.one_of(TEXTS, st.sampled_from(LINES)), max_size=12).map("".join)


class CellError(Exception):
    def __init__(self, text, trace):
        super().__init__(text)
        self.inner_traceback = trace


@cases(60)
@given(
    st.one_of(NAMES, st.sampled_from(SOURCES)),
    st.sampled_from(["failed", "passed", "skipped"]),
    TEXTS,
    TRACES,
)
@example(SOURCES[-3], "failed", "", "")
@example('@check("1.1", "x")\ndef _(): ...', "failed", "\ud800", "")
def test_any_cell_and_any_traceback_make_a_report(folder, source, outcome, text, trace):
    CASES["cells and tracebacks"] += 1
    with guard(folder):
        error = CellError(text, trace)
        rows = progress.judge(exercises.checks_in(source), 1, outcome, error)
        for row in rows:
            assert row.status in {*progress.MARKS, "fine"}
            row.notebook = "01.ipynb"
        lessons = progress.table(rows)
        if lessons:
            assert "<script" not in progress_report.as_html(lessons)
            progress_report.as_text(lessons, 80)
            for suffix in progress_report.WRITERS:
                progress_report.write(lessons, folder / f"report{suffix}")


NOTEBOOKS = [
    (ROOT / "notebooks" / name).read_bytes() for name in ("00_start_here.ipynb", "01_shapes.ipynb")
]


def without_pictures(notebook: bytes) -> bytes:
    """The notebook, small enough to be read thousands of times."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        cell.pop("attachments", None)
        if "outputs" in cell:
            cell["outputs"] = cell["outputs"][:1] if len(str(cell["outputs"])) < 2000 else []
    return json.dumps(content).encode()


VALUES_IN_NOTEBOOKS = [None, 3, -1, 1e400, [], {}, "", "x" * 5000, "\ud800", "../../x", [[[]]]]


def broken_notebook(rng: random.Random, content: dict) -> bytes:
    """A notebook with strange cells, with values replaced anywhere, or with faulty bytes."""
    broken, kind = copy.deepcopy(content), rng.choice(["cells", "values", "bytes"])
    if kind == "cells":
        for cell in rng.sample(broken["cells"], 3):
            cell["source"] = rng.choice(SOURCES)
    for _ in range(rng.randint(1, 3) if kind == "values" else 0):
        replace_somewhere(rng, broken)
    text = bytearray(json.dumps(broken).encode())
    for _ in range(rng.randint(1, 3) if kind == "bytes" else 0):
        at = rng.randrange(len(text))
        text[at] = rng.choice([0, 255, 34, 123, text[at] ^ 1])
        if rng.random() < 0.2:
            del text[at:]
            break
    return bytes(text)


def replace_somewhere(rng: random.Random, place: dict | list) -> None:
    while place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        place[key] = copy.deepcopy(rng.choice(VALUES_IN_NOTEBOOKS))
        return


def has_code(path: Path) -> bool:
    try:
        cells = json.loads(path.read_bytes())["cells"]
        return any(cell["cell_type"] == "code" for cell in cells)
    except Exception:  # whatever is wrong with it has to be said
        return True


def test_broken_notebooks_are_collected_or_named(tmp_path):
    rng = random.Random(0)
    seeds = [json.loads(without_pictures(notebook)) for notebook in NOTEBOOKS]
    fixed = [b"", b"[]", b"{}", b"[" * 9000, b"\xff\xfe", b'{"cells": 3}', b'{"cells": [[]]}']
    number = 50 * SCALE
    drawn = (broken_notebook(rng, rng.choice(seeds)) for _ in range(number))
    for position, content in enumerate([*fixed, *drawn]):
        (tmp_path / f"n{position:05d}.ipynb").write_bytes(content)
        CASES["notebooks"] += 1
    before = sorted(path.name for path in tmp_path.iterdir())
    options = ["--nbval", "--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert "INTERNALERROR" not in run.stdout, run.stdout[-3000:]
    assert "Traceback" not in run.stdout + run.stderr, run.stdout[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    for name in before:
        told = f"{name}::" in run.stdout or f"{name} " in run.stdout
        assert told or not has_code(tmp_path / name), name
