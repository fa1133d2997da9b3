"""Numbers that follow the sizes of the inputs: read from a tensor's shape, or calculated from others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto

from .calls import Operator
from .lowering_site import Site, Value
from .lowering_sizes import Size, leaves


def calculated(site: Site) -> Any:
    """The number, or tuple of numbers, that a call makes; ``None`` if it makes something else."""
    first = site.call.args[0] if site.call.args else None
    if isinstance(first, Value):
        reader = READERS.get(site.call.op)
        return None if reader is None else reader(site, first)
    rule = NUMBERS.get(site.call.op)
    if rule is None:
        return None
    found = leaves([site.call.args, site.call.kwargs])
    if any(isinstance(leaf, Value) for leaf in found) or not any(isinstance(leaf, Size) for leaf in found):
        return None
    return rule(site, *site.call.args)


def calculated_by(site: Site, op: Operator, *numbers: Any) -> Any:
    """What an operator of `NUMBERS` makes of numbers, of which some follow the inputs."""
    return NUMBERS[op](site, *numbers)


def _size(site: Site, x: Value) -> Any:
    axis = site.arg(1, "dim")
    return tuple(x.sizes) if axis is None else x.sizes[axis]


def _attribute(site: Site, x: Value) -> Any:
    return tuple(x.sizes) if site.call.args[1] == "shape" else None


READERS: dict[Operator, Callable[[Site, Value], Any]] = {
    "size": _size,
    getattr: _attribute,
    torch.numel: lambda site, x: site.product(x.sizes),
    "nelement": lambda site, x: site.product(x.sizes),
    len: lambda site, x: x.sizes[0],
    "__len__": lambda site, x: x.sizes[0],
}
"""What reads the shape of a tensor."""


def _two(op_type: str) -> Callable[..., Any]:
    return lambda site, first, second: site.calculated(op_type, first, second)


def _rounded(op_type: str | None, function: Callable[[Any], int]) -> Callable[..., Any]:
    """A fraction as a whole number."""

    def rule(site: Site, number: Any) -> Any:
        if not isinstance(number, Size) or number.whole:
            return number
        name = str(number.name) if op_type is None else site.emit(op_type, str(number.name))
        whole = site.emit("Cast", name, to=TensorProto.INT64)
        return Size(function(number.sample), function(number.twin), whole)

    return rule


def _fraction(site: Site, number: Any) -> Any:
    return site.calculated("Div", number, 1)


def _root(site: Site, number: Any) -> Any:
    return site.calculated("Pow", number, 0.5)


NUMBERS: dict[Operator, Callable[..., Any]] = {
    torch.add: _two("Add"),
    torch.sub: _two("Sub"),
    torch.mul: _two("Mul"),
    torch.floor_divide: _two("FloorDiv"),
    torch.div: _two("Div"),
    torch.remainder: _two("Mod"),
    torch.pow: _two("Pow"),
    torch.neg: lambda site, number: site.calculated("Sub", 0, number),
    **dict.fromkeys((max, torch.sym_max, torch.max), _two("Max")),
    **dict.fromkeys((min, torch.sym_min, torch.min), _two("Min")),
    **dict.fromkeys((int, torch.sym_int, math.trunc), _rounded(None, int)),
    math.floor: _rounded("Floor", math.floor),
    math.ceil: _rounded("Ceil", math.ceil),
    round: _rounded("Round", round),
    **dict.fromkeys((float, torch.sym_float), _fraction),
    math.sqrt: _root,
}
"""What is calculated with numbers."""
