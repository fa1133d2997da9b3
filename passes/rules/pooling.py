"""Pooling and resizing: batch and channels pass, spatial axes are rigid."""

from __future__ import annotations

import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.errors import RuleError
from bnas.passes.terms import K

_RANKS = {
    1: (F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
    2: (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    3: (F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
}


def _pool(types: AxisTypes, call: Call, leading: int) -> Axes:
    inputs = types.type(call.argument(0, "input"))
    if not hasattr(call.node.meta["value"], "shape"):
        raise RuleError("pooling that returns indices")
    leading = leading % (len(inputs) + 1)
    types.pin_axes(inputs[leading:], "pooling or resizing runs over it")
    return [*inputs[:leading], *(K(n) for n in types.output_shape(call)[leading:])]


def _register(rank: int) -> None:
    @register_rule(*_RANKS[rank])
    def pooling(types: AxisTypes, call: Call) -> Axes:
        """All axes but the last `rank` pass."""
        return _pool(types, call, -rank - 1)


for _rank in _RANKS:
    _register(_rank)


@register_rule(F.interpolate)
def interpolate(types: AxisTypes, call: Call) -> Axes:
    """The first two axes pass."""
    return _pool(types, call, 2)
