"""Modules that cannot be recorded, each exported alone by `torch.export`: some are ordinary operators to it.

That takes functions of NumPy, assertions about values, and numbers of tensors that are only printed or asserted. Code
that computes with such a number, or makes tensors of a size that depends on one, is exported too, but by operators
that a graph cannot have. `docs/capture.md` has a table.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnas.passes.errors import CaptureError
from bnas.passes.frontend.functions import hooked
from bnas.passes.frontend.state import preserved
from bnas.passes.frontend.structure import leaves_of, map_leaves, tensors_of

from .program import ExportedModel

MOST_ENTRIES = 1 << 28
"""A module that is called with more entries than this in a tensor is not exported."""

MOST_NODES = 2000
"""A module whose program has more nodes than this is not exported: a loop over a batch of 1,009 takes minutes."""

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
    with preserved(module, data=True), _aside(), _limited():
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
def _limited() -> Iterator[None]:
    """While it lasts a graph that grows beyond `MOST_NODES` raises an error."""
    create = Graph.create_node

    def limited(graph: Graph, *args: Any, **kwargs: Any) -> Node:
        if len(graph.nodes) >= MOST_NODES:
            raise CaptureError(f"its program has more than {MOST_NODES} nodes")
        return create(graph, *args, **kwargs)

    with mock.patch.object(Graph, "create_node", limited):
        yield


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
