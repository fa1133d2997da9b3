"""Lowering of normalisation over axes of each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .lowering_site import Site, Value, register_lowering
from .lowering_sizes import Size


@register_lowering(F.layer_norm)
def layer_norm(site: Site) -> str:
    """Over the last axes."""
    shape = tuple(site.arg(1, "normalized_shape"))
    weight = site.optional(2, "weight") or torch.ones(shape, dtype=site.x.tensor.dtype)
    bias, epsilon = site.optional(3, "bias"), site.arg(4, "eps", 1e-5)
    return site.emit("LayerNormalization", site.x, weight, bias, axis=-len(shape), epsilon=epsilon)


@register_lowering(F.rms_norm)
def rms_norm(site: Site) -> str:
    """Divided by the root of the mean square over the last axes; ONNX has no operator for it before opset 23."""
    axes, epsilon = len(site.arg(1, "normalized_shape")), site.arg(3, "eps")
    epsilon = torch.finfo(site.result.dtype).eps if epsilon is None else epsilon
    mean = site.emit("ReduceMean", site.emit("Mul", site.x, site.x), site.ints(range(-axes, 0)), keepdims=1)
    root = site.emit("Sqrt", site.emit("Add", mean, site.operand(epsilon, site.result.dtype)))
    normal, weight = site.emit("Div", site.x, root), site.optional(2, "weight")
    return normal if weight is None else site.emit("Mul", normal, weight)


@register_lowering(F.group_norm, torch.group_norm)
def group_norm(site: Site) -> str:
    """Each group of channels becomes one channel that is normalised alone."""
    groups, tensor = int(site.arg(1, "num_groups")), site.x.tensor
    runs = site.emit("Reshape", site.x, site.ints([0, groups, -1]))
    one, zero = torch.ones(groups, dtype=tensor.dtype), torch.zeros(groups, dtype=tensor.dtype)
    normal = site.emit("InstanceNormalization", runs, one, zero, epsilon=site.arg(4, "eps", 1e-5))
    several = sum(isinstance(size, Size) for size in site.x.sizes) > 1
    back = site.emit("Reshape", normal, site.shape(site.x)) if several else site.reshape(normal, site.x.sizes)
    return scaled(site, back, site.optional(2, "weight"), site.optional(3, "bias"))


@register_lowering(F.instance_norm)
def instance_norm(site: Site) -> str:
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


@register_lowering(F.normalize)
def normalize(site: Site) -> str:
    """Divided by the length along an axis, which counts as at least ``eps``."""
    norms = {1.0: "ReduceL1", 2.0: "ReduceL2"}
    order = float(site.arg(1, "p", 2.0))
    if order not in norms:
        raise site.refuse(f"has order {order}; only {sorted(norms)} can be lowered")
    length = site.emit(norms[order], site.x, site.ints([site.arg(2, "dim", 1)]), keepdims=1)
    least = site.operand(site.arg(3, "eps", 1e-12), site.result.dtype)
    return site.emit("Div", site.x, site.emit("Clip", length, least))
