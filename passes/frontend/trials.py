"""Inputs of other sizes and with other numbers, to compare a model with its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .entry import Axis
from .structure import map_leaves


def other_sizes(axes: Sequence[Axis]) -> Iterator[dict[Axis, int]]:
    """Yield sizes for the comparison, small ones first because they cost least."""
    for share, more in ((2, 3), (1, -2), (1, 1), (1, 0)):
        sizes = {}
        for place, axis in enumerate(sorted(reversed(axes), key=lambda axis: -axis.size)):
            wanted = axis.size // share + (more + place) * axis.step
            if axis.stepped(wanted) == axis.size and more:
                wanted = axis.size - axis.step
            sizes[axis] = axis.stepped(wanted) if axis.name != "batch" else (3 if axis.size == 2 else 2)
        yield sizes


def resize(inputs: Any, sizes: Mapping[Axis, int], made: Make | None = None) -> Any:
    """Return inputs with axes of other sizes: random values spread as in the example; integers within its range.

    `made` is a function that makes another tensor from a tensor of the example, a shape and a generator.
    """
    generator = torch.Generator().manual_seed(0)

    def changed(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shape = list(leaf.shape)
        for axis, size in sizes.items():
            for place, position in axis.places:
                if place == path:
                    shape[position] = size
        return (made or drawn)(leaf, shape, generator)

    return map_leaves(inputs, changed)


Make = Callable[[Tensor, Sequence[int], torch.Generator], Tensor]


def repeated(like: Tensor, shape: Sequence[int], _: torch.Generator) -> Tensor:
    """Repeat the entries of a tensor, for models that do not accept random ones, such as boxes with ordered corners."""
    for axis, size in enumerate(shape):
        if size != like.shape[axis]:
            like = like.index_select(axis, torch.arange(size, device=like.device) % like.shape[axis])
    return like


def drawn(like: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return a random tensor of the type of `like`."""
    if like.dtype == torch.bool:
        both = bool(like.any()) and not bool(like.all())
        made = torch.rand(list(shape), generator=generator) < 0.5 if both else torch.full(list(shape), bool(like.all()))
        return made.to(like.device)
    if not like.is_floating_point():
        if like.is_complex():
            return torch.randn(list(shape), generator=generator, dtype=like.dtype).to(like.device)
        low, high = (int(like.min()), int(like.max())) if like.numel() else (0, 0)
        return torch.randint(low, high + 1, list(shape), generator=generator).to(like.device, like.dtype)
    plain = like.detach().double()
    finite = plain[plain.isfinite()]
    spread = float(finite.std(correction=0)) if finite.numel() else 0.0
    noise = torch.randn(list(shape), generator=generator, dtype=torch.float64) * (spread or 1.0)
    return (noise + (float(finite.mean()) if finite.numel() else 0.0)).to(like.device, like.dtype)
