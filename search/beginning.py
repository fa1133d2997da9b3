"""The first sub-networks of a search, found by pruning by importance, in several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bnas.passes import Subnet
from bnas.runtime import SuperNetwork, taylor

from .allocation import Importance, first_within, global_path, undo_steps
from .errors import SearchError
from .objectives import Constraint
from .pruning import cost_of, importance_of_blocks
from .source import by_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnas.passes import SearchSpace
    from bnas.runtime.evaluate.evaluation import Batch
    from bnas.runtime.train.learner import Criterion

    from .source import Latency

SHARES = (1.0, 0.95, 0.85)
"""Shares of each bound to aim at: a final measurement may be above the prediction, by 10 % on a busy machine."""
NEAR = 0.9
"""A sub-network that uses at least this share of a bound counts as near it."""
TRIES, LEEWAY = 3, 0.97
"""Number of sub-networks of each path that are measured near a latency bound, and the share of the bound to aim at."""


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
    """Pruning paths: ever smaller sub-networks, chosen by importance. They are computed at first use.

    Raises:
        SearchError, BnasError: As `pruned_sizes`.
    """

    supernet: SuperNetwork
    batches: Sequence[Batch]
    space: SearchSpace | None = None
    cost: str = "macs"
    criterion: Criterion | None = None
    start: Subnet | None = None
    """Where the paths begin, and in which importance is measured; by default the maximal sub-network."""

    @cached_property
    def paths(self) -> list[list[Subnet]]:
        """One path through the whole space and, if the space has blocks, a second one that skips no block."""
        _known(self.supernet, self.cost)
        space = self.space or self.supernet.space
        worth = _importance(self.supernet, space, self.batches, self.criterion, self.start)
        saved = partial(cost_of, self.supernet, self.cost)
        found = (global_path(each, worth, saved, start=self.start) for each in _spaces(space))
        return [[self._canonical(one) for one in path] for path in found]

    def _canonical(self, subnet: Subnet) -> Subnet:
        """Return `subnet` in the canonical form that evaluations use."""
        space = self.space or self.supernet.space
        return space.canonical(space.repair(subnet))

    def sizes(self, bounds: Sequence[Constraint | str], latency: Latency, count: int) -> tuple[Subnet, ...]:
        """Return sub-networks near the bounds, then `count` of all sizes, as `pruned_sizes` describes."""
        near = [list(self._near(Constraint.of(one), by_name(latency))) for one in bounds]
        chosen = [one for row in zip_longest(*near) for one in row if one is not None]
        costs = self.supernet.cost_model.many(self.paths[0], [self.cost])[self.cost]
        return tuple(dict.fromkeys((*chosen, *_even(self.paths[0], costs, count))))

    def _near(self, bound: Constraint, latencies: Mapping[str, Callable[[Subnet], float]]) -> Iterator[Subnet]:
        """Yield sub-networks just within a bound: first measured ones, then those where a path reaches the bound."""
        limit = _limit(self.supernet, bound, latencies)
        known = getattr(latencies.get(bound.name), "measured", {})
        yield from (one for one in known if limit(one, 1.0) and not limit(one, NEAR) and self._canonical(one) == one)
        yield from self._reached(limit)

    def within(self, bound: Constraint, latency: Latency, shares: Sequence[float]) -> Iterator[Subnet]:
        """Yield the largest sub-network of each path within each of these shares of a bound on a cost or a latency."""
        yield from self._reached(_limit(self.supernet, bound, by_name(latency)), shares)

    def _reached(self, limit: _Limit, shares: Sequence[float] = SHARES) -> Iterator[Subnet]:
        yield from (self._canonical(found) for path in self.paths for found in _within(path, limit, shares))

    def measured(
        self, limit: float, latency: Callable[[Subnet], float], measure: Callable[[Subnet], float]
    ) -> dict[Subnet, float]:
        """Measure up to `TRIES` sub-networks of each path near a latency bound; return their milliseconds.

        Predictions of similar networks are wrong by about the same factor. Each measurement therefore corrects the
        predictions by which the next sub-network is chosen.
        """
        found: dict[Subnet, float] = {}
        for path in self.paths:
            factor = 1.0
            for _ in range(TRIES):
                place = first_within(path, lambda one, factor=factor: factor * latency(one) <= LEEWAY * limit)  # type: ignore[misc]
                if place is None or path[place] in found:
                    break
                found[path[place]] = measure(path[place])
                factor = found[path[place]] / latency(path[place])
        return found


def _spaces(space: SearchSpace) -> list[SearchSpace]:
    """Return the space and, if it has blocks, the same space without skipping any."""
    return [space, space.restrict(depth=False)] if space.blocks else [space]


def _known(supernet: SuperNetwork, cost: str, *others: str) -> None:
    if cost not in (known := (*supernet.cost_model.expressions, *others)):
        raise SearchError(f"cost {cost!r}: allowed are {', '.join(known)}")


def _limit(supernet: SuperNetwork, bound: Constraint, latencies: Mapping[str, Callable[[Subnet], float]]) -> _Limit:
    """Return a function that says whether a sub-network stays within a share of a bound."""
    if bound.sense != "<=":
        raise SearchError(f"bound {str(bound)!r}: pruning lowers a cost, so give an upper bound, with <=")
    _known(supernet, bound.name, *latencies)
    value = latencies.get(bound.name) or partial(cost_of, supernet, bound.name)
    whole = {bound.name: value(supernet.space.maximal())} if bound.relative else {}
    return lambda subnet, share: value(subnet) <= share * bound.resolved(whole).bound


_Limit: TypeAlias = Callable[[Subnet, float], bool]


def _within(path: Sequence[Subnet], limit: _Limit, shares: Sequence[float]) -> Iterator[Subnet]:
    """Yield the largest sub-network of a path within each share of a bound."""
    for share in shares:

        def holds(subnet: Subnet, share: float = share) -> bool:
            return limit(subnet, share)

        if (place := first_within(path, holds)) is not None:
            yield undo_steps(path[: place + 1], holds)


def _even(path: Sequence[Subnet], costs: NDArray[np.generic], count: int) -> list[Subnet]:
    """Return `count` sub-networks of a path whose costs are evenly spaced."""
    aims = np.linspace(costs.max(), costs.min(), count + 2)[1:-1]
    return [path[int(np.argmax(costs <= aim))] for aim in aims]


def _importance(
    supernet: SuperNetwork,
    space: SearchSpace,
    batches: Sequence[Batch],
    criterion: Criterion | None,
    subnet: Subnet | None,
) -> Importance:
    """Measure the importance of the entries of `subnet`, in the order of the super-network, and of its blocks."""
    scores = taylor(supernet, batches, criterion, subnet=subnet)
    blocks = importance_of_blocks(supernet, batches, criterion, subnet) if space.blocks else {}
    widths = {name: scores[name].numpy() for name in space.widths}
    return Importance(widths, {name: blocks[name] for name in space.blocks if name in blocks})
