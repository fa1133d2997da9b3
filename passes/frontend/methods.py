"""Methods of a model's modules that cannot be recorded, such as post-processing: each becomes one step of the graph.

A forward often calls a method of its own that reads the numbers of tensors. The method alone is then opaque, and what
surrounds it is recorded. The step calls the method on a copy of its module that has no parameters and no buffers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from torch import nn

from bnas.passes.errors import CaptureError

from .opaque import OpaqueMethod
from .places import line_of, told
from .state import ModelState
from .structure import tensors_of

if TYPE_CHECKING:
    from .recorder import Recorder


@dataclass(frozen=True)
class Method:
    """An opaque method of one of the model's modules."""

    holder: nn.Module
    name: str
    why: str
    """The line that cannot be recorded, and its error."""
    layer: OpaqueMethod


class Again(BaseException):
    """The recording must start again, since a method is opaque from now on; no code of a model may catch it."""


@dataclass
class Methods:
    """The opaque methods and modules of a model, the same in all of its recordings."""

    found: dict[tuple[str, str], Method]
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    """Methods that were tried in this recording and cannot become one step, with the reason."""

    opaque: frozenset[str] = frozenset()
    """Paths of whole modules that are one step each."""

    trial: bool = False
    """Whether no further part of the model may become opaque: the recording fails instead."""

    def find(self, paths: Mapping[nn.Module, str], error: BaseException) -> tuple[nn.Module, str] | None:
        """Return the innermost method (module and name) in the traceback of `error`; None if there is no new one."""
        for frame in reversed(list(_frames(error))):
            holder, name = _method_of(frame)
            if holder in paths and name and not {(paths[holder], name)} & (self.found.keys() | self.refused.keys()):
                return holder, name
        return None

    def learn(
        self, error: BaseException | None, paths: Mapping[nn.Module, str], modes: Mapping[nn.Module, bool]
    ) -> None:
        """Make the method that `find` finds opaque. The model must be in its state from before the recording."""
        place = None if error is None else self.find(paths, error)
        if error is None or place is None:
            return  # one was refused
        holder, name = place
        path = paths[holder]
        layer = OpaqueMethod(holder, f"{path}.{name}" if path else name, name, modes)
        self.found[path, name] = Method(holder, name, f"{line_of(error)}: {told(error)}", layer)

    def refuse(self, key: tuple[str, str], why: str) -> None:
        """Note that a method cannot become one step."""
        self.refused[key] = f"{self.found.pop(key).layer.place} cannot be kept unchanged: {why}"

    def tried_in(self, path: str) -> bool:
        """Whether a method of the module at `path`, or of a module inside it, was tried as one step."""
        return any(f"{place}.".startswith(f"{path}.") for place, _ in self.found.keys() | self.refused.keys())

    def explained(self, error: CaptureError) -> CaptureError:
        """Return the error, with the reasons why methods cannot become one step."""
        if not self.refused:
            return error
        made = CaptureError(f"{error}. {'; '.join(self.refused.values())}")
        made.__cause__ = error.__cause__
        return made


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of the traceback of an error, outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _method_of(frame: FrameType) -> tuple[Any, str]:
    """Return module and name of the method that a frame runs; None and an empty text for other functions."""
    code = frame.f_code
    holder = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    if not isinstance(holder, nn.Module) or code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
        return None, ""
    for kind in type(holder).__mro__[: type(holder).__mro__.index(nn.Module)]:
        for name, value in vars(kind).items():
            if _code_of(value) is code and getattr(type(holder), name, None) is value and _may_be_opaque(name):
                return holder, name
    return None, ""


def _code_of(value: Any) -> CodeType | None:
    function = inspect.unwrap(value) if inspect.isfunction(value) else None
    return getattr(function, "__code__", None)


def _may_be_opaque(name: str) -> bool:
    return name != "forward" and not (name.startswith("__") and name.endswith("__"))


@contextmanager
def patched(recorder: Recorder) -> Iterator[None]:
    """Inside, calls of opaque methods are steps of `recorder`."""
    methods = dict(recorder.methods.found)
    before: dict[nn.Module, dict[str, Any]] = {}
    try:
        for key, method in methods.items():
            attributes = before.setdefault(method.holder, {})
            vars(method.holder)[method.name] = _Recorded(recorder, key, method, attributes)
        for holder, attributes in before.items():
            attributes.update(vars(holder))
        yield
    finally:
        for method in methods.values():
            vars(method.holder).pop(method.name, None)


class _Recorded:
    """Takes the place of an opaque method on its module while the model is recorded."""

    __slots__ = ("before", "key", "method", "plain", "recorder")  # and no `__dict__`: what it holds is not the module's

    def __init__(self, recorder: Recorder, key: tuple[str, str], method: Method, before: Mapping[str, Any]) -> None:
        self.recorder, self.key, self.method, self.before = recorder, key, method, before
        self.plain = getattr(method.holder, method.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.recorder.active or not any(map(self.recorder.is_hot, tensors_of((args, kwargs)))):
            return self.plain(*args, **kwargs)
        return self.recorder.call_method(self.key, self.method, self.before, args, kwargs)


def keeps_values(holder: nn.Module, before: Mapping[str, Any], recorder: Recorder) -> str:
    """Return why a copy of a module lacks values that forward stored before the method call; empty if it lacks none."""
    now = vars(holder)
    for name in now.keys() | before.keys():
        if now.get(name) is not before.get(name):
            return f"forward sets the attribute {name!r} before"
    if any(recorder.is_hot(one) and id(one) not in recorder.names for one in ModelState(holder).tensors):
        return "forward keeps a tensor that depends on the inputs in the module"
    return ""
