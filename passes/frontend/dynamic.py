"""Find the dynamic axes and their steps: axes for which the recordings at several sizes give one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import product

from sympy import factorint

from bnas.passes.errors import CaptureError

from .candidates import Dynamic, batch_axis, candidates, fixed_by_export, named, note
from .emission import Emitter
from .entry import Axis
from .functions import BATCH
from .merging import Differs, Merger
from .places import CALL_IT, at_other_size
from .recording import Recording
from .session import Session

# The sizes at which a model is recorded, to find out which numbers depend on an axis.

NEXT = (1013, 1019)
"""Batch sizes of the other recordings, also primes."""

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Steps between allowed sizes that are tried first. A U-Net, for example, needs multiples of a power of two."""

STEPS_APART = (1, 16, 32)
"""Steps that are tried if the example's size is left out: such models are rare, and each trial is expensive."""


def plans(batch: Sequence[Axis], axes: Sequence[Axis], more: bool = False) -> list[dict[Axis, int]]:
    """Return the sizes of the base recording and of two others (four with `more`), different for each axis.

    One size is only a step away from the example's, so that halves that are rounded up differ from those rounded down.
    """
    sizes = {axis: sizes_of(axis, place) for place, axis in enumerate(axes)}
    for axis, size in _far([axis for axis in axes if not axis.apart]).items():
        sizes[axis][2] = size
    made = []
    for turn, count in enumerate((BATCH, *NEXT, NEXT[0], NEXT[0])[: 5 if more else 3]):
        fixed = dict.fromkeys(batch, count)
        made.append(fixed | {axis: one[turn] for axis, one in sizes.items()})
    return made + [made[0] | {axis: size} for axis in axes for size in axis.further]


def plan_by_axis(batch: Sequence[Axis], axes: Sequence[Axis]) -> list[dict[Axis, int]]:
    """Return the sizes for a model whose inputs an opaque step resizes: each axis changed alone, then all together.

    Such a step keeps the proportions of an image, and has the same result for many sizes.
    """
    base = {axis: axis.size for axis in axes} | dict.fromkeys(batch, BATCH)
    alone = [base | {axis: axis.between(2, quarters)} for axis in axes for quarters in (1, 3)]
    together = {axis: axis.between(2, QUARTERS[place % 3]) + place * axis.step for place, axis in enumerate(axes)}
    return [base, *alone, together | dict.fromkeys(batch, NEXT[0])]


def sizes_of(axis: Axis, place: int) -> list[int]:
    """Return the sizes of an axis in the recordings, without the example's if the model takes a short cut there."""
    turns = [QUARTERS[(place + turn) % 3] for turn in (0, 1)]
    if axis.apart:
        far = [axis.size * times + axis.step for times in (place + 2, turns[0] + 4, turns[1] + 4)]
        half = (axis.size // 2) // axis.step
        return [axis.near(half + 2 * place + 1), axis.near(half + 2 * place + 4), *far]
    between = [axis.between(place + 2, turn) for turn in turns]
    return [axis.size, axis.near(1), uneven(axis, place + 2), *between]


def _far(axes: Sequence[Axis]) -> dict[Axis, int]:
    """Return large sizes in the opposite order, if possible, so that no axis is always the larger one."""
    found: dict[Axis, int] = {}
    above = 0
    for place, axis in enumerate(sorted(reversed(axes), key=lambda axis: -axis.size)):
        least = max(place + 2, above // axis.size + 1)
        above = found[axis] = uneven(axis, least if least <= 8 else place + 2)
    return found


def uneven(axis: Axis, times: int) -> int:
    """Return a far size at which repeated halving shows whether the model rounds up or down.

    If a model halves sizes repeatedly and rounds down, the halves of 127 are odd each time, and those of 128 and 129
    are not; if it rounds up, those of 65 are. A size that is a multiple of four steps away from another recorded size
    behaves like that size when it is halved twice, so it would show nothing new.
    """
    far = axis.far(times)
    others = (far - axis.step, far, far - 2 * axis.step, *([] if axis.shorter else [far + axis.step]))
    return next((size for size in others if size > 0 and abs(size - axis.size) // axis.step % 4 in (2, 3)), far)


QUARTERS = (2, 3, 1)
"""How many quarters of the way to its far size each axis goes. Neighbouring axes differ, so that no size is a multiple
of another one by accident."""


DRAWS = Axis("(draws)", (), 0)
"""Stands for numbers that depend on values, such as the number of boxes, and differ between recordings of one size."""


def dynamic_axes(
    session: Session, dynamic: Dynamic | None, fixed: Mapping[str, str]
) -> tuple[list[Axis], dict[str, str]]:
    """Return the dynamic axes, and the static ones with the reason."""
    static = fixed_by_export(session)
    batch = batch_axis(session)
    found: list[Axis] = []
    if batch is not None and "batch" in fixed:
        note(session, static, batch, fixed["batch"])
    elif batch is not None:
        try:
            _agree(session, *({batch: size} for size in (BATCH, NEXT[0])))
            found = [batch]
        except CaptureError as error:
            note(session, static, batch, f"the batch is fixed: {at_other_size(error)}")
            session.recorded({})  # raises what the example itself raises
    session.keep_preparing(dict.fromkeys(found, BATCH))
    wanted = candidates(session) if dynamic is None else named(session, dynamic)
    wanted = [dataclasses.replace(axis, also=session.wrong_at.get(axis.name, ())) for axis in wanted]
    for axis in (one for one in wanted if one.name in fixed):
        if dynamic is not None:
            raise CaptureError(f"the axis {axis.name!r} cannot be dynamic: {fixed[axis.name]}")
        note(session, static, axis, fixed[axis.name])
    wanted = [axis for axis in wanted if axis.name != "batch" and axis.name not in fixed]
    if wanted and _survives(session, found, wanted):
        return [*found, *wanted], static
    alone: list[Axis] = []
    for axis in wanted:
        stepped, why = _alone(session, found, axis)
        if stepped is not None:
            alone.append(stepped)
            continue
        if dynamic is not None:
            raise CaptureError(f"the axis {axis.name!r} cannot be dynamic: {why}")
        note(session, static, axis, why)
    while alone and not _survives(session, found, alone):
        note(session, static, alone.pop(), "it can change alone, but not together with other axes")
    return [*found, *alone], static


def _survives(session: Session, batch: Sequence[Axis], axes: Sequence[Axis]) -> bool:
    try:
        planned(session, batch, axes)
    except CaptureError:
        return False
    return True


def planned(session: Session, batch: Sequence[Axis], axes: Sequence[Axis]) -> list[dict[Axis, int]]:
    """Return the sizes of the recordings; more of them if expressions for numbers had to be guessed.

    Raises:
        CaptureError: The recordings do not give one graph.
    """
    if not batch and not axes:
        return _of_one_size(session)
    known = session.plans.get((*batch, *axes))
    if known is not None:
        return known
    for more in (False, True):
        plan = plan_by_axis(batch, axes) if session.opaque else plans(batch, axes, more)
        if not emitted(session.all(plan)).guesses:
            break
    key = (*batch, *axes)
    session.plans[key] = plan
    return plan


def _of_one_size(session: Session) -> list[dict[Axis, int]]:
    """Return one recording; three if some numbers depend on values, so that they are not taken for constants.

    Raises:
        CaptureError: The recordings do not give one graph.
    """
    if not session.recorded({}).recorder.draws.count:
        return [{}]
    plan: list[dict[Axis, int]] = [{DRAWS: turn} for turn in range(3)]
    emitted(session.all(plan))
    return plan


def _alone(session: Session, batch: Sequence[Axis], axis: Axis) -> tuple[Axis | None, str]:
    """Return the axis with the smallest step between sizes that works, or None and the reason why none does."""
    ways, errors = list(_ways(session, batch, axis)), list[CaptureError]()

    def works(way: Axis, step: int) -> Axis | None:
        stepped = dataclasses.replace(way, step=step)
        sizes = sizes_of(stepped, 0)[:3]
        if {axis.size, 1}.issuperset(sizes):  # one entry is no other size: it fits all, by broadcasting
            return None
        try:
            tried = (*sizes, *stepped.further)
            _agree(session, *({one: BATCH for one in batch} | {axis: size} for size in tried))
        except CaptureError as error:
            errors.append(error)
            return None
        return stepped

    for step, way in product(STEPS, ways):
        if (not way.apart or step in STEPS_APART) and (found := works(way, step)) is not None:
            return found, ""
    for way in (one for one in ways if not one.apart):
        if (found := _divided(works, way)) is not None:
            return found, ""
    return None, _most_telling(errors) if errors else _why_not(session, batch, axis)


def _divided(works: Callable[[Axis, int], Axis | None], way: Axis) -> Axis | None:
    """Return the axis with the smallest step among the divisors of its size, such as patches of 14 pixels.

    What takes multiples of a step takes multiples of the whole size, too: so that is tried first, and divided by one
    prime factor after the other as long as the rest works.
    """
    found = works(way, way.size)
    if found is not None:
        for factor in factorint(way.size, multiple=True):  # smallest first
            found = works(way, found.step // factor) or found
    return found


def _most_telling(errors: Sequence[CaptureError]) -> str:
    """Return the difference at the largest step, or the first error of forward if it refused all tried sizes.

    A model that takes only multiples of 32 fails at each smaller step; that is not the reason why the axis is static.
    """
    differs = [error for error in errors if not str(error).endswith(CALL_IT)]
    return at_other_size(differs[-1] if differs else errors[0])


def _ways(session: Session, batch: Sequence[Axis], axis: Axis) -> Iterator[Axis]:
    """Yield ways to record the axis: with the example's size and larger or smaller ones, or without the example's."""
    base = {one: BATCH for one in batch}
    for shorter in (False, True):
        way = dataclasses.replace(axis, shorter=shorter)
        try:
            _agree(session, base | {axis: axis.size}, base | {axis: way.far(2)})
            yield way
            break
        except Differs:
            break  # the model accepts that size but gives another graph; smaller sizes cannot change that
        except CaptureError:
            continue
    if session.apart:
        yield from _apart(session, base, axis)


def _apart(session: Session, base: Mapping[Axis, int], axis: Axis) -> Iterator[Axis]:
    """Yield the axis recorded without the example's size, if the model accepts much larger sizes at all."""
    try:
        here, there = session.recorded({**base, axis: axis.size}), session.recorded({**base, axis: 2 * axis.size})
    except CaptureError:
        return
    calls = [[(step.op, step.target) for step in one.hot] for one in (here, there)]
    runs = SequenceMatcher(None, calls[0], calls[1], autojunk=False).get_opcodes()
    if sum(tag != "equal" for tag, *_ in runs) == 1:  # a short cut is left out in one place
        yield dataclasses.replace(axis, apart=True)


def _why_not(session: Session, batch: Sequence[Axis], axis: Axis) -> str:
    base = {one: BATCH for one in batch}
    try:
        _agree(session, base | {axis: axis.size}, base | {axis: axis.far(2)})
    except CaptureError as error:
        return at_other_size(error)
    return ""


def _agree(session: Session, *sizes: Mapping[Axis, int]) -> None:
    """Raise CaptureError unless the recordings at these sizes give one graph."""
    emitted(session.all(sizes))


def emitted(
    recordings: Sequence[Recording],
    training: Recording | None = None,
    typed: Recording | None = None,
    *,
    prefix: str = "",
) -> Emitter:
    """Merge several recordings into one graph."""
    emitter = Emitter(Merger(recordings, training, typed), prefix)
    emitter.emit()
    return emitter
