"""What pruning removes: a path of sub-networks, each smaller than the one before, and the first that keeps a bound."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from bnas.passes import Subnet

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnas.passes import SearchSpace

Allocation: TypeAlias = Literal["global", "uniform"]
Price: TypeAlias = Literal["cost", "entry"]
Cost: TypeAlias = Callable[[Subnet], float]
"""What a sub-network costs."""

STEADY = 1e-9
"""Two fractions that differ by less are one."""


@dataclass(frozen=True)
class Importance:
    """What each part of a network is worth."""

    widths: Mapping[str, NDArray[np.float64]]
    """A number for each entry of each width, the most important entry first: a sub-network keeps the first ones."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    """What is lost when a block alone is skipped."""

    def of(self, name: str, sizes: tuple[int, int]) -> float:
        """The importance of the entries that go when a width falls from the first to the second of `sizes`."""
        before, after = sizes
        return float(np.sum(self.widths[name][after:before]))


@dataclass(frozen=True, order=True)
class Step:
    """One size of one width less, or one block."""

    price: float
    name: str
    block: bool
    """A block is skipped."""
    size: int = 0
    """The new size of a width."""


def global_path(
    space: SearchSpace, importance: Importance, cost: Cost, price: Price = "cost", start: Subnet | None = None
) -> Iterator[Subnet]:
    """Sub-networks from `start` on, by default the maximal one, each without the cheapest step of those that were left.

    The price of a step is the importance that is lost for each unit of `cost` that is saved ("cost", the greedy rule of
    the knapsack problem), or for each entry that is removed ("entry"). A step that saves nothing is not taken.

    A width that shrinks makes the savings of others smaller and never larger where the cost is a sum of products of
    widths. So prices only rise, and it is enough to look again at the price of the cheapest step.
    """
    state = _State(space, importance, cost, price, start or space.maximal())
    parts = [*((name, False) for name in space.widths), *((name, True) for name in space.blocks)]
    steps = [step for part in parts if (step := state.next(*part)) is not None]
    heapq.heapify(steps)
    yield state.subnet
    while steps:
        known = heapq.heappop(steps)
        step = state.next(known.name, known.block)
        if step is None:
            continue
        if steps and steps[0] < step:
            heapq.heappush(steps, step)
            continue
        state.take(step)
        yield state.subnet
        if (after := state.next(step.name, step.block)) is not None:
            heapq.heappush(steps, after)


class _State:
    """Where a path is."""

    def __init__(self, space: SearchSpace, importance: Importance, cost: Cost, price: Price, start: Subnet) -> None:
        self.space, self.importance, self.cost, self.by_cost = space, importance, cost, price == "cost"
        self.widths = {name: start.widths.get(name, sizes[-1]) for name, sizes in space.widths.items()}
        self.skipped = set(start.skipped)
        self.now = cost(self.subnet)

    @property
    def subnet(self) -> Subnet:
        """The sub-network of now."""
        return Subnet(self.widths, frozenset(self.skipped))

    def next(self, name: str, block: bool) -> Step | None:
        """The next step of a width or a block, with its price of now; None where none is left, or it saves nothing."""
        if block:
            after = Subnet(self.widths, frozenset((*self.skipped, name)))
            return (
                None if name in self.skipped else self._priced(Step(self.importance.blocks[name], name, True), after, 1)
            )
        before = self.widths[name]
        size = max((size for size in self.space.widths[name] if size < before), default=before)
        after = Subnet({**self.widths, name: size}, frozenset(self.skipped))
        lost = self.importance.of(name, (before, size))
        return None if size == before else self._priced(Step(lost, name, False, size), after, before - size)

    def _priced(self, step: Step, after: Subnet, entries: int) -> Step | None:
        """A step whose price is what is lost, with its price for what is saved."""
        saved = self.now - self.cost(after)
        return replace(step, price=step.price / (saved if self.by_cost else entries)) if saved > 0 else None

    def take(self, step: Step) -> None:
        """Take a step."""
        if step.block:
            self.skipped.add(step.name)
        else:
            self.widths[step.name] = step.size
        self.now = self.cost(self.subnet)


def uniform_path(space: SearchSpace, importance: Importance) -> Iterator[Subnet]:
    """Sub-networks from the maximal one on that keep the same fraction of everything, each a smaller fraction.

    A width has the smallest size that is no smaller than the fraction of the full one. Of the blocks that fraction
    stays, rounded up, and the least important ones are skipped.
    """
    falling = sorted(space.blocks, key=lambda name: importance.blocks[name])
    fractions = {size / sizes[-1] for sizes in space.widths.values() for size in sizes}
    fractions |= {kept / len(falling) for kept in range(len(falling) + 1) if falling}
    last = None
    for fraction in sorted(fractions | {1.0}, reverse=True):
        widths = {name: _at_least(sizes, fraction) for name, sizes in space.widths.items()}
        gone = len(falling) - math.ceil(fraction * len(falling) - STEADY)
        subnet = Subnet(widths, frozenset(falling[:gone]))
        if subnet != last:
            yield subnet
        last = subnet


def _at_least(sizes: Sequence[int], fraction: float) -> int:
    return next(size for size in sizes if size >= fraction * sizes[-1] - STEADY)


def returned(path: Sequence[Subnet], holds: Callable[[Subnet], bool], tries: int = 100) -> Subnet:
    """The last sub-network of a path, with what went last given back first, as far as the bound allows.

    A large last step overshoots a bound. What is given back later may be small enough for what is left of it: the usual
    end of a greedy rule for the knapsack problem. A width of which one step does not fit gets none of its earlier ones.

    Args:
        path: Each one smaller than the one before; the last one keeps the bound.
        holds: Whether a sub-network keeps the bound.
        tries: `holds` is asked so often at most.
    """
    kept, closed = path[-1], set[str]()
    for before, after in reversed(list(itertools.pairwise(path))):
        names = {name for name, size in before.widths.items() if after.widths[name] != size}
        names |= after.skipped - before.skipped
        if tries == 0 or names & closed:
            closed |= names
            continue
        tries -= 1
        widths = {name: before.widths[name] for name in names & before.widths.keys()}
        more = Subnet({**kept.widths, **widths}, kept.skipped - names)
        if holds(more):
            kept = more
        else:
            closed |= names
    return kept


def first_within(path: Sequence[Subnet], holds: Callable[[Subnet], bool]) -> int | None:
    """The place of the first sub-network of a path that keeps a bound, by bisection; None where the last one does not.

    The one before it does not keep the bound. Each is asked for at most once.
    """
    if not path or not holds(path[-1]):
        return None
    misses, keeps = -1, len(path) - 1
    while keeps - misses > 1:
        middle = (misses + keeps) // 2
        if holds(path[middle]):
            keeps = middle
        else:
            misses = middle
    return keeps
