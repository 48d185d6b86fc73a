"""Cuts code into pieces, and says in which orders they are right.

Several statements are cut at their lines; two that do not need each other may change places. One
statement is cut at the arguments of a call; the named ones may change places.
"""

import ast
from collections.abc import Iterator
from itertools import permutations, product

from tools import names

STATEMENTS = 8  # in a block, at most
BLOCKS = ("body", "orelse", "finalbody")
LEAVES = (ast.Return, ast.Raise, ast.Break, ast.Continue)
Order = tuple[str, ...]


def in_call(region: list[ast.stmt]) -> bool:
    return len(region) == 1 and not _blocks(region[0])


def _blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """The blocks inside a statement; none where all of it stands on one line."""
    found = [block for name in BLOCKS if (block := getattr(node, name, None))]
    return [] if found and found[0][0].lineno == node.lineno else found


def orders(region: list[ast.stmt], source: str, indent: int) -> list[Order]:
    """All right orders of a region's pieces, the solution's own first."""
    if in_call(region):
        return cut_call(region[0], source, indent)
    return block_orders(region, source, indent)


def block_orders(block: list[ast.stmt], source: str, indent: int) -> list[Order]:
    units = [unit_orders(node, source, indent) for node in block]
    return [
        sum(choice, ())
        for places in _permitted(block)
        for choice in product(*(units[place] for place in places))
    ]


def unit_orders(node: ast.stmt, source: str, indent: int) -> list[Order]:
    """Of one statement: itself, or its header with the orders of what is inside."""
    lines, start, parts = source.split("\n"), node.lineno, []
    if getattr(node, "handlers", None):
        raise ValueError("assemble=true knows no `except`")
    for block in _blocks(node):
        if header := _text(lines[start - 1 : block[0].lineno - 1], indent):
            parts.append([(header,)])
        parts.append(block_orders(block, source, indent))
        start = block[-1].end_lineno + 1
    if not parts:
        return [(_text(lines[node.lineno - 1 : node.end_lineno], indent),)]
    return [sum(choice, ()) for choice in product(*parts)]


def _text(lines: list[str], indent: int) -> str:
    """Lines of code without comment lines, moved to the left margin of the region."""
    code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    return "\n".join(line[min(indent, len(line) - len(line.lstrip())) :] for line in code)


def _permitted(block: list[ast.stmt]) -> Iterator[tuple[int, ...]]:
    """The orders of a block's statements in which each finds what it needs."""
    fixed = [(i, j) for j in range(len(block)) for i in range(j) if _ordered(block[i], block[j])]
    if len(block) > STATEMENTS:
        raise ValueError(f"assemble=true wants at most {STATEMENTS} statements in a block")
    for places in permutations(range(len(block))):
        if all(places.index(i) < places.index(j) for i, j in fixed):
            yield places


def _ordered(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether two statements cannot change places."""
    if any(isinstance(node, LEAVES) for one in (first, second) for node in ast.walk(one)):
        return True
    (reads_1, writes_1), (reads_2, writes_2) = _touched(first), _touched(second)
    both_act = _acts(first) and _acts(second)
    return both_act or bool(writes_1 & (reads_2 | writes_2) or writes_2 & reads_1)


def _acts(node: ast.stmt) -> bool:
    """Whether it does more than giving names a value: then its order counts."""
    return any(isinstance(inner, ast.Expr) or _is_changed(inner) for inner in ast.walk(node))


def _is_changed(node: ast.AST) -> bool:
    """`x.y` or `x[y]` on the left of a `=`, or behind `del`."""
    return isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)


def _touched(node: ast.stmt) -> tuple[set[str], set[str]]:
    """The names that a statement reads, and those that it sets or may change."""
    found = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
    reads = {name.id for name in found if isinstance(name.ctx, ast.Load)}
    return reads, names.stored(ast.unparse(node)) | (reads if _acts(node) else set())


def cut_call(node: ast.stmt, source: str, indent: int) -> list[Order]:
    """The call with the most arguments: its head, one argument each, and what follows."""
    calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    call = max(calls, key=lambda c: len(c.args) + len(c.keywords), default=None)
    if call is None or len(call.args) + len(call.keywords) < 2:
        raise ValueError("assemble=true wants several statements, or a call with two arguments")
    named = [word for word in call.keywords if word.arg]
    last = [word for word in call.keywords if not word.arg]
    text = source.encode()
    starts = [0, *(i + 1 for i, byte in enumerate(text) if byte == ord("\n"))]

    def part(start: tuple[int, int], end: tuple[int, int]) -> str:
        a, b = (starts[line - 1] + column for line, column in (start, end))
        return " ".join(text[a:b].decode().split())

    def begin(x: ast.AST) -> tuple[int, int]:
        return x.lineno, x.col_offset

    def end(x: ast.AST) -> tuple[int, int]:
        return x.end_lineno, x.end_col_offset

    arguments = [*call.args, *call.keywords]
    head = part(begin(node), begin(arguments[0]))
    tail = part(end(arguments[-1]), end(node)).lstrip(", ")

    def piece(argument: ast.AST) -> str:
        return f"    {part(begin(argument), end(argument))},"

    return [(head, *map(piece, [*call.args, *words, *last]), tail) for words in permutations(named)]
