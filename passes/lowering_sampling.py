"""Lowering of what reads images at calculated places."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from .lowering_builder import onnx_type
from .lowering_site import Site, register_lowering

MODES = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}
"""PyTorch's modes of interpolation: what ONNX calls them."""


@register_lowering(F.grid_sample)
def grid_sample(site: Site) -> str:
    """An image at the places of a grid."""
    mode, padding = site.arg(2, "mode", "bilinear"), site.arg(3, "padding_mode", "zeros")
    aligned = int(bool(site.arg(4, "align_corners")))
    grid = site.value(1, "grid")
    return site.emit("GridSample", site.x, grid, mode=MODES[mode], padding_mode=padding, align_corners=aligned)


@register_lowering(F.affine_grid)
def affine_grid(site: Site) -> str:
    """The places of the pixels of an image under a linear map: a product with their places before."""
    sizes, aligned, dtype = list(site.arg(1, "size")), bool(site.arg(2, "align_corners")), site.result.dtype
    axes = [_places(site, size, aligned) for size in sizes[:1:-1]]  # ONNX and PyTorch name the last axis first
    dims, shape = len(axes), sizes[2:]
    parts = [
        site.emit("Reshape", row, site.ints([-1 if one == dims - 1 - place else 1 for one in range(dims)]))
        for place, row in enumerate(axes)
    ]
    whole = [site.emit("Unsqueeze", site.emit("Expand", one, site.ints(shape)), site.ints([dims])) for one in parts]
    one = site.emit("Expand", site.operand(1.0, dtype), site.ints([*shape, 1]))
    base = site.emit("Reshape", site.emit("Concat", *whole, one, axis=dims), site.ints([1, -1, dims + 1]))
    made = site.emit("MatMul", base, site.transpose(site.x, [0, 2, 1]))
    return site.emit("Reshape", made, site.ints([-1, *shape, dims]))


def _places(site: Site, size: Any, aligned: bool) -> str:
    """The middles of the pixels of an axis from -1 to 1, or with the outer ones there."""
    row = site.emit("Cast", site.range(size), to=onnx_type(site.result.dtype, site.scope))
    number = site.calculated("Sub", size, 1) if aligned else size
    row = row if aligned else site.emit("Add", row, site.operand(0.5, site.result.dtype))
    scaled = site.emit("Mul", row, site.operand(site.calculated("Div", 2, number), site.result.dtype))
    return site.emit("Sub", scaled, site.operand(1.0, site.result.dtype))
