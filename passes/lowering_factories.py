"""Lowering of tensors that are made on the way: filled, counted, or shaped like another one."""

from __future__ import annotations

from typing import Any

import torch

from .lowering_builder import onnx_type
from .lowering_indexing import filled
from .lowering_site import Site, Value, register_lowering
from .lowering_sizes import AnySize, Size

COUNTED = (torch.float32, torch.float64, torch.int16, torch.int32, torch.int64)
"""Types that ONNX counts in."""


def _filled(site: Site, number: Any, sizes: list[AnySize]) -> str:
    return site.emit("Expand", site.operand(number, site.result.dtype), site.ints(sizes))


@register_lowering(torch.zeros, torch.empty)
def zeros(site: Site) -> str:
    """Zeros; what is in an empty tensor is nobody's business."""
    return _filled(site, 0, site.call.listed(0, "size"))


@register_lowering(torch.ones)
def ones(site: Site) -> str:
    """Ones."""
    return _filled(site, 1, site.call.listed(0, "size"))


@register_lowering(torch.full)
def full(site: Site) -> str:
    """One number everywhere."""
    return _filled(site, site.arg(1, "fill_value"), list(site.arg(0, "size")))


@register_lowering("new_zeros", "new_empty")
def new_zeros(site: Site) -> str:
    """Zeros of the type of another tensor."""
    return _filled(site, 0, site.call.listed(1, "size"))


@register_lowering("new_ones")
def new_ones(site: Site) -> str:
    """Ones of the type of another tensor."""
    return _filled(site, 1, site.call.listed(1, "size"))


@register_lowering("new_full")
def new_full(site: Site) -> str:
    """One number everywhere, of the type of another tensor."""
    return _filled(site, site.arg(2, "fill_value"), list(site.arg(1, "size")))


@register_lowering(torch.zeros_like, torch.empty_like)
def zeros_like(site: Site) -> str:
    """Zeros in the shape of another tensor."""
    return filled(site, 0, site.x, site.result.dtype)


@register_lowering(torch.ones_like)
def ones_like(site: Site) -> str:
    """Ones in the shape of another tensor."""
    return filled(site, 1, site.x, site.result.dtype)


@register_lowering(torch.full_like)
def full_like(site: Site) -> str:
    """One number in the shape of another tensor."""
    return filled(site, site.arg(1, "fill_value"), site.x, site.result.dtype)


@register_lowering(torch.arange)
def arange(site: Site) -> str:
    """Numbers with equal steps."""
    given = [*site.call.args, *(site.call.kwargs[key] for key in ("start", "end", "step") if key in site.call.kwargs)]
    start, stop, step = (0, given[0], 1) if len(given) == 1 else (*given, 1)[:3]
    dtype = site.result.dtype
    kind = dtype if dtype in COUNTED else torch.float32
    row = site.emit("Range", *(site.operand(one, kind) for one in (start, stop, step)))
    return row if kind == dtype else site.emit("Cast", row, to=onnx_type(dtype, site.scope))


@register_lowering(torch.linspace)
def linspace(site: Site) -> str:
    """A number of values from the first to the last: counted from the nearer end, as PyTorch does."""
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


@register_lowering(torch.eye)
def eye(site: Site) -> str:
    """Ones on the diagonal."""
    rows = site.arg(0, "n")
    rising = site.emit("Unsqueeze", site.range(rows), site.ints([1]))
    same = site.emit("Equal", rising, site.range(site.arg(1, "m", rows)))
    return site.emit("Cast", same, to=onnx_type(site.result.dtype, site.scope))


@register_lowering(torch.tril, torch.triu)
def triangle(site: Site) -> str:
    """What is on one side of a diagonal, and zeros."""
    dtype = site.result.dtype
    kind = dtype if dtype in (torch.float32, torch.float64, torch.int64, torch.bool) else torch.int64
    diagonal = site.arg(1, "diagonal", 0)
    place = site.scalar(diagonal) if isinstance(diagonal, Size) else site.name(torch.tensor(diagonal))
    kept = site.emit("Trilu", site.operand(site.x, kind), place, upper=int(site.call.op is torch.triu))
    return kept if kind == dtype else site.emit("Cast", kept, to=onnx_type(dtype, site.scope))


@register_lowering(torch.meshgrid)
def meshgrid(site: Site) -> list[str]:
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
