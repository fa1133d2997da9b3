"""Checks of values that only raise: a graph leaves them out, as it does all code that computes nothing."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import CodeType, FrameType

_DECIDES = (ast.BoolOp, ast.IfExp, ast.Lambda, ast.NamedExpr, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""Expressions that may read more than one tensor as a condition."""


def passing(frame: FrameType) -> bool | None:
    """What the condition of the check that a frame stands at must be so that nothing is raised.

    None unless the frame stands at an ``if`` whose body only ends in an error, or at an assertion.
    """
    return _passing(frame.f_code, frame.f_lineno)


@cache
def _passing(code: CodeType, line: int) -> bool | None:
    try:
        source, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, SyntaxError):
        return None
    place = line - max(first, 1) + 1
    found = [one for one in _conditions(tree) if one[0] <= place <= (one[1].end_lineno or 0)]
    if len(found) != 1 or any(isinstance(one, _DECIDES) for one in ast.walk(found[0][1])):
        return None
    _, test, passes = found[0]
    if passes is None or not any(isinstance(one, ast.Not) for one in ast.walk(test)):
        return passes
    return not passes if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else None


def _conditions(tree: ast.AST) -> Iterator[tuple[int, ast.expr, bool | None]]:
    """The conditions in some code: the first line, and the value at which a check raises nothing.

    It is None for all that are no checks.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            yield node.lineno, node.test, False if not node.orelse and _raises(node.body[-1]) else None
        elif isinstance(node, ast.While | ast.IfExp):
            yield node.lineno, node.test, None
        elif isinstance(node, ast.Assert):
            yield node.lineno, node.test, True


def _raises(statement: ast.stmt) -> bool:
    """Whether a statement always raises an error: ``raise``, ``assert False`` and ``torch._assert(False, ...)``."""
    if isinstance(statement, ast.Assert):
        return _is_false(statement.test)
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return isinstance(statement, ast.Raise)
    called, args = statement.value.func, statement.value.args
    return isinstance(called, ast.Attribute) and called.attr == "_assert" and bool(args) and _is_false(args[0])


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False
