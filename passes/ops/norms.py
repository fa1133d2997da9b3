"""Normalisations: their parameters follow the axis they belong to; the axes they mix are pinned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import Size, Value

from . import shapes
from .calls import Call, Dynamic, call_of
from .convolutions import spatial_axes
from .record import Layer, Operator, Sample, Trait
from .registry import OPERATORS
from .zeros import by_weight, keeps


def _follow_channels(types: AxisTypes, call: Call, inputs: Axes) -> None:
    """All tensors of a norm follow axis 1, in whatever order its spelling takes them."""
    for tensor in list(call.tensors())[1:]:
        types.unify(types.type(tensor)[0], inputs[1])


def batch_norm_axes(types: AxisTypes, call: Call) -> Axes:
    """weight, bias and statistics = axis 1; every axis that is averaged over is pinned (also on weights)."""
    inputs = types.type(call.argument(0, "input"))
    _follow_channels(types, call, inputs)
    types.pin_axes([inputs[0], *inputs[2:]], "batch_norm averages over it")
    return inputs


def instance_norm_axes(types: AxisTypes, call: Call) -> Axes:
    """Like `batch_norm`, for each sample alone."""
    inputs = types.type(call.argument(0, "input"))
    _follow_channels(types, call, inputs)
    types.pin_axes(inputs[2:], "instance_norm averages over it")
    return inputs


def layer_norm_axes(types: AxisTypes, call: Call) -> Axes:
    """Parameters follow the trailing axes, whose sizes are written anew: statistics are those of the kept entries."""
    inputs, shape = types.type(call.argument(0, "input")), call.argument(1, "normalized_shape")
    trailing = inputs[len(inputs) - len(shape) :]
    for tensor in list(call.tensors())[1:]:
        for own, axis in zip(types.type(tensor), trailing, strict=True):
            types.unify(own, axis)
    written = [size if isinstance(size, Dynamic) else axis for size, axis in zip(shape, trailing, strict=True)]
    types.rewrite(call, 1, "normalized_shape", tuple(written))  # a size that follows the input does so still
    return inputs


def group_norm_axes(types: AxisTypes, call: Call) -> Axes:
    """Channels are groups x width; statistics are those of the kept entries of each group."""
    inputs, groups = types.type(call.argument(0, "input")), call.argument(1, "num_groups")
    _follow_channels(types, call, inputs)
    types.pin_axes(inputs[2:], "group_norm averages over it")
    if groups > 1:
        outer, _ = types.factor(inputs[1], inputs[1].size // groups)
        types.rewrite(call, 1, "num_groups", outer)
    return inputs


def local_response_norm_axes(types: AxisTypes, call: Call) -> Axes:
    """Neighbouring channels are mixed: they are pinned."""
    inputs = types.type(call.argument(0, "input"))
    types.pin(inputs[1], "neighbouring channels are mixed")
    return inputs


def weight_norm_axes(types: AxisTypes, call: Call) -> Axes:
    """Rows of a direction have a length each; the axes that the length is taken over are pinned."""
    direction, length = types.type(call.argument(0, "v")), types.type(call.argument(1, "g"))
    dim = call.argument(2, "dim", 0)
    types.pin_axes([axis for place, axis in enumerate(direction) if place != dim], "the length of rows runs over it")
    if dim >= 0:
        types.unify(direction[dim], length[dim])
    return direction


def normalize_axes(types: AxisTypes, call: Call) -> Axes:
    """An axis may be elastic if its removed entries are zero, since they then do not change the norm."""
    axes, dims = types.type(call.argument(0, "input")), call.argument(2, "dim", 1)
    for dim in [dims] if isinstance(dims, int) else dims:
        types.contract((call.argument(0, "input"), dim % len(axes)))
    return axes


def layer_norm_onnx(site: Site) -> str:
    """Over the last axes."""
    shape = tuple(site.arg(1, "normalized_shape"))
    weight = site.optional(2, "weight") or torch.ones(shape, dtype=site.x.tensor.dtype)
    bias, epsilon = site.optional(3, "bias"), site.arg(4, "eps", 1e-5)
    return site.emit("LayerNormalization", site.x, weight, bias, axis=-len(shape), epsilon=epsilon)


def rms_norm_onnx(site: Site) -> str:
    """Divided by the root of the mean square over the last axes; ONNX has no operator for it before opset 23."""
    axes, epsilon = len(site.arg(1, "normalized_shape")), site.arg(3, "eps")
    epsilon = torch.finfo(site.result.dtype).eps if epsilon is None else epsilon
    mean = site.emit("ReduceMean", site.emit("Mul", site.x, site.x), site.ints(range(-axes, 0)), keepdims=1)
    root = site.emit("Sqrt", site.emit("Add", mean, site.operand(epsilon, site.result.dtype)))
    normal, weight = site.emit("Div", site.x, root), site.optional(2, "weight")
    return normal if weight is None else site.emit("Mul", normal, weight)


def group_norm_onnx(site: Site) -> str:
    """Each group of channels becomes one channel that is normalised alone."""
    groups, tensor = int(site.arg(1, "num_groups")), site.x.tensor
    runs = site.emit("Reshape", site.x, site.ints([0, groups, -1]))
    one, zero = torch.ones(groups, dtype=tensor.dtype), torch.zeros(groups, dtype=tensor.dtype)
    normal = site.emit("InstanceNormalization", runs, one, zero, epsilon=site.arg(4, "eps", 1e-5))
    several = sum(isinstance(size, Size) for size in site.x.sizes) > 1
    back = site.emit("Reshape", normal, site.shape(site.x)) if several else site.reshape(normal, site.x.sizes)
    return scaled(site, back, site.optional(2, "weight"), site.optional(3, "bias"))


def instance_norm_onnx(site: Site) -> str:
    """Each channel of each sample by its own statistics; running ones are refused."""
    if not site.arg(5, "use_input_stats", True):
        raise site.refuse("normalises with running statistics; use batch_norm for that")
    channels, weight, bias = site.x.tensor.shape[1], site.optional(3, "weight"), site.optional(4, "bias")
    one, zero = (make(channels, dtype=site.x.tensor.dtype) for make in (torch.ones, torch.zeros))
    normal = site.emit("InstanceNormalization", site.x, one, zero, epsilon=site.arg(7, "eps", 1e-5))
    return scaled(site, normal, weight, bias)


def scaled(site: Site, source: str, weight: Value | None, bias: Value | None) -> str:
    """`source` times a weight plus a bias, of which each is one number for each channel, or missing."""
    column = [-1] + [1] * (site.x.tensor.ndim - 2)
    if weight is not None:
        source = site.emit("Mul", source, site.reshape(weight, column))
    return source if bias is None else site.emit("Add", source, site.reshape(bias, column))


def normalize_onnx(site: Site) -> str:
    """Divided by the length along an axis, which counts as at least ``eps``."""
    norms = {1.0: "ReduceL1", 2.0: "ReduceL2"}
    order = float(site.arg(1, "p", 2.0))
    if order not in norms:
        raise site.refuse(f"has order {order}; only {sorted(norms)} can be lowered")
    length = site.emit(norms[order], site.x, site.ints([site.arg(2, "dim", 1)]), keepdims=1)
    least = site.operand(site.arg(3, "eps", 1e-12), site.result.dtype)
    return site.emit("Div", site.x, site.emit("Clip", length, least))


def local_response_norm_onnx(site: Site) -> str:
    """A window of channels around each one; ONNX Runtime takes odd sizes and images only.

    Of an even size PyTorch has one channel more before the middle, and ONNX one more behind it.
    """
    size = site.arg(1, "size")
    if size % 2 == 0:
        raise site.refuse(f"has a window of {size} channels, which ONNX puts elsewhere; only odd ones can be lowered")
    spatial_axes(site, 2)
    alpha, beta, bias = site.arg(2, "alpha", 1e-4), site.arg(3, "beta", 0.75), site.arg(4, "k", 1.0)
    return site.emit("LRN", site.x, size=size, alpha=float(alpha), beta=float(beta), bias=float(bias))


def batch_norm_onnx(site: Site) -> str:
    """With running statistics; folded into the convolution before it unless its output has other readers."""
    mean, variance = site.optional(1, "running_mean"), site.optional(2, "running_var")
    if mean is None or variance is None or (site.node.op != "call_module" and site.arg(5, "training", False)):
        raise site.refuse("normalises with the statistics of the batch, which is not what eval mode does")
    scale = site.optional(3, "weight") or Value(torch.ones_like(mean.tensor), f"{site.scope}.ones")
    shift = site.optional(4, "bias") or Value(torch.zeros_like(mean.tensor), f"{site.scope}.zeros")
    epsilon = site.arg(7, "eps", 1e-5)
    tensors = (mean, variance, scale, shift)
    if all(one.constant for one in tensors):
        folded = _fold(site, *(one.tensor for one in tensors), epsilon=epsilon)
        if folded is not None:
            return folded
    return site.emit("BatchNormalization", site.x, scale, shift, mean, variance, epsilon=epsilon)


def _fold(site: Site, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float) -> str | None:
    """The output of the convolution before, with scaled weights; ``None`` if this output has other readers."""
    conv = site.node.args[0] if site.node.args else site.node.kwargs.get("input")
    producer = site.builder.producer(site.x.name)
    if producer is None or not isinstance(conv, Node) or len(conv.users) > 1 or not _is_convolution(site, conv):
        return None
    if not (_is_called_once(conv) and _is_called_once(site.node)):
        return None
    stored = [site.builder.tensor(name) for name in producer.input[1:]]
    weight, bias = stored[0], stored[1] if len(stored) > 1 else None
    transposed = producer.op_type == "ConvTranspose"
    # With groups, the weight of a transposed convolution has no axis of all output channels.
    if weight is None or (len(stored) > 1 and bias is None) or weight.shape[int(transposed)] != scale.numel():
        return None
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, scale, shift, transposed)
    names = [f"{site.scope}.folded_{kind}" for kind in ("weight", "bias")]
    stored_names = [site.builder.constant(one.detach(), name) for one, name in zip(folded, names, strict=True)]
    del producer.input[1:]
    producer.input.extend(stored_names)
    return site.x.name


def _is_convolution(site: Site, node: Node) -> bool:
    call = call_of(node, site.root)
    return call is not None and OPERATORS.of(call.op).has(Trait.CONVOLUTION, Trait.TRANSPOSED_CONVOLUTION)


def _is_called_once(node: Node) -> bool:
    """Whether no other node calls the same module: its weights would have to be stored twice."""
    return node.op != "call_module" or node.graph.find_nodes(op=node.op, target=node.target) == [node]


def feature_sizes(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that batch and instance norms have as attributes."""
    return {"num_features": shape[0]}


def channel_sizes(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that `nn.GroupNorm` has as attributes."""
    return {"num_channels": shape[0]}


def trailing_sizes(layer: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """The sizes that `nn.LayerNorm` and `nn.RMSNorm` have as attributes."""
    return {"normalized_shape": shape}


_BATCH_NORM = Layer(
    tensors=("running_mean", "running_var", "weight", "bias"), settings=("momentum", "eps"), sizes=feature_sizes
)
_INSTANCE_NORM = Layer(leaf=False, sizes=feature_sizes)
_OF_TORCH = ("input", "weight", "bias", "running_mean", "running_var")
"""The order in which torch's own functions take what those of `torch.nn.functional` take in another one."""

RECORDS = (
    Operator(
        F.batch_norm,
        reordered={torch.batch_norm: (*_OF_TORCH, "training", "momentum", "eps")},
        layers={
            **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _BATCH_NORM),
            nn.SyncBatchNorm: Layer(leaf=False, sizes=feature_sizes),
        },
        traits={Trait.FUSES_ACTIVATION, Trait.BATCH_NORM, Trait.OWNS_MEMORY},
        axes=batch_norm_axes,
        zeros=by_weight(1, 3),
        shape=shapes.like,
        onnx=batch_norm_onnx,
        samples=(
            Sample(layer=lambda: nn.BatchNorm2d(8)),
            Sample(lambda x, layer: layer(x.mean((2, 3))), layer=lambda: nn.BatchNorm1d(8)),
            Sample(
                lambda x, n: F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias),
                layer=lambda: nn.BatchNorm2d(8),
            ),
            Sample(
                lambda x, n: torch.batch_norm(x, n.weight, n.bias, n.running_mean, n.running_var, False, 0, 0.1, False),
                layer=lambda: nn.BatchNorm2d(8),
            ),
        ),
    ),
    Operator(
        F.instance_norm,
        layers=dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _INSTANCE_NORM),
        reordered={torch.instance_norm: (*_OF_TORCH, "use_input_stats", "momentum", "eps")},
        axes=instance_norm_axes,
        zeros=by_weight(1, 3),
        onnx=instance_norm_onnx,
        samples=(
            Sample(layer=lambda: nn.InstanceNorm2d(8, affine=True)),
            Sample(lambda x: F.instance_norm(x)),
            Sample(lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0, 0.1, False), weights=((8,), (8,))),
        ),
    ),
    Operator(
        F.layer_norm,
        spellings=(torch.layer_norm,),
        layers={
            nn.LayerNorm: Layer(tensors=("weight", "bias"), settings=("normalized_shape", "eps"), sizes=trailing_sizes)
        },
        traits={Trait.STREAM_NORM, Trait.OWNS_MEMORY},
        axes=layer_norm_axes,
        zeros=by_weight(-1, 2),
        shape=shapes.over_last,
        onnx=layer_norm_onnx,
        kept="layer_norm",
        samples=(
            Sample(lambda x, layer: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), layer=lambda: nn.LayerNorm(8)),
            Sample(lambda x: F.layer_norm(x.permute(0, 2, 3, 1).sigmoid(), (8,)).permute(0, 3, 1, 2)),
        ),
    ),
    Operator(
        F.rms_norm,
        spellings=(torch.rms_norm,),
        layers={nn.RMSNorm: Layer(tensors=("weight",), settings=("normalized_shape", "eps"), sizes=trailing_sizes)},
        traits={Trait.STREAM_NORM},
        axes=layer_norm_axes,
        zeros=by_weight(-1, 2),
        shape=shapes.over_last,
        onnx=rms_norm_onnx,
        kept="rms_norm",
        samples=(
            Sample(lambda x, layer: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), layer=lambda: nn.RMSNorm(8)),
            Sample(lambda x: F.rms_norm(x.permute(0, 2, 3, 1).sigmoid(), (8,)).permute(0, 3, 1, 2)),
        ),
    ),
    Operator(
        F.group_norm,
        spellings=(torch.group_norm,),
        layers={nn.GroupNorm: Layer(tensors=("weight", "bias"), settings=("num_groups", "eps"), sizes=channel_sizes)},
        traits={Trait.STREAM_NORM, Trait.OWNS_MEMORY},
        axes=group_norm_axes,
        zeros=by_weight(1, 2),
        shape=shapes.plain,
        onnx=group_norm_onnx,
        kept="group_norm",
        samples=(
            Sample(layer=lambda: nn.GroupNorm(1, 8)),
            Sample(layer=lambda: nn.GroupNorm(4, 8)),
            Sample(lambda x: F.group_norm(x.sigmoid(), 1)),
            Sample(lambda x, w, b: torch.group_norm(x, 2, w, b), weights=((8,), (8,))),
        ),
    ),
    Operator(
        F.local_response_norm,
        layers={nn.LocalResponseNorm: Layer(settings=("size", "alpha", "beta", "k"))},
        axes=local_response_norm_axes,
        onnx=local_response_norm_onnx,
        samples=(
            Sample(lambda x: F.local_response_norm(x, 3, 0.7), rigid="neighbouring channels"),
            Sample(layer=lambda: nn.LocalResponseNorm(5, 0.7, 0.6, 2.0), rigid="neighbouring channels"),
            Sample(lambda x: F.local_response_norm(x, 4), rigid="neighbouring channels", onnx="only odd ones"),
            Sample(lambda x: F.local_response_norm(x.flatten(2), 3), rigid="neighbouring", onnx="needs 4 dimensions"),
        ),
    ),
    Operator(
        torch._weight_norm,
        axes=weight_norm_axes,
        zeros=keeps,
        kept="weight_norm",
        samples=(
            Sample(
                lambda x, v, g: F.conv2d(x, torch._weight_norm(v, g)),
                weights=((6, 8, 1, 1), (6, 1, 1, 1)),
                rigid="length of rows",
            ),
        ),
    ),
    Operator(
        F.normalize,
        axes=normalize_axes,
        zeros=keeps,
        onnx=normalize_onnx,
        samples=(
            Sample(lambda x: F.normalize(x, dim=1)),
            Sample(lambda x: F.normalize(x.exp(), dim=1), rigid="are not zero"),
            Sample(lambda x: F.normalize(x, p=1.0, dim=-1)),
        ),
    ),
)
