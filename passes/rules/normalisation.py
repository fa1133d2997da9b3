"""Normalisations: their parameters follow the axis they belong to; the axes they mix are pinned."""

from __future__ import annotations

import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call


@register_rule(F.batch_norm)
def batch_norm(types: AxisTypes, call: Call) -> Axes:
    """weight, bias and statistics = axis 1; every axis that is averaged over is pinned (also on weights)."""
    inputs = types.type(call.argument(0, "input"))
    for position, name in enumerate(("running_mean", "running_var", "weight", "bias"), start=1):
        tensor = call.argument(position, name)
        if tensor is not None:
            types.unify(types.type(tensor)[0], inputs[1])
    types.pin_axes([inputs[0], *inputs[2:]], "batch_norm averages over it")
    return inputs
