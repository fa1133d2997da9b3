"""Pointwise operators with broadcasting: squeeze-excite, layer scale, masks and activations need nothing more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.fx import Node

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call, TensorRef, identity
from bnas.passes.terms import K

ACTIVATIONS = (F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid)
MORE_ACTIVATIONS = (F.hardtanh, torch.sigmoid, torch.tanh, F.softplus, F.logsigmoid, F.celu, F.softsign)
BINARY = (torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.minimum, torch.maximum, torch.where)
UNARY = (torch.neg, torch.abs, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.square, torch.clamp, torch.erf)
COPIES = (identity, torch.clone, torch.detach, "contiguous", "float", "to", "type_as", torch.zeros_like)
DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


@register_rule(*ACTIVATIONS, *MORE_ACTIVATIONS, *BINARY, *UNARY, *COPIES, *DROPOUTS)
def pointwise(types: AxisTypes, call: Call) -> Axes:
    """Right-align the operands; an axis of size 1 is neutral, all others are one axis."""
    operands = [types.type(ref) for ref in call.tensors() if _is_tensor(types, ref)]
    out: Axes = []
    for axis in range(-len(types.output_shape(call)), 0):
        terms = [t[axis] for t in operands if len(t) >= -axis and t[axis].size != 1]
        for term in terms[1:]:
            types.unify(terms[0], term)
        out.append(terms[0] if terms else K(1))
    return out


def _is_tensor(types: AxisTypes, ref: Node | TensorRef) -> bool:
    return isinstance(ref, TensorRef) or isinstance(types.values[ref], list)


@register_rule(F.prelu)
def prelu(types: AxisTypes, call: Call) -> Axes:
    """The slope is one number, or one for each entry of axis 1."""
    inputs, slope = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    if slope[0].size > 1:
        types.unify(slope[0], inputs[1])
    return inputs
