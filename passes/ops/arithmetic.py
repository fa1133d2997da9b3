"""Arithmetic entry by entry: operators of one, two and three values, comparisons, logic and choices."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import Size, Value

from . import shapes
from .calls import Call
from .numbers import negative_number, of_two
from .record import OnnxRule, Operator, Sample, Spelled, Trait
from .zeros import between, dividend, keeps, powered, product, summed


def pointwise_axes(types: AxisTypes, call: Call) -> Axes:
    """Right-align the operands; an axis of size 1 is neutral, all others are one axis."""
    return types.broadcast(*(types.type(ref) for ref in call.tensors() if types.is_tensor(ref)))


def unary(op_type: str) -> OnnxRule:
    """Return the ONNX rule of an operator of one tensor as `op_type`, in PyTorch's dtype of the result."""
    return lambda site: site.emit(op_type, site.operand(site.x, site.result.dtype))


def binary(op_type: str) -> OnnxRule:
    """Return the ONNX rule of an operator of two operands as `op_type`, in PyTorch's dtype of the result."""

    def rule(site: Site) -> str:
        first, second = operands(site, site.result.dtype)
        alpha = site.arg(2, "alpha", 1)
        if alpha != 1:
            second = site.emit("Mul", second, site.operand(alpha, site.result.dtype))
        return site.emit(OF_TRUTHS.get(op_type, op_type) if site.result.dtype == torch.bool else op_type, first, second)

    return rule


OF_TRUTHS = {"Add": "Or", "Max": "Or", "Mul": "And", "Min": "And"}
"""Operators of numbers, which ONNX does not have for bools, as operators of bools."""


def comparison(op_type: str) -> OnnxRule:
    """Return the ONNX rule of a comparison as `op_type`, in the dtype to which PyTorch promotes the operands."""
    return lambda site: site.emit(op_type, *operands(site, promoted(site)))


def ordered(op_type: str) -> OnnxRule:
    """Like `comparison`, with bools as integers, because ONNX does not order bools."""

    def rule(site: Site) -> str:
        dtype = promoted(site)
        return site.emit(op_type, *operands(site, torch.int32 if dtype == torch.bool else dtype))

    return rule


def operands(site: Site, dtype: torch.dtype) -> tuple[str, str]:
    """Both operands as ONNX names of values of `dtype`."""
    return site.operand(site.arg(0, "input"), dtype), site.operand(site.arg(1, "other", site.arg(1, "exponent")), dtype)


def promoted(site: Site) -> torch.dtype:
    """The dtype in which PyTorch computes with both operands."""
    given = [site.arg(0, "input"), site.arg(1, "other")]
    known = (one.sample if isinstance(one, Size) else one for one in given)
    return torch.result_type(*(one.tensor if isinstance(one, Value) else one for one in known))


BITWISE = {torch.bitwise_and: "And", torch.bitwise_or: "Or", torch.bitwise_xor: "Xor"}
"""Operators of bits: for bools ONNX has others than for integers."""


def bitwise_onnx(site: Site) -> str:
    """Bit by bit."""
    op_type, dtype = BITWISE[site.call.op], site.result.dtype  # type: ignore[index]
    return site.emit(op_type if dtype == torch.bool else f"Bitwise{op_type}", *operands(site, dtype))


def bitwise_not_onnx(site: Site) -> str:
    """Every bit inverted."""
    return site.emit("Not" if site.result.dtype == torch.bool else "BitwiseNot", site.x)


def is_no_number_onnx(site: Site) -> str:
    """Whether entries are NaN or infinite."""
    return site.emit("IsNaN" if site.call.op is torch.isnan else "IsInf", site.x)


def is_finite_onnx(site: Site) -> str:
    """Whether entries are neither infinite nor NaN."""
    return site.emit("Not", site.emit("Or", site.emit("IsNaN", site.x), site.emit("IsInf", site.x)))


def divide_onnx(site: Site) -> str:
    """True division, or rounded down or towards zero."""
    mode = site.arg(2, "rounding_mode")
    first, second = operands(site, site.result.dtype)
    if mode == "floor":
        return floored(site, first, second)
    quotient = site.emit("Div", first, second)  # of integers ONNX cuts the fraction off
    return truncated(site, quotient) if mode == "trunc" and site.result.dtype.is_floating_point else quotient


def floor_divide_onnx(site: Site) -> str:
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


def trunc_onnx(site: Site) -> str:
    """Rounded towards zero."""
    return truncated(site, site.name(site.x))


def remainder_onnx(site: Site) -> str:
    """The remainder of a division rounded down; it has the sign of the divisor."""
    first, second = operands(site, site.result.dtype)
    if not site.result.dtype.is_floating_point:
        return site.emit("Mod", first, second)
    whole = site.emit("Floor", site.emit("Div", first, second))
    return site.emit("Sub", first, site.emit("Mul", whole, second))


def fmod_onnx(site: Site) -> str:
    """The remainder of a division rounded towards zero; it has the sign of the dividend."""
    return site.emit("Mod", *operands(site, site.result.dtype), fmod=1)


def other_logarithm_onnx(site: Site) -> str:
    """The logarithm to base 2 or 10."""
    factor = 1 / math.log(2 if site.call.op is torch.log2 else 10)
    return site.emit("Mul", site.emit("Log", site.x), site.operand(factor, site.result.dtype))


def exp_minus_one_onnx(site: Site) -> str:
    """The exponential minus one, less exact than PyTorch's close to zero."""
    return site.emit("Sub", site.emit("Exp", site.x), site.operand(1, site.result.dtype))


def power_of_two_onnx(site: Site) -> str:
    """Two to the power of the value."""
    return site.emit("Pow", site.operand(2, site.result.dtype), site.operand(site.x, site.result.dtype))


def add_product_onnx(site: Site) -> str:
    """A value plus a multiple of a product or a quotient."""
    op_type, dtype = "Mul" if site.call.op is torch.addcmul else "Div", site.result.dtype
    product = site.emit(
        op_type, site.operand(site.arg(1, "tensor1"), dtype), site.operand(site.arg(2, "tensor2"), dtype)
    )
    factor = site.call.kwargs.get("value", 1)
    product = product if factor == 1 else site.emit("Mul", product, site.operand(factor, dtype))
    return site.emit("Add", site.operand(site.x, dtype), product)


def lerp_onnx(site: Site) -> str:
    """A place between two values."""
    dtype = site.result.dtype
    first, last, weight = (site.operand(site.arg(*one), dtype) for one in ((0, "input"), (1, "end"), (2, "weight")))
    return site.emit("Add", first, site.emit("Mul", site.emit("Sub", last, first), weight))


def subtract_from_onnx(site: Site) -> str:
    """``other - alpha * input``."""
    first, second = operands(site, site.result.dtype)
    alpha = site.arg(2, "alpha", 1)
    if alpha != 1:
        first = site.emit("Mul", first, site.operand(alpha, site.result.dtype))
    return site.emit("Sub", second, first)


def not_equal_onnx(site: Site) -> str:
    """The opposite of equal."""
    return site.emit("Not", site.emit("Equal", *operands(site, promoted(site))))


def reciprocal_root_onnx(site: Site) -> str:
    """One over the root."""
    return site.emit("Reciprocal", site.emit("Sqrt", site.operand(site.x, site.result.dtype)))


def square_onnx(site: Site) -> str:
    """A value times itself."""
    return site.emit("Mul", site.x, site.x)


def log_one_plus_onnx(site: Site) -> str:
    """The logarithm of one plus the value, less exact than PyTorch's close to zero."""
    return site.emit("Log", site.emit("Add", site.x, site.operand(1, site.result.dtype)))


def clamp_onnx(site: Site) -> str:
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


def where_onnx(site: Site) -> str:
    """A choice between two operands by a condition."""
    dtype = site.result.dtype
    chosen = site.operand(site.arg(1, "input"), dtype), site.operand(site.arg(2, "other"), dtype)
    return site.emit("Where", site.operand(site.arg(0, "condition"), torch.bool), *chosen)


def masked_fill_onnx(site: Site) -> str:
    """A number wherever the mask is set."""
    filled = site.operand(site.arg(2, "value"), site.result.dtype)
    return site.emit("Where", site.operand(site.value(1, "mask"), torch.bool), filled, site.x)


def rsub_in_python(self: Any, other: Any, alpha: Any) -> Spelled | None:
    """``other - self``; with a factor the schema says it."""
    return (Tensor.__rsub__, (self, other), {}) if alpha == 1 else None


def each(
    op: Callable[..., Any], rule: OnnxRule | None, *samples: Callable[[Tensor], Any] | Sample, **facts: Any
) -> Operator:
    """The record of an operator that works entry by entry; by default its sample is a call on one tensor."""
    examples = tuple(one if isinstance(one, Sample) else Sample(one) for one in samples or (op,))
    return Operator(op, axes=pointwise_axes, onnx=rule, samples=examples, **facts)


def _of_two(
    op: Callable[..., Any], rule: OnnxRule | None, *samples: Callable[[Tensor], Any] | Sample, **facts: Any
) -> Operator:
    return each(op, rule, *(samples or (lambda x: op(x, x.cos()),)), **facts)


def _of_truths(op: Callable[..., Any], rule: OnnxRule, **facts: Any) -> Operator:
    return each(op, rule, lambda x: op(x > 0, x < 1), **facts)


def _of_positive(op: Callable[..., Any], rule: OnnxRule, **facts: Any) -> Operator:
    return each(op, rule, lambda x: op(x.abs() + 1), **facts)


_SUM = {Trait.SUM, Trait.JOIN, Trait.SCALE, Trait.FUSES_ACTIVATION, Trait.OWNS_MEMORY}
_SCALE = {Trait.SCALE, Trait.FUSES_ACTIVATION, Trait.OWNS_MEMORY}

_MIN, _ONLY_MAX = (1, "min", None), (1, "max", None)

RECORDS = (
    _of_two(
        torch.add,
        binary("Add"),
        lambda x: x + x.cos(),
        lambda x: torch.add(x, x, alpha=3) + 1,
        spellings=(operator.add,),
        in_place=(operator.iadd,),
        traits=_SUM,
        zeros=summed,
        shape=shapes.elementwise,
        number=of_two("Add"),
    ),
    _of_two(
        torch.sub,
        binary("Sub"),
        lambda x: torch.sub(x, x.cos(), alpha=0.5),
        lambda x: 1 - x,
        spellings=(operator.sub, torch.subtract, "subtract"),
        in_place=(operator.isub,),
        traits=_SCALE,
        zeros=summed,
        shape=shapes.elementwise,
        number=of_two("Sub"),
    ),
    each(torch.rsub, subtract_from_onnx, lambda x: torch.rsub(x, 2.0, alpha=0.5), aten={"rsub": rsub_in_python}),
    _of_two(
        torch.mul,
        binary("Mul"),
        lambda x: x * x.cos(),
        lambda x: x * x.mean((2, 3), keepdim=True),
        lambda x: x * ((x > 0) * (x < 1)),
        Sample(lambda x: (x.mean(3).unsqueeze(2) * (x.mean(3) + 1).unsqueeze(1)).sum(2), rigid="are not zero"),
        spellings=(operator.mul, torch.multiply, "multiply"),
        in_place=(operator.imul,),
        traits=_SCALE,
        zeros=product,
        shape=shapes.elementwise,
        number=of_two("Mul"),
    ),
    each(
        torch.div,
        divide_onnx,
        lambda x: x / (x.abs() + 1),
        Sample(lambda x: (x.mean(3).unsqueeze(2) / x.mean(3).exp().unsqueeze(1)).sum(2), rigid="are not zero"),
        lambda x: torch.div(x, 0.7, rounding_mode="floor"),
        lambda x: torch.div(x, 0.7, rounding_mode="trunc"),
        spellings=(operator.truediv, torch.divide, torch.true_divide, "divide"),
        in_place=(operator.itruediv,),
        traits={Trait.SCALE, Trait.FUSES_ACTIVATION},
        zeros=dividend,
        number=of_two("Div"),
    ),
    each(
        torch.floor_divide,
        floor_divide_onnx,
        lambda x: x // 0.3,
        spellings=(operator.floordiv,),
        in_place=(operator.ifloordiv,),
        zeros=dividend,
        number=of_two("FloorDiv"),
    ),
    each(
        torch.remainder,
        remainder_onnx,
        lambda x: x % 0.7,
        spellings=(operator.mod,),
        in_place=(operator.imod,),
        zeros=dividend,
        number=of_two("Mod"),
    ),
    each(torch.fmod, fmod_onnx, lambda x: torch.fmod(x, 0.7), zeros=dividend),
    each(
        torch.pow,
        binary("Pow"),
        lambda x: x**2,
        lambda x: torch.pow(x.abs() + 1, x),
        spellings=(operator.pow,),
        in_place=(operator.ipow,),
        zeros=powered,
        number=of_two("Pow"),
    ),
    _of_two(torch.minimum, binary("Min"), zeros=summed),
    _of_two(torch.maximum, binary("Max"), zeros=summed),
    _of_two(torch.atan2, None),
    each(torch.lerp, lerp_onnx, lambda x: torch.lerp(x, x.cos(), 0.3)),
    each(torch.addcmul, add_product_onnx, lambda x: torch.addcmul(x, x, x.sin(), value=0.5), traits={Trait.SCALE}),
    each(torch.addcdiv, add_product_onnx, lambda x: torch.addcdiv(x, x, x.exp())),
    _of_two(torch.eq, comparison("Equal"), spellings=(operator.eq,)),
    _of_two(torch.ne, not_equal_onnx, spellings=(operator.ne, torch.not_equal, "not_equal")),
    _of_two(torch.lt, ordered("Less"), spellings=(operator.lt, torch.less, "less")),
    _of_two(torch.le, ordered("LessOrEqual"), spellings=(operator.le, torch.less_equal, "less_equal")),
    _of_two(torch.gt, ordered("Greater"), spellings=(operator.gt, torch.greater, "greater")),
    _of_two(torch.ge, ordered("GreaterOrEqual"), spellings=(operator.ge, torch.greater_equal, "greater_equal")),
    each(torch.isnan, is_no_number_onnx, lambda x: torch.isnan(x.log())),
    each(torch.isinf, is_no_number_onnx, lambda x: torch.isinf(x / 0)),
    each(torch.isfinite, is_finite_onnx, lambda x: torch.isfinite(x.log())),
    _of_truths(torch.logical_and, binary("And")),
    _of_truths(torch.logical_or, binary("Or")),
    _of_truths(torch.logical_xor, binary("Xor")),
    each(torch.logical_not, unary("Not"), lambda x: torch.logical_not(x > 0)),
    _of_truths(
        torch.bitwise_and,
        bitwise_onnx,
        spellings=(operator.and_, "__and__", "__rand__"),
        in_place=(operator.iand, "__iand__"),
    ),
    _of_truths(
        torch.bitwise_or,
        bitwise_onnx,
        spellings=(operator.or_, "__or__", "__ror__"),
        in_place=(operator.ior, "__ior__"),
    ),
    _of_truths(
        torch.bitwise_xor,
        bitwise_onnx,
        spellings=(operator.xor, "__xor__", "__rxor__"),
        in_place=(operator.ixor, "__ixor__"),
    ),
    each(torch.bitwise_not, bitwise_not_onnx, lambda x: ~(x > 0), spellings=(operator.invert,)),
    each(
        torch.neg,
        unary("Neg"),
        spellings=(operator.neg, torch.negative, "negative"),
        zeros=keeps,
        number=negative_number,
    ),
    each(torch.abs, unary("Abs"), spellings=(operator.abs, torch.absolute, "absolute"), zeros=keeps),
    each(torch.sign, unary("Sign"), zeros=keeps),
    each(torch.square, square_onnx, zeros=keeps),
    _of_positive(torch.sqrt, unary("Sqrt"), zeros=keeps),
    _of_positive(torch.rsqrt, reciprocal_root_onnx),
    _of_positive(torch.reciprocal, unary("Reciprocal")),
    each(torch.exp, unary("Exp")),
    each(torch.exp2, power_of_two_onnx),
    each(torch.expm1, exp_minus_one_onnx, zeros=keeps),
    _of_positive(torch.log, unary("Log")),
    _of_positive(torch.log2, other_logarithm_onnx),
    _of_positive(torch.log10, other_logarithm_onnx),
    each(torch.log1p, log_one_plus_onnx, lambda x: torch.log1p(x.abs()), zeros=keeps),
    each(torch.erf, unary("Erf"), spellings=(torch.special.erf,), zeros=keeps),
    each(torch.sin, unary("Sin"), zeros=keeps),
    each(torch.cos, unary("Cos")),
    each(torch.tan, unary("Tan"), zeros=keeps),
    each(torch.asin, unary("Asin"), lambda x: torch.asin(x.tanh()), zeros=keeps),
    each(torch.acos, unary("Acos"), lambda x: torch.acos(x.tanh())),
    each(torch.atan, unary("Atan"), zeros=keeps),
    each(torch.sinh, unary("Sinh"), zeros=keeps),
    each(torch.cosh, unary("Cosh")),
    each(torch.round, unary("Round"), lambda x: torch.round(3 * x), zeros=keeps),
    each(torch.floor, unary("Floor"), zeros=keeps),
    each(torch.ceil, unary("Ceil"), zeros=keeps),
    each(torch.trunc, trunc_onnx, spellings=(torch.fix, "fix"), zeros=keeps),
    each(
        torch.clamp,
        clamp_onnx,
        lambda x: x.clamp(-0.5, 0.5),
        lambda x: torch.clip(x, max=0.3),
        lambda x: torch.clamp(x, x.cos() - 2, x.exp()),
        spellings=(torch.clip, "clip"),
        traits={Trait.FLAT},
        zeros=between(_MIN, (2, "max", None)),
    ),
    each(torch.clamp_min, clamp_onnx, lambda x: x.clamp_min(0.1), traits={Trait.FLAT}, zeros=between(_MIN, None)),
    each(
        torch.clamp_max,
        clamp_onnx,
        lambda x: torch.clamp_max(x, 0.2),
        traits={Trait.FLAT},
        zeros=between(None, _ONLY_MAX),
    ),
    each(torch.nan_to_num, None, zeros=keeps),
    each(torch.where, where_onnx, lambda x: torch.where(x > 0, x, x.exp())),
    each(torch.masked_fill, masked_fill_onnx, lambda x: x.masked_fill(x > 0.5, 2.0)),
)
