"""One loader for files, folders of files and the hub; and what it refuses."""

import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from llama_adapter_edu import load_instructions
from llama_adapter_edu.data import instructions
from llama_adapter_edu.data.rows import COLUMNS

ROWS = [
    {"instruction": "Add the numbers", "input": "2 and 3", "output": "5"},
    {"instruction": "Say hi", "input": "", "output": "hi"},
]


@pytest.fixture
def file(tmp_path):
    """`file("rows.json", content)`: a file with this text, these bytes, or this value as JSON."""

    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def hub(monkeypatch):
    """`hub(dataset or error)`: what the hub answers. Returns the calls that reach it."""
    calls = []

    def set_answer(answer: Dataset | Exception) -> list[tuple]:
        def load_dataset(*args, **kwargs):
            calls.append((args, kwargs))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(instructions, "load_dataset", load_dataset)
        return calls

    return set_answer


# --- the three places ----------------------------------------------------------------------------


def test_a_json_file_by_name_or_path(file):
    path = file("rows.json", ROWS)
    for source in (path, str(path)):
        rows = load_instructions(source)
        assert rows.column_names == list(COLUMNS)
        assert rows.to_list() == ROWS


def test_a_json_lines_file(file):
    lines = "\r\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    assert load_instructions(file("rows.jsonl", lines)).to_list() == ROWS
    # a line separator of Unicode inside a text does not end a line of the file
    row = {"instruction": "one\u2028two", "input": "", "output": "ä ↑ 😀"}
    line = json.dumps(row, ensure_ascii=False)
    assert load_instructions(file("one.JSONL", line)).to_list() == [row]


def test_three_columns_whatever_the_rows_have(file):
    rows = [
        {"output": "hi", "instruction": "Say hi", "text": "left out"},
        {"instruction": "Say hi", "input": None, "output": "", "id": 7},
    ]
    assert load_instructions(file("rows.json", rows)).to_list() == [
        {"instruction": "Say hi", "input": "", "output": "hi"},
        {"instruction": "Say hi", "input": "", "output": ""},
    ]


def test_a_byte_order_mark_is_no_part_of_the_text(file):
    content = b"\xef\xbb\xbf" + json.dumps(ROWS).encode()
    assert load_instructions(file("rows.json", content)).to_list() == ROWS


def test_a_file_in_the_working_folder_needs_no_dot(file, monkeypatch):
    monkeypatch.chdir(file("rows.json", ROWS).parent)
    assert load_instructions("rows.json").to_list() == ROWS


def test_the_hub_is_asked_for_data_and_never_for_code(hub):
    calls = hub(Dataset.from_list([{**row, "text": "left out"} for row in ROWS]))
    assert load_instructions("tatsu-lab/alpaca", "train[:2]").to_list() == ROWS
    assert calls == [(("tatsu-lab/alpaca",), {"split": "train[:2]"})]


def test_a_data_set_on_the_hub_without_inputs(hub):
    hub(Dataset.from_list([{"instruction": "Say hi", "output": "hi"}]))
    assert load_instructions("owner/name").to_list() == [ROWS[1]]


# --- what is no instruction data -----------------------------------------------------------------


@pytest.mark.parametrize(
    "content, words",
    [
        (
            [ROWS[0], {"instruction": "Say hi"}],
            r"row 2: the field 'output' is missing; there is \['in",
        ),
        ([{"prompt": "Say hi", "output": "hi"}], "row 1: the field 'instruction' is missing"),
        ([{**ROWS[0], "output": 5}], "row 1: the field 'output' should be text, got int: 5"),
        ([{**ROWS[0], "output": None}], "'output' should be text, got NoneType"),
        ([{**ROWS[0], "input": ["x"]}], r"'input' should be text, got list: \['x'\]"),
        ([ROWS[0], "Say hi"], "row 2: expected an object"),
        ({"data": ROWS}, "expected a list of rows"),
        ([], "no rows"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("instruction,output\nSay hi,hi", "is not JSON: Expecting value in line 1, column 1"),
        ('[{"instruction": "Say hi",\n}]', "line 2, column 1"),
        ("\n".join(map(json.dumps, ROWS)), "name ends in .jsonl"),
        (json.dumps(ROWS).encode("utf-16"), "not text in UTF-8: byte 0"),
        ('[{"instruction": "Größe"}]'.encode("latin-1"), "not text in UTF-8: byte 20"),
    ],
)
def test_a_json_file_that_is_no_instruction_data(file, content, words):
    path = file("rows.json", content)
    with pytest.raises(ValueError, match=words) as error:
        load_instructions(path)
    assert "rows.json" in str(error.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (json.dumps(ROWS[0]) + "\n\n{}", "rows.jsonl, line 3: the field 'instruction' is missing"),
        (json.dumps(ROWS[0]) + "\nSay hi", "rows.jsonl, line 2 is not JSON"),
        (json.dumps(ROWS, indent=1), "line 1 is not JSON.*one whole row in each line"),
        (json.dumps(ROWS), "line 1: expected an object"),
    ],
)
def test_a_json_lines_file_that_is_no_instruction_data(file, content, words):
    with pytest.raises(ValueError, match=words):
        load_instructions(file("rows.jsonl", content))


def test_a_folder_is_all_its_files_in_the_order_of_their_names(file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder that holds no \.json"):
        load_instructions(tmp_path)
    file("b.json", ROWS[:1])
    file("a.jsonl", json.dumps(ROWS[1]))
    file("notes.txt", "no rows")
    assert load_instructions(tmp_path).to_list() == [ROWS[1], ROWS[0]]
    file("c.jsonl", "{}")
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1: the field 'instruction' is missing"):
        load_instructions(str(tmp_path))


def test_what_is_no_file_to_read(file, tmp_path):
    for name in ("rows.csv", "code.py", "rows"):
        with pytest.raises(ValueError, match=r"Expected a \.json file"):
            load_instructions(file(name, ROWS))
    with pytest.raises(ValueError, match="has no split 'test'"):
        load_instructions(file("rows.json", ROWS), "test")


@pytest.mark.parametrize("name", ["rows.json", "./rows.jsonl", "a/b/rows.json", "~/no/rows.json"])
def test_a_file_that_is_not_there_never_asks_the_hub(hub, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = hub(Dataset.from_list(ROWS))
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_instructions(name)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_instructions(Path(name))
    assert calls == []


# --- what the hub may answer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, kind, words",
    [
        (
            DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub"),
            FileNotFoundError,
            "no data set 'owner/name' on the Hugging Face hub that you may see",
        ),
        (
            DatasetNotFoundError("Dataset 'owner/name' is a gated dataset on the Hub."),
            PermissionError,
            "huggingface.co/datasets/owner/name, then create a token",
        ),
        (ConnectionError("Couldn't reach 'owner/name'"), ConnectionError, "does not answer"),
        (ValueError("Unknown split \"dev\". Should be one of ['train']."), ValueError, "one of"),
        (RuntimeError("Dataset scripts are no longer supported"), ValueError, "scripts"),
        (
            Dataset.from_list([{"prompt": "x"}]),
            ValueError,
            r"has the columns \['prompt'\]. Expected the texts",
        ),
        (
            Dataset.from_list([{**ROWS[0]}, {**ROWS[1], "output": None}]),
            ValueError,
            "owner/name, row 2: the field 'output' should be text",
        ),
        (
            Dataset.from_dict({column: [] for column in COLUMNS}),
            ValueError,
            "owner/name.*no rows",
        ),
    ],
)
def test_what_the_hub_may_answer(hub, answer, kind, words):
    hub(answer)
    with pytest.raises(kind, match=words):
        load_instructions("owner/name")


def test_the_real_library_without_network(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="hub does not answer"):
        load_instructions("tatsu-lab/a-data-set-that-no-cache-holds")


@pytest.mark.parametrize("name", ["json", "home-commands", "two words", "x" * 500])
def test_a_name_without_an_owner_is_a_file_and_never_asks_the_hub(hub, name):
    calls = hub(Dataset.from_list(ROWS))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*as 'tatsu-lab") as caught:
        load_instructions(name)
    assert calls == [] and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "content, reason",
    [
        ("[" * 100_000, "cannot be read: maximum recursion depth"),
        ('{"instruction": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
        (
            '{"instruction": "\\ud83d", "output": "x"}',
            "has half a character, '\\\\ud83d', at position",
        ),
    ],
    ids=["deep", "long number", "half a character"],
)
def test_json_that_cannot_be_used_is_named(tmp_path, content, reason):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1") as caught:
        load_instructions(tmp_path / "a.jsonl")
    assert reason.replace("\\\\", "\\") in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b\0", "owner/na me", "owner/.."])
def test_a_name_that_nothing_can_have(hub, name):
    calls = hub(Dataset.from_list(ROWS))
    with pytest.raises(ValueError, match="is neither a path here nor an id") as caught:
        load_instructions(name)
    assert calls == [] and len(str(caught.value)) < 400
