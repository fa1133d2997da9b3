"""The order in which pruning removes parts: a path of ever smaller sub-networks, and the first one within a bound."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
"""Function that returns the cost of a sub-network."""

STEADY = 1e-9
"""Fractions that differ by less are treated as equal (rounding errors)."""


@dataclass(frozen=True)
class Importance:
    """The importance of each part of a network."""

    widths: Mapping[str, NDArray[np.float64]]
    """For each width the importance of its entries, most important first. A sub-network keeps the first entries."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    """For each block the importance that is lost if only this block is skipped."""

    def of(self, name: str, sizes: tuple[int, int]) -> float:
        """Return the importance of the entries that a width loses when it shrinks from ``sizes[0]`` to ``sizes[1]``."""
        before, after = sizes
        return float(np.sum(self.widths[name][after:before]))


@dataclass(frozen=True, order=True)
class Step:
    """One step of a path: one width gets its next smaller size, or one block is skipped."""

    price: float
    name: str
    block: bool
    """Whether `name` is a block that is skipped; otherwise `name` is a width."""
    size: int = 0
    """The new size of a width."""


def global_path(
    space: SearchSpace, importance: Importance, cost: Cost, price: Price = "cost", start: Subnet | None = None
) -> Iterator[Subnet]:
    """Yield a path of ever smaller sub-networks that begins with `start`, by default the maximal one.

    Each sub-network is the one before it after the cheapest step. The price of a step is the lost importance per unit
    of saved `cost` ("cost", the greedy rule of the knapsack problem), or per removed entry ("entry"). A step that saves
    nothing is never taken.

    If the cost is a sum of products of widths, a smaller width can only reduce the savings of other steps. Prices
    therefore only rise, so it is enough to recompute the price of the cheapest step in the heap.
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
    """The current sub-network of a path."""

    def __init__(self, space: SearchSpace, importance: Importance, cost: Cost, price: Price, start: Subnet) -> None:
        self.space, self.importance, self.cost, self.by_cost = space, importance, cost, price == "cost"
        self.widths = {name: start.widths.get(name, sizes[-1]) for name, sizes in space.widths.items()}
        self.skipped, self.kernels = set(start.skipped), start.kernels
        self.now = cost(self.subnet)

    @property
    def subnet(self) -> Subnet:
        """The current sub-network."""
        return self._subnet(self.widths, self.skipped)

    def _subnet(self, widths: Mapping[str, int], skipped: Iterable[str]) -> Subnet:
        """Return a sub-network with the kernels of the start, which no step changes."""
        return Subnet(widths, frozenset(skipped), self.kernels)

    def next(self, name: str, block: bool) -> Step | None:
        """Return the next step of a width or block with its current price; None if none is left or it saves nothing."""
        if block:
            after = self._subnet(self.widths, (*self.skipped, name))
            return (
                None if name in self.skipped else self._priced(Step(self.importance.blocks[name], name, True), after, 1)
            )
        before = self.widths[name]
        size = max((size for size in self.space.widths[name] if size < before), default=before)
        after = self._subnet({**self.widths, name: size}, self.skipped)
        lost = self.importance.of(name, (before, size))
        return None if size == before else self._priced(Step(lost, name, False, size), after, before - size)

    def _priced(self, step: Step, after: Subnet, entries: int) -> Step | None:
        """Divide the price of `step`, which is the lost importance, by the savings; None if the step saves nothing."""
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
    """Yield sub-networks that keep the same fraction of every width and of the blocks, for falling fractions from 1 on.

    A width gets its smallest size that is at least this fraction of the full size. The number of kept blocks is rounded
    up, and the least important blocks are skipped.
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


def undo_steps(path: Sequence[Subnet], holds: Callable[[Subnet], bool], tries: int = 100) -> Subnet:
    """Return the last sub-network of a path after undoing steps, the latest first, as far as the bound allows.

    A large last step may end far below the bound, and the remaining room may be enough to undo smaller earlier steps.
    This is the usual end of a greedy knapsack rule. If one step of a width or block cannot be undone, its earlier steps
    stay too.

    Args:
        path: The path; each sub-network is smaller than the one before, and the last one is within the bound.
        holds: Whether a sub-network is within the bound.
        tries: Largest number of calls of `holds`.
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
    """Return the position of the first sub-network of a path that is within a bound, found by bisection.

    Returns None if even the last one is not. The sub-network before the result is not within the bound. `holds` is
    called at most once for each sub-network.
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
