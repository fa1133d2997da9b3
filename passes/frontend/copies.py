"""Deep copies of models, however deeply nested, with hooks and replaced methods that belong to the copy."""

from __future__ import annotations

import copy
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pickle import PickleError
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.errors import CopyError

from .state import ModelState, inside, is_set

FRAMES = 4
"""Captures and copies call at most this many times as many functions per level of nested modules as forward does."""


@dataclass
class _Deeper:
    """Number of threads inside `deeper`, and the recursion limit before the first of them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    limit: int = 0

    def change(self, by: int) -> None:
        with self.lock:
            if not self.inside:
                self.limit = sys.getrecursionlimit()
            self.inside += by
            sys.setrecursionlimit(FRAMES * self.limit if self.inside else self.limit)


_DEEPER = _Deeper()


@contextmanager
def deeper() -> Iterator[None]:
    """Inside, functions may call one another `FRAMES` times as deep as Python's recursion limit says.

    So every model that Python can run can be captured and copied.
    """
    _DEEPER.change(1)
    try:
        yield
    finally:
        _DEEPER.change(-1)


def deep_copy(model: nn.Module, instead: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """Return a deep copy of a model, which may keep tensors with a history, such as norms of weights or attention maps.

    The copy has detached copies of such tensors; the model keeps its own. `instead` maps the identity of an object to
    the object that takes its place in the copy. Functions that read tensors, such as hooks, are copied as well; see
    `own_functions`.
    """
    copies: dict[int, Any] = {id(one): one.detach().clone() for one in ModelState(model).tensors if not one.is_leaf}
    memo = {**copies, **instead}
    with copying(model), torch.no_grad():  # a ScriptModule clones its parameters: with gradients they were no leaves
        made = copy.deepcopy(model, memo)
        own_functions(model, made, memo)
    _require_gradients(model, made)
    return made


def own_functions(model: nn.Module, made: nn.Module, memo: dict[int, Any]) -> None:
    """Replace the functions that read tensors in `made`, a deep copy of `model` by `memo`, by copies of their own.

    Python's deep copy shares functions. A hook that reads a module of `model` would read the same module from the copy,
    and a replaced ``forward`` would run the module of `model`. In the copied functions, closures and defaults hold
    copies. Values that cannot be copied stay shared.
    """
    state = ModelState(model)
    shared = [one for one in state.functions if _reads_tensors(one)]
    cells = {id(cell): (cell, types.CellType()) for one in shared for cell in one.__closure__ or ()}
    own = {id(one): _with_cells(one, tuple(cells[id(cell)][1] for cell in one.__closure__ or ())) for one in shared}
    for cell, new in cells.values():
        if is_set(cell):
            held = cell.cell_contents
            new.cell_contents = own[id(held)] if id(held) in own else _copied_or_shared(held, memo)
    for one in own.values():
        one.__defaults__ = _copied_or_shared(one.__defaults__, memo)
        one.__kwdefaults__ = _copied_or_shared(one.__kwdefaults__, memo)
    if own:
        ModelState(made, own.values(), known=state).replace(own)


def _reads_tensors(function: types.FunctionType) -> bool:
    """Whether the variables around a function, or its defaults, hold a module or a tensor, somewhere inside."""
    waiting, seen = inside(function), set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, nn.Module | Tensor):
            return True
        if id(one) not in seen:
            seen.add(id(one))
            waiting += inside(one)
    return False


def _with_cells(function: types.FunctionType, cells: tuple[types.CellType, ...]) -> types.FunctionType:
    """Return the same function with another closure."""
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    made.__dict__.update(function.__dict__)
    return made


def _copied_or_shared(value: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy of a value, by `memo`; the value itself if Python cannot copy it, such as an open file."""
    tried = dict(memo)
    try:
        made = copy.deepcopy(value, tried)
    except Exception:
        return value
    memo.update(tried)
    return made


@contextmanager
def copying(model: nn.Module) -> Iterator[None]:
    """Inside, `model` may be copied, however deeply it is nested.

    Raises:
        CopyError: The model keeps an object that cannot be copied.
    """
    try:
        with deeper():
            yield
    except (TypeError, NotImplementedError, PickleError) as error:
        place = _not_copied(model)
        if place is None:
            raise
        raise CopyError(
            f"the model cannot be copied: {place} ({error}). Keep a value that copy.deepcopy can copy there, such as a "
            "list in place of the keys of a dict, or make it when forward needs it"
        ) from error


def _not_copied(model: nn.Module) -> str | None:
    """Return the first attribute of a module of `model` that cannot be copied, with its type."""
    modules, state = dict(model.named_modules()), ModelState(model)
    same = {id(one): one for one in (*modules.values(), *state.tensors)}
    for name, module in modules.items():
        for key, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(same))
            except Exception:
                return f"{'.'.join(filter(None, (name, key)))} of {type(module).__name__} is a {type(value).__name__}"
    return None


def _require_gradients(model: nn.Module, copied: nn.Module) -> None:
    """Restore `requires_grad` of the parameters of ScriptModules, which a copy under `torch.no_grad` loses."""
    for own, other in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(own, torch.jit.ScriptModule):
            for before, after in zip(own.parameters(), other.parameters(), strict=True):
                after.requires_grad_(before.requires_grad)
