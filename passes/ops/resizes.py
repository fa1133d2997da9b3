"""Resizing and sampling of images: batch and channels pass, spatial axes are rigid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import nn

from bnas.passes.axes.terms import K
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.builder import onnx_type
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import AnySize, Size, Source, pair_of, same_size

from .aten import renamed
from .calls import Call
from .numbers import floor
from .pools import pooled_over
from .record import Operator, Sample, Spelled
from .zeros import keeps


def interpolate_axes(types: AxisTypes, call: Call) -> Any:
    """The first two axes pass."""
    return pooled_over(types, call, 2)


def grid_sample_axes(types: AxisTypes, call: Call) -> Axes:
    """Channels pass; the sampled axes and the grid are rigid."""
    inputs, grid = types.type(call.argument(0, "input")), types.type(call.argument(1, "grid"))
    types.pin_axes([*inputs[2:], *grid[1:]], "samples are taken along it")
    types.unify(inputs[0], grid[0])
    return [*inputs[:2], *(K(n) for n in types.output_shape(call)[2:])]


def affine_grid_axes(types: AxisTypes, call: Call) -> Axes:
    """Rigid: coordinates of given sizes."""
    types.pin_axes(types.type(call.argument(0, "theta")), "it holds transforms of coordinates")
    return [K(n) for n in types.output_shape(call)]


SMOOTH_MODES = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


NEAREST_MODES = ("nearest", "nearest-exact")


def interpolate_onnx(site: Site) -> str:
    """To the nearest pixel, linear or cubic, by size or by factor.

    With antialias, ONNX Runtime computes other numbers than PyTorch, even at equal sizes (relative error 0.1).
    """
    mode = site.arg(3, "mode", "nearest")
    if site.arg(6, "antialias", False):
        raise site.refuse("interpolates with antialias, which ONNX Runtime computes in another way")
    factors = site.arg(2, "scale_factor")
    if any(isinstance(one, Size) for one in (factors if isinstance(factors, list | tuple) else [factors])):
        raise site.refuse("interpolates by a factor that follows the sizes of the inputs: give size=... instead")
    if mode not in {*SMOOTH_MODES, *NEAREST_MODES}:
        raise site.refuse(f"interpolates with mode {mode!r}")
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
    """Return the factor by which `made` is a multiple of `given` at all sizes; 0 if it is not a multiple."""
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
    return floor(site, site.calculated("Mul", size, float(factor)))


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


MODES = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}
"""PyTorch's modes of interpolation: what ONNX calls them."""


def grid_sample_onnx(site: Site) -> str:
    """An image sampled at the places of a grid."""
    mode, padding = site.arg(2, "mode", "bilinear"), site.arg(3, "padding_mode", "zeros")
    aligned = int(bool(site.arg(4, "align_corners")))
    grid = site.value(1, "grid")
    return site.emit("GridSample", site.x, grid, mode=MODES[mode], padding_mode=padding, align_corners=aligned)


def affine_grid_onnx(site: Site) -> str:
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


def _resize(mode: str) -> Callable[..., Spelled | None]:
    """`F.interpolate` with `mode`."""

    def spelled(input: Any, output_size: Any = None, scale_factors: Any = None, **settings: Any) -> Spelled | None:
        if output_size is None and scale_factors is None:
            return None
        size = {"size": output_size} if scale_factors is None else {"scale_factor": list(scale_factors)}
        align = {"align_corners": True} if settings.get("align_corners") else {}
        return F.interpolate, (input,), {**size, "mode": mode, **align}

    def by_overload(**settings: Any) -> Spelled | None:
        return None if "self" in settings else spelled(**settings)  # that with the scales of single axes

    return by_overload


def _sampled(input: Any, grid: Any, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Spelled:
    words = ("bilinear", "nearest", "bicubic")[interpolation_mode], ("zeros", "border", "reflection")[padding_mode]
    return F.grid_sample, (input, grid, *words, align_corners), {}


RECORDS = (
    Operator(
        F.interpolate,
        aten={
            **{f"upsample_nearest{rank}d": _resize("nearest") for rank in (1, 2, 3)},
            **{f"upsample_{mode}{rank}d": _resize(f"{mode}") for mode, rank in (("bilinear", 2), ("bicubic", 2))},
            "upsample_linear1d": _resize("linear"),
            "upsample_trilinear3d": _resize("trilinear"),
        },
        axes=interpolate_axes,
        zeros=keeps,
        onnx=interpolate_onnx,
        samples=(
            Sample(lambda x: F.interpolate(x, scale_factor=2)),
            Sample(lambda x: F.interpolate(x, (5, 11), mode="bilinear")),
        ),
    ),
    Operator(
        F.grid_sample,
        aten={"grid_sampler": _sampled},
        axes=grid_sample_axes,
        zeros=keeps,
        onnx=grid_sample_onnx,
        samples=(Sample(lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)),),
    ),
    Operator(
        F.affine_grid,
        aten={"affine_grid_generator": renamed(F.affine_grid)},
        axes=affine_grid_axes,
        onnx=affine_grid_onnx,
        samples=(
            Sample(
                lambda x, layer: F.grid_sample(
                    x,
                    F.affine_grid(layer(x.mean((2, 3))).view(-1, 2, 3), [x.shape[0], 1, 4, 6], False),
                    align_corners=False,
                ),
                layer=lambda: nn.Linear(8, 6),
            ),
        ),
    ),
)
