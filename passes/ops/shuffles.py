"""Operators that move entries between channels and places: shuffles of channels and pixels, patches, windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bnas.passes.axes.terms import K, Perm, Prod
from bnas.passes.axes.types import Axes, AxisTypes, Moved
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import Size

from .aten import renamed
from .calls import Call
from .convolutions import spatial_axes
from .record import Layer, Operator, Sample
from .zeros import keeps


def channel_shuffle_axes(types: AxisTypes, call: Call) -> Axes:
    """A permutation; in a smaller sub-network the kept channels are gathered in its order."""
    out, groups = list(types.type(call.argument(0, "input"))), call.argument(1, "groups")
    rows = out[1].size // groups
    order = tuple(group * rows + row for row in range(rows) for group in range(groups))
    types.replace(call, torch.index_select, 1, Moved(out[1], order))
    out[1] = Perm(out[1], order)
    return out


def pixel_shuffle_axes(types: AxisTypes, call: Call) -> Axes:
    """C*r*r channels become C."""
    inputs, r = types.type(call.argument(0, "input")), call.argument(1, "upscale_factor")
    channels, pixels = types.factor(inputs[-3], r * r)
    types.pin_axes(inputs[-2:], "pixels are shuffled along it")
    types.pin(pixels, "its entries become pixels")
    return [*inputs[:-3], channels, *(K(n) for n in types.output_shape(call)[-2:])]


def pixel_unshuffle_axes(types: AxisTypes, call: Call) -> Axes:
    """C channels become C*r*r."""
    inputs, r = types.type(call.argument(0, "input")), call.argument(1, "downscale_factor")
    types.pin_axes(inputs[-2:], "pixels are shuffled along it")
    return [*inputs[:-3], Prod((inputs[-3], K(r * r))), *(K(n) for n in types.output_shape(call)[-2:])]


def fold_axes(types: AxisTypes, call: Call) -> Axes:
    """C*kernel channels become C; places and pixels are rigid."""
    inputs, shape = types.type(call.argument(0, "input")), types.output_shape(call)
    channels, patch = types.factor(inputs[1], inputs[1].size // shape[1])
    types.pin_axes([patch, inputs[2]], "patches are put together along it")
    return [inputs[0], channels, *(K(n) for n in shape[2:])]


def windows_axes(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned and becomes the axis of the windows; the entries of a window are a new last axis."""
    out, shape = list(types.type(call.args[0])), types.output_shape(call)
    dim = call.argument(1, "dimension") % len(out)
    types.pin(out[dim], "windows are taken along it")
    out[dim] = K(shape[dim])
    return [*out, K(shape[-1])]


def unfold_axes(types: AxisTypes, call: Call) -> Axes:
    """C channels become C*kernel; positions are rigid."""
    inputs, shape = types.type(call.argument(0, "input")), types.output_shape(call)
    types.pin_axes(inputs[2:], "patches are taken along it")
    return [inputs[0], Prod((inputs[1], K(shape[1] // inputs[1].size))), K(shape[2])]


def pixel_shuffle_onnx(site: Site) -> str:
    """Channels become blocks of pixels."""
    spatial_axes(site, 2)
    return site.emit("DepthToSpace", site.x, blocksize=site.arg(1, "upscale_factor"), mode="CRD")


def pixel_unshuffle_onnx(site: Site) -> str:
    """Blocks of pixels become channels, in PyTorch's order, which ONNX' SpaceToDepth does not have."""
    spatial_axes(site, 2)
    factor = site.arg(1, "downscale_factor")
    batch, channels, height, width = site.x.sizes
    if isinstance(height, Size) or isinstance(width, Size):
        deep = site.emit("SpaceToDepth", site.x, blocksize=factor)
        blocks = torch.arange(factor**2 * int(channels)).view(factor**2, int(channels))  # type: ignore[arg-type]
        return site.emit("Gather", deep, blocks.T.flatten(), axis=1)
    split = site.reshape(site.x, [batch, channels, height // factor, factor, width // factor, factor])
    return site.reshape(site.transpose(split, [0, 1, 3, 5, 2, 4]), site.made)


def channel_shuffle_onnx(site: Site) -> str:
    """The channels of all groups, one of each group in turn."""
    groups = site.arg(1, "groups")
    batch, channels, *rest = site.x.sizes
    if any(isinstance(size, Size) for size in rest):
        turned = torch.arange(site.x.tensor.shape[1]).view(groups, -1).T.flatten()
        return site.emit("Gather", site.x, turned, axis=1)
    grouped = site.reshape(site.x, [batch, groups, channels // groups, *rest])
    order = [0, 2, 1, *range(3, len(rest) + 3)]
    return site.reshape(site.transpose(grouped, order), site.made)


def unfold_onnx(site: Site) -> str:
    """Windows of an axis, each along a new last axis."""
    dims = site.x.tensor.ndim
    axis, size, step = site.arg(1, "dimension") % dims, site.arg(2, "size"), site.arg(3, "step")
    count = site.calculated("FloorDiv", site.calculated("Sub", site.x.sizes[axis], size), step)
    starts = site.emit("Mul", site.range(site.calculated("Add", count, 1)), site.scalar(step))
    places = site.emit("Add", site.emit("Unsqueeze", starts, site.ints([1])), site.range(size))
    found = site.emit("Gather", site.x, places, axis=axis)
    return site.transpose(found, [*range(axis + 1), *range(axis + 2, dims + 1), axis + 1])


RECORDS = (
    Operator(
        F.channel_shuffle,
        spellings=(F.native_channel_shuffle,),
        layers={nn.ChannelShuffle: Layer(settings=("groups",))},
        axes=channel_shuffle_axes,
        zeros=keeps,
        onnx=channel_shuffle_onnx,
        samples=(Sample(layer=lambda: nn.ChannelShuffle(2)), Sample(lambda x: torch.channel_shuffle(x, 4))),
    ),
    Operator(
        F.pixel_shuffle,
        layers={nn.PixelShuffle: Layer(settings=("upscale_factor",))},
        axes=pixel_shuffle_axes,
        zeros=keeps,
        onnx=pixel_shuffle_onnx,
        samples=(Sample(layer=lambda: nn.PixelShuffle(2)),),
    ),
    Operator(
        F.pixel_unshuffle,
        layers={nn.PixelUnshuffle: Layer(settings=("downscale_factor",))},
        axes=pixel_unshuffle_axes,
        zeros=keeps,
        onnx=pixel_unshuffle_onnx,
        samples=(
            Sample(layer=lambda: nn.PixelUnshuffle(2)),
            Sample(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 4)),
            Sample(lambda x: F.pixel_unshuffle(x.unflatten(1, (2, 4)), 2).flatten(1, 2), onnx="needs 4 dimensions"),
        ),
    ),
    Operator(
        F.fold,
        aten={"col2im": renamed(F.fold)},
        axes=fold_axes,
        zeros=keeps,
        samples=(Sample(lambda x: F.fold(F.unfold(x, 2), (4, 6), 2)),),
    ),
    Operator(
        "unfold",
        axes=windows_axes,
        zeros=keeps,
        onnx=unfold_onnx,
        samples=(Sample(lambda x: x.unfold(2, 2, 1)), Sample(lambda x: x.unfold(1, 2, 2).flatten(3), rigid="windows")),
    ),
    Operator(
        F.unfold,
        aten={"im2col": renamed(F.unfold)},
        axes=unfold_axes,
        zeros=keeps,
        samples=(Sample(lambda x: F.unfold(x, 2)),),
    ),
)
