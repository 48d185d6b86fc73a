"""The solution regions of an exercise: blanked for the learner, or solved."""

import re

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
GIVEN = re.compile(r"^(\s*)# ?~ ?")  # formatters make "# ~" of "#~"


def blank(source: str) -> str:
    """The learner's cell: each region becomes YOUR CODE HERE, the given lines and a raise."""
    return _rewrite(source, _stub)


def solve(source: str) -> str:
    """The solved cell: without markers and given lines."""
    return _rewrite(source, lambda _, lines: [line for line in lines if not GIVEN.match(line)])


def own_lines(source: str) -> set[int]:
    """The line numbers of the solved cell, from 1, that lie in a region; the others are given."""
    mark = "\0"
    marked = _rewrite(
        source, lambda _, lines: [mark + line for line in lines if not GIVEN.match(line)]
    )
    numbered = enumerate(marked.split("\n"), start=1)
    return {number for number, line in numbered if line.startswith(mark)}


def _stub(indent: str, lines: list[str]) -> list[str]:
    given = [GIVEN.sub(r"\1", line) for line in lines if GIVEN.match(line)]
    return [f"{indent}# YOUR CODE HERE", *given, f"{indent}raise NotImplementedError"]


def _rewrite(source: str, replace) -> str:
    """Apply `replace(indent, lines)` to each region; ValueError if a marker has no partner."""
    done, region, indent = [], None, ""
    for line in source.split("\n"):
        marker = line.strip()
        if marker == BEGIN:
            if region is not None:
                raise ValueError(f"{BEGIN} inside a solution: {END} is missing above it")
            region, indent = [], line[: line.index(BEGIN)]
        elif marker == END:
            if region is None:
                raise ValueError(f"{END} without {BEGIN}")
            if all(GIVEN.match(line) or not line.strip() for line in region):
                raise ValueError("the solution is empty")
            done, region = done + replace(indent, region), None
        elif marker.startswith(("### BEGIN", "### END")):
            raise ValueError(f"unknown marker {marker!r}; known: {BEGIN!r}, {END!r}")
        elif region is not None:
            region.append(line)
        elif GIVEN.match(line):
            raise ValueError("a given line (# ~) outside a solution")
        else:
            done.append(line)
    if region is not None:
        raise ValueError(f"{BEGIN} without {END}")
    return "\n".join(done)
