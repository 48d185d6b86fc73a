"""The syntax trees of what a learner wrote, and a digest that formatting does not change."""

import ast
import hashlib
import inspect
import linecache
from collections.abc import Iterable

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def parse(source: str) -> ast.Module:
    """The cell's syntax tree, without its IPython lines (`%pip ...`, `!ls`)."""
    lines = source.split("\n")
    for number, line in enumerate(lines):
        if line.lstrip().startswith(("%", "!")):
            lines[number] = line[: len(line) - len(line.lstrip())] + "pass"
    return ast.parse("\n".join(lines))


def definitions(source: str) -> dict[str, Definition]:
    """{name: the function or class} that a cell defines at its top level."""
    return {node.name: node for node in parse(source).body if isinstance(node, DEFINITIONS)}


def digest(nodes: Iterable[ast.AST]) -> str:
    """The same for the same code, whatever its layout, comments, docstrings and quotes."""
    text = repr([_plain(node) for node in nodes])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(node: object) -> object:
    """A tree as lists, the same in all versions of Python (`ast.dump` is not)."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, DEFINITIONS) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    told = [(key, _plain(value)) for key, value in fields.items() if value not in (None, [])]
    return [type(node).__name__, *(item for item in told if item[0] not in ("ctx", "kind"))]


def cell_of(thing: object) -> str:
    """The source of the cell that defined a function or class; "" where it is not known."""
    functions = [thing, *vars(thing).values()] if inspect.isclass(thing) else [thing]
    for function in functions:
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if code and (lines := linecache.getlines(code.co_filename)):
            return "".join(lines)
    return ""


def definition_of(thing: object, name: str) -> Definition | None:
    """The syntax tree of a learner's function or class; None where its source is not known."""
    try:
        return definitions(cell_of(thing)).get(name)
    except (SyntaxError, ValueError):
        return None


def open_lines(node: ast.AST) -> list[str]:
    """Lines of a definition that still hold the `...` of the exercise, such as `names = ...`."""
    return [
        ast.unparse(inner)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Assign | ast.AnnAssign | ast.Return)
        and isinstance(inner.value, ast.Constant)
        and inner.value.value is ...
    ]


def statement_at(source: str, line: int) -> str:
    """The whole statement that stands on a line of a cell, in one line."""
    try:
        found = [
            node
            for node in ast.walk(parse(source))
            if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno
        ]
    except SyntaxError:
        found = []
    innermost = max(found, key=lambda node: node.lineno, default=None)
    if innermost is None or hasattr(innermost, "body"):
        lines = source.split("\n")
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""
    return " ".join((ast.get_source_segment(source, innermost) or "").split())
