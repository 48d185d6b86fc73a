"""An exercise as pieces to put in order: the solution's lines, shuffled, with two wrong ones.

A solution of one statement is cut at the arguments of a call. The wrong pieces are those of listed
wrong answers that differ from the solution in a single piece.
"""

import ast
import hashlib
import string
from itertools import count

from tools.cuts import Order, cut_call, in_call, orders, unit_orders
from tools.lesson import Exercise, Lesson
from tools.regions import blank, own_lines

WRONG = 2
MOST = 12  # pieces to choose from
FREE = 60  # permitted orders: with more, the order teaches nothing
CELL = """\
# Instead of writing it: put the lines in order, such as assemble("{id}", "B A C").
from llama_adapter_edu.course import assemble

assemble("{id}", "")"""


def puzzle(lesson: Lesson, exercise: Exercise) -> dict:
    """{"pieces": [(text, what is wrong with it or None)], "orders", "around"}: letters A, B, ...

    Raises:
        ValueError: the exercise is not fit for it, in words.
    """
    source = lesson.cells[exercise.code].source
    solved, own = lesson.solution(exercise), own_lines(source)
    region = _region(ast.parse(solved), own)
    indent = region[0].col_offset
    right = orders(region, solved, indent)
    right += _other_orders(exercise.assemble, right[0])
    wrong = _wrong_pieces(solved, right[0], exercise, indent, in_call(region))
    if len(wrong) < WRONG:
        raise ValueError(
            f"assemble=true needs {WRONG} wrong answers that differ from the solution in one piece "
            f"each; {len(wrong)} do. The solution's pieces are: {list(right[0])}"
        )
    texts = [*right[0], *wrong]
    if len(set(texts)) < len(texts) or len(texts) > MOST or len(right) > FREE:
        raise ValueError(
            f"assemble=true wants at most {MOST} different pieces and {FREE} right orders, not "
            f"{len(texts)} and {len(right)}"
        )
    shuffled = _shuffled(texts, exercise.id, right)
    letters = dict(zip(shuffled, string.ascii_uppercase, strict=False))
    return {
        "pieces": [(text, wrong.get(text)) for text in shuffled],
        "orders": sorted("".join(letters[text] for text in order) for order in right),
        "around": _around(source, indent),
    }


def _other_orders(assemble: bool | str, lines: Order) -> list[Order]:
    """Those that the master adds, as "2134" for `assemble="2134"`: the lines' places."""
    others = assemble.split() if isinstance(assemble, str) else []
    if any(sorted(other) != [str(i + 1) for i in range(len(lines))] for other in others):
        raise ValueError(f'assemble is true or other right orders, as "2134", not {assemble!r}')
    return [tuple(lines[int(place) - 1] for place in other) for other in others]


def _region(tree: ast.Module, own: set[int]) -> list[ast.stmt]:
    """The outermost statements of the solution region."""
    whole = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and {node.lineno, node.end_lineno} <= own
    ]
    inner = {child for node in whole for child in ast.walk(node) if child is not node}
    return sorted((node for node in whole if node not in inner), key=lambda node: node.lineno)


def _around(source: str, indent: int) -> tuple[str, str, str]:
    """What stands before and after the region in the learner's cell, and its indent."""
    lines = blank(source).split("\n")
    starts = [i for i, line in enumerate(lines) if line.strip() == "# YOUR CODE HERE"]
    if len(starts) != 1:
        raise ValueError("assemble=true wants an exercise with one solution region")
    end = next(i for i, line in enumerate(lines) if line.strip() == "raise NotImplementedError")
    return "\n".join(lines[: starts[0]]), "\n".join(lines[end + 1 :]), " " * indent


def _wrong_pieces(
    solved: str, right: Order, exercise: Exercise, indent: int, by_call: bool
) -> dict[str, str]:
    """{piece: the words of its mistake}, the first two of the listed wrong answers."""
    given = _all_pieces(solved, indent, by_call) or right
    found = {}
    for says, answer in exercise.wrong:
        pieces = _all_pieces(answer.strip("\n"), indent, by_call)
        new = list(dict.fromkeys(text for text in pieces or () if text not in given))
        missing = [text for text in given if text not in (pieces or ())]
        if len(new) == 1 and len(missing) <= 1 and new[0] not in found:
            found[new[0]] = says
    return dict(list(found.items())[:WRONG])


def _all_pieces(source: str, indent: int, by_call: bool) -> Order | None:
    """The pieces of all functions in a cell; None where it is cut in another way."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    bodies = [_without_docstring(function) for function in functions]
    try:
        if not by_call:
            return sum((_solution_order(body, source, indent) for body in bodies), ())
        return cut_call(bodies[0][0], source, indent)[0] if len(bodies[0]) == 1 else None
    except ValueError:
        return None


def _solution_order(block: list[ast.stmt], source: str, indent: int) -> Order:
    return sum((unit_orders(node, source, indent)[0] for node in block), ())


def _without_docstring(function: ast.FunctionDef) -> list[ast.stmt]:
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def _shuffled(texts: list[str], key: str, right: list[Order]) -> list[str]:
    """The same order in every build, and never one that is right already."""
    for salt in count():

        def place(text: str, salt: int = salt) -> str:
            return hashlib.sha256(f"{key}{salt}{text}".encode()).hexdigest()

        found = sorted(texts, key=place)
        if tuple(text for text in found if text in right[0]) not in right:
            return found
