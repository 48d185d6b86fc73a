"""Instruction data from two places, with one loader.

    commands.json, .jsonl ----> a file of yours in Alpaca format     instruction, input, output
    "tatsu-lab/alpaca" -------> the Hugging Face hub

Whatever the place, the rows have Alpaca's three columns of text (Taori et al., 2023).
"""

import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from llama_adapter_edu.data.encoding import COLUMNS
from llama_adapter_edu.hub_names import LOG_IN, check_hub_id

SUFFIXES = (".json", ".jsonl")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
EXPECTED = "Expected the texts 'instruction' and 'output', and perhaps 'input'."


def load_instructions(source: str | os.PathLike, split: str = "train") -> Dataset:
    """The rows of a split, whole and in their order.

    Args:
        source: a `.json` file (a list of rows) or `.jsonl` file (one row a line), in UTF-8; or a
            data set's id on the hub, as "tatsu-lab/alpaca". Only data is read: no code that comes
            with a data set is run.
        split: a file has only "train"; a data set on the hub has splits of its own, and may be
            sliced: "train[:1000]".

    Returns:
        A data set with exactly the columns `instruction`, `input` ("" where there is none) and
        `output`. Rows of a file or of the hub may have more fields; they are left out.

    Raises:
        ValueError: what is there is no instruction data: the message names the place, the row and
            the field. Or there is no such split.
        FileNotFoundError: no such file, or no such data set on the hub.
        IsADirectoryError: `source` is a folder.
        PermissionError: a data set on the hub whose conditions were not accepted.
        ConnectionError: the hub does not answer.
    """
    text = os.fspath(source)
    path = text if "\0" in text else os.path.expanduser(text)
    if "\0" in text:
        raise _no_source(text)
    if os.path.exists(path) or isinstance(source, os.PathLike) or _looks_like_path(text):
        return _from_file(Path(path), split)
    try:
        # Without an owner, `datasets` takes "json" or "csv" for a format and searches this folder.
        check_hub_id(text)
    except ValueError as error:
        raise _no_source(text) from error
    return _from_hub(text, split)


def _no_source(text: str) -> ValueError:
    return ValueError(
        f"{text!r:.120} is no source of instructions. Expected a .json or .jsonl file, or "
        "the id of a data set on the Hugging Face hub, as 'tatsu-lab/alpaca'."
    )


def _looks_like_path(text: str) -> bool:
    starts = text.startswith((".", "~", "/"))
    return starts or text.lower().endswith(SUFFIXES) or "\\" in text or text.count("/") > 1


def _from_file(path: Path, split: str) -> Dataset:
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder. Expected one file that ends in .json or .jsonl."
        )
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'!r}. Expected a .json file (a list of rows) "
            "or a .jsonl file (one row a line)."
        )
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path} (looked from {Path.cwd()}).")
    if split != "train":
        raise ValueError(
            f"{path} has no split {split!r}: a file is one split, 'train'. Keep another file for "
            "each other split."
        )
    text = _read(path)
    rows = _json_lines(text, path) if path.suffix.lower() == ".jsonl" else _json(text, path)
    return _dataset(rows, str(path))


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8: byte {error.start} cannot be read. Save it again as "
            "UTF-8 in your editor."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty. {EXPECTED}")
    return text


def _json(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, row) of a JSON list."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " One row a line? Then call the file .jsonl." if error.msg == "Extra data" else ""
        raise ValueError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.{hint}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}. {EXPECTED}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, [{{...}}, {{...}}], got {_short(rows)}")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, row) of JSON lines; empty lines are allowed."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON: {error.msg} in column {error.colno}. Expected "
                "one whole row in each line."
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} cannot be read: {error}. {EXPECTED}"
            ) from error
        yield f"{path}, line {number}", row


def _from_hub(name: str, split: str) -> Dataset:
    try:
        dataset = load_dataset(name, split=split)
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise PermissionError(
                f"{name} is open only to those who accepted its conditions. Accept them on "
                f"https://huggingface.co/datasets/{name}, then {LOG_IN}."
            ) from error
        raise FileNotFoundError(
            f"There is no data set {name!r} on the Hugging Face hub that you may see, and no file "
            f"of this name. Check the spelling. If it is private, {LOG_IN}."
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"{name!r} is not in this computer's cache, and the Hugging Face hub does not answer. "
            "Connect to the internet, or pass a .json or .jsonl file."
        ) from error
    except Exception as error:  # an unknown split, a script instead of data, a file not readable
        raise ValueError(f"{name!r}, split {split!r}, could not be loaded: {error}") from error
    columns = dataset.column_names
    if missing := [name for name in COLUMNS if name != "input" and name not in columns]:
        raise ValueError(
            f"{name!r} has the columns {columns}; {' and '.join(missing)} missing. {EXPECTED} Load "
            "it with datasets.load_dataset, and rename its columns with .rename_column."
        )
    rows = dataset.select_columns([column for column in COLUMNS if column in columns])
    numbered = ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))
    return _dataset(numbered, name)


def _dataset(rows: Iterable[tuple[str, Any]], place: str) -> Dataset:
    checked = [_checked(row, where) for where, row in rows]
    if not checked:
        raise ValueError(f"{place} has no rows. {EXPECTED}")
    return Dataset.from_list(checked)


def _checked(row: Any, where: str) -> dict[str, str]:
    """The three texts of a row; ValueError says where a text is missing."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object, {{...}}, got {_short(row)} {EXPECTED}")
    texts = {column: row.get(column) for column in COLUMNS}
    texts["input"] = "" if texts["input"] is None else texts["input"]
    for field, text in texts.items():
        if field not in row and text is None:
            raise ValueError(
                f"{where}: the field {field!r} is missing; there is {reprlib.repr(list(row))}."
            )
        if not isinstance(text, str):
            raise ValueError(f"{where}: the field {field!r} should be text, got {_short(text)}")
        if not text.isascii() and (lone := LONE_SURROGATE.search(text)):
            raise ValueError(
                f"{where}: the field {field!r} has half a character, {lone[0]!r}, at position "
                f"{lone.start()}. Write both halves, or the character itself."
            )
    return texts


def _short(value: Any) -> str:
    return f"{type(value).__name__}: {reprlib.repr(value)}."
