"""New tensors: filled, counted, shaped like another one, or the triangle of one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnas.passes.axes.terms import K, Sym
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.builder import onnx_type
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import AnySize, Size, Value

from .arithmetic import pointwise_axes
from .calls import Call, Dynamic
from .indexing import filled
from .record import Operator, Sample, Spelled
from .zeros import keeps, made


def uniform_axes(types: AxisTypes, call: Call) -> Axes:
    """A constant tensor, such as the initial state of a recurrent layer, gets the width of its other operands."""
    first, shape = int(isinstance(call.op, str)), types.output_shape(call)
    given = call.args[first:]
    if not given:
        return [K(n) for n in shape]
    nested = isinstance(given[0], list | tuple)
    sizes = given[0] if nested else given
    axes = [
        types.fill(n, call.node.name) if s == n > 1 and not isinstance(s, Dynamic) else K(n)
        for s, n in zip(sizes, shape, strict=True)
    ]
    written = tuple(axis if isinstance(axis, Sym) else size for axis, size in zip(axes, sizes, strict=True))
    for place, value in enumerate([written] if nested else written):
        types.rewrite(call, first + place, "size", value)
    return list(axes)


def factory_axes(types: AxisTypes, call: Call) -> Axes:
    """A new tensor of given sizes is rigid; the tensor that only gives its type is not restricted."""
    return [K(n) for n in types.output_shape(call)]


def triangle_axes(types: AxisTypes, call: Call) -> Axes:
    """The two last axes are pinned, because the triangle depends on both."""
    inputs = types.type(call.argument(0, "input"))
    types.pin_axes(inputs[-2:], "a triangle of it is taken")
    return inputs


def one_hot_axes(types: AxisTypes, call: Call) -> Axes:
    """A rigid axis of classes is added."""
    return [*types.type(call.args[0]), K(types.output_shape(call)[-1])]


def _filled(site: Site, number: Any, sizes: list[AnySize]) -> str:
    return site.emit("Expand", site.operand(number, site.result.dtype), site.ints(sizes))


def zeros_onnx(site: Site) -> str:
    """Zeros; also for empty tensors, whose content is arbitrary."""
    return _filled(site, 0, site.call.listed(0, "size"))


def ones_onnx(site: Site) -> str:
    """Ones."""
    return _filled(site, 1, site.call.listed(0, "size"))


def full_onnx(site: Site) -> str:
    """One number everywhere."""
    return _filled(site, site.arg(1, "fill_value"), list(site.arg(0, "size")))


def new_zeros_onnx(site: Site) -> str:
    """Zeros of the type of another tensor."""
    return _filled(site, 0, site.call.listed(1, "size"))


def new_ones_onnx(site: Site) -> str:
    """Ones of the type of another tensor."""
    return _filled(site, 1, site.call.listed(1, "size"))


def new_full_onnx(site: Site) -> str:
    """One number everywhere, of the type of another tensor."""
    return _filled(site, site.arg(2, "fill_value"), list(site.arg(1, "size")))


def zeros_like_onnx(site: Site) -> str:
    """Zeros in the shape of another tensor."""
    return filled(site, 0, site.x, site.result.dtype)


def ones_like_onnx(site: Site) -> str:
    """Ones in the shape of another tensor."""
    return filled(site, 1, site.x, site.result.dtype)


def full_like_onnx(site: Site) -> str:
    """One number in the shape of another tensor."""
    return filled(site, site.arg(1, "fill_value"), site.x, site.result.dtype)


def arange_onnx(site: Site) -> str:
    """Numbers with equal steps."""
    given = [*site.call.args, *(site.call.kwargs[key] for key in ("start", "end", "step") if key in site.call.kwargs)]
    start, stop, step = (0, given[0], 1) if len(given) == 1 else (*given, 1)[:3]
    dtype = site.result.dtype
    kind = dtype if dtype in COUNTED else torch.float32
    row = site.emit("Range", *(site.operand(one, kind) for one in (start, stop, step)))
    return row if kind == dtype else site.emit("Cast", row, to=onnx_type(dtype, site.scope))


def linspace_onnx(site: Site) -> str:
    """Evenly spaced values, computed from the nearer end as in PyTorch."""
    first, last, count = (site.arg(*one) for one in ((0, "start"), (1, "end"), (2, "steps")))
    rest = site.calculated("Max", site.calculated("Sub", count, 1), 1)
    step = site.calculated("Div", site.calculated("Sub", last, first), rest)
    places = site.emit("Cast", site.range(count), to=onnx_type(site.result.dtype, site.scope))

    def number(given: Any) -> str:
        return site.operand(given, site.result.dtype)

    half = site.calculated("Max", site.calculated("FloorDiv", count, 2), 1)  # one alone is the first
    rising = site.emit("Add", number(first), site.emit("Mul", places, number(step)))
    left = site.emit("Sub", number(site.calculated("Sub", count, 1)), places)
    falling = site.emit("Sub", number(last), site.emit("Mul", left, number(step)))
    return site.emit("Where", site.emit("Less", places, number(half)), rising, falling)


def eye_onnx(site: Site) -> str:
    """Ones on the diagonal."""
    rows = site.arg(0, "n")
    rising = site.emit("Unsqueeze", site.range(rows), site.ints([1]))
    same = site.emit("Equal", rising, site.range(site.arg(1, "m", rows)))
    return site.emit("Cast", same, to=onnx_type(site.result.dtype, site.scope))


def triangle_onnx(site: Site) -> str:
    """The entries on one side of a diagonal, and zeros elsewhere."""
    dtype = site.result.dtype
    kind = dtype if dtype in (torch.float32, torch.float64, torch.int64, torch.bool) else torch.int64
    diagonal = site.arg(1, "diagonal", 0)
    place = site.scalar(diagonal) if isinstance(diagonal, Size) else site.name(torch.tensor(diagonal))
    kept = site.emit("Trilu", site.operand(site.x, kind), place, upper=int(site.call.op is torch.triu))
    return kept if kind == dtype else site.emit("Cast", kept, to=onnx_type(dtype, site.scope))


def meshgrid_onnx(site: Site) -> list[str]:
    """Each of several rows along an axis of its own, repeated along all others."""
    given = site.call.args
    rows: list[Value] = list(given[0]) if isinstance(given[0], list | tuple) else list(given)
    counts = [site.product(row.sizes) for row in rows]
    axes = list(range(len(rows)))
    if site.call.kwargs.get("indexing", "ij") == "xy" and len(rows) > 1:
        axes[:2] = [1, 0]
    sizes = site.ints([counts[axes.index(axis)] for axis in range(len(rows))])
    return [
        site.emit("Expand", _along(site, row, axis, len(rows)), sizes) for row, axis in zip(rows, axes, strict=True)
    ]


def _along(site: Site, row: Value, axis: int, dims: int) -> str:
    return site.emit("Reshape", row, site.ints([-1 if one == axis else 1 for one in range(dims)]))


COUNTED = (torch.float32, torch.float64, torch.int16, torch.int32, torch.int64)
"""Types that ONNX counts in."""


def one_hot_onnx(site: Site) -> str:
    """A one where the class is, along a new last axis."""
    column = site.emit("Unsqueeze", site.x, site.ints([-1]))
    same = site.emit(
        "Equal", site.emit("Cast", column, to=onnx_type(torch.int64, "")), site.range(site.arg(1, "num_classes"))
    )
    return site.emit("Cast", same, to=onnx_type(torch.int64, site.scope))


def _meshgrid(tensors: Any, indexing: str = "ij") -> Spelled:
    return torch.meshgrid, tuple(tensors), {"indexing": indexing}


def _written(made: Tensor, x: Tensor) -> Tensor:
    """A sample: both halves of a new tensor are written one after the other, and one half is read."""
    made[:, 0] = x
    made[:, 1] = x * 2
    return made[:, 1]


RECORDS = (
    Operator(torch.triu, axes=triangle_axes, zeros=keeps, onnx=triangle_onnx, samples=(Sample(lambda x: x.triu(1)),)),
    Operator(
        torch.tril,
        axes=triangle_axes,
        zeros=keeps,
        onnx=triangle_onnx,
        samples=(
            Sample(lambda x: torch.tril(x)),
            Sample(lambda x: x.transpose(1, 2).tril().transpose(1, 2), rigid="triangle"),
        ),
    ),
    Operator(
        F.one_hot,
        axes=one_hot_axes,
        onnx=one_hot_onnx,
        samples=(Sample(lambda x: (x.unsqueeze(-1) * F.one_hot((x > 0).long(), 2)).flatten(3)),),
    ),
    Operator(
        torch.zeros_like,
        axes=pointwise_axes,
        zeros=made,
        onnx=zeros_like_onnx,
        samples=(Sample(lambda x: x + torch.zeros_like(x)),),
    ),
    Operator(
        torch.ones_like, axes=pointwise_axes, onnx=ones_like_onnx, samples=(Sample(lambda x: x + torch.ones_like(x)),)
    ),
    Operator(
        torch.full_like,
        axes=pointwise_axes,
        onnx=full_like_onnx,
        samples=(Sample(lambda x: x + torch.full_like(x, 0.5)),),
    ),
    Operator(torch.rand_like, axes=pointwise_axes, samples=(Sample(lambda x: x + 0 * torch.rand_like(x)),)),
    Operator(torch.randn_like, axes=pointwise_axes, samples=(Sample(lambda x: x + 0 * torch.randn_like(x)),)),
    Operator(
        torch.empty_like,
        axes=pointwise_axes,
        onnx=zeros_like_onnx,
        samples=(Sample(lambda x: x + torch.empty_like(x).copy_(x.relu())),),
    ),
    Operator(
        torch.bernoulli, axes=pointwise_axes, samples=(Sample(lambda x: x + torch.bernoulli(torch.zeros_like(x))),)
    ),
    Operator(
        torch.zeros,
        axes=uniform_axes,
        zeros=made,
        onnx=zeros_onnx,
        samples=(
            Sample(lambda x: x + torch.zeros(x.shape[0], 1, 1, 1)),
            Sample(lambda x: torch.cat([x, torch.zeros((x.shape[0], 4, 4, 6), dtype=x.dtype)], 1)),
        ),
    ),
    Operator(
        "new_zeros",
        axes=uniform_axes,
        zeros=made,
        onnx=new_zeros_onnx,
        samples=(Sample(lambda x: x + x.new_zeros(x.shape[0], 1, 1, 1)),),
    ),
    Operator(
        torch.arange,
        axes=factory_axes,
        onnx=arange_onnx,
        samples=(
            Sample(lambda x: x + torch.arange(x.shape[0]).view(-1, 1, 1, 1)),
            Sample(lambda x: x * torch.arange(1, 7)),
        ),
    ),
    Operator(
        torch.empty,
        axes=uniform_axes,
        onnx=zeros_onnx,
        samples=(
            Sample(lambda x: x + torch.empty(x.shape[0], 1, 1, 1).zero_()),
            Sample(lambda x: _written(torch.empty((x.shape[0], 2, *x.shape[1:]), dtype=x.dtype), x)),
        ),
    ),
    Operator(
        torch.full,
        axes=uniform_axes,
        onnx=full_onnx,
        samples=(
            Sample(lambda x: x + torch.full((x.shape[0], 1, 1, 1), 2.0)),
            Sample(lambda x: torch.maximum(x, torch.full((x.shape[0], 8, 4, 6), -0.5, dtype=x.dtype))),
        ),
    ),
    Operator(
        torch.ones,
        axes=uniform_axes,
        onnx=ones_onnx,
        samples=(
            Sample(lambda x: x + torch.ones(x.shape[0], 1, 1, 1)),
            Sample(lambda x: x * torch.ones(x.shape[0], 8, 4, 6)),
            Sample(lambda x: (x + torch.ones(x.shape[0], 8, 4, 6)).sum(1, keepdim=True), rigid="summed over"),
        ),
    ),
    Operator(
        torch.randn,
        axes=factory_axes,
        samples=(Sample(lambda x: x + 0 * torch.randn(x.shape[0], 1, 1, 1)),),
    ),
    Operator(
        torch.rand,
        axes=factory_axes,
        samples=(Sample(lambda x: x + 0 * torch.rand(x.shape[0], 1, 1, 1)),),
    ),
    Operator(
        "new_ones",
        axes=uniform_axes,
        onnx=new_ones_onnx,
        samples=(
            Sample(lambda x: x + x.new_ones(x.shape[0], 1, 1, 1)),
            Sample(lambda x: x - x.new_ones(x.shape[0], 8, 1, 1)),
        ),
    ),
    Operator(
        "new_full",
        axes=uniform_axes,
        onnx=new_full_onnx,
        samples=(
            Sample(lambda x: x + x.new_full((x.shape[0], 1, 1, 1), 2.0)),
            Sample(lambda x: x.minimum(x.new_full((x.shape[0], 8, 1, 1), 0.5))),
        ),
    ),
    Operator(
        "new_empty",
        axes=uniform_axes,
        onnx=new_zeros_onnx,
        samples=(
            Sample(lambda x: x + x.new_empty(x.shape[0], 1, 1, 1).zero_()),
            Sample(lambda x: _written(x.new_empty((x.shape[0], 2, *x.shape[1:])), x)),
        ),
    ),
    Operator(
        torch.linspace,
        axes=factory_axes,
        onnx=linspace_onnx,
        samples=(
            Sample(lambda x: x * torch.linspace(-1, 1, x.shape[3], dtype=x.dtype)),
            Sample(lambda x: x * torch.linspace(-1, 1, x.shape[0], dtype=x.dtype)[:, None, None, None]),
        ),
    ),
    Operator(
        torch.eye,
        axes=factory_axes,
        onnx=eye_onnx,
        samples=(
            Sample(lambda x: x @ torch.eye(x.shape[3], dtype=x.dtype)),
            Sample(lambda x: x * torch.eye(x.shape[0], dtype=x.dtype).sum(1)[:, None, None, None]),
        ),
    ),
    Operator(
        torch.meshgrid,
        aten={"meshgrid": _meshgrid},
        spellings=(torch._C._VariableFunctions.meshgrid,),  # type: ignore[attr-defined]
        onnx=meshgrid_onnx,
        samples=(Sample(lambda x: x + torch.meshgrid(x[0, 0, :, 0], x[0, 0, 0], indexing="ij")[0], rigid="meshgrid"),),
    ),
)
