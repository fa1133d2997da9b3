"""Pointwise operators with broadcasting: squeeze-excite, layer scale, masks and activations need nothing more."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import DROPOUTS, FACTORIES, Call, Dynamic, identity
from bnas.passes.terms import K, Sym

ACTIVATIONS = (F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid)
MORE_ACTIVATIONS = (F.hardtanh, torch.sigmoid, torch.tanh, F.softplus, F.logsigmoid, F.celu, F.softsign, F.threshold)
BINARY = (torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.minimum, torch.maximum, torch.where)
MORE_BINARY = (torch.floor_divide, torch.remainder, torch.fmod, torch.atan2, torch.lerp, torch.addcmul, torch.addcdiv)
COMPARISONS = (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.isnan, torch.isinf, torch.isfinite)
LOGIC = (torch.logical_and, torch.logical_or, torch.logical_xor, torch.logical_not)
BITS = (torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor, torch.bitwise_not)
UNARY = (torch.neg, torch.abs, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.square, torch.clamp, torch.erf)
MORE_UNARY = (torch.reciprocal, torch.sin, torch.cos, torch.round, torch.floor, torch.ceil, torch.sign, torch.log1p)
CLAMPS = (torch.clamp_min, torch.clamp_max)
FILLS = (
    torch.masked_fill,
    torch.fill,
    "zero",
    "copy",
    torch.zeros_like,
    torch.ones_like,
    torch.full_like,
    torch.nan_to_num,
)
NUMBERS = ("float", "double", "half", "bfloat16", "int", "long", "bool", "to", "type", "type_as", "cpu", "cuda")
COPIES = (identity, torch.clone, torch.detach, "contiguous", *NUMBERS)
RANDOM = (torch.rand_like, torch.randn_like, torch.empty_like, torch.bernoulli)


@register_rule(*ACTIVATIONS, *MORE_ACTIVATIONS, *BINARY, *MORE_BINARY, *COMPARISONS, *LOGIC, *UNARY, *MORE_UNARY)
@register_rule(*BITS, *CLAMPS, *FILLS, *RANDOM, *DROPOUTS)
def pointwise(types: AxisTypes, call: Call) -> Axes:
    """Right-align the operands; an axis of size 1 is neutral, all others are one axis."""
    return types.broadcast(*(types.type(ref) for ref in call.tensors() if types.is_tensor(ref)))


@register_rule(*COPIES)
def copied(types: AxisTypes, call: Call) -> Axes:
    """The first operand; another one, as in ``x.type_as(other)``, gives its number type only."""
    return types.type(call.argument(0, "input"))


@register_rule(F.normalize)
def normalize(types: AxisTypes, call: Call) -> Axes:
    """Divided by a norm, to which missing entries add nothing, if they are zero."""
    axes, dims = types.type(call.argument(0, "input")), call.argument(2, "dim", 1)
    for dim in [dims] if isinstance(dims, int) else dims:
        types.contract((call.argument(0, "input"), dim % len(axes)))
    return axes


@register_rule(F.prelu)
def prelu(types: AxisTypes, call: Call) -> Axes:
    """The slope is one number, or one for each entry of axis 1."""
    inputs, slope = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    if slope[0].size > 1:
        types.unify(slope[0], inputs[1])
    return inputs


@register_rule(F.glu)
def glu(types: AxisTypes, call: Call) -> Axes:
    """One half gates the other: both keep the same entries."""
    out = list(types.type(call.argument(0, "input")))
    dim = call.argument(1, "dim", -1)
    half, gate = types.cut(out[dim], out[dim].size // 2)
    types.unify(half, gate)
    out[dim] = half
    return out


@register_rule(torch.zeros, "new_zeros")
def zeros(types: AxisTypes, call: Call) -> Axes:
    """A new tensor of zeros, such as the first state of a recurrent layer, is as wide as what it is used with."""
    first, shape = int(call.op == "new_zeros"), types.output_shape(call)
    given = call.args[first:]
    if not given:
        return [K(n) for n in shape]
    nested = isinstance(given[0], list | tuple)
    sizes = given[0] if nested else given
    axes = [
        types.fill(n, call.node.name) if s == n > 1 and not isinstance(s, Dynamic) else K(n)
        for s, n in zip(sizes, shape, strict=True)
    ]
    written = tuple(axis if isinstance(axis, Sym) else size for axis, size in zip(axes, sizes, strict=True))
    for place, value in enumerate([written] if nested else written):
        types.rewrite(call, first + place, "size", value)
    return list(axes)


@register_rule(*FACTORIES - {torch.zeros}, "new_ones", "new_full", "new_empty")
def factory(types: AxisTypes, call: Call) -> Axes:
    """A new tensor of given sizes is rigid; nothing is asked of the tensor whose type it takes."""
    return [K(n) for n in types.output_shape(call)]
