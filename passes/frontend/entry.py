"""The sizes that a graph takes, checked where it is entered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Proxy

from bnas.passes.errors import InputError

from .structure import Path

Allowed = int | tuple[int, int] | None
"""A size of an axis: any (None), one, or a first one and the step to the next ones."""


@dataclass(frozen=True)
class Axis:
    """An axis of the inputs whose size may change."""

    name: str
    """Such as "batch", "height" or "length"."""
    places: tuple[tuple[Path, int], ...]
    """The tensors among the inputs that have it, by their path, and where: all have the same size there."""
    size: int
    """Its size in the example inputs."""
    step: int = 1
    """Sizes may differ from `size` by multiples of it."""


@dataclass(frozen=True)
class Sizes:
    """Which axes of the inputs are dynamic, and why others are not."""

    axes: tuple[Axis, ...] = ()
    static: Mapping[str, str] = field(default_factory=dict)
    """Axes that are not, by "name[axis]" of the input, with the reason."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the dynamic axes."""
        return tuple(axis.name for axis in self.axes)

    def axis(self, name: str) -> Axis:
        """The dynamic axis called `name`.

        Raises:
            InputError: there is none.
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
    why: str = ""


def check_sizes(tensor: Tensor, name: str, allowed: Sequence[Allowed], why: str = "") -> None:
    """Raise unless the shape of an input is one that the graph was captured for.

    Args:
        tensor: the input.
        name: its name, for the message.
        allowed: for each axis what is allowed.
        why: the reasons for the axes that are static.

    Raises:
        InputError: names the input, the axis, what came and what is allowed.
    """
    if isinstance(tensor, Proxy):  # a saved module is loaded by a symbolic trace of it: the check stays a node
        tensor.tracer.create_proxy("call_function", check_sizes, (tensor, name, tuple(allowed), why), {})
        return
    if tensor.ndim != len(allowed):
        raise InputError(f"input {name!r} has {tensor.ndim} axes, expected {len(allowed)}: shape {tuple(tensor.shape)}")
    for axis, (size, may) in enumerate(zip(tensor.shape, allowed, strict=True)):
        if may is None or size == may:
            continue
        if isinstance(may, tuple) and (size - may[0]) % may[1] == 0:
            continue
        expected = f"{may}" if isinstance(may, int) else f"{may[0]} plus a multiple of {may[1]}"
        raise InputError(f"input {name!r}: axis {axis} has size {size}, expected {expected}. {why or REMEDY}".rstrip())


REMEDY = "Make the super-network with an example of that size, or name the axis in `dynamic`"
