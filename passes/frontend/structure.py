"""Nested values: the inputs and outputs of models, with tensors anywhere inside."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]
"""Path to a part of a nested value: keys and positions, and names of attributes as `Attribute`."""


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A step to a part of an object: the attribute called `name`."""

    name: str


class Leaf:
    """Base of bnas's own data classes, which do not count as containers."""

    __slots__ = ()


def parts_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the parts of a container, each with its step; None for a value that is not a container."""
    if isinstance(value, _NO_PARTS):  # a quick check that suffices for most values
        return None
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Leaf):
        return [(Attribute(one.name), getattr(value, one.name)) for one in dataclasses.fields(value)]
    if is_record(value):
        return [(Attribute(name), part) for name, part in vars(value).items()]
    return None


def is_record(value: Any) -> bool:
    """Whether a value is a plain object that only holds tensors and plain values, such as images with their sizes.

    Objects that hold other objects, such as caches of text models, have a life of their own.
    """
    if isinstance(value, Tensor) or not hasattr(value, "__dict__"):
        return False
    kind = type(value)
    if isinstance(value, _NO_RECORDS) or kind.__module__.startswith(_NOT_USERS) or hasattr(kind, "__slots__"):
        return False
    parts = list(vars(value).values())
    return any(map(_has_tensor, parts)) and all(map(_is_simple, parts))


PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, Enum)
"""Types of values, besides tensors, that a graph can return."""

_NO_PARTS = (int, float, str, Tensor, Leaf, type(None), torch.dtype)
_NO_RECORDS = (*PLAIN, Leaf, type, list, tuple, Mapping)
_NOT_USERS = ("torch.", "builtins", "functools", "types", "bnas.")


def _has_tensor(part: Any) -> bool:
    """Whether a part holds a tensor, or a stand-in for a tensor during a recording."""
    if isinstance(part, list | tuple | dict):
        return any(map(_has_tensor, part.values() if isinstance(part, dict) else part))
    return isinstance(part, Tensor | Leaf)


def _is_simple(part: Any) -> bool:
    if isinstance(part, list | tuple | dict):
        return all(map(_is_simple, part.values() if isinstance(part, dict) else part))
    return isinstance(part, (Tensor, Leaf, *PLAIN))


def leaves_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every part of `value` that is not a container, in order, with its path."""
    parts = parts_of(value)
    if parts is None:
        yield path, value
        return
    for step, part in parts:
        yield from leaves_of(part, (*path, step))


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor inside `value`, in order, with repetitions; also tensors inside slices."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, slice):
        for one in (value.start, value.stop, value.step):
            _collect(one, found)
    elif (parts := parts_of(value)) is not None:
        for _, part in parts:
            _collect(part, found)


def holds_tensors(value: Any) -> bool:
    """Whether there is a tensor anywhere inside `value`."""
    return bool(tensors_of(value))


def map_leaves(value: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return `value` with every leaf replaced by ``change(path, leaf)``; containers keep their class."""
    if isinstance(value, slice):
        return slice(*(map_leaves(one, change, path) for one in (value.start, value.stop, value.step)))
    parts = parts_of(value)
    if parts is None:
        return change(path, value)
    return rebuilt(value, [map_leaves(part, change, (*path, step)) for step, part in parts])


def rebuilt(like: Any, parts: list[Any]) -> Any:
    """Return a container of the class of `like` with these `parts`, in the order of `parts_of`."""
    kind = type(like)
    if isinstance(like, Mapping):
        items = dict(zip(like, parts, strict=True))
        if dataclasses.is_dataclass(like):
            return kind(**items)
        return items if kind is dict else kind(items)
    if isinstance(like, list):
        return parts if kind is list else kind(parts)
    if kind is torch.Size:
        return tuple(parts)
    if isinstance(like, tuple):
        return kind(*parts) if hasattr(like, "_fields") else kind(parts)
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        names = [one.name for one in dataclasses.fields(like)]
        return dataclasses.replace(like, **dict(zip(names, parts, strict=True)))
    made = copy.copy(like)
    vars(made).update(zip(vars(like), parts, strict=True))
    return made


def at(value: Any, path: Path) -> Any:
    """Return the part of `value` at `path`."""
    for step in path:
        value = getattr(value, step.name) if isinstance(step, Attribute) else value[step]
    return value


def spelled_path(path: Path, between: str = ".") -> str:
    """Return the steps of a path as one name."""
    return between.join(str(getattr(step, "name", step)) for step in path)


def tensor_name(names: Mapping[Path, str], path: Path) -> str:
    """Return the name of a tensor among the inputs: the name of its argument, from `names`, and its path."""
    return "_".join([names[path[:2]], *([spelled_path(path[2:], "_")] if path[2:] else [])])


# Comparisons of values in recordings.


def equal(left: Any, right: Any) -> bool:
    """Whether two values are equal; NaN equals NaN, and values that cannot be compared must be the same object."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right or (left != left and right != right)
    try:
        return bool(left == right)
    except Exception:  # the values cannot be compared
        return left is right


def same_values(left: Any, right: Any, *, cast: bool = False) -> bool:
    """Whether two values hold equal tensors in the same places; with `cast`, of any floating-point type."""
    a, b = tensors_of(left), tensors_of(right)
    return len(a) == len(b) and all(map(_same_numbers if cast else _same_tensor, a, b))


def _same_numbers(left: Tensor, right: Tensor) -> bool:
    """Whether two tables are equal up to rounding, because a converted model has converted tables."""
    if left.dtype == right.dtype or left.is_meta or not (left.is_floating_point() and right.is_floating_point()):
        return _same_tensor(left, right)
    short = min(left.dtype, right.dtype, key=lambda one: one.itemsize)
    a, b = left.to(short), right.to(short)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def _same_tensor(left: Tensor, right: Tensor) -> bool:
    if left is right:
        return True
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.is_meta or right.is_meta:  # the whole model is on the meta device, without numbers to compare
        return left.is_meta and right.is_meta
    if left.is_floating_point() or left.is_complex():
        return bool(torch.equal(torch.nan_to_num(left), torch.nan_to_num(right)))
    return bool(torch.equal(left, right))
