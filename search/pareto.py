"""Which evaluations no other one beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bnas.search.evaluation import Evaluation
    from bnas.search.objective import Objective


def pareto_front(evaluations: Sequence[Evaluation], objectives: Sequence[Objective]) -> tuple[Evaluation, ...]:
    """Return the evaluations that no other one dominates, best first in the first objective that is minimised.

    One dominates another if it is nowhere worse and somewhere better: equal ones are all kept. Without an objective
    to minimise, the first objective gives the order.
    """
    if not evaluations:
        return ()
    costs = np.array([[o.sign * e.values[o.name] for o in objectives] for e in evaluations], dtype=np.float64)
    kept = [row for row, cost in enumerate(costs) if not _is_dominated(cost, costs)]
    leading = next((place for place, o in enumerate(objectives) if o.direction == "min"), 0)
    # The other costs and the index make the order the same whatever the order of the evaluations.
    kept.sort(key=lambda row: (costs[row][leading], *costs[row], evaluations[row].index))
    return tuple(evaluations[row] for row in kept)


def _is_dominated(cost: NDArray[np.float64], costs: NDArray[np.float64]) -> bool:
    nowhere_worse = (costs <= cost).all(axis=1)
    somewhere_better = (costs < cost).any(axis=1)
    return bool((nowhere_worse & somewhere_better).any())
