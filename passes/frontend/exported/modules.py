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
"""A module, its mode, and the arguments of a call: shapes and types of tensors, and plain values."""


@dataclass
class Exports:
    """Programs of modules that could not be recorded; the next recording uses them."""

    programs: dict[Key, ExportedModel] = field(default_factory=dict)
    _wanted: dict[Key, tuple[Any, Any]] = field(default_factory=dict)
    _failed: set[Mode] = field(default_factory=set)

    def ask(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note that `module` cannot be recorded. If the call has a program, the program cannot be recorded either."""
        key = _key(module, args, kwargs)
        if self.programs.pop(key, None) is not None:
            self._failed.add(key[:2])
        elif key[:2] not in self._failed:
            self._wanted[key] = args, kwargs

    def program(self, module: nn.Module, args: Any, kwargs: Any) -> ExportedModel | None:
        """Return the program for a call of `module`, or None."""
        return self.programs.get(_key(module, args, kwargs)) if self.programs else None

    def answer(self) -> bool:
        """Export the requested modules; return whether there is a new program."""
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
    """Return the program of `module` for tensors of these shapes; None if no program computes the same.

    The export does not see the numbers of the inputs, so the program cannot contain them. The module, random numbers
    and modes are restored.
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
        except Exception:  # errors of many kinds from inside the exporter; the recorder's reason tells the user more
            return None


def _with_own_layers(program: ExportedModel, module: nn.Module) -> ExportedModel:
    """Replace layers of `program` by the same layers of `module`, so that the graph calls the model's own layers."""
    own = dict(module.named_modules())
    for path, layer in list(program.named_modules()):
        if path in own and type(layer) is not nn.Module and _is_same(layer, own[path]):
            program.set_submodule(path, own[path])
    return program


def _is_same(layer: nn.Module, own: nn.Module) -> bool:
    """Whether a layer of a program equals a layer of the model: the same settings and tensors, and no hooks."""
    if type(layer) is not type(own) or hooked(own) or layer.extra_repr() != own.extra_repr():
        return False
    tensors = {**layer._parameters, **layer._buffers}
    return all(tensors[name] is one for name, one in {**own._parameters, **own._buffers}.items() if name in tensors)


def _empty(leaf: Any, device: torch.device) -> Any:
    """Return a tensor with shape and type of another one, and uninitialised memory."""
    return torch.empty(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, Tensor) else leaf


def _enters_modes(program: torch.export.ExportedProgram) -> bool:
    """Whether a program has parts without gradients: custom autograd functions are such, and lose their backward."""
    return any("wrap_with" in str(node.target) for node in program.graph.nodes)


@contextmanager
def _limited() -> Iterator[None]:
    """Inside, a graph that grows beyond `MOST_NODES` raises an error."""
    create = Graph.create_node

    def limited(graph: Graph, *args: Any, **kwargs: Any) -> Node:
        if len(graph.nodes) >= MOST_NODES:
            raise CaptureError(f"its program has more than {MOST_NODES} nodes")
        return create(graph, *args, **kwargs)

    with mock.patch.object(Graph, "create_node", limited):
        yield


@contextmanager
def _aside() -> Iterator[None]:
    """Inside, nothing is printed or logged.

    The environment, in which PyTorch notes a folder for its compiler, is restored.
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
