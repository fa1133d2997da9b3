"""How a search went on: the hypervolume of its front after every evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bnas.search.constraint import violation
from bnas.search.errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from bnas.search.result import SearchResult


@dataclass(frozen=True)
class Progression:
    """The volume that the front dominates, as a share of the box between the best and the worst of every objective.

    The box is that of the whole search, so volumes of one search can be compared, and those of two searches cannot.
    """

    best: Mapping[str, float]
    """The best value of each objective in any feasible evaluation."""
    worst: Mapping[str, float]
    """The worst one: volumes are measured from this corner."""
    volumes: NDArray[np.float64] = field(repr=False)
    """After each evaluation, from 0 to 1; they never fall."""

    @classmethod
    def of(cls, result: SearchResult) -> Progression:
        """The progression of `result`.

        Raises:
            SearchError: no evaluation is feasible, or moocore is not installed.
        """
        try:
            import moocore
        except ImportError as error:
            raise SearchError("the hypervolume needs moocore: pip install 'bnas[report]'") from error
        names, signs = [o.name for o in result.objectives], np.array([o.sign for o in result.objectives])
        feasible = result.feasible
        if not feasible:
            raise SearchError("no evaluation is feasible: there is no front")
        costs = signs * np.array([[e.values[name] for name in names] for e in feasible], dtype=np.float64)
        low, high = costs.min(axis=0), costs.max(axis=0)
        unit = (costs - low) / np.where(high > low, high - low, 1.0)  # 0 is best; all 0 where all are alike
        volumes, front, corner = np.zeros(len(result.evaluations)), np.empty((0, len(names))), np.ones(len(names))
        reached = 0.0
        points = iter(unit)
        for place, evaluation in enumerate(result.evaluations):
            if evaluation.failure is None and not violation(result.constraints, evaluation.values):
                point = next(points)
                if not (front <= point).all(axis=1).any():
                    front = np.vstack([front[~(front >= point).all(axis=1)], point])
                    reached = float(moocore.hypervolume(front, ref=corner))
            volumes[place] = reached
        best, worst = (dict(zip(names, map(float, signs * one), strict=True)) for one in (low, high))
        return cls(best, worst, volumes)
