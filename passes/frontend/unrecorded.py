"""Code that cannot be recorded: modules are exported alone, and methods become opaque steps of the graph."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from bnas.passes.errors import CaptureError

from .exported.program import ExportedModel
from .functions import hooked
from .opaque import OpaqueMethod
from .places import line_of, told
from .state import ModelState, preserved
from .structure import leaves_of, map_leaves, tensors_of

if TYPE_CHECKING:
    from .recorder import Recorder


# Modules that cannot be recorded are exported alone by `torch.export`, which turns some of them into plain operators.
#
# This works for NumPy functions, assertions about values, and tensor values that are only printed or asserted. Code
# that computes with such a value, or makes tensors of a size that depends on it, is exported with operators that a
# graph of bnas cannot have. `docs/capture.md` has a table.

MOST_ENTRIES = 1 << 28
"""A module that is called with more entries than this in a tensor is not exported."""

Mode = tuple[nn.Module, bool]
"""A module and whether it is in training mode."""

Key = tuple[nn.Module, bool, tuple[Any, ...]]
"""A module, its mode, and what it is called with: shapes and types of tensors, and plain values."""


@dataclass
class Exports:
    """The programs of modules that a recording could not enter, for the next one."""

    programs: dict[Key, ExportedModel] = field(default_factory=dict)
    _wanted: dict[Key, tuple[Any, Any]] = field(default_factory=dict)
    _failed: set[Mode] = field(default_factory=set)

    def ask(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note that `module` cannot be recorded; if there was a program for that call, that one cannot be either."""
        key = _key(module, args, kwargs)
        if self.programs.pop(key, None) is not None:
            self._failed.add(key[:2])
        elif key[:2] not in self._failed:
            self._wanted[key] = args, kwargs

    def program(self, module: nn.Module, args: Any, kwargs: Any) -> ExportedModel | None:
        """The program for a call of `module`, if there is one."""
        return self.programs.get(_key(module, args, kwargs)) if self.programs else None

    def answer(self) -> bool:
        """Export what was asked for; whether there is any new program."""
        count = len(self.programs)
        for key, (args, kwargs) in self._wanted.items():
            program = exported(key[0], args, kwargs)
            if program is None:
                self._failed.add(key[:2])
            else:
                self.programs[key] = program
        self._wanted.clear()
        return len(self.programs) > count


def _key(module: nn.Module, args: Any, kwargs: Any) -> Key:
    told = ((str(path), _told(leaf)) for path, leaf in leaves_of((args, kwargs)))
    return module, module.training, tuple(told)


def _told(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)


def exported(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> ExportedModel | None:
    """The program of `module` for tensors of these shapes; None where there is none that computes the same.

    It is made without the numbers of any input, so that none of them is in it. The module, random numbers and modes
    are afterwards as before.
    """
    large = any(one.numel() > MOST_ENTRIES for one in tensors_of((args, kwargs)))
    if large or any(isinstance(one, torch.jit.ScriptModule) for one in module.modules()):
        return None  # the tensors of a scripted module are not in the tables that programs share
    device = next((one.device for one in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    given, named = map_leaves((tuple(args), dict(kwargs)), lambda _, leaf: _empty(leaf, device))
    with preserved(module, data=True), _aside():
        try:
            program = torch.export.export(module, given, named, strict=True)
            return None if _enters_modes(program) else _with_own_layers(ExportedModel(program), module)
        except Exception:  # of many kinds: they are about the exporter's ways, and the recorder's reason stands
            return None


def _with_own_layers(program: ExportedModel, module: nn.Module) -> ExportedModel:
    """`program` with the layers of `module` itself where they are the same: they are layers of the graph then."""
    own = dict(module.named_modules())
    for path, layer in list(program.named_modules()):
        if path in own and type(layer) is not nn.Module and _is_same(layer, own[path]):
            program.set_submodule(path, own[path])
    return program


def _is_same(layer: nn.Module, own: nn.Module) -> bool:
    """Whether a layer of a program is one of the model, with the same settings, and no hooks run when it is called."""
    if type(layer) is not type(own) or hooked(own) or layer.extra_repr() != own.extra_repr():
        return False
    tensors = {**layer._parameters, **layer._buffers}
    return all(tensors[name] is one for name, one in {**own._parameters, **own._buffers}.items() if name in tensors)


def _empty(leaf: Any, device: torch.device) -> Any:
    """A tensor like another one, with memory that nobody touches."""
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, Tensor) else leaf


def _enters_modes(program: torch.export.ExportedProgram) -> bool:
    """Whether there are parts without gradients: functions with a backward of their own are, and it would be lost."""
    return any("wrap_with" in str(node.target) for node in program.graph.nodes)


@contextmanager
def _aside() -> Iterator[None]:
    """While it lasts nothing is printed or logged.

    The environment, in which PyTorch names a folder for its compiler, is afterwards as before.
    """
    before = logging.root.manager.disable
    quiet, environment = (redirect_stdout(StringIO()), redirect_stderr(StringIO())), mock.patch.dict(os.environ)
    with quiet[0], quiet[1], environment, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


# Methods of a model's modules that cannot be recorded, such as post-processing: each becomes one step of the graph.
#
# A forward often calls a method of its own that reads the numbers of tensors. The method alone is then opaque, and what
# surrounds it is recorded. The step calls the method on a copy of its module that has no parameters and no buffers.


@dataclass(frozen=True)
class Method:
    """A method of one of the model's modules that is opaque."""

    holder: nn.Module
    name: str
    why: str
    """The line that cannot be recorded, and the error there."""
    layer: OpaqueMethod


class Again(BaseException):
    """The recording must start again, since a method is opaque from now on; no code of a model may catch it."""


@dataclass
class Methods:
    """What of a model is opaque by itself: the same in all of its recordings."""

    found: dict[tuple[str, str], Method]
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    """Methods that were tried in this recording and cannot be one step, with the reason."""

    opaque: frozenset[str] = frozenset()
    """Whole modules that are one step each, by path."""

    def find(self, paths: Mapping[nn.Module, str], error: BaseException) -> tuple[nn.Module, str] | None:
        """The innermost method, of a module in `paths`, that was called when `error` was raised; None for none new."""
        for frame in reversed(list(_frames(error))):
            holder, name = _method_of(frame)
            if holder in paths and name and not {(paths[holder], name)} & (self.found.keys() | self.refused.keys()):
                return holder, name
        return None

    def learn(
        self, error: BaseException | None, paths: Mapping[nn.Module, str], modes: Mapping[nn.Module, bool]
    ) -> None:
        """The method that `find` finds is opaque from now on; the model must be as it was before it was recorded."""
        place = None if error is None else self.find(paths, error)
        if error is None or place is None:
            return  # one was refused
        holder, name = place
        path = paths[holder]
        layer = OpaqueMethod(holder, f"{path}.{name}" if path else name, name, modes)
        self.found[path, name] = Method(holder, name, f"{line_of(error)}: {told(error)}", layer)

    def refuse(self, key: tuple[str, str], why: str) -> None:
        """A method cannot be one step."""
        self.refused[key] = f"{self.found.pop(key).layer.place} cannot be kept unchanged: {why}"

    def tried_in(self, path: str) -> bool:
        """Whether a method of the module at `path`, or of one inside it, was tried as one step."""
        return any(f"{place}.".startswith(f"{path}.") for place, _ in self.found.keys() | self.refused.keys())

    def explained(self, error: CaptureError) -> CaptureError:
        """An error with the reasons of the methods that were tried and cannot be one step."""
        if not self.refused:
            return error
        made = CaptureError(f"{error}. {'; '.join(self.refused.values())}")
        made.__cause__ = error.__cause__
        return made


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames that an error went through, from the outermost."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _method_of(frame: FrameType) -> tuple[Any, str]:
    """The module and the name of the method that a frame runs; None and nothing for any other function."""
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
    """While it lasts, calls of opaque methods are steps of `recorder`."""
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
    """Stands on a module in place of an opaque method while the model is recorded."""

    __slots__ = ("before", "key", "method", "plain", "recorder")  # and no `__dict__`: what it holds is not the module's

    def __init__(self, recorder: Recorder, key: tuple[str, str], method: Method, before: Mapping[str, Any]) -> None:
        self.recorder, self.key, self.method, self.before = recorder, key, method, before
        self.plain = getattr(method.holder, method.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.recorder.active or not any(map(self.recorder.is_hot, tensors_of((args, kwargs)))):
            return self.plain(*args, **kwargs)
        return self.recorder.call_method(self.key, self.method, self.before, args, kwargs)


def keeps_values(holder: nn.Module, before: Mapping[str, Any], recorder: Recorder) -> str:
    """What forward left in a module before one of its methods was called, which a copy does not have; or nothing."""
    now = vars(holder)
    for name in now.keys() | before.keys():
        if now.get(name) is not before.get(name):
            return f"forward sets the attribute {name!r} before"
    if any(recorder.is_hot(one) and id(one) not in recorder.names for one in ModelState(holder).tensors):
        return "forward keeps a tensor that depends on the inputs in the module"
    return ""
