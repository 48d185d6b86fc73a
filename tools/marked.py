"""The part of a written page that a command generates, between two comments."""


def replace_marked(text: str, start: str, end: str, new: str) -> str:
    """`text` with `new` between the line `start` and the line `end`.

    Raises:
        ValueError: the text lacks one of the two lines.
    """
    before, _, rest = text.partition(f"{start}\n")
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"Expected a line {start!r} and after it a line {end!r}.")
    return f"{before}{start}\n{new}\n{end}{after}"
