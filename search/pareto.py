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
    kept = _undominated(costs)
    leading = next((place for place, o in enumerate(objectives) if o.direction == "min"), 0)
    # The other costs and the index make the order the same whatever the order of the evaluations.
    kept.sort(key=lambda row: (costs[row][leading], *costs[row], evaluations[row].index))
    return tuple(evaluations[row] for row in kept)


def _undominated(costs: NDArray[np.float64]) -> list[int]:
    """The rows that no other row dominates."""
    kept: list[int] = []
    front = np.empty_like(costs)
    # In lexicographic order what dominates a row comes before it, and of those something that is kept.
    for row in np.lexsort(costs.T[::-1]):
        known = front[: len(kept)]
        nowhere_worse = (known <= costs[row]).all(axis=1)
        if not (known[nowhere_worse] < costs[row]).any():
            front[len(kept)] = costs[row]
            kept.append(int(row))
    return kept
