"""Instruction data and chats from three places, with one loader.

    rows.jsonl, rows.json ----> a file of yours
    data/my_rows -------------> a folder of such files, read in the order of their names
    "tatsu-lab/alpaca" -------> the Hugging Face hub

What a row may be stands in `rows.py`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from llama_adapter_edu.data.rows import (
    CHATS,
    COLUMNS,
    EXPECTED,
    UnusableRowError,
    check_same_form,
    checked_row,
    short,
)
from llama_adapter_edu.hub_names import local_path, no_answer, not_found, not_permitted

SUFFIXES = (".json", ".jsonl")


def load_instructions(source: str | os.PathLike, split: str = "train") -> Dataset:
    """The rows of a split, whole and in their order. The first row with a fault stops it.

    Args:
        source: a `.json` file (a list of rows) or `.jsonl` file (one row a line), in UTF-8; a
            folder with such files; or a data set's id on the hub, as "tatsu-lab/alpaca". Only data
            is read: no code that comes with a data set is run.
        split: files have only "train"; a data set on the hub has splits of its own, and may be
            sliced: "train[:1000]".

    Returns:
        A data set with exactly the columns `instruction`, `input` ("" where there is none) and
        `output`; or, of chats, the column `messages`: turns with `role` and `content`.

    Raises:
        ValueError: what is there is no such data: the message names the place, the row and the
            field. Or there is no such split.
        FileNotFoundError: no such file or folder, or no such data set on the hub.
        PermissionError: a data set on the hub whose conditions were not accepted.
        ConnectionError: the hub does not answer.
    """
    rows: list[dict[str, Any]] = []
    for where, row in read_rows(source, split):
        try:
            rows.append(checked_row(row))
        except UnusableRowError as error:
            raise ValueError(f"{where}: {error}") from error
        check_same_form(rows[0], rows[-1], where)
    if not rows:
        raise ValueError(f"{source} has no rows. {EXPECTED}")
    return Dataset.from_list(rows)


def read_rows(source: str | os.PathLike, split: str = "train") -> Iterator[tuple[str, Any]]:
    """Where each row is, as "rows.jsonl, line 7", and the row as it stands there, unchecked.

    Raises:
        As `load_instructions`, but nothing about a row that can be read.
    """
    path = local_path(source)
    if path is None:
        yield from _from_hub(str(source), split)
        return
    files = [path]
    if os.path.isdir(path):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{path} is a folder that holds no .json or .jsonl file.")
    if split != "train":
        raise ValueError(
            f"{path} has no split {split!r}: a file is one split, 'train'. Keep another file for "
            "each other split."
        )
    for file in files:
        yield from _from_file(file)


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"There is no file {str(path)!r:.120} (looked from {Path.cwd()}). A data set on the "
            "hub is named with its owner, as 'tatsu-lab/alpaca'."
        )
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            "Expected a .json file (a list of rows) or a .jsonl file (one row a line), got "
            f"{path.name!r:.120}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8: byte {error.start} cannot be read. Save it again as "
            "UTF-8 in your editor."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty. {EXPECTED}")
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _json(line, where, "Expected one whole row in each line.")
        return
    rows = _json(text, str(path), "Of a file with one row a line the name ends in .jsonl.")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of rows, [{{...}}, {{...}}], got {short(rows)}")
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _json(text: str, where: str, hint: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"in line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where} is not JSON: {error.msg} {at}. {hint}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read: {error}. {EXPECTED}") from error


def _from_hub(name: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        dataset = load_dataset(name, split=split)
    except DatasetNotFoundError as error:
        gated = "gated" in str(error)
        raise (not_permitted if gated else not_found)(name, "data set") from error
    except ConnectionError as error:
        raise no_answer(name, error, "pass a .json or .jsonl file") from error
    except Exception as error:  # an unknown split, a script instead of data, a file not readable
        raise ValueError(f"{name!r}, split {split!r}, could not be loaded: {error}") from error
    known = [column for column in (*COLUMNS, *CHATS) if column in dataset.column_names]
    if not known:
        raise ValueError(
            f"{name!r} has the columns {dataset.column_names}. {EXPECTED} Load it with "
            "datasets.load_dataset, and rename its columns with .rename_column."
        )
    for number, row in enumerate(dataset.select_columns(known), start=1):
        yield f"{name}, row {number}", row
