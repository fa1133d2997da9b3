"""Dynamic axes, and the checks of input sizes at the beginning of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node, Proxy

from bnas.passes.errors import InputError

from .structure import Attribute, Path

Allowed = int | tuple[int, int] | tuple[int, int, int, int | None] | None
"""Allowed sizes of an axis: None (any), one size, or a first size and a step; optionally a least and a largest size."""


@dataclass(frozen=True)
class Axis:
    """An axis of the inputs whose size may change."""

    name: str
    """Name of the axis, such as "batch", "height" or "length"."""
    places: tuple[tuple[Path, int], ...]
    """The input tensors that have this axis, by path, and its position in each; all have the same size there."""
    size: int
    """Its size in the example inputs."""
    step: int = 1
    """Allowed sizes differ from `size` by multiples of `step`."""
    shorter: bool = False
    """Whether it is recorded at smaller sizes, because a table of positions may not be longer than the example."""

    apart: bool = False
    """Whether it is recorded without the example's size, because the model takes a short cut at that size (no padding,
    or a table that already has this size)."""

    also: tuple[int, ...] = ()
    """Further sizes to record at: without them, an earlier graph was wrong at these sizes."""

    least: int = field(default=0, compare=False)
    """The smallest allowed size, if it is limited: at smaller ones the model runs other code."""
    most: int | None = field(default=None, compare=False)
    """The largest allowed size, as `least`; None without a limit."""
    why: str = field(default="", compare=False)
    """Why the sizes are limited."""

    def near(self, steps: int) -> int:
        """Return a size some steps above (or below) the example's."""
        return max(1, self.size + (-self.step if self.shorter else self.step) * steps)

    def far(self, times: int) -> int:
        """Return a size far from the example's."""
        return self.stepped(self.size // times if self.shorter else self.size * times)

    def between(self, times: int, quarters: int) -> int:
        """Return a size between the example's and `far(times)`, so many quarters of the way."""
        return self.stepped(self.size + (self.far(times) - self.size) * quarters // 4)

    @property
    def further(self) -> list[int]:
        """The sizes of `also` that are a whole number of steps away from `size`."""
        return [size for size in self.also if self.stepped(size) == size]

    def stepped(self, size: int) -> int:
        """Return the nearest allowed size, not above `size` if possible."""
        found = max(1, self.least, self.size + (size - self.size) // self.step * self.step)
        return found if self.most is None else min(found, self.most)

    @property
    def ends(self) -> str:
        """The limits of the sizes as text; empty without limits."""
        return _ends(self.least, self.most)


@dataclass(frozen=True)
class Sizes:
    """The dynamic axes of the inputs, and why the others are static."""

    axes: tuple[Axis, ...] = ()
    static: Mapping[str, str] = field(default_factory=dict)
    """Static axes by "name[axis]" of the input, with the reason."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dynamic axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def steps(self) -> dict[str, int]:
        """The step of each axis that does not accept every size."""
        return {axis.name: axis.step for axis in self.axes if axis.step > 1}

    @property
    def limits(self) -> dict[str, str]:
        """The limits of the sizes of each axis that has any, as text."""
        return {axis.name: axis.ends for axis in self.axes if axis.ends}

    def axis(self, name: str) -> Axis:
        """Return the dynamic axis called `name`.

        Raises:
            InputError: There is no such axis.
        """
        for one in self.axes:
            if one.name == name:
                return one
        raise InputError(f"there is no dynamic axis {name!r}; there are {', '.join(self.names) or 'none'}")


@dataclass(frozen=True)
class Check:
    """The arguments of `check_sizes` for one input."""

    name: str
    allowed: tuple[Allowed, ...]
    why: tuple[str, ...] = ()
    """For each axis the reason why it is static; empty if unknown."""
    path: tuple[Any, ...] = ()
    """Path of the tensor inside the input: keys and positions, and names of attributes with a dot before them."""
    length: int | None = None
    """Number of entries if the input is a list; None for a tensor."""

    def called_on(self, given: Node) -> tuple[Any, tuple[Any, ...]]:
        """Return the function that checks the input `given`, and its arguments."""
        if self.length is not None:
            return check_length, (given, self.name, self.length, self.path)
        return check_sizes, (given, self.name, self.allowed, self.why, self.path)

    @classmethod
    def of(cls, name: str, allowed: tuple[Allowed, ...], why: tuple[str, ...], path: Path) -> Check:
        """Return the check of the tensor at `path` in the input called `name`."""
        return cls(name, allowed, why, _spelled(path))

    @classmethod
    def of_list(cls, name: str, length: int, path: Path) -> Check:
        """Return the check of the list at `path` in the input called `name`."""
        return cls(name, (), path=_spelled(path), length=length)


def _spelled(path: Path) -> tuple[Any, ...]:
    return tuple(f".{step.name}" if isinstance(step, Attribute) else step for step in path)


def check_sizes(
    given: Any, name: str, allowed: Sequence[Allowed], why: Sequence[str] = (), path: Sequence[Any] = ()
) -> None:
    """Raise unless the shape of an input is one that the graph was captured for.

    Args:
        given: The input, a tensor or with tensors inside.
        name: Its name, for the message.
        allowed: The allowed sizes of each axis.
        why: The reason why each axis is static; may be empty.
        path: The path of the tensor inside the input.

    Raises:
        InputError: The shape is not allowed; names the input, the axis, what came and what is allowed.
    """
    if isinstance(given, Proxy):  # a symbolic trace, as quantization in PyTorch makes: the check stays a node
        given.tracer.create_proxy(
            "call_function", check_sizes, (given, name, tuple(allowed), tuple(why), tuple(path)), {}
        )
        return
    tensor, name = _part(given, name, path)
    if not isinstance(tensor, Tensor):
        raise InputError(f"input {name!r} must be a tensor as in the example, not {type(tensor).__name__}")
    if tensor.ndim != len(allowed):
        raise InputError(f"input {name!r} has {tensor.ndim} axes, expected {len(allowed)}: shape {tuple(tensor.shape)}")
    for axis, (size, may) in enumerate(zip(tensor.shape, allowed, strict=True)):
        if may is None or size == may:
            continue
        if isinstance(may, tuple) and _fits(size, *may):
            continue
        expected = f"{may}" if isinstance(may, int) else _expected(*may)
        reason = f"Reason: {why[axis]}" if axis < len(why) and why[axis] else REMEDY
        raise InputError(f"input {name!r}: axis {axis} has size {size}, expected {expected}. {reason}")


def _fits(size: int, first: int, step: int, least: int = 0, most: int | None = None) -> bool:
    return (size - first) % step == 0 and size >= least and (most is None or size <= most)


def _expected(first: int, step: int, least: int = 0, most: int | None = None) -> str:
    """Return the allowed sizes as text."""
    steps = [f"{first} plus a multiple of {step}"] if step > 1 else []
    return ", ".join([*steps, *filter(None, [_ends(least, most)])])


def _ends(least: int, most: int | None) -> str:
    return ", ".join([*([f"at least {least}"] if least else []), *([] if most is None else [f"at most {most}"])])


def check_length(given: Any, name: str, length: int, path: Sequence[Any] = ()) -> None:
    """Raise unless a list among the inputs has as many entries as in the example.

    Args:
        given: The input.
        name: Its name, for the message.
        length: The number of entries.
        path: The path of the list inside the input.

    Raises:
        InputError: The length differs; names the list, what came and what is allowed.
    """
    if isinstance(given, Proxy):
        given.tracer.create_proxy("call_function", check_length, (given, name, length, tuple(path)), {})
        return
    found, name = _part(given, name, path)
    if not isinstance(found, list | tuple):
        raise InputError(f"input {name!r} must be a list as in the example, not {type(found).__name__}")
    if len(found) != length:
        raise InputError(f"input {name!r} has {len(found)} entries, expected {length} as in the example")


def _part(given: Any, name: str, path: Sequence[Any]) -> tuple[Any, str]:
    """Return the part of an input at `path`, and its name."""
    for step in path:
        try:
            given = getattr(given, step[1:]) if str(step).startswith(".") else given[step]
        except (LookupError, TypeError, AttributeError):
            raise InputError(f"input {name!r} has no part {step!r}: it must be nested as in the example") from None
        name = f"{name}{step}" if str(step).startswith(".") else f"{name}[{step!r}]"
    return given, name


REMEDY = "Create the super-network with an example of that size, or name the axis in `dynamic`"
