"""The plots of how a search went on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bnas.page.front import ordered
from bnas.page.members import Members
from bnas.page.palette import BLUE, GREY, VERMILLION
from bnas.page.plot import Plot, Series
from bnas.page.recorded import Recorded
from bnas.search import Objective
from bnas.search.search_progress import SearchProgress


def progress(run: Recorded, members: Members) -> Iterator[Plot]:
    """The hypervolume after every evaluation, and the first objective of every evaluation with the best so far.

    What is to be small is at its best from the smallest sub-network on, which comes second: there is nothing to see.
    """
    if run.search is None:
        return
    if run.search.feasible:
        yield _hypervolume(run, members)
    yield _values(run, members, ordered(run.search.objectives)[0])


def _hypervolume(run: Recorded, members: Members) -> Plot:
    assert run.search is not None
    found, shares = SearchProgress(run.search.objectives, run.search.constraints), []
    for one in run.search.evaluations:
        found.add(one)
        shares.append(found.hypervolume)
    numbers = list(range(1, len(shares) + 1))
    shown, best = members.quantities, {one.name: float(one.direction == "max") for one in run.search.objectives}
    box = [
        f"{shown[name].label} from {shown[name].show(value)} to {shown[name].show(best[name])}"
        for name, value in found.corner.items()
    ]
    caption = (
        "How much of the box between the first sub-network, the maximal one, and the best imaginable values the front "
        f"dominates: {', '.join(box)}. Searches of one super-network can be compared."
    )
    line = Series("hypervolume of the front", numbers, [100 * share for share in shares], "step", BLUE)
    rows = [("evaluations", "hypervolume"), *zip(numbers, shares, strict=True)]
    title = "Progress of the search: hypervolume"
    return Plot("hypervolume", title, caption, "evaluations", "dominated share of the box (%)", (line,), rows=rows)


def _values(run: Recorded, members: Members, objective: Objective) -> Plot:
    assert run.search is not None
    shown = members.quantities[objective.name]
    done = [one for one in run.search.evaluations if one.failure is None]
    kept = {one.index for one in run.search.feasible}
    numbers = [one.index + 1 for one in done]
    values = [one.values[objective.name] for one in done]
    costs = [objective.sign * v if one.index in kept else np.inf for one, v in zip(done, values, strict=True)]
    best = [objective.sign * float(v) for v in np.minimum.accumulate(costs)]
    known = [(n, v) for n, v in zip(numbers, best, strict=True) if np.isfinite(v)]
    name = shown.label
    series = (
        Series(f"{name} of each", numbers, [shown.factor * v for v in values], "cloud", GREY),
        Series("best so far", [n for n, _ in known], [shown.factor * v for _, v in known], "step", VERMILLION),
    )
    better = "more" if objective.direction == "max" else "less"
    caption = (
        f"Of every evaluated sub-network, in order; {better} is better{f' ({shown.meaning})' if shown.meaning else ''}."
    )
    rows = [("evaluations", objective.name, "best"), *zip(numbers, values, best, strict=True)]
    return Plot(
        f"search-{objective.name}",
        f"Progress of the search: {name}",
        caption,
        "evaluations",
        shown.axis,
        series,
        rows=rows,
    )
