"""R-NSGA-II: survivors near points that the user aspires to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from deap import tools

from bnas.search.errors import SearchError

from .contract import Individual, sorting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnas.search.objectives import Objective

    from .settings import RNSGA2


@dataclass(frozen=True, eq=False)
class Preference:
    """Chooses survivors by front and, within a front, by their distance to the reference points.

    Deb, Sundar: Reference point based multi-objective optimization using evolutionary algorithms (2006). Each point
    ranks the individuals by distance, and an individual gets its best rank. Of individuals closer to each other than
    `epsilon`, one keeps its rank and the others come last. For distances, objectives and points are scaled to the range
    of the individuals (pymoo's normalisation "front"); a point may lie outside this range.
    """

    points: NDArray[np.float64]
    """One row for each point, as costs (lower is better)."""
    weights: NDArray[np.float64]
    """Weight of the squared difference in each objective."""
    epsilon: float
    extreme_points: bool
    """Whether the best individual of each objective is a reference point too."""

    @classmethod
    def of(cls, objectives: Sequence[Objective], settings: RNSGA2) -> Preference:
        """Make the preference for points whose entries are values in the order of the objectives.

        Raises:
            SearchError: a point or the weights have another number of entries than there are objectives.
        """
        count, names = len(objectives), ", ".join(one.name for one in objectives)
        if odd := [point for point in settings.aspiration_points if len(point) != count]:
            raise SearchError(f"aspiration_points: {odd[0]} must have {count} values, [{names}]")
        weights = [1 / count] * count if settings.weights is None else settings.weights
        if len(weights) != count:
            raise SearchError(f"weights {weights!r}: must be {count} numbers, one for each of {names}")
        points = np.array(settings.aspiration_points) * [one.sign for one in objectives]
        return cls(points, np.array(weights), settings.epsilon, settings.extreme_points_as_ref_points)

    def __call__(self, individuals: Sequence[Individual], count: int) -> list[Individual]:
        """Return the ``count`` best individuals, best first; sets the ``crowding_dist`` that tournaments read."""
        if not individuals:
            return []
        costs = {id(one): -np.array(one.fitness.wvalues) for one in individuals}
        matrix = np.array(list(costs.values()))
        low, size = matrix.min(0), np.ptp(matrix, axis=0)
        scale = np.where(size > 0, size, 1.0)
        points = self.points
        if self.extreme_points:
            points = np.concatenate([points, matrix[matrix.argmin(0)]])
        chosen: list[Individual] = []
        for front in self._fronts(individuals):
            rows = (np.array([costs[id(one)] for one in front]) - low) / scale
            order = self._order(rows, (points - low) / scale)
            for place, one in enumerate(order):
                front[one].fitness.crowding_dist = -float(place)  # DEAP's tournaments prefer the larger one
            chosen += [front[one] for one in order]
        return chosen[:count]

    def _fronts(self, individuals: Sequence[Individual]) -> list[list[Individual]]:
        if sorting(individuals) == "log":
            return list(tools.sortLogNondominated(list(individuals), len(individuals)))
        return list(tools.sortNondominated(list(individuals), len(individuals)))

    def _order(self, rows: NDArray[np.float64], points: NDArray[np.float64]) -> list[int]:
        """Return the positions of a front, best first. Individuals within `epsilon` of a better one come last."""
        rank = self._distances(rows, points).argsort(0, kind="stable").argsort(0, kind="stable").min(1)
        waiting, kept, cleared = list(rank.argsort(kind="stable")), list[int](), list[int]()
        while waiting:
            best = waiting.pop(0)
            kept.append(int(best))
            near: Any = self._distances(rows[waiting], rows[[best]])[:, 0] < self.epsilon if waiting else []
            cleared += [int(one) for one, close in zip(waiting, near, strict=True) if close]
            waiting = [one for one, close in zip(waiting, near, strict=True) if not close]
        return kept + sorted(cleared, key=lambda one: rank[one])

    def _distances(self, rows: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
        squares = (rows[:, None, :] - points[None, :, :]) ** 2 * self.weights
        return np.asarray(np.sqrt(squares.sum(2)))
