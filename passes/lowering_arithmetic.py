"""Lowering of element-wise arithmetic, comparisons, choices and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .lowering_builder import onnx_type
from .lowering_site import Rule, Site, Value, register_lowering
from .lowering_sizes import Size

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
    torch.tan: "Tan",
    torch.asin: "Asin",
    torch.acos: "Acos",
    torch.atan: "Atan",
    torch.sinh: "Sinh",
    torch.cosh: "Cosh",
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
    torch.logical_xor: "Xor",
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
    known = (one.sample if isinstance(one, Size) else one for one in given)
    return torch.result_type(*(one.tensor if isinstance(one, Value) else one for one in known))


for _op, _op_type in UNARY.items():
    register_lowering(_op)(unary(_op_type))
for _op, _op_type in BINARY.items():
    register_lowering(_op)(binary(_op_type))
for _op, _op_type in COMPARISONS.items():
    register_lowering(_op)(comparison(_op_type))


BITWISE = {torch.bitwise_and: "And", torch.bitwise_or: "Or", torch.bitwise_xor: "Xor"}
"""Operators of bits: for bools ONNX has others than for integers."""


@register_lowering(*BITWISE)
def bitwise(site: Site) -> str:
    """Bit by bit."""
    op_type, dtype = BITWISE[site.call.op], site.result.dtype  # type: ignore[index]
    return site.emit(op_type if dtype == torch.bool else f"Bitwise{op_type}", *operands(site, dtype))


@register_lowering(torch.bitwise_not)
def bitwise_not(site: Site) -> str:
    """Every bit turned round."""
    return site.emit("Not" if site.result.dtype == torch.bool else "BitwiseNot", site.x)


@register_lowering(torch.isnan, torch.isinf)
def is_no_number(site: Site) -> str:
    """No number, or infinite."""
    return site.emit("IsNaN" if site.call.op is torch.isnan else "IsInf", site.x)


@register_lowering(torch.isfinite)
def is_finite(site: Site) -> str:
    """Neither infinite nor no number."""
    return site.emit("Not", site.emit("Or", site.emit("IsNaN", site.x), site.emit("IsInf", site.x)))


@register_lowering(torch.div)
def divide(site: Site) -> str:
    """True division, or rounded down or towards zero."""
    mode = site.arg(2, "rounding_mode")
    first, second = operands(site, site.result.dtype)
    if mode == "floor":
        return floored(site, first, second)
    quotient = site.emit("Div", first, second)  # of integers ONNX cuts the fraction off
    return truncated(site, quotient) if mode == "trunc" and site.result.dtype.is_floating_point else quotient


@register_lowering(torch.floor_divide)
def floor_divide(site: Site) -> str:
    """Division rounded down."""
    return floored(site, *operands(site, site.result.dtype))


def floored(site: Site, first: str, second: str) -> str:
    """The quotient rounded down."""
    if site.result.dtype.is_floating_point:
        return site.emit("Floor", site.emit("Div", first, second))
    return site.emit("Div", site.emit("Sub", first, site.emit("Mod", first, second)), second)


def truncated(site: Site, source: str) -> str:
    """Rounded towards zero."""
    return site.emit("Mul", site.emit("Sign", source), site.emit("Floor", site.emit("Abs", source)))


@register_lowering(torch.trunc)
def trunc(site: Site) -> str:
    """Rounded towards zero."""
    return truncated(site, site.name(site.x))


@register_lowering(torch.remainder)
def remainder(site: Site) -> str:
    """What is left of a division rounded down: it has the sign of the divisor."""
    first, second = operands(site, site.result.dtype)
    if not site.result.dtype.is_floating_point:
        return site.emit("Mod", first, second)
    whole = site.emit("Floor", site.emit("Div", first, second))
    return site.emit("Sub", first, site.emit("Mul", whole, second))


@register_lowering(torch.fmod)
def fmod(site: Site) -> str:
    """What is left of a division rounded towards zero: it has the sign of the dividend."""
    return site.emit("Mod", *operands(site, site.result.dtype), fmod=1)


@register_lowering(torch.log2, torch.log10)
def other_logarithm(site: Site) -> str:
    """The logarithm to base 2 or 10."""
    factor = 1 / math.log(2 if site.call.op is torch.log2 else 10)
    return site.emit("Mul", site.emit("Log", site.x), site.operand(factor, site.result.dtype))


@register_lowering(torch.expm1)
def exp_minus_one(site: Site) -> str:
    """The exponential minus one, less exact than PyTorch's close to zero."""
    return site.emit("Sub", site.emit("Exp", site.x), site.operand(1, site.result.dtype))


@register_lowering(torch.exp2)
def power_of_two(site: Site) -> str:
    """Two to the power of the value."""
    return site.emit("Pow", site.operand(2, site.result.dtype), site.operand(site.x, site.result.dtype))


@register_lowering(torch.addcmul, torch.addcdiv)
def add_product(site: Site) -> str:
    """A value plus a multiple of a product or a quotient."""
    op_type, dtype = "Mul" if site.call.op is torch.addcmul else "Div", site.result.dtype
    product = site.emit(
        op_type, site.operand(site.arg(1, "tensor1"), dtype), site.operand(site.arg(2, "tensor2"), dtype)
    )
    factor = site.call.kwargs.get("value", 1)
    product = product if factor == 1 else site.emit("Mul", product, site.operand(factor, dtype))
    return site.emit("Add", site.operand(site.x, dtype), product)


@register_lowering(torch.lerp)
def lerp(site: Site) -> str:
    """A place between two values."""
    dtype = site.result.dtype
    first, last, weight = (site.operand(site.arg(*one), dtype) for one in ((0, "input"), (1, "end"), (2, "weight")))
    return site.emit("Add", first, site.emit("Mul", site.emit("Sub", last, first), weight))


@register_lowering(torch.outer)
def outer(site: Site) -> str:
    """All products of two vectors' entries."""
    first, second = (site.operand(site.arg(*one), site.result.dtype) for one in ((0, "input"), (1, "vec2")))
    return site.emit(
        "Mul", site.emit("Unsqueeze", first, site.ints([1])), site.emit("Unsqueeze", second, site.ints([0]))
    )


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


@register_lowering("to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "bool", "short")
def cast(site: Site) -> str:
    """The value in another dtype."""
    return site.emit("Cast", site.x, to=onnx_type(site.result.dtype, site.scope))


@register_lowering(torch.clone, torch.detach, "contiguous")
def same(site: Site) -> str:
    """The value itself: memory and gradients mean nothing in ONNX."""
    return site.name(site.x)
