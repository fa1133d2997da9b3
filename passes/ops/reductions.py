"""Reductions, scans and orders. Axes along which entries are compared are pinned; sums and means may be elastic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import nn

from bnas.passes.axes.terms import K
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.errors import RuleError
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import Size, Value, same_size

from .arithmetic import binary
from .calls import Call
from .numbers import of_two
from .parts import END, cut
from .record import Layer, OnnxRule, Operator, Sample
from .zeros import keeps, parted, picked, summed


def mean_axes(types: AxisTypes, call: Call) -> Axes:
    """A mean over an elastic axis is the mean of the kept entries, by definition, as in `layer_norm`."""
    inputs = types.type(call.argument(0, "input"))
    return _rest(call, inputs, _reduced(types, call, 1))


def extreme_axes(types: AxisTypes, call: Call) -> Any:
    """The reduced axes are pinned, since the missing entries would change the result; the others pass."""
    other = call.argument(1, "other")
    if call.op in (torch.max, torch.min) and other is not None and types.is_tensor(other):
        return types.broadcast(types.type(call.argument(0, "input")), types.type(other))  # the greater of two
    reduced = _reduced(types, call, 1)
    inputs = types.type(call.argument(0, "input"))
    types.pin_axes([inputs[axis] for axis in sorted(reduced)], "it is searched, or multiplied, along")
    return _like(call, _rest(call, inputs, reduced))


def total_axes(types: AxisTypes, call: Call) -> Axes:
    """An axis may be elastic if its removed entries are zero, since they add nothing; else it is pinned."""
    reduced = _reduced(types, call, 1 + (call.op is not torch.sum))
    for axis in sorted(reduced):
        types.contract((call.argument(0, "input"), axis))
    return _rest(call, types.type(call.argument(0, "input")), reduced)


def _reduced(types: AxisTypes, call: Call, position: int) -> set[int]:
    """The axes that are reduced, by the argument ``dim``; all of them if it is not given."""
    axes = len(types.type(call.argument(0, "input")))
    dims = call.argument(position, "dim", call.kwargs.get("axis"))
    if dims is None:
        return set(range(axes))
    if isinstance(dims, bool) or not isinstance(dims, int | tuple | list):
        raise RuleError("a reduction without axes")
    return {dim % axes for dim in ([dims] if isinstance(dims, int) else dims)}


def _rest(call: Call, inputs: Axes, reduced: set[int]) -> Axes:
    value = call.node.meta["value"]
    kept = (value[0] if isinstance(value, tuple) else value).ndim == len(inputs)
    return [K(1) if axis in reduced else term for axis, term in enumerate(inputs) if kept or axis not in reduced]


def _like(call: Call, out: Axes) -> Any:
    """Return a type for each result, because some reductions return values and places."""
    value = call.node.meta["value"]
    return tuple(list(out) for _ in value) if isinstance(value, tuple) else out


def scan_axes(types: AxisTypes, call: Call) -> Axes:
    """The axis it runs along is pinned."""
    inputs, dim = types.type(call.argument(0, "input")), call.argument(1, "dim")
    if dim is None:
        raise RuleError("no axis is given")
    types.pin(inputs[dim], f"{call.op.__name__} runs along it")  # type: ignore[union-attr]
    return inputs


def diff_axes(types: AxisTypes, call: Call) -> Axes:
    """The axis is pinned and becomes shorter; `prepend` and `append` have the same other axes."""
    tensors = [types.type(one) for one in call.tensors()]
    dim = call.argument(2, "dim", -1) % len(tensors[0])
    types.pin_axes([axes[dim] for axes in tensors], "neighbours along it are subtracted")
    for axes in tensors[1:]:
        for place, (own, other) in enumerate(zip(tensors[0], axes, strict=True)):
            if place != dim:
                types.unify(own, other)
    return [K(types.output_shape(call)[dim]) if axis == dim else term for axis, term in enumerate(tensors[0])]


def cosine_similarity_axes(types: AxisTypes, call: Call) -> Axes:
    """The axis is gone; missing entries add nothing to either length if they are zero, else it is pinned."""
    vectors = [call.argument(0, "x1"), call.argument(1, "x2")]
    out = types.broadcast(*map(types.type, vectors))
    place = call.argument(2, "dim", 1) % len(out) - len(out)
    if any(len(shape) < -place or shape[place] != out[place].size for shape in map(types.shape, vectors)):
        raise RuleError("a vector of one number for all entries")
    for one in vectors:
        types.contract((one, place))
    return [term for axis, term in enumerate(out) if axis != place + len(out)]


def topk_axes(types: AxisTypes, call: Call) -> tuple[Axes, Axes]:
    """The axis it runs along is pinned; values and places."""
    inputs = types.type(call.argument(0, "input"))
    dim = call.argument(1 if call.op is torch.sort else 2, "dim", -1) % len(inputs)
    types.pin(inputs[dim], "its entries are sorted")
    out = [K(call.node.meta["value"][0].shape[dim]) if axis == dim else term for axis, term in enumerate(inputs)]
    return out, list(out)


def reduction(op_type: str) -> OnnxRule:
    """The rule that writes a reduction as `op_type`, in the dtype that PyTorch gives the result."""
    return lambda site: reduced(site, op_type, site.operand(site.x, site.result.dtype))


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


def extreme_onnx(site: Site) -> str | Sequence[str]:
    """The extreme of all entries, along an axis (with its place), or of two tensors."""
    largest = site.call.op is torch.max
    if isinstance(site.arg(1, "other"), Value):
        return binary("Max" if largest else "Min")(site)
    values = reduced(site, "ReduceMax" if largest else "ReduceMin", site.name(site.x))
    return values if isinstance(site.result, torch.Tensor) else (values, place_of_extreme(site, largest))


def place_onnx(site: Site) -> str:
    """The place of the extreme along an axis; the first one if there are several."""
    if site.arg(1, "dim") is None:
        row = site.emit("Reshape", site.x, site.ints([-1]))
        return site.emit("ArgMax" if site.call.op is torch.argmax else "ArgMin", row, axis=0, keepdims=0)
    return place_of_extreme(site, site.call.op is torch.argmax)


def place_of_extreme(site: Site, largest: bool) -> str:
    """The index of the largest or smallest entry along the axis that the call names."""
    keep = int(bool(site.arg(2, "keepdim", False)))
    return site.emit("ArgMax" if largest else "ArgMin", site.x, axis=site.arg(1, "dim"), keepdims=keep)


def some_or_all_onnx(site: Site) -> str:
    """Whether any entry is not zero, or all are not zero."""
    flags = site.emit("Cast", site.operand(site.x, torch.bool), to=TensorProto.INT32)
    found = reduced(site, "ReduceMax" if site.call.op is torch.any else "ReduceMin", flags)
    return site.emit("Cast", found, to=TensorProto.BOOL)


NORMS: dict[Any, str] = {None: "ReduceL2", "fro": "ReduceL2", 2: "ReduceL2", 1: "ReduceL1"}
"""Lengths of vectors that ONNX has too, by their order."""


def norm_onnx(site: Site) -> str:
    """The length of vectors, of order 1, 2 or infinite."""
    order, dim = site.arg(1, "p", site.arg(1, "ord", 2)), site.arg(2, "dim")
    keep = int(bool(site.arg(3, "keepdim", False)))
    dims = None if dim is None else site.ints([dim] if isinstance(dim, int) else list(dim))
    if order == math.inf:
        return site.emit("ReduceMax", site.emit("Abs", site.x), dims, keepdims=keep)
    if order not in NORMS:
        raise site.refuse(f"has order {order!r}")
    return site.emit(NORMS[order], site.operand(site.x, site.result.dtype), dims, keepdims=keep)


def diff_onnx(site: Site) -> str:
    """All entries of an axis but the first, minus all but the last."""
    if site.arg(1, "n", 1) != 1 or site.optional(3, "prepend") or site.optional(4, "append"):
        raise site.refuse("is more than one difference of neighbours")
    axis = site.arg(2, "dim", -1)
    behind, before = (cut(site, site.x, [(axis, start, stop, 1)]) for start, stop in ((1, END), (0, -1)))
    return site.emit("Xor" if site.result.dtype == torch.bool else "Sub", behind, before)


def cosine_similarity_onnx(site: Site) -> str:
    """The product of two vectors of length one."""
    values = [site.value(0, "x1"), site.value(1, "x2")]
    axis = site.arg(2, "dim", 1) % (site.result.ndim + 1) - site.result.ndim - 1
    if any(one.tensor.ndim < -axis or not same_size(one.sizes[axis], values[0].sizes[axis]) for one in values):
        raise site.refuse("compares vectors of different lengths")
    first, second = (site.operand(one, site.result.dtype) for one in values)
    least, dims = site.operand(site.arg(3, "eps", 1e-8), site.result.dtype), site.ints([axis])
    lengths = [site.emit("Clip", site.emit("ReduceL2", one, dims, keepdims=0), least) for one in (first, second)]
    product = site.emit("ReduceSum", site.emit("Mul", first, second), dims, keepdims=0)
    return site.emit("Div", product, site.emit("Mul", *lengths))


def variance_onnx(site: Site) -> str:
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


def softmax_onnx(site: Site) -> str:
    """The softmax over one axis; ``None`` means axis 0 for 0, 1 or 3 dimensions, else axis 1, as in PyTorch."""
    axis = site.arg(1, "dim")
    if axis is None:
        axis = 0 if site.x.tensor.ndim in (0, 1, 3) else 1
    op_type = "Softmax" if site.call.op is F.softmax else "LogSoftmax"
    return site.emit(op_type, site.operand(site.x, site.result.dtype), axis=axis)


def softmin_onnx(site: Site) -> str:
    """The softmax of the negated values."""
    return site.emit("Softmax", site.emit("Neg", site.x), axis=site.arg(1, "dim"))


def topk_onnx(site: Site) -> tuple[str, ...]:
    """The largest or smallest entries of an axis, and their places."""
    return _ordered(site, site.arg(1, "k"), site.arg(2, "dim", -1), bool(site.arg(3, "largest", True)))


def sort_onnx(site: Site) -> tuple[str, ...]:
    """All entries of an axis in order, and their former places."""
    axis = site.arg(1, "dim", -1)
    return _ordered(site, site.x.sizes[axis], axis, bool(site.arg(2, "descending", False)))


def argsort_onnx(site: Site) -> str:
    """The places of the entries of an axis, sorted by their values."""
    axis = site.arg(1, "dim", -1)
    return _ordered(site, site.x.sizes[axis], axis, bool(site.arg(2, "descending", False)))[1]


def _ordered(site: Site, count: int | Size, axis: int, largest: bool) -> tuple[str, ...]:
    return site.emit_many("TopK", [site.x, site.ints([count])], 2, axis=axis, largest=int(largest))


def cumsum_onnx(site: Site) -> str:
    """Cumulative sums along an axis."""
    return site.emit("CumSum", site.operand(site.x, site.result.dtype), site.name(torch.tensor(site.arg(1, "dim"))))


RECORDS = (
    Operator(
        torch.mean,
        axes=mean_axes,
        zeros=keeps,
        onnx=reduction("ReduceMean"),
        kept="mean",
        samples=(Sample(lambda x: x * x.mean((2, 3), keepdim=True)), Sample(lambda x: x * x.mean(1, keepdim=True))),
    ),
    Operator(
        torch.var,
        axes=mean_axes,
        onnx=variance_onnx,
        kept="var",
        samples=(Sample(lambda x: x * x.var(1, keepdim=True)), Sample(lambda x: x.var((2, 3), correction=0))),
    ),
    Operator(
        torch.std,
        axes=mean_axes,
        onnx=variance_onnx,
        kept="std",
        samples=(Sample(lambda x: x * x.exp().std(dim=1, unbiased=False, keepdim=True)),),
    ),
    Operator(
        torch.amax,
        axes=extreme_axes,
        zeros=keeps,
        onnx=reduction("ReduceMax"),
        samples=(
            Sample(lambda x: torch.amax(x, 2)),
            Sample(lambda x: x * torch.amax(x, 1, keepdim=True), rigid="searched"),
        ),
    ),
    Operator(
        torch.amin,
        axes=extreme_axes,
        zeros=keeps,
        onnx=reduction("ReduceMin"),
        samples=(
            Sample(lambda x: torch.amin(x, 2)),
            Sample(lambda x: x * torch.amin(x, 1, keepdim=True), rigid="searched"),
        ),
    ),
    Operator(
        torch.prod,
        axes=extreme_axes,
        onnx=reduction("ReduceProd"),
        samples=(
            Sample(lambda x: torch.prod(x, 2)),
            Sample(lambda x: x * torch.prod(x, 1, keepdim=True), rigid="searched"),
        ),
    ),
    Operator(
        torch.logsumexp,
        axes=extreme_axes,
        onnx=reduction("ReduceLogSumExp"),
        samples=(
            Sample(lambda x: torch.logsumexp(x, 2)),
            Sample(lambda x: x * torch.logsumexp(x, 1, keepdim=True), rigid="searched"),
        ),
    ),
    Operator(
        torch.all,
        axes=extreme_axes,
        onnx=some_or_all_onnx,
        samples=(Sample(lambda x: torch.all(x > 0, 2, keepdim=True)),),
    ),
    Operator(torch.any, axes=extreme_axes, onnx=some_or_all_onnx, samples=(Sample(lambda x: torch.any(x > 0, 2)),)),
    Operator(
        torch.max,
        axes=extreme_axes,
        zeros=picked(summed),
        onnx=extreme_onnx,
        number=of_two("Max"),
        samples=(Sample(lambda x: x.max(2)[0]), Sample(lambda x: torch.max(x, x.exp()))),
    ),
    Operator(
        torch.min,
        axes=extreme_axes,
        zeros=picked(summed),
        onnx=extreme_onnx,
        number=of_two("Min"),
        samples=(Sample(lambda x: x.min(2, keepdim=True)[0]), Sample(lambda x: torch.min(x, x.exp()))),
    ),
    Operator(torch.argmax, axes=extreme_axes, onnx=place_onnx, samples=(Sample(lambda x: x.argmax(3)),)),
    Operator(torch.argmin, axes=extreme_axes, onnx=place_onnx, samples=(Sample(lambda x: x.argmin(3, keepdim=True)),)),
    Operator(torch.median, axes=extreme_axes, zeros=picked(keeps), samples=(Sample(lambda x: x.median(2)[0]),)),
    Operator(torch.aminmax, axes=extreme_axes, zeros=parted, samples=(Sample(lambda x: torch.aminmax(x, dim=2)),)),
    Operator(
        torch.sum,
        axes=total_axes,
        zeros=keeps,
        onnx=reduction("ReduceSum"),
        samples=(
            Sample(lambda x: x * x.sum(1, keepdim=True)),
            Sample(lambda x: x.sum((2, 3))),
            Sample(lambda x: x * x.sigmoid().sum(1, keepdim=True), rigid="are not zero"),
        ),
    ),
    Operator(
        torch.linalg.vector_norm,
        spellings=(torch.linalg.norm,),
        axes=total_axes,
        onnx=norm_onnx,
        samples=(Sample(lambda x: x * torch.linalg.vector_norm(x, dim=1, keepdim=True)),),
    ),
    Operator(
        torch.norm,
        spellings=("norm",),
        axes=total_axes,
        onnx=norm_onnx,
        samples=(Sample(lambda x: x * torch.norm(x, dim=(2, 3), keepdim=True)),),
    ),
    Operator(
        F.softmax,
        spellings=(torch.softmax, "softmax"),
        layers={nn.Softmax: Layer(settings=("dim",))},
        axes=scan_axes,
        onnx=softmax_onnx,
        samples=(Sample(lambda x: F.softmax(x, 2)), Sample(lambda x: F.softmax(x, 1), rigid="softmax runs along it")),
    ),
    Operator(
        F.log_softmax,
        spellings=(torch.log_softmax, "log_softmax"),
        layers={nn.LogSoftmax: Layer(settings=("dim",))},
        axes=scan_axes,
        onnx=softmax_onnx,
        samples=(Sample(lambda x: F.log_softmax(x, -1)),),
    ),
    Operator(F.softmin, axes=scan_axes, onnx=softmin_onnx, samples=(Sample(lambda x: F.softmin(x, 2)),)),
    Operator(
        torch.cumsum,
        axes=scan_axes,
        onnx=cumsum_onnx,
        samples=(
            Sample(lambda x: torch.cumsum(x, 2)),
            Sample(lambda x: torch.cumsum(x, 1), rigid="cumsum runs along it"),
        ),
    ),
    Operator(torch.cumprod, axes=scan_axes, zeros=keeps, samples=(Sample(lambda x: torch.cumprod(x, 3)),)),
    Operator(torch.argsort, axes=scan_axes, onnx=argsort_onnx, samples=(Sample(lambda x: torch.argsort(x, 2)),)),
    Operator(
        torch.sort,
        axes=topk_axes,
        zeros=picked(keeps),
        onnx=sort_onnx,
        samples=(Sample(lambda x: torch.sort(x, 2)), Sample(lambda x: torch.sort(x, 1)[0], rigid="sorted")),
    ),
    Operator(
        torch.topk,
        axes=topk_axes,
        zeros=picked(keeps),
        onnx=topk_onnx,
        samples=(Sample(lambda x: torch.topk(x, 3, 2)[0]),),
    ),
    Operator(
        torch.diff,
        axes=diff_axes,
        zeros=keeps,
        onnx=diff_onnx,
        samples=(
            Sample(lambda x: torch.diff(x, dim=2)),
            Sample(lambda x: x.diff()),
            Sample(lambda x: (x > 0).diff(dim=3)),
            Sample(lambda x: torch.diff(x, dim=1), rigid="neighbours along it"),
            Sample(lambda x: torch.diff(x, 2, 3, x.exp()[..., :1], x.cos()), onnx="more than one difference"),
        ),
    ),
    Operator(
        F.cosine_similarity,
        layers={nn.CosineSimilarity: Layer(settings=("dim", "eps"))},
        axes=cosine_similarity_axes,
        zeros=keeps,
        onnx=cosine_similarity_onnx,
        samples=(
            Sample(lambda x: F.cosine_similarity(x, x + 1, 2)),
            Sample(lambda x: x * F.cosine_similarity(x, x.tanh())[:, None]),
            Sample(lambda x, layer: x * layer(x, x.mean(2, True))[:, None], layer=nn.CosineSimilarity),
            Sample(lambda x, w: F.cosine_similarity(x, w, 1)[:, None] * x, weights=((8, 1, 1),)),
            Sample(lambda x: x * F.cosine_similarity(x, x.sigmoid())[:, None], rigid="are not zero"),
            Sample(
                lambda x: x * F.cosine_similarity(x, x.mean(1, True))[:, None],
                rigid="one number for all",
                onnx="different lengths",
            ),
        ),
    ),
)
