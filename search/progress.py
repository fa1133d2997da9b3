"""The progress of a search after each evaluation, and a plot of a finished search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import SearchError
from .evaluation import Evaluation
from .objectives import Constraint, Objective, nearest, violation

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .result import SearchResult


# Progress after each evaluation.


class SearchProgress:
    """Progress of a search. It takes the evaluations in order; the first one is that of the maximal sub-network.

    Args:
        objectives: the objectives of the search.
        constraints: the constraints of the search; a sub-network that misses one is only counted.
        metric: the value of which the best is reported; by default the first maximised objective, if any.
    """

    def __init__(
        self, objectives: Sequence[Objective], constraints: Sequence[Constraint | str] = (), metric: str | None = None
    ) -> None:
        self.objectives = tuple(objectives)
        self._bounds = tuple(map(Constraint.of, constraints))
        self._resolved: tuple[Constraint, ...] | None = None
        self.metric = metric or next((one.name for one in self.objectives if one.direction == "max"), None)
        self.corner: dict[str, float] = {}
        """Reference point of the hypervolume: 0 for a maximised objective, else the larger value of the first two
        evaluations, which are the maximal and the minimal sub-network: one has the largest costs, the other the largest
        error."""
        self.ideal: dict[str, float] = {}
        """The opposite corner: 0; for a maximised objective 1, or the maximal sub-network's value if that is larger."""
        self.evaluations = 0
        self._begun = 0
        """Evaluations that did not fail."""
        self.hypervolume = 0.0
        """The share of the box between the corner and the ideal that the front dominates.

        All searches of one super-network have the same box, so their hypervolumes can be compared.
        """
        self.best: float | None = None
        """The best value of the metric among feasible sub-networks."""

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints with absolute bounds; empty before the first successful evaluation."""
        return self._resolved or ()

    def add(self, evaluation: Evaluation) -> None:
        """Update the progress with the next evaluation."""
        self.evaluations += 1
        if evaluation.failure is not None:
            return
        if self._resolved is None:
            self._begin(evaluation)
        elif self._begun == 1:
            self._widen(evaluation)
        self._begun += 1
        if violation(self._resolved or (), evaluation.values):
            return
        if self.metric is not None:
            self.best = max(evaluation.values[self.metric], -math.inf if self.best is None else self.best)
        self._extend(np.array([one.sign * evaluation.values[one.name] for one in self.objectives], dtype=np.float64))

    def _begin(self, first: Evaluation) -> None:
        self._resolved = tuple(one.resolved(first.values) for one in self._bounds)
        self.corner = {one.name: 0.0 if one.direction == "max" else first.values[one.name] for one in self.objectives}
        self.ideal = {
            one.name: max(1.0, first.values[one.name]) if one.direction == "max" else 0.0 for one in self.objectives
        }
        self._front = np.empty((0, len(self.objectives)))

    def _widen(self, second: Evaluation) -> None:
        """Move the corner to the second evaluation where that is worse, as an error of the minimal sub-network is."""
        smaller = [one.name for one in self.objectives if one.direction == "min"]
        self.corner |= {name: max(self.corner[name], second.values[name]) for name in smaller}
        self._measure()

    def _extend(self, costs: NDArray[np.float64]) -> None:
        """Add a point (lower is better) to the front and recompute the hypervolume, unless the point is dominated."""
        if (self._front <= costs).all(axis=1).any():
            return
        self._front = np.vstack([self._front[~(self._front >= costs).all(axis=1)], costs])
        self._measure()

    def _measure(self) -> None:
        """Compute the hypervolume of the front."""
        import moocore  # not at the top: only a search that is watched needs it

        box = math.prod(abs(self.ideal[name] - value) or 1.0 for name, value in self.corner.items())
        corner = [one.sign * self.corner[one.name] for one in self.objectives]
        self.hypervolume = float(moocore.hypervolume(self._front, ref=corner)) / box if len(self._front) else 0.0


# A plot of a search: its evaluations in order, and the front.


def plot(
    result: SearchResult, path: str | os.PathLike[str] | None = None, x: str | None = None, y: str | None = None
) -> Figure:
    """Draw all evaluations over two values, coloured by when they were made, and the front over them.

    Args:
        result: What a search found.
        path: File for the picture; its suffix determines the format. None writes no file.
        x: Name of the value on the x axis; by default the second objective, or the index if there is only one.
        y: Name of the value on the y axis; by default the first objective.

    Raises:
        SearchError: matplotlib is not installed, or no evaluation has such a value.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SearchError("a plot needs matplotlib: pip install 'bnas[plot]'") from error
    names = [objective.name for objective in result.objectives]
    across, upwards = x or (names[1] if len(names) > 1 else "index"), y or names[0]
    known = ["index", *(result.closest().values if result.closest() else names)]  # type: ignore[union-attr]
    for name in (across, upwards):
        if name not in known:
            raise SearchError(f"there is no value {name!r} to plot; {nearest(name, known)}")
    figure = Figure(figsize=(7, 5), layout="constrained")
    _draw(figure.add_subplot(), result, across, upwards)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return figure


def _draw(axes: Axes, result: SearchResult, across: str, upwards: str) -> None:
    done = [e for e in result.evaluations if e.failure is None]
    values = [{**e.values, "index": float(e.index)} for e in done]
    colours = [e.index for e in done]
    cloud = axes.scatter([v[across] for v in values], [v[upwards] for v in values], c=colours, s=12, cmap="viridis")
    front = sorted(({**e.values, "index": float(e.index)} for e in result.pareto()), key=lambda v: v[across])
    axes.plot([v[across] for v in front], [v[upwards] for v in front], "r.-", label="Pareto front")
    axes.set(xlabel=across, ylabel=upwards, title=f"{len(result.evaluations)} evaluations, {len(front)} on the front")
    axes.legend()
    if axes.figure is not None:
        axes.figure.colorbar(cloud, ax=axes, label="evaluation")
