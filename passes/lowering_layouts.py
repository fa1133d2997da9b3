"""Lowering of what moves entries between the channels and the other axes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .lowering_convolutions import spatial_axes
from .lowering_site import Site, register_lowering


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
    batch, channels, height, width = site.x.tensor.shape
    blocks = site.reshape(site.x, [batch, channels, height // factor, factor, width // factor, factor])
    return site.reshape(site.transpose(blocks, [0, 1, 3, 5, 2, 4]), site.result.shape)


@register_lowering(torch.channel_shuffle)
def channel_shuffle(site: Site) -> str:
    """The channels of all groups in turns."""
    groups = site.arg(1, "groups")
    batch, channels, *rest = site.x.tensor.shape
    grouped = site.reshape(site.x, [batch, groups, channels // groups, *rest])
    order = [0, 2, 1, *range(3, len(rest) + 3)]
    return site.reshape(site.transpose(grouped, order), site.result.shape)
