"""Save and restore everything that a model's forward may change.

Examples are attention modules that keep tables by size or device, libraries that cache masks, and users' activations
for a plot. After a capture, successful or not, everything is as before.
"""

from __future__ import annotations

import copy
import sys
import threading
import types
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pickle import PickleError
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from bnas.passes.errors import CopyError
from bnas.passes.generators import put_back, python_numbers, seed_python

from .structure import leaves_of

_NEVER = (
    Tensor,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    Graph,
    torch.dtype,
    torch.device,
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    tuple,
    frozenset,
)
"""Values that have no state of their own to be put back; tuples are looked into."""


class ModelState:
    """A snapshot of the attributes of all modules of a model, and of the objects that they refer to.

    Containers (dicts, lists, sets, deques) and plain objects are saved by content, tensors by identity, and functions
    and methods (such as hooks) by their closures. With `data`, tensors are also saved by value, because some layers
    rescale their own weights in forward.
    """

    def __init__(self, model: nn.Module, *, data: bool = False) -> None:
        self._model = model
        self._held: list[tuple[Any, Any]] = []
        self._objects: list[tuple[Any, dict[str, Any]]] = []
        self._values: list[tuple[Tensor, Tensor, Tensor]] = []
        self._seen: set[int] = set()
        self._data = data
        self.tensors: list[Tensor] = []
        """All tensors that it holds anywhere."""
        for module in model.modules():
            self._visit(module)
        self.devices = {one.device for one in self.tensors}
        """Those that it computes on."""

    def restore(self) -> None:
        """Put everything back."""
        for owner, attributes in self._objects:
            if not _same(owner.__dict__, attributes):
                owner.__dict__.clear()
                owner.__dict__.update(attributes)
        for container, content in self._held:
            _refill(container, content)
        for tensor, memory, value in self._values:
            if tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
            if not torch.equal(memory, value):
                memory.copy_(value)

    def changed(self) -> list[str]:
        """The names of what the modules hold now in place of, or inside of, what they held; modes do not count.

        Parameters and buffers that were written into do not count either: they are part of a model's graph.
        """
        names = {id(module): name for name, module in self._model.named_modules()}
        own = {id(one) for one in (*self._model.parameters(), *self._model.buffers())}
        other = {id(container) for container, content in self._held if not _holds(container, content)}
        other |= {id(one) for one, _, value in self._values if id(one) not in own and not torch.equal(one, value)}
        found = []
        for owner, before in self._objects:
            now = owner.__dict__
            keys = [key for key in {**before, **now} if key != "training" and now.get(key) is not before.get(key)]
            keys += [key for key, value in before.items() if id(value) in other]
            found += [".".join(filter(None, (names.get(id(owner), type(owner).__name__), key))) for key in keys]
        return found

    def seed(self) -> None:
        """Seed the generators of Python, of NumPy, of the CPU and of `devices`.

        `torch.manual_seed` would seed those of all GPUs, which nobody puts back.
        """
        seed_python()
        torch.default_generator.manual_seed(0)
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.default_generators[device.index].manual_seed(0)
            elif device.type in ("mps", "xpu"):
                torch.get_device_module(device.type).manual_seed(0)

    def _visit(self, value: Any) -> None:
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if id(one) in self._seen:
                continue
            self._seen.add(id(one))
            waiting += self._remember(one)

    def _remember(self, value: Any) -> list[Any]:
        """Remember one value; what is inside it and must be looked at too."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
            if self._data and not value.is_meta:
                self._values.append((value, value.detach(), value.detach().clone()))
            return []
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, types.FunctionType):  # a hook, say: the list that it appends to is in its closure
            return [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        if isinstance(value, types.MethodType):
            return [value.__self__]
        if isinstance(value, MutableMapping) and type(value).__module__ in ("builtins", "collections"):
            self._held.append((value, dict(value)))
            return list(value.values())
        if isinstance(value, list | deque | set):
            self._held.append((value, list(value)))
            return list(value)
        if isinstance(value, _NEVER) or not isinstance(getattr(value, "__dict__", None), dict):
            return []
        self._objects.append((value, dict(value.__dict__)))
        return list(value.__dict__.values())


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable that is not set yet
        return False


def _same(now: Any, before: Any) -> bool:
    """Whether two mappings hold the very same objects under the same keys, in the same order."""
    return len(now) == len(before) and all(
        (a is b or (type(a) is type(b) and a == b)) and now[a] is before[b] for a, b in zip(now, before, strict=True)
    )


def _holds(container: Any, content: Any) -> bool:
    """Whether a container holds just what it held."""
    if isinstance(container, MutableMapping):
        return _same(container, content)
    return len(container) == len(content) and all(a is b for a, b in zip(container, content, strict=True))


def _refill(container: Any, content: Any) -> None:
    """Give a container back what it held, if it holds anything else."""
    if _holds(container, content):
        return
    container.clear()
    if isinstance(container, MutableMapping | set):
        container.update(content)
    else:
        container.extend(content)


# Deeply nested models.

FRAMES = 4
"""What is done with a model calls so many times as many functions at each level of it as its own forward does."""


@dataclass
class _Deeper:
    """How many are inside of `deeper` now, in all threads, and the limit that they found."""

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
    """While it lasts, functions may call one another `FRAMES` times as deep as Python's recursion limit says.

    What Python can call at all can be captured and copied then.
    """
    _DEEPER.change(1)
    try:
        yield
    finally:
        _DEEPER.change(-1)


def deep_copy(model: nn.Module, instead: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """A deep copy of a model, also of one that keeps tensors with a history: norms of weights, or attention for a plot.

    In the copy these are detached, wherever they are kept; in the model they stay. `instead` has what the copy holds
    in place of an object, by the object's identity.
    """
    copies: dict[int, Any] = {id(one): one.detach().clone() for one in ModelState(model).tensors if not one.is_leaf}
    with copying(model), torch.no_grad():  # a ScriptModule clones its parameters: with gradients they were no leaves
        made = copy.deepcopy(model, {**copies, **instead})
    _require_gradients(model, made)
    return made


@contextmanager
def copying(model: nn.Module) -> Iterator[None]:
    """While it lasts, `model` is copied, however deep it is.

    Raises:
        CopyError: it keeps an object that cannot be copied.
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
    """The first attribute of a module of `model` that cannot be copied, with its type."""
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
    """Give the parameters of ScriptModules, which a copy without gradients does not keep, their `requires_grad`."""
    for own, other in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(own, torch.jit.ScriptModule):
            for before, after in zip(own.parameters(), other.parameters(), strict=True):
                after.requires_grad_(before.requires_grad)


def set_modes(modes: Mapping[nn.Module, bool], training: bool = True) -> None:
    """Put every module into the mode that `modes` has for it, or into evaluation mode unless `training`."""
    for module, mode in modes.items():
        module.training = mode and training


@contextmanager
def preserved(model: nn.Module, inputs: Any = (), *, data: bool = False) -> Iterator[ModelState]:
    """While it lasts the model may be run on `inputs` in any mode; afterwards all is as it was, random states too."""
    state = ModelState(model, data=data)
    state.devices |= {one.device for _, one in leaves_of(inputs) if isinstance(one, Tensor)}
    own = sorted({device.index for device in state.devices if device.type == "cuda"})
    numbers = python_numbers()
    with torch.random.fork_rng(devices=own):
        try:
            yield state
        finally:
            state.restore()
            put_back(numbers)
