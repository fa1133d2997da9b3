"""Lowering of interpolation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .lowering_site import Site, register_lowering

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
    sizes = list(zip(site.x.tensor.shape[2:], site.result.shape[2:], strict=True))
    if all(made % given == 0 for given, made in sizes):
        scales = torch.tensor([1.0, 1.0, *(made / given for given, made in sizes)])
        rounding = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return site.emit("Resize", site.x, None, scales, mode="nearest", **rounding)
    source = site.name(site.x)
    for axis, (given, made) in enumerate(sizes):
        if given != made:
            source = site.emit("Gather", source, _picked(site, axis, given, mode), axis=axis + 2)
    return source


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
    return site.emit("Resize", site.x, None, None, site.sizes(site.result.shape), **settings)
