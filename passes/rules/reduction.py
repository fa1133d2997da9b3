"""Reductions: an axis that is averaged is pinned, since the missing entries would change the average."""

from __future__ import annotations

import torch

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.terms import K


@register_rule(torch.mean, torch.amax, torch.amin)
def mean(types: AxisTypes, call: Call) -> Axes:
    """The reduced axes are pinned; the others pass."""
    inputs = types.type(call.argument(0, "input"))
    dims = call.argument(1, "dim")
    dims = range(len(inputs)) if dims is None else [dims] if isinstance(dims, int) else dims
    reduced = {dim % len(inputs) for dim in dims}
    types.pin_axes([inputs[axis] for axis in sorted(reduced)], "it is averaged over")
    if call.argument(2, "keepdim", False):
        return [K(1) if axis in reduced else term for axis, term in enumerate(inputs)]
    return [term for axis, term in enumerate(inputs) if axis not in reduced]
