"""Lowering of what moves entries between the channels and the other axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .lowering_convolutions import spatial_axes
from .lowering_site import Site, register_lowering
from .lowering_sizes import Size


@register_lowering(F.pixel_shuffle)
def pixel_shuffle(site: Site) -> str:
    """Channels become blocks of pixels."""
    spatial_axes(site, 2)
    return site.emit("DepthToSpace", site.x, blocksize=site.arg(1, "upscale_factor"), mode="CRD")


@register_lowering(F.pixel_unshuffle)
def pixel_unshuffle(site: Site) -> str:
    """Blocks of pixels become channels, in PyTorch's order, which ONNX' SpaceToDepth does not have."""
    spatial_axes(site, 2)
    factor = site.arg(1, "downscale_factor")
    batch, channels, height, width = site.x.sizes
    if isinstance(height, Size) or isinstance(width, Size):
        deep = site.emit("SpaceToDepth", site.x, blocksize=factor)
        blocks = torch.arange(factor**2 * int(channels)).view(factor**2, int(channels))  # type: ignore[arg-type]
        return site.emit("Gather", deep, blocks.T.flatten(), axis=1)
    split = site.reshape(site.x, [batch, channels, height // factor, factor, width // factor, factor])
    return site.reshape(site.transpose(split, [0, 1, 3, 5, 2, 4]), site.made)


@register_lowering(torch.channel_shuffle)
def channel_shuffle(site: Site) -> str:
    """The channels of all groups in turns."""
    groups = site.arg(1, "groups")
    batch, channels, *rest = site.x.sizes
    if any(isinstance(size, Size) for size in rest):
        turned = torch.arange(site.x.tensor.shape[1]).view(groups, -1).T.flatten()
        return site.emit("Gather", site.x, turned, axis=1)
    grouped = site.reshape(site.x, [batch, groups, channels // groups, *rest])
    order = [0, 2, 1, *range(3, len(rest) + 3)]
    return site.reshape(site.transpose(grouped, order), site.made)
