"""Save and restore everything that a model's forward may change.

Examples are attention modules that keep tables by size or device, libraries that cache masks, and users' activations
for a plot. After a capture, successful or not, everything is as before.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.modules.batchnorm import _BatchNorm

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
"""Types of values without a state to restore; the parts of tuples are visited."""


class ModelState:
    """A snapshot of the attributes of all modules of a model, and of the objects that they refer to.

    Containers (dicts, lists, sets, deques) and plain objects are saved by content, tensors by identity, and functions
    and methods (such as hooks) by their closures and defaults. With `data`, tensors are also saved by value, because
    some layers rescale their own weights in forward. `others` are objects that count as held by the model; what `known`
    has seen is left out.
    """

    def __init__(
        self, model: nn.Module, others: Iterable[Any] = (), *, known: ModelState | None = None, data: bool = False
    ) -> None:
        self._model = model
        self._held: list[tuple[Any, Any]] = []
        self._objects: list[tuple[Any, dict[str, Any]]] = []
        self._values: list[tuple[Tensor, Tensor, Tensor]] = []
        self._seen: set[int] = set() if known is None else set(known._seen)
        self._data = data
        self.tensors: list[Tensor] = []
        """All tensors that the model holds anywhere."""
        self.functions: list[types.FunctionType] = []
        """All functions that the model holds anywhere, such as hooks."""
        for module in (*model.modules(), *others):
            self._visit(module)
        self.devices = {one.device for one in self.tensors}
        """The devices of its tensors."""

    def restore(self) -> None:
        """Restore all saved values."""
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

    def replace(self, instead: Mapping[int, Any]) -> None:
        """Replace objects, given by their identity, in all attributes, dicts and lists."""
        tables = [owner.__dict__ for owner, _ in self._objects] + [held for held, _ in self._held]
        for table in tables:
            parts = list(table.items()) if isinstance(table, MutableMapping) else list(enumerate(table))
            for key, value in parts if not isinstance(table, set) else ():
                if id(value) in instead:
                    table[key] = instead[id(value)]

    def changed(self) -> list[str]:
        """Return the names of attributes whose object or content changed, except modes.

        Parameters and buffers that were written into do not count: they are part of the graph.
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

        `torch.manual_seed` would also seed all GPUs, whose generators are not restored.
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
        """Save one value; return the values inside it, which must be visited too."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
            if self._data and not value.is_meta:
                self._values.append((value, value.detach(), value.detach().clone()))
            return []
        if isinstance(value, types.FunctionType):
            self.functions.append(value)
        elif _is_mapping(value):
            self._held.append((value, dict(value)))
        elif isinstance(value, list | deque | set):
            self._held.append((value, list(value)))
        elif _has_attributes(value):
            self._objects.append((value, dict(value.__dict__)))
        return inside(value)


def inside(value: Any) -> list[Any]:
    """Return the values inside a value: parts of a container, attributes of an object, closure of a function."""
    if isinstance(value, tuple | list | deque | set):
        return list(value)
    if isinstance(value, types.FunctionType):  # a hook, say: the list that it appends to is in its closure
        around = [cell.cell_contents for cell in value.__closure__ or () if is_set(cell)]
        return [*around, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if _is_mapping(value):
        return list(value.values())
    return list(value.__dict__.values()) if _has_attributes(value) else []


def _is_mapping(value: Any) -> bool:
    return isinstance(value, MutableMapping) and type(value).__module__ in ("builtins", "collections")


def _has_attributes(value: Any) -> bool:
    """Whether a value is an object whose attributes may change."""
    known = isinstance(value, (*_NEVER, types.MethodType))
    return not known and isinstance(getattr(value, "__dict__", None), dict)


def is_set(cell: types.CellType) -> bool:
    """Whether a variable of a closure has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _same(now: Any, before: Any) -> bool:
    """Whether two mappings hold the very same objects under the same keys, in the same order."""
    return len(now) == len(before) and all(
        (a is b or (type(a) is type(b) and a == b)) and now[a] is before[b] for a, b in zip(now, before, strict=True)
    )


def _holds(container: Any, content: Any) -> bool:
    """Whether a container has its saved content."""
    if isinstance(container, MutableMapping):
        return _same(container, content)
    return len(container) == len(content) and all(a is b for a, b in zip(container, content, strict=True))


def _refill(container: Any, content: Any) -> None:
    """Restore the saved content of a container, if it differs."""
    if _holds(container, content):
        return
    container.clear()
    if isinstance(container, MutableMapping | set):
        container.update(content)
    else:
        container.extend(content)


def set_modes(modes: Mapping[nn.Module, bool], training: bool = True) -> None:
    """Put every module into the mode that `modes` has for it, or into evaluation mode unless `training`."""
    for module, mode in modes.items():
        module.training = mode and training


def with_statistics(model: nn.Module) -> list[_BatchNorm]:
    """Return the layers of a model that keep running batch statistics."""
    return [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]


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
