"""Convolutions: their weights make new channels. A BatchNorm behind one is folded in ONNX (see `norms`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn

from bnas.passes.axes.terms import K, Prod, symbols
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.site import Site

from . import shapes
from .calls import Call
from .record import Layer, Operator, Sample, Trait
from .zeros import by_weight


def convolution_axes(types: AxisTypes, call: Call) -> Axes:
    """In = G*c, out = G*o, weight = (G*o, c, kernel), bias = out, groups = active(G); depthwise is c = 1.

    An axis that a kernel of one runs over place by place stays what it is.
    """
    inputs, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    groups, bias = call.argument(6, "groups", 1), call.argument(2, "bias")
    channel = len(inputs) - len(weight) + 1
    _tie_groups(types, call, inputs, channel, groups, weight)
    types.contract((call.argument(0, "input"), channel), (call.argument(1, "weight"), 1))
    if bias is not None:
        types.unify(types.type(bias)[0], weight[0])
    types.pin_axes(weight[2:], "a kernel keeps its spatial size when channels are removed")
    out = [*inputs[:channel], weight[0], *_run_over(types, call, inputs[channel + 1 :], weight[2:])]
    types.produces(call.argument(1, "weight"), 0)
    types.count_macs(call, [*out, *weight[1:]])
    return out


def _run_over(types: AxisTypes, call: Call, axes: Axes, kernel: Axes) -> Axes:
    """The axes behind the channels of the result; of the input those are pinned that lose their places."""
    strides, padding = spread(call.argument(3, "stride", 1), len(axes)), call.argument(4, "padding", 0)
    paddings = spread(0 if isinstance(padding, str) else padding, len(axes))
    alone = [(size.size, stride, pad) == (1, 1, 0) for size, stride, pad in zip(kernel, strides, paddings, strict=True)]
    types.pin_axes([axis for axis, stays in zip(axes, alone, strict=True) if not stays], "a convolution runs over it")
    made = types.output_shape(call)[len(types.output_shape(call)) - len(axes) :]
    kept = [stays and any(symbols(axis)) for axis, stays in zip(axes, alone, strict=True)]
    return [axis if stays else K(size) for axis, stays, size in zip(axes, kept, made, strict=True)]


def _tie_groups(types: AxisTypes, call: Call, inputs: Axes, channel: int, groups: int, weight: Axes) -> None:
    if groups == 1:
        types.unify(inputs[channel], weight[1])
        return
    groups_in, per_group = types.factor(inputs[channel], weight[1].size)
    groups_out, _ = types.factor(weight[0], weight[0].size // groups)
    types.unify(groups_in, groups_out)
    types.unify(per_group, weight[1])
    types.rewrite(call, 6, "groups", groups_out)


def transposed_convolution_axes(types: AxisTypes, call: Call) -> Axes:
    """In = G*c = weight axis 0, out = G * weight axis 1."""
    inputs, weight = types.type(call.argument(0, "input")), types.type(call.argument(1, "weight"))
    groups, bias = call.argument(6, "groups", 1), call.argument(2, "bias")
    channel = len(inputs) - len(weight) + 1
    types.unify(inputs[channel], weight[0])
    types.contract((call.argument(0, "input"), channel), (call.argument(1, "weight"), 0))
    outer, _ = types.factor(weight[0], weight[0].size // groups)
    if groups > 1:
        types.rewrite(call, 6, "groups", outer)
    channels = Prod((outer, weight[1])) if groups > 1 else weight[1]
    if bias is not None:
        types.unify(types.type(bias)[0], channels)
    types.pin_axes(weight[2:], "a kernel keeps its spatial size when channels are removed")
    types.pin_axes(inputs[channel + 1 :], "a convolution runs over it")
    types.produces(call.argument(1, "weight"), 1)
    types.count_macs(call, [*inputs[:channel], *inputs[channel + 1 :], *weight])
    return [*inputs[:channel], channels, *(K(n) for n in types.output_shape(call)[channel + 1 :])]


PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""PyTorch's padding modes: what ONNX calls them."""


def spread(setting: int | Sequence[int], axes: int) -> list[int]:
    """Return a setting of a layer for each of its axes."""
    return [setting] * axes if isinstance(setting, int) else [int(one) for one in setting] * (axes // len(setting))


def spatial_axes(site: Site, axes: int) -> int:
    """Return `axes` if the first argument has a batch, channels and so many further axes; else refuse."""
    if site.x.tensor.ndim != axes + 2:
        raise site.refuse(f"needs {axes + 2} dimensions, a batch included, but gets {site.x.tensor.ndim}")
    return axes


def convolution_onnx(site: Site) -> str:
    """All settings; padding with other values than zeros becomes a node of its own."""
    weight = site.value(1, "weight")
    kernel = list(weight.tensor.shape[2:])
    axes = spatial_axes(site, len(kernel))
    dilation = spread(site.arg(5, "dilation", 1), axes)
    pads = _pads(site.arg(4, "padding", 0), kernel, dilation)
    source: Any = site.x
    mode = site.arg(7, "padding_mode", "zeros")
    if mode != "zeros" and any(pads):
        padding = [0, 0, *pads[:axes], 0, 0, *pads[axes:]]
        source, pads = site.emit("Pad", source, site.ints(padding), mode=PAD_MODES[mode]), [0] * (2 * axes)
    settings = {"kernel_shape": kernel, "dilations": dilation, "strides": spread(site.arg(3, "stride", 1), axes)}
    bias = site.optional(2, "bias")
    return site.emit("Conv", source, weight, bias, pads=pads, group=site.arg(6, "groups", 1), **settings)


def _pads(padding: int | Sequence[int] | str, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return the padding before each axis, followed by the padding behind each axis."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return [size // 2 for size in total] + [size - size // 2 for size in total]
    return spread(padding, len(kernel)) * 2  # type: ignore[arg-type]


def transposed_convolution_onnx(site: Site) -> str:
    """All settings; the output padding follows from PyTorch's output size, also if `output_size` was given."""
    weight = site.value(1, "weight")
    kernel = list(weight.tensor.shape[2:])
    axes = spatial_axes(site, len(kernel))
    stride, padding = spread(site.arg(3, "stride", 1), axes), spread(site.arg(4, "padding", 0), axes)
    dilation = spread(site.arg(7, "dilation", 1), axes)
    rest = [
        made - ((given - 1) * s - 2 * p + d * (k - 1) + 1)
        for made, given, s, p, d, k in zip(
            site.result.shape[2:], site.x.tensor.shape[2:], stride, padding, dilation, kernel, strict=True
        )
    ]
    settings = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "output_padding": rest}
    bias, groups = site.optional(2, "bias"), site.arg(6, "groups", 1)
    return site.emit("ConvTranspose", site.x, weight, bias, pads=padding * 2, group=groups, **settings)


def convolution_sizes(layer: Any, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that convolutions have as attributes."""
    return {"out_channels": shape[0], "in_channels": shape[1] * layer.groups}


def transposed_sizes(layer: Any, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that transposed convolutions have as attributes."""
    return {"in_channels": shape[0], "out_channels": shape[1] * layer.groups}


_TENSORS = ("weight", "bias")
_MAKES_CHANNELS = {Trait.FUSES_NORM, Trait.FUSES_ACTIVATION, Trait.OWNS_MEMORY}
_CONVOLUTION = Layer(
    tensors=_TENSORS, settings=("stride", "padding", "dilation", "groups", "padding_mode"), sizes=convolution_sizes
)
_TRANSPOSED = Layer(
    tensors=_TENSORS,
    settings=("stride", "padding", "output_padding", "groups", "dilation", "padding_mode"),
    sizes=transposed_sizes,
)


def _convolution(op: Callable[..., Any], kind: type[nn.Module], *samples: Sample) -> Operator:
    return Operator(
        op,
        layers={kind: _CONVOLUTION},
        traits={Trait.CONVOLUTION, *_MAKES_CHANNELS},
        axes=convolution_axes,
        zeros=by_weight(1, 1, 0),
        shape=shapes.convolved,
        onnx=convolution_onnx,
        samples=samples,
    )


def _transposed(op: Callable[..., Any], kind: type[nn.Module], *samples: Sample) -> Operator:
    return Operator(
        op,
        layers={kind: _TRANSPOSED},
        traits={Trait.TRANSPOSED_CONVOLUTION, *_MAKES_CHANNELS},
        axes=transposed_convolution_axes,
        zeros=by_weight(1, 1, None),
        onnx=transposed_convolution_onnx,
        samples=samples,
    )


RECORDS = (
    _convolution(
        F.conv1d,
        nn.Conv1d,
        Sample(lambda x, layer: layer(x.flatten(2)), layer=lambda: nn.Conv1d(8, 6, 3, padding=1)),
        Sample(lambda x, w: F.conv1d(x.flatten(2), w), weights=((6, 8, 1),)),
        Sample(lambda x, w, b: x.flatten(2) * F.conv1d(x.flatten(2).mT, w, b).mT, weights=((24, 24, 1), (24,))),
        Sample(
            lambda x, w: F.conv1d(x.flatten(2).mT, w, None, 2).mT[:, :2],
            weights=((24, 24, 1),),
            rigid="a convolution runs over it",
        ),
    ),
    _convolution(
        F.conv2d,
        nn.Conv2d,
        Sample(layer=lambda: nn.Conv2d(8, 12, 3, padding=1)),
        Sample(layer=lambda: nn.Conv2d(8, 12, 3, groups=4)),
        Sample(layer=lambda: nn.Conv2d(8, 16, 3, groups=8, stride=(1, 2), bias=False)),
        Sample(lambda x, w, b: F.conv2d(x, w, b, 1, "same"), weights=((6, 8, 3, 3), (6,))),
        Sample(layer=lambda: nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")),
    ),
    _convolution(
        F.conv3d,
        nn.Conv3d,
        Sample(lambda x, layer: layer(x.unsqueeze(2)), layer=lambda: nn.Conv3d(8, 6, (1, 2, 3))),
    ),
    _transposed(
        F.conv_transpose1d,
        nn.ConvTranspose1d,
        Sample(lambda x, layer: layer(x.flatten(2)), layer=lambda: nn.ConvTranspose1d(8, 6, 3, 2, output_padding=1)),
    ),
    _transposed(
        F.conv_transpose2d,
        nn.ConvTranspose2d,
        Sample(layer=lambda: nn.ConvTranspose2d(8, 12, 2, 2)),
        Sample(layer=lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=2)),
    ),
    _transposed(
        F.conv_transpose3d,
        nn.ConvTranspose3d,
        Sample(lambda x, layer: layer(x.unsqueeze(2)), layer=lambda: nn.ConvTranspose3d(8, 6, 1)),
    ),
)
