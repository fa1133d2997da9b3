"""Operators on sizes: numbers read from the shape of a tensor, or computed from other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import Size, Value, leaves

from .aten import renamed
from .record import NumberRule, Operator
from .registry import OPERATORS


def calculated(site: Site) -> Any:
    """The number, or tuple of numbers, that a call makes; ``None`` if it makes something else."""
    rule = OPERATORS.of(site.call.op).number
    return None if rule is None else rule(site, *site.call.args)


def _of_tensor(reader: Callable[[Site, Value], Any]) -> NumberRule:
    """The rule of an operator that reads the shape of a tensor."""
    return lambda site, first=None, *_: reader(site, first) if isinstance(first, Value) else None


def _of_numbers(rule: NumberRule) -> NumberRule:
    """The rule for numbers of which one is a size, and for nothing else."""

    def found(site: Site, *numbers: Any) -> Any:
        given = leaves([list(numbers), dict(site.call.kwargs)])
        plain = any(isinstance(one, Value) for one in given) or not any(isinstance(one, Size) for one in given)
        return None if plain else rule(site, *numbers)

    return found


def _size(site: Site, x: Value) -> Any:
    axis = site.arg(1, "dim")
    return tuple(x.sizes) if axis is None else x.sizes[axis]


def _count(site: Site, x: Value) -> Any:
    return site.product(x.sizes)


def _rows(site: Site, x: Value) -> Any:
    return x.sizes[0]


shape_read = _of_tensor(lambda site, x: tuple(x.sizes) if site.call.args[1] == "shape" else None)
"""Reads ``x.shape``."""


def of_two(op_type: str) -> NumberRule:
    """The rule that computes with two numbers by `op_type`."""
    return _of_numbers(lambda site, first, second: site.calculated(op_type, first, second))


negative_number = _of_numbers(lambda site, number: site.calculated("Sub", 0, number))
"""``-number``."""


def _rounded(op_type: str | None, function: Callable[[Any], int]) -> NumberRule:
    """A fraction as a whole number."""

    def rule(site: Site, number: Any) -> Any:
        if not isinstance(number, Size) or number.whole:
            return number
        name = str(number.name) if op_type is None else site.emit(op_type, str(number.name))
        whole = site.emit("Cast", name, to=TensorProto.INT64)
        return Size(function(number.sample), function(number.twin), whole)

    return rule


floor = _of_numbers(_rounded("Floor", math.floor))
"""Rounds down."""

RECORDS = (
    Operator("size", number=_of_tensor(_size), aten={"sym_size": renamed(Tensor.size)}),
    Operator("stride", aten={"sym_stride": renamed(Tensor.stride)}),
    Operator(
        torch.numel, spellings=("nelement",), number=_of_tensor(_count), aten={"sym_numel": renamed(Tensor.numel)}
    ),
    Operator(len, spellings=("__len__",), number=_of_tensor(_rows)),
    Operator(max, spellings=(torch.sym_max,), number=of_two("Max")),
    Operator(min, spellings=(torch.sym_min,), number=of_two("Min")),
    Operator(int, spellings=(torch.sym_int, math.trunc), number=_of_numbers(_rounded(None, int))),
    Operator(math.floor, number=floor),
    Operator(math.ceil, number=_of_numbers(_rounded("Ceil", math.ceil))),
    Operator(round, number=_of_numbers(_rounded("Round", round))),
    Operator(
        float,
        spellings=(torch.sym_float,),
        number=_of_numbers(lambda site, number: site.calculated("Div", number, 1)),
    ),
    Operator(math.sqrt, number=_of_numbers(lambda site, number: site.calculated("Pow", number, 0.5))),
)
