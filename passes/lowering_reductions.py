"""Lowering of sums, means and extremes over axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto

from .lowering_arithmetic import binary
from .lowering_site import Rule, Site, Value, register_lowering

REDUCTIONS: dict[Callable[..., Any], str] = {
    torch.mean: "ReduceMean",
    torch.sum: "ReduceSum",
    torch.prod: "ReduceProd",
    torch.amax: "ReduceMax",
    torch.amin: "ReduceMin",
    torch.logsumexp: "ReduceLogSumExp",
}
"""Operators over one, several or all axes that ONNX has too."""


def reduction(op_type: str) -> Rule:
    """The rule that writes a reduction as `op_type`, in the dtype that PyTorch gives the result."""
    return lambda site: reduced(site, op_type, site.operand(site.x, site.result.dtype))


for _op, _op_type in REDUCTIONS.items():
    register_lowering(_op)(reduction(_op_type))


def reduced(site: Site, op_type: str, source: str) -> str:
    """`source` reduced over the axes that the call names: none means all."""
    dims = axes(site)
    keep = int(bool(site.arg(2, "keepdim", False)))
    return site.emit(op_type, source, None if dims is None else site.ints(dims), keepdims=keep)


def axes(site: Site) -> list[int] | None:
    """The axes that the call names, or ``None`` for all."""
    given: int | Sequence[int] | None = site.arg(1, "dim")
    if isinstance(given, int):
        return [given]
    return list(given) if given else None


@register_lowering(torch.max, torch.min)
def extreme(site: Site) -> str | Sequence[str]:
    """Of all entries, along an axis (with where it is), or of two tensors."""
    largest = site.call.op is torch.max
    if isinstance(site.arg(1, "other"), Value):
        return binary("Max" if largest else "Min")(site)
    values = reduced(site, "ReduceMax" if largest else "ReduceMin", site.name(site.x))
    return values if isinstance(site.result, torch.Tensor) else (values, place_of_extreme(site, largest))


@register_lowering(torch.argmax, torch.argmin)
def place(site: Site) -> str:
    """Where the extreme along an axis is: the first if there are several."""
    if site.arg(1, "dim") is None:
        row = site.emit("Reshape", site.x, site.ints([-1]))
        return site.emit("ArgMax" if site.call.op is torch.argmax else "ArgMin", row, axis=0, keepdims=0)
    return place_of_extreme(site, site.call.op is torch.argmax)


def place_of_extreme(site: Site, largest: bool) -> str:
    """The index of the largest or smallest entry along the axis that the call names."""
    keep = int(bool(site.arg(2, "keepdim", False)))
    return site.emit("ArgMax" if largest else "ArgMin", site.x, axis=site.arg(1, "dim"), keepdims=keep)


@register_lowering(torch.any, torch.all)
def some_or_all(site: Site) -> str:
    """Whether an entry is not zero, or every one."""
    flags = site.emit("Cast", site.operand(site.x, torch.bool), to=TensorProto.INT32)
    found = reduced(site, "ReduceMax" if site.call.op is torch.any else "ReduceMin", flags)
    return site.emit("Cast", found, to=TensorProto.BOOL)


NORMS: dict[Any, str] = {None: "ReduceL2", "fro": "ReduceL2", 2: "ReduceL2", 1: "ReduceL1"}
"""Lengths of vectors that ONNX has too, by their order."""


@register_lowering(torch.norm, torch.linalg.vector_norm)
def norm(site: Site) -> str:
    """The length of vectors, of order 1, 2 or infinite."""
    order, dim = site.arg(1, "p", site.arg(1, "ord", 2)), site.arg(2, "dim")
    keep = int(bool(site.arg(3, "keepdim", False)))
    dims = None if dim is None else site.ints([dim] if isinstance(dim, int) else list(dim))
    if order == math.inf:
        return site.emit("ReduceMax", site.emit("Abs", site.x), dims, keepdims=keep)
    if order not in NORMS:
        raise site.refuse(f"has order {order!r}")
    return site.emit(NORMS[order], site.operand(site.x, site.result.dtype), dims, keepdims=keep)


@register_lowering(F.cosine_similarity)
def cosine_similarity(site: Site) -> str:
    """The product of two vectors of length one."""
    first, second, axis = site.value(0, "x1"), site.value(1, "x2"), site.arg(2, "dim", 1)
    least, dims = site.operand(site.arg(3, "eps", 1e-8), site.result.dtype), site.ints([axis])
    lengths = [site.emit("Clip", site.emit("ReduceL2", one, dims, keepdims=0), least) for one in (first, second)]
    product = site.emit("ReduceSum", site.emit("Mul", first, second), dims, keepdims=0)
    return site.emit("Div", product, site.emit("Mul", *lengths))


@register_lowering(torch.var, torch.std)
def variance(site: Site) -> str:
    """The mean square distance from the mean, with the correction that PyTorch uses, or its root."""
    dims, correction = axes(site), site.call.kwargs.get("correction")
    dims = list(range(site.x.tensor.ndim)) if dims is None else dims
    if correction is None:
        correction = int(site.arg(2, "unbiased", True))
    count = site.product([site.x.sizes[axis] for axis in dims])
    keep = int(site.result.ndim == site.x.tensor.ndim)
    mean = site.emit("ReduceMean", site.x, site.ints(dims), keepdims=1)
    distance = site.emit("Sub", site.x, mean)
    square = site.emit("ReduceMean", site.emit("Mul", distance, distance), site.ints(dims), keepdims=keep)
    factor = site.calculated("Div", count, site.calculated("Sub", count, correction))
    result = site.emit("Mul", square, site.operand(factor, site.result.dtype))
    return result if site.call.op is torch.var else site.emit("Sqrt", result)
