"""What a row of text may be, and the rows that cannot be used.

    {"instruction": "Add", "input": "2 and 3", "output": "5"}     Alpaca; "input" may be left out
    {"messages": [{"role": "user", "content": "Hi"}, ...]}        a chat
    {"conversations": [{"from": "human", "value": "Hi"}, ...]}    a chat as ShareGPT keeps it

Whatever stands in a text is text, the marks of a chat template too. Other fields are left out.
"""

import re
import reprlib
from collections.abc import Mapping
from typing import Any

COLUMNS = ("instruction", "input", "output")
CHATS = ("messages", "conversations")
EXPECTED = (
    "Expected the texts 'instruction' and 'output', and perhaps 'input'; or a chat, a list of "
    "turns in 'messages' or 'conversations'."
)
ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
ROLES |= {"human": "user", "gpt": "assistant", "model": "assistant"}  # ShareGPT's, Gemma's names
# Half a character, and those that Unicode reserves for programs: `chats` marks places with them.
NO_TEXT = re.compile("[\ud800-\udfff\ufdd0-\ufdef]")
SHOWN = 3


class UnusableRowError(ValueError):
    """A row that nothing can be learnt from. `kind` names the fault in a list of such rows."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def checked_row(row: Any) -> dict[str, Any]:
    """A row's own fields: `instruction`, `input` and `output`, or `messages` of role and content.

    Raises:
        UnusableRowError: a field is missing or no text, or a chat has no turns.
    """
    if not isinstance(row, Mapping):
        raise _malformed(f"expected an object, {{...}}, got {short(row)} {EXPECTED}")
    for field in CHATS:
        if row.get(field) is not None:
            return {"messages": _turns(row[field], field)}
    texts = {column: row.get(column) for column in COLUMNS}
    texts["input"] = "" if texts["input"] is None else texts["input"]
    for field, text in texts.items():
        if field not in row and text is None:
            there = reprlib.repr(list(row))
            raise _malformed(f"the field {field!r} is missing; there is {there}. {EXPECTED}")
        _check_text(text, f"the field {field!r}")
    return texts


def check_same_form(first: Mapping[str, Any], row: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if one of two checked rows is a chat and the other is not."""
    if ("messages" in first) != ("messages" in row):
        raise ValueError(
            f"{where}: instructions and chats are mixed. Keep each kind in a data set of its own."
        )


def _turns(turns: Any, field: str) -> list[dict[str, str]]:
    """The turns of a chat, each with its role and its content."""
    if not isinstance(turns, (list, tuple)) or not turns:
        raise _malformed(f"the field {field!r} should be a list of turns, got {short(turns)}")
    return [_turn(turn, f"turn {number} of {field!r}") for number, turn in enumerate(turns, 1)]


def _turn(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise _malformed(f"{where} should be an object, {{...}}, got {short(turn)}")
    role, content = ("role", "content") if "role" in turn else ("from", "value")
    for key in (role, content):
        if key not in turn:
            raise _malformed(
                f"{where} should have 'role' and 'content', or 'from' and 'value'; there is "
                f"{reprlib.repr(list(turn))}."
            )
        _check_text(turn[key], f"{key!r} in {where}")
    if turn[role] not in ROLES or turn.get("tool_calls"):
        strange = "calls a tool" if turn.get("tool_calls") else f"is of {turn[role]!r:.40}"
        raise _malformed(f"{where} {strange}. Expected one of {', '.join(ROLES)}, and text alone.")
    return {"role": ROLES[turn[role]], "content": turn[content]}


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise _malformed(f"{what} should be text, got {short(text)}")
    if not text.isascii() and (found := NO_TEXT.search(text)):
        fault = "a character of no text" if found[0] >= "\ufdd0" else "half a character"
        raise _malformed(
            f"{what} has {fault}, {found[0]!r}, at position {found.start()}. Take it out, or write "
            "the whole character."
        )


def describe_left_out(left_out: Mapping[str, list[str]], n_kept: int) -> str:
    """One sentence about the rows that cannot be used: how many, why, and where the first are.

    Args:
        left_out: the places of the rows for each kind of fault.
        n_kept: how many rows can be used.
    """
    reasons = [
        f"{len(places)} {kind} ({', '.join(places[:SHOWN])}{', ...' * (len(places) > SHOWN)})"
        for kind, places in left_out.items()
    ]
    n_left_out = sum(map(len, left_out.values()))
    return f"Left out {n_left_out} of {n_left_out + n_kept} rows: {'; '.join(reasons)}."


def _malformed(message: str) -> UnusableRowError:
    return UnusableRowError("without the fields or texts of a row", message)


def short(value: Any) -> str:
    return f"{type(value).__name__}: {reprlib.repr(value)}."
