"""The plots of the Pareto front: the first objective over each other one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

from bnas.page.choice import told
from bnas.page.members import Members
from bnas.page.palette import BLACK, BLUE, GREY, WINNERS
from bnas.page.plot import Look, Plot, Rule, Series
from bnas.page.quantity import Quantity
from bnas.page.recorded import Recorded
from bnas.page.winners import points
from bnas.search import Evaluation, Objective, SearchResult

NAMED = 3
"""So many names of each kind are told where a point is hovered over."""


def fronts(run: Recorded, members: Members) -> Iterator[Plot]:
    """A plot for each pair of the first objective and another one; for a single objective over its MACs."""
    if run.search is None or run.settings is None or members.maximal is None:
        return
    upwards, *others = ordered(run.search.objectives)
    across = [one.name for one in others] or [name for name in ("macs",) if name in members.quantities]
    for name in across:
        yield _plot(run, run.search, members, members.quantities[name], members.quantities[upwards.name])


def ordered(objectives: Sequence[Objective]) -> list[Objective]:
    """With the accuracy first, else what is to be large."""
    return sorted(objectives, key=lambda one: (one.name != "accuracy", one.direction != "max"))


@dataclass(frozen=True)
class View:
    """Two values of evaluations, as a plot shows them."""

    x: Quantity
    y: Quantity
    tell: Callable[[Evaluation], str] | None = None
    """What hovering over a point tells; where there is nothing to tell, there is nothing to select either."""

    def series(self, label: str, some: Sequence[Evaluation], look: Look, colour: str, marker: str = "circle") -> Series:
        """These evaluations as points."""
        across = [self.x.factor * one.values[self.x.name] for one in some]
        upwards = [self.y.factor * one.values[self.y.name] for one in some]
        texts = [] if self.tell is None else [self.tell(one) for one in some]
        keys = [f"e{one.index}" for one in some] if texts and look not in ("cloud", "hollow") else ()
        return Series(label, across, upwards, look, colour, marker, texts=texts, keys=keys)


def searched(search: SearchResult, front: Sequence[Evaluation], view: View) -> list[Series]:
    """All that was evaluated, what breaks a constraint, and the front."""
    kept = {one.index for one in search.feasible}
    outside = [one for one in search.evaluations if one.failure is None and one.index not in kept]
    broken = [view.series("breaks a constraint", outside, "hollow", GREY)] if outside else []
    look: Look = "step" if len(search.objectives) == 2 else "dots"
    best = view.series("Pareto front", front, look, BLUE)
    return [view.series("evaluated", search.feasible, "cloud", GREY), *broken, best]


def _plot(run: Recorded, search: SearchResult, members: Members, x: Quantity, y: Quantity) -> Plot:
    view = View(x, y, partial(_hover, members=members))
    drawn = searched(search, run.front, view)
    by_key = {f"e{one.index}": one for one in search.evaluations}
    for (name, member), (colour, marker) in zip(members.winners.items(), cycle(WINNERS), strict=False):
        drawn.append(view.series(name, [by_key[member.key]], "mark", colour, marker))
    drawn += _original(run, x, y)
    return Plot(
        f"front-{x.name}",
        f"Pareto front: {y.label} over {x.label}",
        _caption(run, search, x, y),
        x.axis,
        y.axis,
        tuple(drawn),
        tuple(_rules(run, y)),
        _rows(run, search, members),
    )


def _original(run: Recorded, x: Quantity, y: Quantity) -> Iterator[Series]:
    """What the winners are held against, where it can be drawn."""
    settings = run.settings
    if settings is not None and y.name == "accuracy" and x.name in settings.maximal:
        at, up = x.factor * settings.maximal[x.name], y.factor * settings.reference
        text = f"reference\n{y.show(settings.reference)}, {x.show(settings.maximal[x.name])}"
        yield Series("reference", [at], [up], "mark", BLACK, "square", texts=[text])


def _rules(run: Recorded, y: Quantity) -> Iterator[Rule]:
    if run.settings is not None and y.name == "accuracy":
        enough = run.settings.reference - run.settings.acc_delta
        yield Rule(y.factor * enough, "y", f"reference less {points(run.settings.acc_delta)}")


def _caption(run: Recorded, search: SearchResult, x: Quantity, y: Quantity) -> str:
    assert run.settings is not None
    samples = "" if run.settings.samples is None else f"{run.settings.samples:,} "
    measured = [f"Accuracy is measured on {samples}validation samples"] if "accuracy" in (x.name, y.name) else []
    measured += [f"{one.label}: {one.meaning}" for one in (x, y) if one.meaning and one.name != "accuracy"]
    bounds = f" Constraints: {'; '.join(map(str, search.constraints))}." if search.constraints else ""
    return (
        f"{len(search.evaluations):,} sub-networks were evaluated, {len(run.front)} are on the front"
        f"{f', {len(search.failed)} failed' if search.failed else ''}. {'. '.join(measured)}.{bounds}"
    )


def _hover(evaluation: Evaluation, members: Members) -> str:
    assert members.maximal is not None
    values = [f"{one.label} {one.show(evaluation.values[name])}" for name, one in members.asked.items()]
    return f"evaluation {evaluation.index}\n{', '.join(values)}\n{told(evaluation.subnet, members.maximal, NAMED)}"


def _rows(run: Recorded, search: SearchResult, members: Members) -> list[Sequence[object]]:
    """All evaluations with their values, and which are on the front."""
    names, front = list(members.quantities), {one.index for one in run.front}
    kept = {one.index for one in search.feasible}
    rows: list[Sequence[object]] = [["evaluation", *names, "feasible", "front"]]
    for one in search.evaluations:
        if one.failure is None:
            rows.append([one.index, *(one.values[n] for n in names), int(one.index in kept), int(one.index in front)])
    return rows
