"""Pooling and resizing: batch and channels pass, spatial axes are rigid."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.terms import K

_NAMES = ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d")
_WITH_PLACES = ("max_pool{}d_with_indices", "adaptive_max_pool{}d_with_indices")
_RANKS = {rank: [getattr(F, name.format(rank)) for name in (*_NAMES, *_WITH_PLACES)] for rank in (1, 2, 3)}


def _pool(types: AxisTypes, call: Call, leading: int) -> Any:
    """One type for each result: some poolings give values and places."""
    inputs, value = types.type(call.argument(0, "input")), call.node.meta["value"]
    leading = leading % (len(inputs) + 1)
    types.pin_axes(inputs[leading:], "pooling or resizing runs over it")
    shape = value[0].shape if isinstance(value, tuple) else value.shape
    out = [*inputs[:leading], *(K(n) for n in shape[leading:])]
    return (out,) * len(value) if isinstance(value, tuple) else out


def _register(rank: int) -> None:
    @register_rule(*_RANKS[rank])
    def pooling(types: AxisTypes, call: Call) -> Any:
        """All axes but the last `rank` pass."""
        return _pool(types, call, -rank - 1)


for _rank in _RANKS:
    _register(_rank)


@register_rule(F.interpolate)
def interpolate(types: AxisTypes, call: Call) -> Any:
    """The first two axes pass."""
    return _pool(types, call, 2)


@register_rule(F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
def unpooling(types: AxisTypes, call: Call) -> Axes:
    """Values and the places that they came from have the same leading axes; places count within a channel."""
    inputs, places = types.type(call.argument(0, "input")), types.type(call.argument(1, "indices"))
    rank = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d).index(call.op) + 1
    types.pin_axes([*inputs[-rank:], *places[-rank:]], "pooling runs over it")
    leading = types.broadcast(inputs[:-rank], places[:-rank])
    return [*leading, *(K(n) for n in types.output_shape(call)[-rank:])]


@register_rule(F.grid_sample)
def grid_sample(types: AxisTypes, call: Call) -> Axes:
    """Channels pass; what is sampled and the places are rigid."""
    inputs, grid = types.type(call.argument(0, "input")), types.type(call.argument(1, "grid"))
    types.pin_axes([*inputs[2:], *grid[1:]], "samples are taken along it")
    types.unify(inputs[0], grid[0])
    return [*inputs[:2], *(K(n) for n in types.output_shape(call)[2:])]


@register_rule(F.affine_grid)
def affine_grid(types: AxisTypes, call: Call) -> Axes:
    """Rigid: coordinates of given sizes."""
    types.pin_axes(types.type(call.argument(0, "theta")), "it holds transforms of coordinates")
    return [K(n) for n in types.output_shape(call)]
