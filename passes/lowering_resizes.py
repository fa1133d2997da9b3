"""Lowering of interpolation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto

from .lowering_numbers import calculated_by
from .lowering_site import Site, Source, register_lowering
from .lowering_sizes import AnySize, Size, pair_of, same_size

SMOOTH_MODES = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
NEAREST_MODES = ("nearest", "nearest-exact")


@register_lowering(F.interpolate)
def interpolate(site: Site) -> str:
    """To the nearest pixel, linear or cubic, by size or by factor."""
    mode = site.arg(3, "mode", "nearest")
    if site.arg(6, "antialias", False) or mode not in {*SMOOTH_MODES, *NEAREST_MODES}:
        raise site.refuse(f"interpolates with mode {mode!r}, or with antialias")
    return _nearest(site, mode) if mode in NEAREST_MODES else _smooth(site, SMOOTH_MODES[mode])


def _nearest(site: Site, mode: str) -> str:
    """One Resize where every pixel is repeated; else the pixels that PyTorch takes, as indices along each axis."""
    sizes = list(zip(site.x.sizes[2:], resized(site)[2:], strict=True))
    factors = [_times(*one) for one in sizes]
    if all(factors):
        scales = torch.tensor([1.0, 1.0, *map(float, factors)])
        rounding = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return site.emit("Resize", site.x, None, scales, mode="nearest", **rounding)
    source = site.name(site.x)
    for axis, (given, made) in enumerate(sizes):
        if same_size(given, made):
            continue
        if isinstance(given, int) and isinstance(made, int):
            picked: Source = _picked(site, axis, given, mode)
        else:
            picked = _calculated(site, axis, given, made, mode)
        source = site.emit("Gather", source, picked, axis=axis + 2)
    return source


def _times(given: AnySize, made: AnySize) -> int:
    """How many times `given` the size `made` always is; 0 if it is no multiple."""
    pairs = zip(pair_of(given), pair_of(made), strict=True)
    factors = {other // one if other % one == 0 else 0 for one, other in pairs}
    return factors.pop() if len(factors) == 1 else 0


def resized(site: Site) -> list[AnySize]:
    """The sizes of the result, with their places in the graph where the call names them or follows its operands."""
    sizes, asked = site.made, site.arg(1, "size")
    sizes[:2] = site.x.sizes[:2]
    for axis in range(2, len(sizes)):
        one = _of_axis(asked, axis - 2)
        factor = _of_axis(site.arg(2, "scale_factor"), axis - 2)
        if isinstance(one, Size):
            sizes[axis] = one
        elif isinstance(sizes[axis], Size) and factor is not None:
            sizes[axis] = _scaled(site, site.x.sizes[axis], factor)
    return sizes


def _scaled(site: Site, size: AnySize, factor: Any) -> Any:
    """``floor(size * factor)``."""
    if isinstance(factor, int) or float(factor).is_integer():
        return site.calculated("Mul", size, int(factor))
    return calculated_by(site, math.floor, site.calculated("Mul", size, float(factor)))


def _calculated(site: Site, axis: int, given: AnySize, made: AnySize, mode: str) -> str:
    """The indices that PyTorch picks, ``floor(place * given / made)``, of an axis whose size is not fixed."""
    factor = _of_axis(site.arg(2, "scale_factor"), axis)
    if factor is not None and not site.arg(5, "recompute_scale_factor"):
        step: Any = 1 / float(factor)
    else:
        step = site.calculated("Div", given, made)
    places = site.emit("Cast", site.range(made), to=TensorProto.FLOAT)
    if mode == "nearest-exact":
        places = site.emit("Add", places, site.operand(0.5, torch.float32))
    found = site.emit("Floor", site.emit("Mul", places, site.operand(step, torch.float32)))
    whole, last = site.emit("Cast", found, to=TensorProto.INT64), site.calculated("Sub", given, 1)
    return site.emit("Min", whole, site.scalar(last))


def _picked(site: Site, axis: int, given: int, mode: str) -> torch.Tensor:
    """The indices that PyTorch's own rounding picks: it interpolates the indices themselves."""
    row = torch.arange(given, dtype=torch.float32).view(1, 1, given)
    size, factor = (_of_axis(setting, axis) for setting in (site.arg(1, "size"), site.arg(2, "scale_factor")))
    recompute = site.arg(5, "recompute_scale_factor")
    return F.interpolate(row, size, factor, mode, recompute_scale_factor=recompute).flatten().to(torch.int64)


def _of_axis(setting: Any, axis: int) -> Any:
    return setting[axis] if isinstance(setting, list | tuple) else setting


def _smooth(site: Site, mode: str) -> str:
    """One Resize with PyTorch's coordinates; a factor is used as given, a size makes its own factor."""
    aligned = "align_corners" if site.arg(4, "align_corners") else "half_pixel"
    settings = {"mode": mode, "coordinate_transformation_mode": aligned, "cubic_coeff_a": -0.75}
    factor = site.arg(2, "scale_factor")
    if factor is not None and not site.arg(5, "recompute_scale_factor"):
        count = site.result.ndim - 2
        factors = [float(one) for one in factor] if isinstance(factor, list | tuple) else [float(factor)] * count
        return site.emit("Resize", site.x, None, torch.tensor([1.0, 1.0, *factors]), **settings)
    return site.emit("Resize", site.x, None, None, site.ints(resized(site)), **settings)
