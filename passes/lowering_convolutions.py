"""Lowering of convolutions, linear layers and batch normalisation, which is folded where it can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .calls import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, call_of
from .lowering_site import Site, Value, register_lowering

PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""PyTorch's padding modes: what ONNX calls them."""


def spread(setting: int | Sequence[int], axes: int) -> list[int]:
    """A setting of a layer for each of its axes."""
    return [setting] * axes if isinstance(setting, int) else [int(one) for one in setting] * (axes // len(setting))


def spatial_axes(site: Site, axes: int) -> int:
    """`axes`, if the first argument has a batch, channels and that many further axes."""
    if site.x.tensor.ndim != axes + 2:
        raise site.refuse(f"needs {axes + 2} dimensions, a batch included, but gets {site.x.tensor.ndim}")
    return axes


@register_lowering(F.conv1d, F.conv2d, F.conv3d)
def convolution(site: Site) -> str:
    """All settings; padding other than zeros goes into a node of its own."""
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
    """What is added before each axis, then what is added behind each."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return [size // 2 for size in total] + [size - size // 2 for size in total]
    return spread(padding, len(kernel)) * 2  # type: ignore[arg-type]


@register_lowering(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def transposed_convolution(site: Site) -> str:
    """All settings; the output padding is what PyTorch's output size needs, however it was asked for."""
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


@register_lowering(F.linear)
def linear(site: Site) -> str:
    """Gemm on two dimensions, MatMul and Add on any other number."""
    weight, bias = site.value(1, "weight"), site.optional(2, "bias")
    if site.x.tensor.ndim == 2:
        return site.emit("Gemm", site.x, weight, bias, transB=1)
    product = site.emit("MatMul", site.x, site.transpose(weight, [1, 0]))
    return product if bias is None else site.emit("Add", product, bias)


@register_lowering(F.batch_norm)
def batch_norm(site: Site) -> str:
    """With running statistics; folded into the convolution before it if nothing else reads that one's output."""
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
    """The output of the convolution before, with its weights scaled; ``None`` if anything else reads that output."""
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
    return call is not None and call.op in (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)


def _is_called_once(node: Node) -> bool:
    """Whether no other node calls the same module: its weights would have to be stored twice."""
    return node.op != "call_module" or node.graph.find_nodes(op=node.op, target=node.target) == [node]
