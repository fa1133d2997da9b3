"""What came of trying to evaluate a sub-network: values, or the reason why there are none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnas.search.errors import MetricError
from bnas.search.evaluation import checked_values

if TYPE_CHECKING:
    from bnas.passes import Subnet
    from bnas.runtime.racing import Bar
    from bnas.search.objective import Objective

Evaluate = Callable[["Subnet"], Mapping[str, float]]
"""Gives the values of a sub-network: a number for each objective and constraint at least."""


@dataclass(frozen=True)
class Outcome:
    """The values of one sub-network, finite numbers by name, or why there are none."""

    values: Mapping[str, float]
    failure: str | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, subnet: Subnet, given: object, seconds: float) -> Outcome:
        """The outcome of what an evaluation gave: a mapping of names to numbers, or an error.

        Raises:
            MetricError: it is neither: no evaluation of this kind can succeed.
        """
        if isinstance(given, Mapping):
            try:
                return cls(checked_values(subnet, given), None, seconds)
            except MetricError as error:
                given = error
        if isinstance(given, Exception):
            return cls({}, f"{type(given).__name__}: {given}", seconds)
        return cls(checked_values(subnet, given), None, seconds)


@dataclass(frozen=True)
class Measures:
    """Everything that gives values: the evaluation, and the measures of single objectives."""

    evaluate: Any
    """An object with a method ``evaluate``, and ``evaluate_many`` if it has one, or a function; or None."""
    own: tuple[Objective, ...] = ()
    """Objectives that are measured by themselves."""
    bars: Mapping[Subnet, Bar] | None = None
    """With racing: what sub-networks have to reach to be measured to the end."""

    def __call__(self, subnets: Sequence[Subnet]) -> list[Outcome]:
        """The outcome for each sub-network; an `Exception` in one of them is its failure, and nobody else's."""
        start = time.perf_counter()
        given = self.given(subnets)
        each = (time.perf_counter() - start) / max(len(subnets), 1)
        return [self._with_own(subnet, values, each) for subnet, values in zip(subnets, given, strict=True)]

    @property
    def together(self) -> bool:
        """Whether evaluating several at once is cheaper than one after the other."""
        return hasattr(self.evaluate, "evaluate_many")

    def given(self, subnets: Sequence[Subnet]) -> Sequence[object]:
        """What the evaluation gives for each sub-network: values, or an error."""
        if self.evaluate is None:
            return [{} for _ in subnets]
        if self.together:
            raced = () if self.bars is None else (self.bars,)
            return list(self.evaluate.evaluate_many(subnets, *raced))
        function = getattr(self.evaluate, "evaluate", self.evaluate)
        return [_tried(function, subnet) for subnet in subnets]

    def _with_own(self, subnet: Subnet, given: object, seconds: float) -> Outcome:
        start = time.perf_counter()
        for objective in self.own:
            if isinstance(given, Mapping):
                assert objective.measure is not None
                value = _tried(objective.measure, subnet)
                given = value if isinstance(value, Exception) else {**given, objective.name: value}
        return Outcome.of(subnet, given, seconds + time.perf_counter() - start)


def _tried(function: Callable[[Subnet], Any], subnet: Subnet) -> Any:
    try:
        return function(subnet)
    except Exception as error:
        return error


def in_this_process(measures: Measures, subnets: Sequence[Subnet]) -> Iterator[tuple[int, Outcome]]:
    """Evaluate here: yields each place and its outcome as soon as it is there."""
    if measures.together:
        yield from enumerate(measures(subnets))
        return
    for place, subnet in enumerate(subnets):
        yield place, measures([subnet])[0]
