"""Lowering of what changes the shape of a tensor but none of its numbers."""

from __future__ import annotations

import torch

from .lowering_simplify import through_reshapes
from .lowering_site import Site, register_lowering


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
    """To the shape that PyTorch gives the result; a batch in it stays dynamic wherever it is.

    So ``squeeze()`` keeps the batch, where PyTorch drops it if it happens to be 1.
    """
    given, made, name = site.x.tensor, site.result, site.name(site.x)
    rows = site.call.op is torch.flatten and given.ndim > made.ndim == 2 and made.shape[0] == given.shape[0]
    if rows and through_reshapes(site.builder.producer, name) == name:
        return site.emit("Flatten", name, axis=1)
    return site.reshape(site.x, made.shape)


@register_lowering(torch.permute)
def permute(site: Site) -> str:
    """Axes in another order, given as one tuple or one by one."""
    given = site.arg(1, "dims")
    order = list(given) if isinstance(given, list | tuple) else list(site.call.args[1:])
    return site.transpose(site.x, [axis % site.x.tensor.ndim for axis in order])


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
    sizes = list(site.result.shape)
    for axis, given in enumerate(site.x.tensor.shape):
        # ONNX keeps an axis that is expanded to 1 as it is.
        sizes[new + axis] = 1 if given == sizes[new + axis] else sizes[new + axis]
    return site.emit("Expand", site.x, site.sizes(sizes))


@register_lowering("repeat", torch.tile)
def repeat(site: Site) -> str:
    """Copies one behind the other, along each axis."""
    shape = site.x.tensor.shape
    padded = [1] * (site.result.ndim - len(shape)) + list(shape)
    source = site.name(site.x) if len(padded) == len(shape) else site.reshape(site.x, padded)
    times = [made // given for made, given in zip(site.result.shape, padded, strict=True)]
    return site.emit("Tile", source, site.sizes(times))
