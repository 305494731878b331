"""The changes that can be made to a module's source, and their places.

A `Site` is one place and its replacement. It is identified by its function, its operator and its text, and not by
its line, so that it stays the same site when other lines change.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["OPERATORS", "Site", "sites", "squeeze"]


class Site(NamedTuple):
    """One place in a source of bytes: ``source[start:end]`` becomes ``new``."""

    qualname: str
    operator: str
    start: int
    end: int
    new: str
    text: str  # what stands there, with all white space alike

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


class _Edit(NamedTuple):
    """Replace the whole of ``shown`` by its text with ``node``'s replaced."""

    shown: ast.AST
    start: int
    end: int
    new: str


def squeeze(text: str) -> str:
    return " ".join(text.split())


class _Source:
    """A parsed module whose nodes know where they are, in bytes."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.tree = ast.parse(raw)
        self._lines = [0]
        for line in raw.split(b"\n"):
            self._lines.append(self._lines[-1] + len(line) + 1)

    def start(self, node: ast.AST) -> int:
        return self._lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self._lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        return self.raw[self.start(node) : self.end(node)].decode()

    def replace(self, node: ast.AST, new: str, shown: ast.AST | None = None) -> _Edit:
        return _Edit(shown or node, self.start(node), self.end(node), new)

    def drop(self, body: list[ast.stmt], new: str = "pass") -> _Edit:
        """Replace all of a body, which is shown by its statements."""
        whole = ast.Module(body=body, type_ignores=[])
        return _Edit(whole, self.start(body[0]), self.end(body[-1]), new)

    def between(self, before: ast.AST, after: ast.AST, old: str, new: str, shown: ast.AST) -> Iterator[_Edit]:
        """Replace a token between two nodes. (Without comments there, which nobody writes.)"""
        start, end = self.end(before), self.start(after)
        found = re.search(
            r"(?<![\w<>=!])" + r"\s+".join(map(re.escape, old.split())) + r"(?![\w<>=])",
            self.raw[start:end].decode(),
        )
        if found:
            yield _Edit(shown, start + found.start(), start + found.end(), new)


_TURNED: Final[dict[type[ast.cmpop], tuple[str, str]]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}

_ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str]]] = {ast.Add: ("+", "-"), ast.Sub: ("-", "+")}


def _compare(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A comparison is turned: a bound moves by one, or the answer is the opposite."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for before, op, after in zip(operands, node.ops, operands[1:], strict=False):
            old, new = _TURNED[type(op)]
            yield from source.between(before, after, old, new, node)


def _negate(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A condition is negated."""
    if isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield source.replace(node.test, f"not ({source.text(node.test)})")


def _operand(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """One operand of an ``and`` or ``or`` is left out."""
    if isinstance(node, ast.BoolOp):
        neutral = "True" if isinstance(node.op, ast.And) else "False"
        for value in node.values:
            yield source.replace(value, neutral, node)


def _bound(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A number is one more."""
    if isinstance(node, (ast.Compare, ast.BinOp, ast.Assign, ast.AnnAssign, ast.Call, ast.Subscript, ast.Slice)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Constant) and type(child.value) is int:
                yield source.replace(child, str(child.value + 1), node)


def _arithmetic(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """Plus for minus, and minus for plus."""
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        old, new = _ARITHMETIC[type(node.op)]
        yield from source.between(node.left, node.right, old, new, node)


def _least(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """The greater for the smaller, and the smaller for the greater."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        yield source.replace(node.func, "max" if node.func.id == "min" else "min", node)


def _is_checkpoint(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Await)
        and "checkpoint" in ast.unparse(node.value).partition("(")[0]
    )


def _drop(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A statement is left out: a call, an assignment to what others see, a step of a count."""
    if isinstance(node, ast.Expr):
        if not isinstance(node.value, (ast.Constant, ast.Yield)) and not _is_checkpoint(node):
            yield source.replace(node, "pass")
    elif isinstance(node, (ast.AugAssign, ast.Delete)) or (
        isinstance(node, ast.Assign) and any(isinstance(t, (ast.Attribute, ast.Subscript)) for t in node.targets)
    ):
        yield source.replace(node, "pass")


def _checkpoint(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A checkpoint is left out."""
    if _is_checkpoint(node):
        yield source.replace(node, "pass")


def _count(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A count is set instead of counted."""
    if isinstance(node, ast.AugAssign) and isinstance(node.op, (ast.Add, ast.Sub)):
        old = "+=" if isinstance(node.op, ast.Add) else "-="
        yield from source.between(node.target, node.value, old, "=", node)


def _flag(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """True for false, and false for true: in an assignment, a return, an argument."""
    values: list[ast.AST | None] = []
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.Return)):
        values = [node.value]
    elif isinstance(node, ast.Call):
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, bool):
            yield source.replace(value, str(not value.value), node)


def _guard(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A check that leaves the function or the turn of a loop is left out."""
    leaves = (ast.Return, ast.Raise, ast.Continue, ast.Break)
    if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], leaves):
        if source.raw[source.start(node) :].startswith(b"if"):  # not an elif
            yield source.replace(node, "pass")


def _hollow(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A function returns at once."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "__init__":
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if body and node.returns is not None and ast.unparse(node.returns) == "None":
            yield source.drop(body, "return")


def _finally(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A ``finally`` is emptied."""
    if isinstance(node, ast.Try) and node.finalbody:
        yield source.drop(node.finalbody)


def _reraise(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A handled exception is raised again."""
    if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[0], ast.Raise):
        yield source.drop(node.body, "raise")


def _unlocked(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """The body of a ``with`` runs without its context."""
    if isinstance(node, (ast.With, ast.AsyncWith)) and all(item.optional_vars is None for item in node.items):
        first, last = node.items[0].context_expr, node.items[-1].context_expr
        start = source.start(node)
        shown = ast.Module(body=[ast.Expr(item.context_expr) for item in node.items], type_ignores=[])
        for child, source_node in zip(shown.body, (first, last), strict=False):
            ast.copy_location(child, source_node)
        yield _Edit(shown, start, source.end(last), "if True")


def _deadline(source: _Source, node: ast.AST) -> Iterator[_Edit]:
    """A deadline is ignored."""
    if isinstance(node, ast.Call) and node.args:
        if ast.unparse(node.func) in ("trio.move_on_after", "trio.move_on_at", "trio.fail_after", "trio.fail_at"):
            yield source.replace(node.args[0], 'float("inf")', node)


OPERATORS: Final[dict[str, Callable[[_Source, ast.AST], Iterator[_Edit]]]] = {
    "compare": _compare,
    "negate": _negate,
    "operand": _operand,
    "bound": _bound,
    "arithmetic": _arithmetic,
    "least": _least,
    "drop": _drop,
    "checkpoint": _checkpoint,
    "count": _count,
    "flag": _flag,
    "guard": _guard,
    "hollow": _hollow,
    "finally": _finally,
    "reraise": _reraise,
    "unlocked": _unlocked,
    "deadline": _deadline,
}


def sites(raw: bytes) -> list[Site]:
    """Every place of a source at which an operator can be applied, in the order of the source."""
    source = _Source(raw)
    return list(_walk(source, source.tree, ()))


def _walk(source: _Source, node: ast.AST, names: tuple[str, ...]) -> Iterator[Site]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        names = (*names, node.name)
    for operator, edits in OPERATORS.items():
        for edit in edits(source, node):
            yield Site(".".join(names), operator, edit.start, edit.end, edit.new, _shown(source, edit))
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.JoinedStr):  # parts of an f-string have no places of their own
            yield from _walk(source, child, names)


def _shown(source: _Source, edit: _Edit) -> str:
    """The text by which a site is known, with what is replaced between brackets where that is not all of it."""
    shown = edit.shown
    if isinstance(shown, ast.Module):
        # For a whole body the first line is enough, so that fewer entries become stale.
        return squeeze(source.raw[edit.start : edit.end].decode().partition("\n")[0])
    start, end = source.start(shown), source.end(shown)
    if (start, end) == (edit.start, edit.end):
        return squeeze(source.text(shown))
    before, old, after = (
        source.raw[a:b].decode() for a, b in ((start, edit.start), (edit.start, edit.end), (edit.end, end))
    )
    return squeeze(f"{before}⟦{old}⟧{after}")
