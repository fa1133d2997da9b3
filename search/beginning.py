"""What a search begins with: sub-networks of all sizes that pruning by importance alone would leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bnas.passes import Subnet
from bnas.runtime import SuperNetwork, taylor

from .allocation import Importance, first_within, global_path, returned
from .errors import SearchError
from .objectives import Constraint
from .pruning import blocks_worth, cost_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnas.passes import SearchSpace
    from bnas.runtime.evaluate.evaluation import Batch
    from bnas.runtime.train.learner import Criterion


SHARES = (1.0, 0.95)
"""Of each bound: what is measured on this machine may lie a little above what was predicted."""


def pruned_sizes(
    supernet: SuperNetwork,
    batches: Sequence[Batch],
    *,
    space: SearchSpace | None = None,
    cost: str = "macs",
    bounds: Sequence[Constraint | str] = (),
    latency: Callable[[Subnet], float] | None = None,
    count: int = 8,
    criterion: Criterion | None = None,
) -> tuple[Subnet, ...]:
    """Sub-networks that pruning by first-order Taylor importance leaves, for ``SearchSettings(begin_with=...)``.

    A search that begins with them has them to improve on: its result is no less accurate, on what it measures, than
    the best of them. For each bound there are large ones that keep it, some with all blocks; the others lie evenly over
    the costs.

    Args:
        supernet: A super-network in the order that is to be searched; it is not changed.
        batches: Some batches of the training data, such as those that recalibrate BatchNorm statistics.
        space: The part of its space that is searched; by default all of it.
        cost: What pruning makes smaller: macs, parameters or activations.
        bounds: Upper bounds of costs, or of "latency"; one that no sub-network on the way keeps gives none.
        latency: Predicts it, where a bound is on it: a `bnas.LatencyModel`.
        count: How many there are beside those of the bounds.
        criterion: The loss of outputs against targets; by default cross-entropy.

    Raises:
        SearchError: There is no such cost, or a bound is no upper one.
        BnasError: As `bnas.runtime.taylor`.
    """
    limits = [_limit(supernet, Constraint.of(one), latency) for one in bounds]
    _known(supernet, cost)
    space = space or supernet.space
    worth, saved = _worth(supernet, space, batches, criterion), partial(cost_of, supernet, cost)
    paths = [list(global_path(one, worth, saved)) for one in _ways(space)]
    chosen = [found for limit in limits for path in paths for found in _within(path, limit)]
    chosen += _even(paths[0], supernet.cost_model.many(paths[0], [cost])[cost], count)
    return tuple(dict.fromkeys(space.canonical(space.repair(one)) for one in chosen))


def _ways(space: SearchSpace) -> list[SearchSpace]:
    """All of the space, and where it has blocks that without skipping any."""
    return [space, space.restrict(depth=False)] if space.blocks else [space]


def _known(supernet: SuperNetwork, cost: str, *others: str) -> None:
    if cost not in (known := (*supernet.cost_model.expressions, *others)):
        raise SearchError(f"cost {cost!r}: allowed are {', '.join(known)}")


def _limit(supernet: SuperNetwork, bound: Constraint, latency: Callable[[Subnet], float] | None) -> _Limit:
    """How to tell whether a sub-network keeps a share of a bound."""
    if bound.sense != "<=":
        raise SearchError(f"bound {str(bound)!r}: pruning makes a cost smaller; give an upper bound, with <=")
    _known(supernet, bound.name, *(() if latency is None else ("latency",)))
    value = latency if latency is not None and bound.name == "latency" else partial(cost_of, supernet, bound.name)
    whole = {bound.name: value(supernet.space.maximal())} if bound.relative else {}
    return lambda subnet, share: value(subnet) <= share * bound.resolved(whole).bound


_Limit: TypeAlias = Callable[[Subnet, float], bool]


def _within(path: Sequence[Subnet], limit: _Limit) -> Iterator[Subnet]:
    """For each share of a bound the largest sub-network."""
    for share in SHARES:

        def holds(subnet: Subnet, share: float = share) -> bool:
            return limit(subnet, share)

        if (place := first_within(path, holds)) is not None:
            yield returned(path[: place + 1], holds)


def _even(path: Sequence[Subnet], costs: NDArray[np.generic], count: int) -> list[Subnet]:
    """So many that lie evenly over the costs of a path."""
    aims = np.linspace(costs.max(), costs.min(), count + 2)[1:-1]
    return [path[int(np.argmax(costs <= aim))] for aim in aims]


def _worth(
    supernet: SuperNetwork, space: SearchSpace, batches: Sequence[Batch], criterion: Criterion | None
) -> Importance:
    """The importance of entries in the order of the super-network, and of blocks."""
    scores = taylor(supernet, batches, criterion)
    blocks = blocks_worth(supernet, batches, criterion) if space.blocks else {}
    widths = {name: scores[name].numpy() for name in space.widths}
    return Importance(widths, {name: blocks[name] for name in space.blocks})
