"""At which sizes a model is recorded to find out what follows an axis."""

from __future__ import annotations

from collections.abc import Sequence

from .entry import Axis
from .on_meta import BATCH

NEXT = (1013, 1019)
"""Batches of the other recordings: primes too."""

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Steps between sizes that are tried: a U-Net takes multiples of a power of two."""

STEPS_APART = (1, 16, 32)
"""Those that are tried where the example's size is left out: such models are few, and each try takes recordings."""


def plans(batch: Sequence[Axis], axes: Sequence[Axis], more: bool = False) -> list[dict[Axis, int]]:
    """Sizes of the base recording and of two others, each axis in a way of its own; with `more`, of four others.

    The near ones are one step away: halves of halves that are rounded up and down differ then.
    """
    sizes = {axis: sizes_of(axis, place) for place, axis in enumerate(axes)}
    for axis, size in _far([axis for axis in axes if not axis.apart]).items():
        sizes[axis][2] = size
    made = []
    for turn, count in enumerate((BATCH, *NEXT, NEXT[0], NEXT[0])[: 5 if more else 3]):
        fixed = dict.fromkeys(batch, count)
        made.append(fixed | {axis: one[turn] for axis, one in sizes.items()})
    return made


def plan_by_axis(batch: Sequence[Axis], axes: Sequence[Axis]) -> list[dict[Axis, int]]:
    """Sizes of a model whose inputs are resized by an opaque step: one axis changed, and all of them.

    Such a step keeps the form of an image, and gives the same for many sizes.
    """
    base = {axis: axis.size for axis in axes} | dict.fromkeys(batch, BATCH)
    alone = [base | {axis: axis.between(2, quarters)} for axis in axes for quarters in (1, 3)]
    together = {axis: axis.between(2, QUARTERS[place % 3]) + place * axis.step for place, axis in enumerate(axes)}
    return [base, *alone, together | dict.fromkeys(batch, NEXT[0])]


def sizes_of(axis: Axis, place: int) -> list[int]:
    """The sizes of an axis in the recordings; where the example's is a short cut, none that it may hold at too."""
    turns = [QUARTERS[(place + turn) % 3] for turn in (0, 1)]
    if axis.apart:
        far = [axis.size * times + axis.step for times in (place + 2, turns[0] + 4, turns[1] + 4)]
        half = (axis.size // 2) // axis.step
        return [axis.near(half + 2 * place + 1), axis.near(half + 2 * place + 4), *far]
    between = [axis.between(place + 2, turn) for turn in turns]
    return [axis.size, axis.near(1), axis.far(place + 2), *between]


def _far(axes: Sequence[Axis]) -> dict[Axis, int]:
    """Far sizes in the opposite order, where these are no large ones: which of two is larger is no constant."""
    found: dict[Axis, int] = {}
    above = 0
    for place, axis in enumerate(sorted(reversed(axes), key=lambda axis: -axis.size)):
        least = max(place + 2, above // axis.size + 1)
        above = found[axis] = axis.far(least if least <= 8 else place + 2)
    return found


QUARTERS = (2, 3, 1)
"""How many quarters of the way to its far size an axis goes: others than its neighbours, so that no size is a multiple
of another by accident."""
