"""The choice of a smaller winner in the weights that larger winners trained.

Before the fine-tuning, the accuracy of small sub-networks is near chance, and so is a choice by it. The fine-tuning of
the larger winners trains the weights that smaller ones share with them. In these weights, accuracies tell more, and
pruning the larger winner further down gives new candidates (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

from bnas.passes import Subnet
from bnas.run.quantised import measured_in_int8
from bnas.run.search import FIRST, Latencies, SearchPlan
from bnas.runtime import Evaluator, SuperNetwork, TrainingError
from bnas.runtime.evaluate.evaluation import Batch
from bnas.search import Constraint, Evaluation, Measures, SearchResult
from bnas.search.beginning import NEAR, SHARES, Paths
from bnas.search.source import Source

from .stopwatch import Stopwatch
from .winners import Chosen, Winners, choose, ranked

SEARCHED = 4
"""Largest number of candidates from the search, besides its choice."""


@dataclass(frozen=True)
class Effort:
    """How thoroughly winners are chosen again."""

    samples: int = FIRST
    """Number of training samples for the importance."""
    candidates: int = 1 + SEARCHED + 2 * len(SHARES)
    """Largest number of candidates; by default the search's choice, its next ones, and those of two pruning paths."""


@dataclass(frozen=True)
class Choice:
    """Chooses the winner of a target again: among the search's best, and the larger winner pruned further down."""

    plan: SearchPlan
    latencies: Latencies
    """Predict the latencies of the search."""
    evaluator: Evaluator
    winners: Winners
    """The choice of the search."""
    samples: Callable[[int], Sequence[Batch]]
    """Returns so many training samples."""
    effort: Effort

    def __call__(self, shared: SuperNetwork, name: str, larger: Subnet) -> Chosen | None:
        """Return the winner of the target `name`, by its accuracy in the weights of `shared`.

        The result is None for a winner without a target and for one of several targets: these stay.

        Args:
            shared: The super-network whose weights the larger winners trained; it is not changed.
            name: Name of the target.
            larger: The winner that was trained last.
        """
        same = [one for one in self.winners.found.values() if one.subnet == self.winners.found[name].subnet]
        alone = name in self.winners.targets and len(same) == 1
        return self._chosen(shared, name, larger) if alone else None

    def _chosen(self, shared: SuperNetwork, name: str, larger: Subnet) -> Chosen:
        before, target = self.winners.found[name], self.winners.targets[name]
        plan, watch = replace(self.plan, supernet=shared), self._watches.get(target.bound.name)
        pairs = zip_longest(self._pruned(plan, target.bound, larger), self._searched(target.bound))
        found = dict.fromkeys((before.subnet, *(one for pair in pairs for one in pair if one is not None)))
        result = self._evaluated(plan, list(found)[: self.effort.candidates])
        if not result.feasible:
            return Chosen(before, target.missed)
        return Chosen(*choose(result, target.bound, self._maximal, watch, tuned=True, by=plan.job.chosen_by))

    def _searched(self, bound: Constraint) -> Iterator[Subnet]:
        """Yield the sub-networks that the search would choose next for a bound."""
        result = SearchResult(tuple(self.plan.job.sought), self._log, self._constraints)
        best = ranked(result, bound.resolved(self._maximal), tuned=True, by=self.plan.job.chosen_by)
        yield from (one.subnet for one in best[:SEARCHED])

    def _pruned(self, plan: SearchPlan, bound: Constraint, larger: Subnet) -> Iterator[Subnet]:
        """Yield the larger winner pruned to the bound; nothing for a bound on a value that only an evaluation has."""
        criterion = plan.job.training.get("criterion")
        paths = Paths(plan.supernet, self.samples(self.effort.samples), plan.space, criterion=criterion, start=larger)
        if plan.foreseen(bound, self.latencies):
            near = [one for one in SHARES if one >= NEAR or bound.name in self._watches]  # only latencies are measured
            with suppress(TrainingError):  # the importance is not finite: candidates of the search remain
                yield from paths.within(bound, self.latencies, near)

    def _evaluated(self, plan: SearchPlan, subnets: Sequence[Subnet]) -> SearchResult:
        """Return the values of sub-networks in the weights of the plan's super-network, as a search has them."""
        evaluator = self.evaluator.on(plan.supernet)
        in_int8 = None if plan.in_int8 is None else replace(plan.in_int8, evaluator=evaluator)
        objectives = tuple(measured_in_int8(plan.job.sought, in_int8))
        own = tuple(one for one in objectives if one.measure is not None)
        costs = Source(plan.space, plan.supernet, self.latencies).costs(subnets)
        outcomes = zip(subnets, costs, Measures(evaluator, own)(subnets), strict=True)
        found = (
            Evaluation(place, subnet, {} if one.failure else {**known, **one.values}, one.seconds, one.failure)
            for place, (subnet, known, one) in enumerate(outcomes)
        )
        return SearchResult(objectives, tuple(found), self._constraints)

    @property
    def _constraints(self) -> tuple[Constraint, ...]:
        """The constraints of the search with absolute bounds, as far as the maximal sub-network's value is known."""
        known = self._maximal
        return tuple(one.resolved(known) for one in self.plan.constraints if not one.relative or one.name in known)

    @cached_property
    def _log(self) -> tuple[Evaluation, ...]:
        """The evaluations of the search; the first one is that of the maximal sub-network."""
        return self.plan.output.ledger.evaluations()

    @cached_property
    def _maximal(self) -> Mapping[str, float]:
        """The known values of the maximal sub-network, to which bounds in percent refer."""
        return self.plan.maximal(self._log, self.latencies)

    @cached_property
    def _watches(self) -> dict[str, Stopwatch]:
        return self.plan.stopwatches()
