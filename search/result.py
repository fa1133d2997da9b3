"""The result of a search: all evaluations, the Pareto front and the winners."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnas.passes.wording import amount, counted, indented
from bnas.runtime.storage.files import write_bytes

from .errors import RecordError, SearchError
from .evaluation import Evaluation, check_names, read_csv, shown, write_csv
from .objectives import Constraint, Objective, nearest, pareto_front, violation

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure


WINNERS = ("best", "smallest", "fastest")
"""The names of winners: in Python, in files and on the command line."""
FORMAT = "bnas-search-result"
VERSION = 2


@dataclass(frozen=True)
class SearchResult:
    """All evaluations of a search, in order, with its objectives and constraints."""

    objectives: tuple[Objective, ...]
    evaluations: tuple[Evaluation, ...]
    constraints: tuple[Constraint, ...] = ()
    """The constraints with absolute bounds. Bounds in percent refer to the first evaluation (the maximal sub-network).

    ``dataclasses.replace(result, constraints=...)`` applies other constraints to the same evaluations.
    """

    def __post_init__(self) -> None:
        maximal = self.evaluations[0].values if self.evaluations else {}
        object.__setattr__(self, "constraints", tuple(one.resolved(maximal) for one in self.constraints))

    def __repr__(self) -> str:
        """How many sub-networks were evaluated, and what the front spans in each objective."""
        front = self.pareto()
        failed = f", {len(self.failed)} failed" if self.failed else ""
        head = f"SearchResult: {counted(len(self.evaluations), 'evaluation')}, {len(front)} on the Pareto front{failed}"
        return indented(head, self._described(front))

    def _described(self, front: Sequence[Evaluation]) -> Iterator[str]:
        """A line for each objective and constraint."""
        for one in self.objectives:
            values = [e.values[one.name] for e in front]
            span = f": {amount(min(values))} to {amount(max(values))} on the front" if values else ""
            yield f"{one.name} ({one.direction}){span}"
        done = [e for e in self.evaluations if e.failure is None]
        for bound in self.constraints:
            yield f"{bound}: met by {sum(not bound.violation(e.values) for e in done)} of {len(done)}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the front as a table and as a picture."""
        # The only import against the direction of imports: the drawing code of reports, loaded when a page is drawn.
        from bnas.page.notebook import result_html

        return result_html(self)

    @property
    def feasible(self) -> tuple[Evaluation, ...]:
        """Return the evaluations that did not fail and meet all constraints."""
        return tuple(e for e in self.evaluations if e.failure is None and not violation(self.constraints, e.values))

    @property
    def failed(self) -> tuple[Evaluation, ...]:
        """Return the failed evaluations; `Evaluation.failure` has the reason."""
        return tuple(e for e in self.evaluations if e.failure is not None)

    def closest(self) -> Evaluation | None:
        """Return the evaluation nearest to meeting the constraints (the earlier one of equals), or None."""
        found = [e for e in self.evaluations if e.failure is None]
        return min(found, key=lambda e: violation(self.constraints, e.values), default=None)

    def pareto(self) -> tuple[Evaluation, ...]:
        """Return the Pareto front: the feasible evaluations that no other evaluation dominates.

        The front is sorted by the first minimised objective, best first.
        """
        return pareto_front(self.feasible, self.objectives)

    def cheapest(
        self,
        acc_delta: float,
        minimize: str = "macs",
        *,
        reference: float | None = None,
        metric: str = "accuracy",
    ) -> Evaluation | None:
        """Return the feasible evaluation with the smallest ``minimize`` whose metric is good enough, or None.

        Good enough means: at most ``acc_delta`` worse than the reference, in the unit of the metric (up to rounding).
        Of equals, the one with the better metric is returned, then the earlier one.

        Args:
            acc_delta: How much worse the metric may be.
            minimize: Name of the value to minimise.
            reference: A value of the metric; by default that of the first evaluation, which is the maximal sub-network.
            metric: Name of an objective.

        Raises:
            SearchError: There is no such objective or value, or the first evaluation failed.
        """
        sign, good = self._objective(metric).sign, self._reference(metric) if reference is None else reference
        slack = acc_delta + 1e-12 * max(abs(good), abs(acc_delta), 1.0)
        enough = [e for e in self.feasible if sign * (e.values[metric] - good) <= slack]
        if enough and minimize not in enough[0].values:
            raise SearchError(f"there is no value {minimize!r} to minimise; {nearest(minimize, enough[0].values)}")
        return min(enough, key=lambda e: (e.values[minimize], sign * e.values[metric], e.index), default=None)

    def winners(
        self, acc_delta: float, speed: str | None = None, *, reference: float | None = None, metric: str = "accuracy"
    ) -> dict[str, Evaluation]:
        """Return the winners among the feasible evaluations, by name (see `WINNERS`).

        "best" has the best metric among sub-networks with fewer MACs than the maximal one, or among all if there are
        none. "smallest" has the fewest MACs within ``acc_delta`` of the reference, and "fastest" the smallest
        ``speed``, by default "latency" if it is a value; see `cheapest`. A name is missing if none is good enough.
        """
        if speed is None and self.feasible and "latency" in self.feasible[0].values:
            speed = "latency"
        cheapest = partial(self.cheapest, reference=reference, metric=metric)
        best, smallest, fastest = WINNERS
        found = {
            best: self._best(metric),
            smallest: cheapest(acc_delta),
            fastest: None if speed is None else cheapest(acc_delta, speed),
        }
        return {name: evaluation for name, evaluation in found.items() if evaluation is not None}

    def _best(self, metric: str) -> Evaluation | None:
        sign = self._objective(metric).sign
        full = self.evaluations[0].values.get("macs", 0.0) if self.evaluations else 0.0
        fewer = [one for one in self.feasible if one.values.get("macs", 0.0) < full]
        return min(
            fewer or self.feasible,
            key=lambda one: (sign * one.values[metric], one.values.get("macs", 0.0), one.index),
            default=None,
        )

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """Return the hypervolume: the volume between the front and a reference point (a value for each objective).

        Evaluations that are not better than the reference in every objective add nothing.
        """
        # Not from deap.benchmarks.tools, which calls the same: it imports scipy's spatial part, half a second.
        import moocore

        if missing := [o.name for o in self.objectives if o.name not in reference]:
            raise SearchError(f"the reference has no value for {missing[0]!r}; {nearest(missing[0], reference)}")
        corner = [o.sign * reference[o.name] for o in self.objectives]
        front = [[o.sign * e.values[o.name] for o in self.objectives] for e in self.pareto()]
        return float(moocore.hypervolume(front, ref=corner)) if front else 0.0

    def infeasible(self) -> str | None:
        """Return the message for a search without feasible evaluations: the closest one, and by how much it misses."""
        closest = self.closest()
        if closest is None or not violation(self.constraints, closest.values):
            return None
        missed = [
            f"{one}, it has {closest.values[one.name]:.6g} (off by {100 * one.violation(closest.values):.3g} %)"
            for one in self.constraints
            if one.violation(closest.values)
        ]
        return (
            f"none of {len(self.evaluations)} evaluated sub-networks meets the constraints; "
            f"the closest misses {'; '.join(missed)}: {shown(closest.subnet)}"
        )

    def plot(self, path: str | os.PathLike[str] | None = None, x: str | None = None, y: str | None = None) -> Figure:
        """Plot all evaluations and the front over two values; see `bnas.search.progress.plot`."""
        from .progress import plot

        return plot(self, path, x, y)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values; `from_json` reads them back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "objectives": [{"name": o.name, "direction": o.direction} for o in self.objectives],
            "constraints": [{"name": c.name, "sense": c.sense, "bound": c.bound} for c in self.constraints],
            "evaluations": [e.to_json() for e in self.evaluations],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchResult:
        """Return the result that `to_json` wrote.

        Raises:
            RecordError: The data have another format or version, or are malformed.
        """
        if not isinstance(data, Mapping) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            raise RecordError(
                f"a search result must be an object of format {FORMAT!r}, version {VERSION}, as to_json returns it"
            )
        try:
            objectives = [Objective(one["name"], one["direction"]) for one in data["objectives"]]
            constraints = [Constraint(one["name"], one["sense"], one["bound"]) for one in data["constraints"]]
            return cls.checked(objectives, [Evaluation.from_json(one) for one in data["evaluations"]], constraints)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(
                f"malformed search result: {type(error).__name__}: {error}; write it again with to_json"
            ) from error

    @classmethod
    def checked(
        cls, objectives: Sequence[Objective], evaluations: Sequence[Evaluation], constraints: Sequence[Constraint] = ()
    ) -> SearchResult:
        """Return a result; raise MetricError if an evaluation has no value for an objective or constraint."""
        names = [*(o.name for o in objectives), *(c.name for c in constraints)]
        for evaluation in evaluations:
            if evaluation.failure is None:
                check_names(evaluation.subnet, evaluation.values, names)
        return cls(tuple(objectives), tuple(evaluations), tuple(constraints))

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a file, atomically; `read_json` reads it back."""
        write_bytes(Path(path), (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode())

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

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the evaluations as a CSV table, atomically; `read_csv` reads every number back exactly."""
        write_csv(path, self.evaluations)

    @classmethod
    def read_csv(
        cls,
        path: str | os.PathLike[str],
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
    ) -> SearchResult:
        """Read a table that `write_csv` wrote. A table has no objectives and constraints, so give them again.

        Raises:
            RecordError: The file is malformed; the message names the file and the line.
            MetricError: There is no column for an objective or constraint.
        """
        return cls.checked(objectives, read_csv(path), constraints)

    def _reference(self, metric: str) -> float:
        """Return the metric of the maximal sub-network; without evaluations the value does not matter."""
        if self.evaluations and self.evaluations[0].failure is not None:
            failure = self.evaluations[0].failure
            raise SearchError(
                f"the maximal sub-network has no value {metric} to compare with ({failure}); give a reference"
            )
        return self.evaluations[0].values[metric] if self.evaluations else 0.0

    def _objective(self, name: str) -> Objective:
        for objective in self.objectives:
            if objective.name == name:
                return objective
        names = [objective.name for objective in self.objectives]
        raise SearchError(f"metric {name!r} is not an objective; {nearest(name, names)}; give one as metric=...")
