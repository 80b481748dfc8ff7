"""Single changes of Python code that a test should notice. Knows no files and no tests."""

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


Node = ast.expr | ast.stmt


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a module. before, after: the changed expression or statement, its first line"""

    line: int
    before: str
    after: str
    tree: ast.Module
    place: int
    other: Node

    @property
    def source(self) -> str:
        """The module with the change."""
        return _replaced(self.tree, self.place, self.other)


def mutants(source: str) -> list[Mutant]:
    """All single changes of a module, in the order of its lines.

    Comparisons, operators, constants, conditions, `and`, `or`, `not`, `min`, `max`, `any`, `all`;
    and statements that are left out. Words, imports and annotations stay.
    """
    tree = ast.parse(source)
    found = [
        Mutant(node.lineno, _line(node), _line(other), tree, place, other)
        for place, node in enumerate(_places(tree))
        for other in _changes(node)
    ]
    return sorted(found, key=lambda mutant: mutant.line)


def _line(node: Node) -> str:
    return ast.unparse(node).partition("\n")[0]


def _places(tree: ast.AST) -> Iterator[Node]:
    """Every expression and statement whose change means something, always in the same order."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Import | ast.ImportFrom) or not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            yield from _places(child)


def _replaced(tree: ast.Module, place: int, other: Node) -> str:
    """The module with the node at a place replaced."""
    copy = deepcopy(tree)
    target = list(_places(copy))[place]
    for parent in ast.walk(copy):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, other)
            elif isinstance(value, list) and any(item is target for item in value):
                value[[item is target for item in value].index(True)] = other
    return ast.unparse(ast.fix_missing_locations(copy))


def _changes(node: Node) -> Iterator[Node]:
    for kind, change in _CHANGES.items():
        if isinstance(node, kind):
            yield from change(deepcopy(node))


def _compare(node: ast.Compare) -> Iterator[Node]:
    for index, operator in enumerate(node.ops):
        changed = deepcopy(node)
        changed.ops[index] = _COMPARISONS[type(operator)]()
        yield changed


def _operation(node: ast.BinOp | ast.AugAssign) -> Iterator[Node]:
    if other := _OPERATORS.get(type(node.op)):
        node.op = other()
        yield node


def _constant(node: ast.Constant) -> Iterator[Node]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)


def _choice(node: ast.BoolOp) -> Iterator[Node]:
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield node


def _condition(node: ast.If | ast.IfExp) -> Iterator[Node]:
    for value in (True, False):
        changed = deepcopy(node)
        changed.test = ast.Constant(value)
        yield changed


def _negation(node: ast.UnaryOp) -> Iterator[Node]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield node.operand


def _name(node: ast.Call) -> Iterator[Node]:
    if isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        node.func.id = _NAMES[node.func.id]
        yield node


def _left_out(node: ast.stmt) -> Iterator[Node]:
    """Docstrings do nothing, and without its `yield` a context manager is none."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant | ast.Yield)):
        yield ast.Pass()


def _assignment(node: ast.Assign) -> Iterator[Node]:
    """Names stay bound: without them nothing runs, which any test sees."""
    if not all(isinstance(target, ast.Name | ast.Tuple) for target in node.targets):
        yield ast.Pass()


def _return(node: ast.Return) -> Iterator[Node]:
    if node.value is not None and not isinstance(node.value, ast.Constant):
        yield ast.Return(ast.Constant(None))


_CHANGES: dict[type[ast.AST], Callable[..., Iterator[Node]]] = {
    ast.Compare: _compare,
    ast.BinOp: _operation,
    ast.AugAssign: _operation,
    ast.Constant: _constant,
    ast.BoolOp: _choice,
    ast.If: _condition,
    ast.IfExp: _condition,
    ast.UnaryOp: _negation,
    ast.Call: _name,
    ast.Expr: _left_out,
    ast.Raise: _left_out,
    ast.Delete: _left_out,
    ast.Break: _left_out,
    ast.Continue: _left_out,
    ast.Assign: _assignment,
    ast.Return: _return,
}
