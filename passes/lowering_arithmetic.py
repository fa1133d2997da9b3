"""Lowering of element-wise arithmetic, comparisons, choices and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .lowering_builder import onnx_type
from .lowering_site import Rule, Site, Value, register_lowering

UNARY: dict[Callable[..., Any], str] = {
    torch.neg: "Neg",
    torch.exp: "Exp",
    torch.log: "Log",
    torch.sqrt: "Sqrt",
    torch.abs: "Abs",
    torch.erf: "Erf",
    torch.sin: "Sin",
    torch.cos: "Cos",
    torch.floor: "Floor",
    torch.ceil: "Ceil",
    torch.round: "Round",
    torch.sign: "Sign",
    torch.reciprocal: "Reciprocal",
    torch.logical_not: "Not",
    torch.bitwise_not: "Not",
}
"""Operators of one tensor that ONNX has too."""

BINARY: dict[Callable[..., Any], str] = {
    torch.add: "Add",
    torch.sub: "Sub",
    torch.mul: "Mul",
    torch.pow: "Pow",
    torch.minimum: "Min",
    torch.maximum: "Max",
    torch.logical_and: "And",
    torch.logical_or: "Or",
    torch.bitwise_and: "And",
    torch.bitwise_or: "Or",
}
"""Operators of two tensors, or of a tensor and a number, that ONNX has too."""

COMPARISONS: dict[Callable[..., Any], str] = {
    torch.eq: "Equal",
    torch.lt: "Less",
    torch.le: "LessOrEqual",
    torch.gt: "Greater",
    torch.ge: "GreaterOrEqual",
}


def unary(op_type: str) -> Rule:
    """The rule that writes an operator of one tensor as `op_type`, in the dtype that PyTorch gives the result."""
    return lambda site: site.emit(op_type, site.operand(site.x, site.result.dtype))


def binary(op_type: str) -> Rule:
    """The rule that writes an operator of two operands as `op_type`, in the dtype that PyTorch gives the result."""

    def rule(site: Site) -> str:
        first, second = operands(site, site.result.dtype)
        alpha = site.arg(2, "alpha", 1)
        if alpha != 1:
            second = site.emit("Mul", second, site.operand(alpha, site.result.dtype))
        return site.emit(op_type, first, second)

    return rule


def comparison(op_type: str) -> Rule:
    """The rule that writes a comparison as `op_type`, in the dtype to which PyTorch promotes the operands."""
    return lambda site: site.emit(op_type, *operands(site, promoted(site)))


def operands(site: Site, dtype: torch.dtype) -> tuple[str, str]:
    """Both operands as ONNX names of values of `dtype`."""
    return site.operand(site.arg(0, "input"), dtype), site.operand(site.arg(1, "other", site.arg(1, "exponent")), dtype)


def promoted(site: Site) -> torch.dtype:
    """The dtype in which PyTorch computes with both operands."""
    given = [site.arg(0, "input"), site.arg(1, "other")]
    return torch.result_type(*(one.tensor if isinstance(one, Value) else one for one in given))


for _op, _op_type in UNARY.items():
    register_lowering(_op)(unary(_op_type))
for _op, _op_type in BINARY.items():
    register_lowering(_op)(binary(_op_type))
for _op, _op_type in COMPARISONS.items():
    register_lowering(_op)(comparison(_op_type))


@register_lowering(torch.div)
def divide(site: Site) -> str:
    """True division; rounding modes are refused."""
    if site.arg(2, "rounding_mode") is not None:
        raise site.refuse("divides with a rounding mode")
    return site.emit("Div", *operands(site, site.result.dtype))


@register_lowering(torch.rsub)
def subtract_from(site: Site) -> str:
    """``other - alpha * input``."""
    first, second = operands(site, site.result.dtype)
    alpha = site.arg(2, "alpha", 1)
    if alpha != 1:
        first = site.emit("Mul", first, site.operand(alpha, site.result.dtype))
    return site.emit("Sub", second, first)


@register_lowering(torch.ne)
def not_equal(site: Site) -> str:
    """The opposite of equal."""
    return site.emit("Not", site.emit("Equal", *operands(site, promoted(site))))


@register_lowering(torch.rsqrt)
def reciprocal_root(site: Site) -> str:
    """One over the root."""
    return site.emit("Reciprocal", site.emit("Sqrt", site.operand(site.x, site.result.dtype)))


@register_lowering(torch.square)
def square(site: Site) -> str:
    """A value times itself."""
    return site.emit("Mul", site.x, site.x)


@register_lowering(torch.log1p)
def log_one_plus(site: Site) -> str:
    """The logarithm of one plus the value, less exact than PyTorch's close to zero."""
    return site.emit("Log", site.emit("Add", site.x, site.operand(1, site.result.dtype)))


@register_lowering(torch.clamp, torch.clamp_min, torch.clamp_max)
def clamp(site: Site) -> str:
    """Numbers become bounds of one Clip; tensors a Max and a Min, in PyTorch's order."""
    only_max = site.call.op is torch.clamp_max
    low = None if only_max else site.arg(1, "min")
    high = site.arg(1, "max") if only_max else site.arg(2, "max")
    return clip(site, low, high)


def clip(site: Site, low: Any, high: Any) -> str:
    """The first argument between `low` and `high`: numbers, tensors or ``None``."""
    dtype = site.result.dtype
    bounds = [None if bound is None else site.operand(bound, dtype) for bound in (low, high)]
    if not isinstance(low, Value) and not isinstance(high, Value):
        return site.emit("Clip", site.operand(site.x, dtype), *bounds)
    raised = site.operand(site.x, dtype) if low is None else site.emit("Max", site.operand(site.x, dtype), bounds[0])
    return raised if high is None else site.emit("Min", raised, bounds[1])


@register_lowering(torch.where)
def where(site: Site) -> str:
    """A choice between two operands by a condition."""
    dtype = site.result.dtype
    chosen = site.operand(site.arg(1, "input"), dtype), site.operand(site.arg(2, "other"), dtype)
    return site.emit("Where", site.operand(site.arg(0, "condition"), torch.bool), *chosen)


@register_lowering(torch.masked_fill)
def masked_fill(site: Site) -> str:
    """A number wherever the mask is set."""
    filled = site.operand(site.arg(2, "value"), site.result.dtype)
    return site.emit("Where", site.operand(site.value(1, "mask"), torch.bool), filled, site.x)


@register_lowering("to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "bool")
def cast(site: Site) -> str:
    """The value in another dtype."""
    return site.emit("Cast", site.x, to=onnx_type(site.result.dtype, site.scope))


@register_lowering(torch.clone, torch.detach, "contiguous")
def same(site: Site) -> str:
    """The value itself: memory and gradients mean nothing in ONNX."""
    return site.name(site.x)
