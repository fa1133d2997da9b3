"""Find the ends of dynamic axes: sizes far from the recorded ones at which the model runs other code.

The recordings of a plan have sizes near the example's. A model may take another branch at 512 tokens, where the example
has 16. So the model is recorded once at much larger sizes, and once at very small ones. If these recordings do not give
the graph of the plan, the axis ends at the last size that does.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bnas.passes.errors import CaptureError

from .dynamic import emitted, planned
from .entry import Axis
from .merging import Differs
from .session import Session

GROWTH = 2048
"""How many times as large inputs are tried: 2,048 times as long, or images of 45 times the height and the width. Tables
that forward makes grow with the inputs, and so does the time. If the model refuses such sizes, half of them are tried.
"""

SMALL = 2
"""The smallest size that is tried. One entry fits all sizes by broadcasting, so it would show nothing.
A batch is recorded at more than a thousand samples, so a single one is tried, too."""

PARTS = 256
"""Into how many parts the way to the ends of several axes is divided, to find how far they can go together."""

Plan = Sequence[Mapping[Axis, int]]
Target = dict[Axis, int]


def ended(session: Session, axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes with the ends that were found: `Axis.least`, `Axis.most` and the reason `Axis.why`."""
    if session.opaque or session.methods or session.exported is not None:
        return list(axes)  # an exported program has its own limits; what an opaque step does elsewhere is unknown
    batch, others = [[axis for axis in axes if (axis.name == "batch") is first] for first in (True, False)]
    search = Search(session, planned(session, batch, others))
    least = search.ends({axis: _smallest(axis) for axis in others})
    least |= search.ends(dict.fromkeys(batch, 1))
    upward = [axis for axis in others if not axis.shorter]
    most = search.ends({axis: _largest(axis, len(upward)) for axis in upward})
    return [
        dataclasses.replace(
            axis, least=least.get(axis, 0), most=most.get(axis), why=search.why if axis in {*least, *most} else ""
        )
        for axis in axes
    ]


def _smallest(axis: Axis) -> int:
    return next(size for size in range(SMALL, SMALL + axis.step) if axis.stepped(size) == size)


def _largest(axis: Axis, count: int) -> int:
    return axis.stepped(int(axis.size * GROWTH ** (1 / count)))


class Refused(CaptureError):
    """The model fails at a size far from the example's, or cannot be recorded there."""


@dataclass
class Search:
    """Compares recordings at further sizes with the graph of a plan."""

    session: Session
    plan: Plan
    why: str = ""
    """Why the last axis ended."""

    def ends(self, target: Target) -> Target:
        """Return the last sizes on the way to `target` that give the graph of the plan; empty if all do."""
        while target and not self.within(target):
            error = self.error(target)
            if error is None:
                return {}
            if not isinstance(error, Refused):
                return self._alone(target)
            target = {axis: _between(axis, size, 1, 2) for axis, size in target.items()}
        return {}

    def within(self, target: Target) -> bool:
        """Whether the plan has recordings of all these sizes or of ones beyond them."""
        sizes = {axis: [axis.size, *(one[axis] for one in self.plan if axis in one)] for axis in target}
        return all(min(sizes[axis]) <= size <= max(sizes[axis]) for axis, size in target.items())

    def _alone(self, target: Target) -> Target:
        """Return the end of each axis if it changes alone; nearer ones if the axes cannot change together so far."""
        found = {axis: self._end(axis, size) for axis, size in target.items()}
        together = {axis: target[axis] if end is None else end for axis, end in found.items()}
        if self._agree(together):
            return {axis: end for axis, end in found.items() if end is not None}

        def sizes_at(part: int) -> Target:
            return {axis: _between(axis, end, part, PARTS) for axis, end in together.items()}

        return sizes_at(self._last(sizes_at, PARTS))

    def _end(self, axis: Axis, size: int) -> int | None:
        if self._agree({axis: size}):
            return None
        step = axis.step if size > axis.size else -axis.step
        last = self._last(lambda steps: {axis: axis.size + steps * step}, (size - axis.size) // step)
        return axis.size + last * step

    def _last(self, at: Callable[[int], Target], beyond: int) -> int:
        """Return the last number whose sizes agree. Those at 0 do, and those at `beyond` do not."""
        return bisect_left(range(1, beyond), True, key=lambda part: not self._agree(at(part)))

    def _agree(self, sizes: Target) -> bool:
        error = self.error(sizes)
        if error is not None and not (self.why and isinstance(error, Refused)):
            self.why = str(error)
        return error is None

    def error(self, sizes: Target) -> CaptureError | None:
        """Return why the recording at these sizes does not fit the plan's; None if it does."""
        base, trial = dict(self.plan[0]), self.session.aside()
        try:
            recordings = trial.all([*self.plan, base | sizes])
        except Differs as error:
            return error
        except CaptureError as error:
            return Refused(str(error))
        try:
            if str(emitted(recordings).graph) != self._graph:
                raise Differs(None, "at a size far from the example's, a number follows another rule")
        except CaptureError as error:
            return error
        return _error_in_training(trial, base, base | sizes)

    @cached_property
    def _graph(self) -> str:
        """The graph of the plan as a text."""
        return str(emitted(self.session.all(self.plan)).graph)


def _error_in_training(trial: Session, base: Target, sizes: Target) -> CaptureError | None:
    try:
        trial.all([base, sizes], training=True)
    except Differs as error:
        return error
    except CaptureError:  # there is no graph of training mode, or none at these sizes
        return None
    return None


def _between(axis: Axis, end: int, part: int, parts: int) -> int:
    """Return the size so many parts of the way from the example's to `end`, never beyond."""
    steps = (end - axis.size) // axis.step
    return axis.size + int(steps * part / parts) * axis.step
