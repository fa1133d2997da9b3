"""Normalisations: their parameters follow the axis they belong to; the axes they mix are pinned."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call


@register_rule(F.batch_norm, torch.batch_norm)
def batch_norm(types: AxisTypes, call: Call) -> Axes:
    """weight, bias and statistics = axis 1; every axis that is averaged over is pinned (also on weights)."""
    inputs = types.type(call.argument(0, "input"))
    for tensor in list(call.tensors())[1:]:  # the two spellings order them differently; all follow axis 1
        types.unify(types.type(tensor)[0], inputs[1])
    types.pin_axes([inputs[0], *inputs[2:]], "batch_norm averages over it")
    return inputs
