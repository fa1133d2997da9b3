"""Lowering of what changes the shape of a tensor but none of its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .lowering_simplify import through_reshapes
from .lowering_site import Site, register_lowering
from .lowering_sizes import AnySize, Size, same_size


@register_lowering(
    torch.reshape,
    torch.flatten,
    torch.unflatten,
    torch.squeeze,
    torch.unsqueeze,
    "view_as",
    "reshape_as",
)
def reshape(site: Site) -> str:
    """To the shape that PyTorch gives the result; a dynamic axis in it stays dynamic wherever it is.

    So ``squeeze()`` keeps the batch, where PyTorch drops it if it happens to be 1.
    """
    given, made, name = site.x.tensor, site.result, site.name(site.x)
    if given.dtype != made.dtype:
        raise site.refuse(f"shows the memory of {given.dtype} as {made.dtype}")
    rows = site.call.op is torch.flatten and given.ndim > made.ndim == 2 and made.shape[0] == given.shape[0]
    if rows and through_reshapes(site.builder.producer, name) == name:
        return site.emit("Flatten", name, axis=1)
    sizes = site.made
    if site.call.op is torch.reshape:
        sizes = _asked(site, sizes)
    elif site.call.op in ("view_as", "reshape_as"):
        sizes = site.value(1, "other").sizes
    elif site.call.op in (torch.squeeze, torch.unsqueeze) and sum(isinstance(size, Size) for size in sizes) > 1:
        return _axes_of_one(site)
    return site.reshape(site.x, sizes)


def _asked(site: Site, made: Sequence[AnySize]) -> list[AnySize]:
    """The sizes that the call names, with their places in the graph; ``-1`` is the size that it stands for."""
    asked = site.call.listed(1, "shape", "size")
    return [one if isinstance(one, Size) else size for one, size in zip(asked, made, strict=True)]


def _axes_of_one(site: Site) -> str:
    """Axes of size one put in or taken out where several others are dynamic."""
    if site.call.op is torch.unsqueeze:
        return site.emit("Unsqueeze", site.x, site.ints([site.arg(1, "dim") % site.result.ndim]))
    given = site.arg(1, "dim")
    dims = range(site.x.tensor.ndim) if given is None else [given] if isinstance(given, int) else given
    sizes = site.x.sizes
    gone = [axis % len(sizes) for axis in dims if sizes[axis] == 1]
    return site.emit("Squeeze", site.x, site.ints(gone)) if gone else site.name(site.x)


@register_lowering(torch.permute)
def permute(site: Site) -> str:
    """Axes in another order, given as one tuple or one by one."""
    return site.transpose(site.x, [axis % site.x.tensor.ndim for axis in site.call.listed(1, "dims")])


@register_lowering(torch.transpose)
def transpose(site: Site) -> str:
    """Two axes exchanged."""
    dims = site.x.tensor.ndim
    first = site.arg(1, "dim0", site.arg(1, "axis0")) % dims
    second = site.arg(2, "dim1", site.arg(2, "axis1")) % dims
    return swapped(site, first, second)


@register_lowering(torch.t)
def transposed_matrix(site: Site) -> str:
    """The two axes of a matrix exchanged."""
    return swapped(site, 0, 1) if site.x.tensor.ndim == 2 else site.name(site.x)


@register_lowering(getattr)
def attribute(site: Site) -> str:
    """``x.T``, ``x.mT`` and ``x.data``; sizes and dtypes are not tensors and never get here."""
    name, dims = site.call.args[1], site.x.tensor.ndim
    if name == "data":
        return site.name(site.x)
    if name in ("T", "mT") and dims >= 2:
        return swapped(site, dims - 2, dims - 1) if name == "mT" else site.transpose(site.x, [*reversed(range(dims))])
    raise site.refuse(f"reads {name!r}, which has no lowering rule")


def swapped(site: Site, first: int, second: int) -> str:
    """The first argument with two axes exchanged."""
    order = list(range(site.x.tensor.ndim))
    order[first], order[second] = order[second], order[first]
    return site.transpose(site.x, order)


@register_lowering(torch.movedim)
def movedim(site: Site) -> str:
    """Axes moved to other places: those of a tensor whose sizes are their own numbers show the order."""
    numbered = torch.empty(tuple(range(site.x.tensor.ndim)), device="meta")
    moved = torch.movedim(numbered, site.arg(1, "source"), site.arg(2, "destination"))
    return site.transpose(site.x, list(moved.shape))


@register_lowering("expand", "expand_as", torch.broadcast_to)
def expand(site: Site) -> str:
    """Repeated along axes of size one and along new axes in front."""
    new = site.result.ndim - site.x.tensor.ndim
    sizes, asked = site.made, _sizes_of_expand(site)
    for axis, size in enumerate(sizes):
        given = site.x.sizes[axis - new] if axis >= new else None
        if given is not None and same_size(given, size):
            sizes[axis] = 1  # ONNX keeps an axis that is expanded to 1 as it is
        elif isinstance(asked[axis], Size):
            sizes[axis] = asked[axis]
    return site.emit("Expand", site.x, site.ints(sizes))


def _sizes_of_expand(site: Site) -> list[AnySize]:
    if site.call.op == "expand_as":
        return site.value(1, "other").sizes
    return site.call.listed(1, "size", "shape")


@register_lowering("repeat", torch.tile)
def repeat(site: Site) -> str:
    """Copies one behind the other, along each axis."""
    times = site.call.listed(1, "repeats", "dims")
    dims = site.x.tensor.ndim
    times = [1] * (dims - len(times)) + times
    new = len(times) - dims
    source = site.emit("Unsqueeze", site.x, site.ints(range(new))) if new else site.name(site.x)
    return site.emit("Tile", source, site.ints(times))
