"""Which names a piece of Python code reads and binds, in the order in which it does so."""

import ast

from llama_adapter_edu.course.checks.source import parse

LOAD, STORE = "load", "store"


def events(source: str) -> list[tuple[str, str]]:
    """("load" | "store", name) for the names of the notebook that a cell touches.

    Names local to a function, class body or comprehension are left out; what a function reads
    from outside counts as read where it is defined.
    """
    visitor = _Visitor()
    visitor.visit(parse(source))
    return visitor.events


def stored(source: str) -> set[str]:
    """The names that a cell binds."""
    return {name for event, name in events(source) if event == STORE}


def loaded_before_stored(source: str) -> set[str]:
    """The names that a cell expects from the cells above."""
    bound, expected = set(), set()
    for event, name in events(source):
        if event == STORE:
            bound.add(name)
        elif name not in bound:
            expected.add(name)
    return expected


class _Visitor(ast.NodeVisitor):
    def __init__(self):
        self.events: list[tuple[str, str]] = []

    def visit_Name(self, node):
        self.events.append((LOAD if isinstance(node.ctx, ast.Load) else STORE, node.id))

    def visit_Assign(self, node):
        self._visit_all([node.value, *node.targets])

    def visit_AnnAssign(self, node):
        self._visit_all([node.annotation, node.value, node.target])

    def visit_NamedExpr(self, node):
        self._visit_all([node.value, node.target])

    def visit_AugAssign(self, node):
        if isinstance(node.target, ast.Name):
            self.events.append((LOAD, node.target.id))
        self._visit_all([node.value, node.target])

    def visit_For(self, node):
        self._visit_all([node.iter, node.target, *node.body, *node.orelse])

    def visit_ExceptHandler(self, node):
        self._visit_all([node.type])
        self._store(node.name)
        self._visit_all(node.body)

    def visit_MatchAs(self, node):
        self._visit_all([node.pattern])
        self._store(node.name)

    def visit_Import(self, node):
        for alias in node.names:
            self._store(alias.asname or alias.name.split(".")[0])

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node):
        self._visit_all(node.decorator_list)
        self._visit_function(node, node.body)
        self._store(node.name)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node):
        self._visit_function(node, [node.body])

    def visit_ClassDef(self, node):
        self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
        self._visit_scope(node.body, locals_=set())
        self._store(node.name)

    def visit_comprehension_scope(self, node):
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        parts = [part for g in node.generators for part in (g.iter, g.target, *g.ifs)]
        self._visit_scope([*parts, *results], locals_=set())

    visit_ListComp = visit_SetComp = visit_DictComp = visit_comprehension_scope
    visit_GeneratorExp = visit_comprehension_scope

    def _visit_function(self, node, body):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
        self._visit_all([*arguments.defaults, *arguments.kw_defaults])
        self._visit_all([argument.annotation for argument in every])
        self._visit_all([getattr(node, "returns", None)])
        self._visit_scope(body, locals_={argument.arg for argument in every})

    def _visit_scope(self, nodes, locals_):
        inner = _Visitor()
        inner._visit_all(nodes)
        own = locals_ | {name for event, name in inner.events if event == STORE}
        self.events += [(LOAD, n) for event, n in inner.events if event == LOAD and n not in own]

    def _store(self, name):
        if name:
            self.events.append((STORE, name))

    def _visit_all(self, nodes):
        for node in nodes:
            if node is not None:
                self.visit(node)
