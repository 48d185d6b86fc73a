"""Small changes of an exercise's solution, such as a learner might make: each with what it is.

Every mutant is the whole text of an exercise's cell. The first kind changes the source: an axis of
a pattern, a call, a keyword, a statement, a constant, an operator, a condition. The second kind,
in `wrapped.py`, leaves the source as it is and wraps the function.
"""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise

from llama_adapter_edu.course.checks.source import DEFINITIONS
from tools import names
from tools.wrapped import wrapped

Mutant = tuple[str, str]  # (what was changed, the cell's source)

PATTERN = re.compile(r"^[\w\s(),.*]*->[\w\s(),.*]*$")
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
TURNED = {ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Lt: ast.Gt, ast.LtE: ast.GtE}


def mutants(
    solution: str, exercise_names: tuple[str, ...], notebook: set[str], lines: set[int]
) -> Iterator[Mutant]:
    """All mutants of a solved cell; `notebook` holds the names of values it could read there.

    `lines`: where the solution stands. The rest of the cell is given, so nobody gets it wrong.
    """
    seen = {ast.unparse(names.parse(solution))}
    for what, tree in _changed_sources(solution, lines):
        source = ast.unparse(ast.fix_missing_locations(tree))
        if source not in seen:
            seen.add(source)
            yield what, source
    for name in exercise_names:
        yield from wrapped(solution, name, notebook)


def _changed_sources(solution: str, lines: set[int]) -> Iterator[tuple[str, ast.Module]]:
    for place, node in enumerate(_code(names.parse(solution))):
        if getattr(node, "lineno", min(lines)) not in lines:
            continue
        for what, change in _changes(node):
            tree = names.parse(solution)
            target = list(_code(tree))[place]
            change(target, tree)
            yield f"{what}: {ast.unparse(node)[:90]}", tree


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node in a fixed order, but docstrings, types and decorators."""
    yield tree
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        nodes = value if isinstance(value, list) else [value]
        if (
            field == "body"
            and isinstance(tree, DEFINITIONS)
            and ast.get_docstring(tree) is not None
        ):
            nodes = nodes[1:]
        for node in nodes:
            if isinstance(node, ast.AST):
                yield from _code(node)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST | None) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(item is old for item in value):
                changed = [new if item is old else item for item in value]
                setattr(parent, field, [x for x in changed if x is not None] or [ast.Pass()])


def _swap(make) -> object:
    return lambda node, tree: _replace(tree, node, make(node))


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    if isinstance(node, ast.Constant):
        yield from _other_constants(node)
    if isinstance(node, ast.Call):
        yield from _other_calls(node)
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OTHER:
        yield "operator", lambda n, _: setattr(n, "op", OTHER[type(n.op)]())
    if isinstance(node, ast.BinOp):
        yield "right side dropped", _swap(lambda n: n.left)
        yield "left side dropped", _swap(lambda n: n.right)
        if isinstance(node.op, ast.Sub | ast.Div | ast.Pow | ast.MatMult):
            yield "sides swapped", _swap(lambda n: ast.BinOp(n.right, n.op, n.left))
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            yield "condition dropped", lambda n, _, i=i: n.values.pop(i)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
        yield "comparison", lambda n, _: n.ops.__setitem__(0, OTHER[type(n.ops[0])]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
        yield "comparison turned", lambda n, _: n.ops.__setitem__(0, TURNED[type(n.ops[0])]())
    if isinstance(node, ast.UnaryOp):
        yield "sign or not dropped", _swap(lambda n: n.operand)
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        for value in (True, False):
            yield f"condition {value}", lambda n, _, v=value: setattr(n, "test", ast.Constant(v))
    if isinstance(node, ast.comprehension):
        for i in range(len(node.ifs)):
            yield "filter dropped", lambda n, _, i=i: n.ifs.pop(i)
    if isinstance(node, ast.Tuple | ast.List) and isinstance(node.ctx, ast.Load) and node.elts[1:]:
        yield "order turned", lambda n, _: n.elts.reverse()
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.For | ast.If | ast.With):
        yield "statement dropped", lambda n, tree: _replace(tree, n, None)
    if isinstance(node, ast.AugAssign):
        yield "plain assignment", _swap(lambda n: ast.Assign([n.target], n.value))
    if isinstance(node, ast.Return) and node.value is not None:
        yield "return dropped", _swap(lambda n: ast.Expr(n.value))
    if isinstance(node, ast.Break | ast.Continue):
        yield "statement dropped", _swap(lambda n: ast.Pass())


def _other_constants(node: ast.Constant) -> Iterator[tuple[str, object]]:
    value = node.value
    if isinstance(value, bool):
        others = [not value]
    elif isinstance(value, int):
        others = [value + 1, value - 1]
    elif isinstance(value, float):
        others = [value * 2, value + 1, -value]
    elif isinstance(value, str) and PATTERN.match(value):
        others = list(_other_patterns(value))
    else:
        others = []
    for other in others:
        yield f"constant {other!r}", lambda n, _, other=other: setattr(n, "value", other)


def _other_patterns(pattern: str) -> Iterator[str]:
    """Two neighbours swapped, one axis dropped, one renamed, brackets opened."""
    words = list(re.finditer(r"[^\W\d]\w*", pattern))
    for one, two in pairwise(words):
        between = pattern[one.end() : two.start()]
        if "->" not in between and "," not in between:
            yield pattern[: one.start()] + two[0] + between + one[0] + pattern[two.end() :]
    for word in words:
        yield " ".join((pattern[: word.start()] + pattern[word.end() :]).split())
        yield pattern[: word.end()] + "_other" + pattern[word.end() :]
    for group in re.finditer(r"\(([^()]*)\)", pattern):
        yield pattern[: group.start()] + group[1] + pattern[group.end() :]


def _other_calls(node: ast.Call) -> Iterator[tuple[str, object]]:
    if isinstance(node.func, ast.Attribute):
        yield "call dropped", _swap(lambda n: n.func.value)
    elif node.args and not isinstance(node.args[0], ast.Starred):
        yield "call dropped", _swap(lambda n: n.args[0])
    for i, keyword in enumerate(node.keywords):
        yield f"keyword {keyword.arg} dropped", lambda n, _, i=i: n.keywords.pop(i)
    for i in range(len(node.args)):
        if len(node.args) > 1:
            yield "argument dropped", lambda n, _, i=i: n.args.pop(i)
    if len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        yield "arguments swapped", lambda n, _: n.args.__setitem__(slice(0, 2), n.args[1::-1])
