"""Where in the user's code something happens, and what to do about an error there."""

from __future__ import annotations

import sys
from pathlib import Path as FilePath
from types import FrameType

import torch
from torch import nn

from bnas.passes.errors import CaptureError


class ValueRead(CaptureError):
    """Forward asks for the numbers of a tensor that depends on the inputs."""


_OURS = (f"{FilePath(torch.__file__).parent}/", f"{FilePath(__file__).parents[1]}/")


def user_line() -> tuple[str, int] | None:
    """File and line of the innermost frame that is neither torch's nor ours."""
    frame = user_frame()
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def user_frame() -> FrameType | None:
    """The innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_OURS) and not name.startswith("<"):
            return frame
        frame = frame.f_back
    return None


def described(module: nn.Module, path: str, error: BaseException) -> CaptureError:
    """The error that a module cannot be captured: where, what came, and what to do."""
    if isinstance(error, CaptureError) and error.__cause__ is not None:
        return error
    line = line_of(error)
    where = f"module {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
    made = CaptureError(f"cannot capture {where}{', ' if line else ''}{line}: {told(error)}{remedy(error)}")
    made.__cause__ = error
    return made


def line_of(error: BaseException) -> str:
    """File, number and text of the innermost line of the user's code that an error comes from; or nothing."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_OURS) and not f.filename.startswith("<")]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def told(error: BaseException) -> str:
    """What an error says; its type too, unless it is one of ours."""
    return str(error) if isinstance(error, CaptureError) else f"{type(error).__name__}: {error}"


def remedy(error: BaseException) -> str:
    """What to do about an error of a forward, where that is known."""
    text = str(error)
    if isinstance(error, ValueRead) or "meta tensor" in text or "data-independent" in text:
        return (
            ". Code that depends on the values of tensors belongs in a submodule or a method of its own, which then "
            "stays rigid while the rest becomes elastic"
        )
    if isinstance(error, CaptureError):
        return ""
    return ". Call the model on the example inputs yourself: they may not be what its forward takes"
