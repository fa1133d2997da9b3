"""What a search begins with: sub-networks of all sizes that pruning by importance alone would leave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bnas.passes import Subnet
from bnas.runtime import SuperNetwork, taylor

from .allocation import Importance, global_path
from .errors import SearchError
from .pruning import blocks_worth, cost_of

if TYPE_CHECKING:
    from bnas.passes import SearchSpace
    from bnas.runtime.evaluate.evaluation import Batch
    from bnas.runtime.train.learner import Criterion


def pruned_sizes(
    supernet: SuperNetwork,
    batches: Sequence[Batch],
    *,
    space: SearchSpace | None = None,
    cost: str = "macs",
    bounds: Sequence[float] = (),
    count: int = 8,
    criterion: Criterion | None = None,
) -> tuple[Subnet, ...]:
    """Sub-networks that pruning by first-order Taylor importance leaves, for ``SearchSettings(begin_with=...)``.

    A search that begins with them has them to improve on: its result is no less accurate, on what it measures, than
    the best of them. For each bound there is the largest one that keeps it; the others lie evenly over the costs.

    Args:
        supernet: A super-network in the order that is to be searched; it is not changed.
        batches: Some batches of the training data, such as those that recalibrate BatchNorm statistics.
        space: The part of its space that is searched; by default all of it.
        cost: What pruning makes smaller: macs, parameters or activations.
        bounds: Costs that are asked for, absolute; one that no sub-network on the way keeps gives none.
        count: How many there are beside those of the bounds.
        criterion: The loss of outputs against targets; by default cross-entropy.

    Raises:
        SearchError: There is no such cost.
        BnasError: As `bnas.runtime.taylor`.
    """
    if cost not in supernet.cost_model.expressions:
        raise SearchError(f"cost {cost!r}: allowed are {', '.join(supernet.cost_model.expressions)}")
    space = space or supernet.space
    path = list(global_path(space, _worth(supernet, space, batches, criterion), partial(cost_of, supernet, cost)))
    path = list(dict.fromkeys(space.canonical(space.repair(one)) for one in path))
    costs = supernet.cost_model.many(path, [cost])[cost]
    even = np.linspace(costs.max(), costs.min(), count + 2)[1:-1]
    chosen = [path[place] for bound in (*bounds, *even) if (place := _largest_within(costs, bound)) is not None]
    return tuple(dict.fromkeys(chosen))


def _worth(
    supernet: SuperNetwork, space: SearchSpace, batches: Sequence[Batch], criterion: Criterion | None
) -> Importance:
    """The importance of entries in the order of the super-network, and of blocks."""
    scores = taylor(supernet, batches, criterion)
    blocks = blocks_worth(supernet, batches, criterion) if space.blocks else {}
    widths = {name: scores[name].numpy() for name in space.widths}
    return Importance(widths, {name: blocks[name] for name in space.blocks})


def _largest_within(costs: np.ndarray, bound: float) -> int | None:
    """The place of the largest cost within a bound; None where none is."""
    within = np.flatnonzero(costs <= bound)
    return int(within[costs[within].argmax()]) if len(within) else None
