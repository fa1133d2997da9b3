"""Lines of the user's code: the place of an event, remedies for errors, and lines that only check values."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path as FilePath
from types import CodeType, FrameType

import torch
from torch import nn

from bnas.passes.errors import CaptureError

# The place of an event in the user's code, and the remedy for an error there.


class ValueRead(CaptureError):
    """Forward asks for the numbers of a tensor that depends on the inputs."""


class HookSet(CaptureError):
    """Forward sets a hook on a gradient: a recording cannot hold it, and `torch.export` silently leaves it out."""


_OURS = (f"{FilePath(torch.__file__).parent}/", f"{FilePath(__file__).parents[1]}/")


def user_line() -> tuple[str, int] | None:
    """Return file and line of the innermost frame outside of torch and bnas, or None."""
    frame = user_frame()
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def user_frame() -> FrameType | None:
    """Return the innermost frame outside of torch and bnas, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OURS) and not name.startswith("<"):
            return frame
        frame = frame.f_back
    return None


def described(module: nn.Module, path: str, error: BaseException) -> CaptureError:
    """Return the error that a module cannot be captured, with the place, the original error and a remedy."""
    if isinstance(error, CaptureError) and error.__cause__ is not None:
        return error
    line = line_of(error)
    where = f"module {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
    made = CaptureError(f"cannot capture {where}{', ' if line else ''}{line}: {told(error)}{remedy(error)}")
    made.__cause__ = error
    return made


def line_of(error: BaseException) -> str:
    """Return file, number and text of the innermost line of the user's code that raised an error; or an empty text."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_OURS) and not f.filename.startswith("<")]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def told(error: BaseException) -> str:
    """Return the text of an error, with its type unless it is an error of bnas."""
    return str(error) if isinstance(error, CaptureError) else f"{type(error).__name__}: {error}"


def remedy(error: BaseException) -> str:
    """Return the remedy for an error of a forward; empty if none is known."""
    text = str(error)
    if isinstance(error, RecursionError):
        return (
            ". Its modules are nested deeper than Python's recursion limit allows, or call one another without end: "
            "sys.setrecursionlimit(...) raises the limit"
        )
    if isinstance(error, ValueRead) or "meta tensor" in text or "data-independent" in text:
        return (
            ". Move code that depends on tensor values into a submodule or method of its own: only that part is then "
            "kept unchanged"
        )
    if isinstance(error, CaptureError):
        return ""
    return CALL_IT


CALL_IT = ". Call the model on the example inputs yourself: its forward may not accept them"
"""Remedy for an error of forward itself."""


def at_other_size(error: CaptureError) -> str:
    """Return why an axis cannot change; an error that forward raises at another size is quoted without a remedy."""
    text = str(error)
    if not text.endswith(CALL_IT):
        return text
    return f"with another size, forward fails in {text.removeprefix('cannot capture ').removesuffix(CALL_IT)}"


# Checks of values that only raise: a graph leaves them out, as it does all code that computes nothing.

_DECIDES = (ast.BoolOp, ast.IfExp, ast.Lambda, ast.NamedExpr, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
"""Expressions that may read more than one tensor as a condition."""


def passing(frame: FrameType) -> bool | None:
    """Return the value of a condition at which the check in the current line of a frame raises nothing.

    The result is None unless the line is an assertion, or an ``if`` whose body ends in an error.
    """
    return _passing(frame.f_code, frame.f_lineno)


@lru_cache(maxsize=1024)
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
    """Yield the conditions in code: the line, the expression, and the value at which a check raises nothing.

    The value is None if the condition does not belong to a check.
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
