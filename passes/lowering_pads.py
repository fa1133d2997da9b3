"""Lowering of padding."""

from __future__ import annotations

import torch.nn.functional as F

from .lowering_convolutions import PAD_MODES
from .lowering_selections import END, cut
from .lowering_site import Site, register_lowering
from .lowering_sizes import AnySize, Size


@register_lowering(F.pad)
def pad(site: Site) -> str:
    """Any number of axes with a constant, or with values from the tensor; negative widths cut."""
    dims, widths = site.x.tensor.ndim, list(site.arg(1, "pad"))
    mode = site.arg(2, "mode", "constant")
    # PyTorch begins with the last axis, and names each axis' two ends one after the other.
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (dims - len(pairs)) + pairs
    if any(isinstance(width, Size) for width in widths):
        return _dynamic(site, [*(first for first, _ in pairs), *(last for _, last in pairs)], mode)
    cuts = [(axis, max(-first, 0), last if last < 0 else END, 1) for axis, (first, last) in enumerate(pairs)]
    source = cut(site, site.x, [one for one in cuts if one[1:3] != (0, END)])
    added = [max(first, 0) for first, _ in pairs] + [max(last, 0) for _, last in pairs]
    if not any(added):
        return source
    if mode != "constant":
        return site.emit("Pad", source, site.ints(added), mode=PAD_MODES[mode])
    value = site.arg(3, "value")
    return site.emit("Pad", source, site.ints(added), site.operand(value or 0, site.result.dtype))


def _dynamic(site: Site, widths: list[AnySize], mode: str) -> str:
    """Widths that follow the inputs, some of which may be negative."""
    number = site.operand(site.arg(3, "value") or 0, site.result.dtype) if mode == "constant" else None
    kind = mode if mode == "constant" else PAD_MODES[mode]
    return site.emit("Pad", site.x, site.ints(widths), number, mode=kind)
