"""What a search found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.passes import Subnet
from bnas.search.errors import RecordError, SearchError
from bnas.search.evaluation import Evaluation, checked_values
from bnas.search.nsga2 import Fitness, Individual
from bnas.search.objective import Objective, nearest
from bnas.search.pareto import pareto_front
from bnas.search.text_file import write_text

if TYPE_CHECKING:
    import os

FORMAT = "bnas-search-result"
VERSION = 1


@dataclass(frozen=True)
class SearchResult:
    """Every evaluation of a search, in order, and the objectives. Two are equal if they found the same."""

    objectives: tuple[Objective, ...]
    evaluations: tuple[Evaluation, ...]

    def pareto(self) -> tuple[Evaluation, ...]:
        """Return the evaluations that no other one dominates, best first in the first objective that is minimised."""
        return pareto_front(self.evaluations, self.objectives)

    def best(
        self, reference: float, delta: float, metric: str = "accuracy", minimize: str = "macs"
    ) -> Evaluation | None:
        """Return the evaluation with the least ``minimize`` among those whose metric is good enough, or None.

        Good enough is: worse than the reference by no more than ``delta`` (up to rounding), or better. Ties go to the
        better metric, then to the earlier one.
        """
        sign = self._objective(metric).sign
        slack = delta + 1e-12 * max(abs(reference), abs(delta), 1.0)
        enough = [e for e in self.evaluations if sign * (e.values[metric] - reference) <= slack]
        if enough and minimize not in enough[0].values:
            raise SearchError(f"no value {minimize!r} to minimise; {nearest(minimize, enough[0].values)}")
        return min(enough, key=lambda e: (e.values[minimize], sign * e.values[metric], e.index), default=None)

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """Return the volume that the front dominates, as far as the reference: a value for each objective.

        What is no better than the reference in some objective adds nothing.
        """
        # Not at the top: it imports scipy's spatial part, half a second that only this needs.
        from deap.benchmarks.tools import hypervolume

        if missing := [o.name for o in self.objectives if o.name not in reference]:
            raise SearchError(f"the reference has no value for {missing[0]!r}; {nearest(missing[0], reference)}")
        weights = [o.weight for o in self.objectives]
        corner = [o.sign * reference[o.name] for o in self.objectives]
        points = [[e.values[o.name] for o in self.objectives] for e in self.pareto()]
        front = [Individual((), Fitness(weights, point)) for point in points]
        inside = [i for i in front if all(-w < c for w, c in zip(i.fitness.wvalues, corner, strict=True))]
        return float(hypervolume(inside, corner)) if inside else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the result as what JSON can hold; `from_json` gives an equal one."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "objectives": [{"name": o.name, "direction": o.direction} for o in self.objectives],
            "evaluations": [
                {"index": e.index, "subnet": e.subnet.to_json(), "values": dict(e.values), "seconds": e.seconds}
                for e in self.evaluations
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchResult:
        """Return the result that `to_json` described.

        Raises:
            RecordError: It is of another format or version, or malformed.
        """
        if not isinstance(data, Mapping) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            raise RecordError(f"needs to be an object of format {FORMAT!r}, version {VERSION}")
        try:
            objectives = tuple(Objective(one["name"], one["direction"]) for one in data["objectives"])
            return cls(objectives, tuple(_evaluation(one, objectives) for one in data["evaluations"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"malformed search result: {type(error).__name__}: {error}") from error

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the result in one step; `read_json` gives an equal one."""
        write_text(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read_json(cls, path: str | os.PathLike[str]) -> SearchResult:
        """Read what `write_json` wrote.

        Raises:
            RecordError: The file is malformed; the message names it.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise RecordError(f"{path}: {error}") from error

    def _objective(self, name: str) -> Objective:
        for objective in self.objectives:
            if objective.name == name:
                return objective
        raise SearchError(f"{name!r} is not an objective; {nearest(name, [o.name for o in self.objectives])}")


def _evaluation(data: Mapping[str, Any], objectives: tuple[Objective, ...]) -> Evaluation:
    subnet = Subnet.from_json(data["subnet"])
    values = checked_values(subnet, data["values"], objectives)
    return Evaluation(int(data["index"]), subnet, values, float(data["seconds"]))
