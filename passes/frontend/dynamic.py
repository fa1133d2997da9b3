"""Which axes may change, and by which steps: those at which the recordings of a model are one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from bnas.passes.errors import CaptureError

from .candidates import Dynamic, batch_axis, candidates, fixed_by_export, named, note
from .emission import Emitter
from .entry import Axis
from .merging import Differs, Merger
from .on_meta import BATCH
from .plans import NEXT, STEPS, STEPS_APART, plan_by_axis, plans, sizes_of
from .recording import Recording
from .session import Session

DRAWS = Axis("(draws)", (), 0)
"""Stands for what differs between recordings of one size: numbers that depend on values, such as how many boxes."""


def dynamic_axes(
    session: Session, dynamic: Dynamic | None, fixed: Mapping[str, str]
) -> tuple[list[Axis], dict[str, str]]:
    """The axes that the recordings survive, and the others with the reason."""
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
            note(session, static, batch, f"the batch is fixed: {error}")
            session.recorded({})  # raises what the example itself raises
    session.keep_preparing(dict.fromkeys(found, BATCH))
    wanted = candidates(session) if dynamic is None else named(session, dynamic)
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
        note(session, static, alone.pop(), "it can change by itself, not together with others")
    return [*found, *alone], static


def _survives(session: Session, batch: Sequence[Axis], axes: Sequence[Axis]) -> bool:
    try:
        planned(session, batch, axes)
    except CaptureError:
        return False
    return True


def planned(session: Session, batch: Sequence[Axis], axes: Sequence[Axis]) -> list[dict[Axis, int]]:
    """The sizes to record at: more of them where numbers are guessed by what they are at each.

    Raises:
        CaptureError: the recordings are not one graph.
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
    """One recording; three where some numbers depend on values, which are no constants then.

    Raises:
        CaptureError: these recordings are not one graph.
    """
    if not session.recorded({}).recorder.draws.count:
        return [{}]
    plan: list[dict[Axis, int]] = [{DRAWS: turn} for turn in range(3)]
    emitted(session.all(plan))
    return plan


def _alone(session: Session, batch: Sequence[Axis], axis: Axis) -> tuple[Axis | None, str]:
    """The axis with the least step between sizes that works, or None and why none does."""
    ways, why = list(_ways(session, batch, axis)), ""
    for step in STEPS:
        for way in ways:
            if way.apart and step not in STEPS_APART:
                continue
            stepped = dataclasses.replace(way, step=step)
            try:
                _agree(session, *({one: BATCH for one in batch} | {axis: size} for size in sizes_of(stepped, 0)[:3]))
                return stepped, ""
            except CaptureError as error:
                why = why or str(error)
    if not ways:
        why = _why_not(session, batch, axis)
    return None, why


def _ways(session: Session, batch: Sequence[Axis], axis: Axis) -> Iterator[Axis]:
    """How the axis may be recorded: at its size and larger or smaller ones; else at others than its size."""
    base = {one: BATCH for one in batch}
    for shorter in (False, True):
        way = dataclasses.replace(axis, shorter=shorter)
        try:
            _agree(session, base | {axis: axis.size}, base | {axis: way.far(2)})
            yield way
            break
        except Differs:
            break  # the model takes that size, and is another graph there, whatever it is at smaller ones
        except CaptureError:
            continue
    if session.apart:
        yield from _apart(session, base, axis)


def _apart(session: Session, base: Mapping[Axis, int], axis: Axis) -> Iterator[Axis]:
    """The axis recorded at other sizes than the example's, if the model takes much larger ones at all."""
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
        return str(error)
    return ""


def _agree(session: Session, *sizes: Mapping[Axis, int]) -> None:
    """Raise unless the recordings of these sizes are one graph."""
    emitted(session.all(sizes))


def emitted(
    recordings: Sequence[Recording],
    training: Recording | None = None,
    typed: Recording | None = None,
    *,
    prefix: str = "",
) -> Emitter:
    """The one graph of several recordings."""
    emitter = Emitter(Merger(recordings, training, typed), prefix)
    emitter.emit()
    return emitter
