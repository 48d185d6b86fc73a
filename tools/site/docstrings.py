"""The library's docstrings as reStructuredText: pictures stay pictures, lists become lists."""

import re

NAMED = re.compile(r"`?[a-z_]\w*`?(, `?\w+`?)*: \S")  # "rows, columns: what the axes are"
COLUMNS = re.compile(r"\S {3,}\S")  # a table of words, as wide as its author made it
SECTION = re.compile(r"(Args|Returns|Raises|Yields|Note|Example|Examples):$")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, without its indentation, as Sphinx reads them.

    A block that is indented or in columns is a picture or code; a later paragraph whose first line
    is `name: meaning` is a list of names.
    """
    paragraphs = [text.split("\n") for text in re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))]
    done: list[str] = []
    literal = section = False
    for paragraph in paragraphs:
        drawn = paragraph[0].startswith(" ") or any(map(COLUMNS.search, paragraph))
        if drawn and not section:
            done += [] if literal else ["::", ""]
            literal = True
        else:
            literal, section = (
                False,
                bool(SECTION.match(paragraph[0])) or (section and paragraph[0].startswith(" ")),
            )
            if NAMED.match(paragraph[0]) and done and not section:
                paragraph = _bullets(paragraph)
        done += [f"    {line}" if literal else _escape(line) for line in paragraph] + [""]
    return done


def _bullets(paragraph: list[str]) -> list[str]:
    """One item for each `name: meaning`; what is indented belongs to the item above it."""
    items = []
    for line in paragraph:
        if NAMED.match(line):
            items.append(f"- {line}")
        else:
            items.append(f"  {line.strip()}")
    return items


def _escape(line: str) -> str:
    """`|x|` and `*args` are meant as they stand, outside of code too."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(x if x.startswith("`") else re.sub(r"[|*]", r"\\\g<0>", x) for x in parts)
