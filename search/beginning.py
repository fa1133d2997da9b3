"""What a search begins with: sub-networks of all sizes that pruning by importance alone would leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bnas.passes import Subnet
from bnas.runtime import SuperNetwork, taylor

from .allocation import Importance, first_within, global_path, returned
from .errors import SearchError
from .objectives import Constraint
from .pruning import blocks_worth, cost_of
from .source import by_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnas.passes import SearchSpace
    from bnas.runtime.evaluate.evaluation import Batch
    from bnas.runtime.train.learner import Criterion

    from .source import Latency

SHARES = (1.0, 0.95, 0.85)
"""Of each bound: what is measured in the end may lie above what was predicted, on a busy machine by a tenth."""
NEAR = 0.9
"""What uses at least this share of a bound is near it."""
TRIES, LEEWAY = 3, 0.97
"""So many sub-networks of a path are measured near a bound of latency; they aim at this much of it."""


def pruned_sizes(
    supernet: SuperNetwork,
    batches: Sequence[Batch],
    *,
    space: SearchSpace | None = None,
    cost: str = "macs",
    bounds: Sequence[Constraint | str] = (),
    latency: Latency = None,
    count: int = 8,
    criterion: Criterion | None = None,
) -> tuple[Subnet, ...]:
    """Return sub-networks found by pruning with first-order Taylor importance, for ``SearchSettings(begin_with=...)``.

    A search that begins with them is never worse than the best of them, on the data that it measures. For each bound
    there are large sub-networks that meet it, some of them with all blocks; the others are spread evenly over the
    costs.

    Args:
        supernet: The super-network, with its entries in the order to search; it is not changed.
        batches: Batches of the training data, such as those for recalibrating BatchNorm statistics.
        space: The part of the space to search; by default all of it.
        cost: The cost that pruning lowers: macs, parameters or activations.
        bounds: Upper bounds of costs or latencies; a bound that no pruned sub-network meets adds none.
        latency: A `bnas.LatencyModel` for bounds on "latency", or several by the names of their values. The
            sub-networks that they were fitted to come first.
        count: Number of sub-networks besides those for the bounds.
        criterion: The loss of outputs against targets; by default cross-entropy.

    Raises:
        SearchError: There is no such cost, or a bound is not an upper bound.
        BnasError: As `bnas.runtime.taylor`.
    """
    return Paths(supernet, batches, space, cost, criterion).sizes(bounds, latency, count)


@dataclass(frozen=True)
class Paths:
    """Ways from the whole super-network to ever smaller ones, by importance; found when they are first asked for.

    Raises:
        SearchError, BnasError: As `pruned_sizes`.
    """

    supernet: SuperNetwork
    batches: Sequence[Batch]
    space: SearchSpace | None = None
    cost: str = "macs"
    criterion: Criterion | None = None

    @cached_property
    def ways(self) -> list[list[Subnet]]:
        """The path through all of the space, and where it has blocks one that skips none."""
        _known(self.supernet, self.cost)
        space = self.space or self.supernet.space
        worth = _worth(self.supernet, space, self.batches, self.criterion)
        saved = partial(cost_of, self.supernet, self.cost)
        return [[self._usual(one) for one in global_path(each, worth, saved)] for each in _ways(space)]

    def _usual(self, subnet: Subnet) -> Subnet:
        """As an evaluation has it."""
        space = self.space or self.supernet.space
        return space.canonical(space.repair(subnet))

    def sizes(self, bounds: Sequence[Constraint | str], latency: Latency, count: int) -> tuple[Subnet, ...]:
        """As `pruned_sizes`."""
        near = [list(self._near(Constraint.of(one), by_name(latency))) for one in bounds]
        chosen = [one for row in zip_longest(*near) for one in row if one is not None]
        costs = self.supernet.cost_model.many(self.ways[0], [self.cost])[self.cost]
        return tuple(dict.fromkeys((*chosen, *_even(self.ways[0], costs, count))))

    def _near(self, bound: Constraint, latencies: Mapping[str, Callable[[Subnet], float]]) -> Iterator[Subnet]:
        """What is just within a bound: first what was measured, then the ends of the ways to it."""
        limit = _limit(self.supernet, bound, latencies)
        known = getattr(latencies.get(bound.name), "measured", {})
        yield from (one for one in known if limit(one, 1.0) and not limit(one, NEAR) and self._usual(one) == one)
        yield from (self._usual(found) for path in self.ways for found in _within(path, limit))

    def measured(
        self, limit: float, latency: Callable[[Subnet], float], measure: Callable[[Subnet], float]
    ) -> dict[Subnet, float]:
        """Milliseconds of sub-networks near a bound of latency, on each path a few.

        A prediction is off by about the same factor for networks that are alike. So the next one that is measured is
        where the last measurement says that the bound is.
        """
        found: dict[Subnet, float] = {}
        for path in self.ways:
            factor = 1.0
            for _ in range(TRIES):
                place = first_within(path, lambda one, factor=factor: factor * latency(one) <= LEEWAY * limit)  # type: ignore[misc]
                if place is None or path[place] in found:
                    break
                found[path[place]] = measure(path[place])
                factor = found[path[place]] / latency(path[place])
        return found


def _ways(space: SearchSpace) -> list[SearchSpace]:
    """All of the space, and where it has blocks that without skipping any."""
    return [space, space.restrict(depth=False)] if space.blocks else [space]


def _known(supernet: SuperNetwork, cost: str, *others: str) -> None:
    if cost not in (known := (*supernet.cost_model.expressions, *others)):
        raise SearchError(f"cost {cost!r}: allowed are {', '.join(known)}")


def _limit(supernet: SuperNetwork, bound: Constraint, latencies: Mapping[str, Callable[[Subnet], float]]) -> _Limit:
    """How to tell whether a sub-network keeps a share of a bound."""
    if bound.sense != "<=":
        raise SearchError(f"bound {str(bound)!r}: pruning lowers a cost, so give an upper bound, with <=")
    _known(supernet, bound.name, *latencies)
    value = latencies.get(bound.name) or partial(cost_of, supernet, bound.name)
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
