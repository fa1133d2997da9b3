"""Objectives and constraints of a search, and the Pareto front of its evaluations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import field_validator

from bnas.passes.settings import NotInFile, settings
from bnas.runtime.latency.settings import TargetChoice

from .errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# Objectives: a named value, and whether it is minimised or maximised.

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from bnas.passes import Subnet

    from .evaluation import Evaluation
else:
    Subnet = Any  # pydantic reads the annotations, and need not load it

RESERVED = ("index", "seconds", "failure", "subnet")
"""Columns of every evaluations file that are not values; an objective cannot have these names."""


@settings(SearchError)
class Objective:
    """A value of an evaluation that the search minimises or maximises.

    Raises:
        SearchError: names every setting that is wrong.
    """

    name: str
    """Name under which an evaluation gives the value: accuracy, macs, parameters, activations, peak_memory, latency or
    another one."""
    direction: Literal["min", "max"]
    """Whether small ("min") or large ("max") values are better."""
    measure: NotInFile[Callable[[Subnet], float] | None] = field(default=None, compare=False, repr=False)
    """Function that computes the value, if the evaluation does not return it."""
    target: TargetChoice = None
    """In a `bnas.Job`: the value is the latency on this target; all other settings are those of ``latency``. Objectives
    with different names may have different targets."""

    @field_validator("name")
    @classmethod
    def _of_a_column(cls, name: str) -> str:
        try:
            check_name(name)
        except SearchError as error:
            raise ValueError(str(error)) from None
        return name

    @field_validator("measure")
    @classmethod
    def _of_a_subnet(cls, measure: Any) -> Any:
        if measure is not None and not callable(measure):
            raise ValueError("must be a function of a sub-network that returns a number")
        return measure

    @property
    def sign(self) -> float:
        """Return the factor that turns a value into a cost (lower is better)."""
        return 1.0 if self.direction == "min" else -1.0

    @property
    def weight(self) -> float:
        """Return the factor that turns a value into a fitness for DEAP (higher is better)."""
        return -self.sign


def check_name(name: str) -> None:
    """Raise SearchError unless a value of this name can be a column of a file of evaluations."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise SearchError(f"value name {name!r}: must be a non-empty string of printable characters")
    if name in RESERVED:
        raise SearchError(
            f"value name {name!r} is reserved: evaluations already have the columns {', '.join(RESERVED)}"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a text for error messages: the known names, and the one that was probably meant."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"known are {', '.join(map(repr, names)) or 'none'}{hint}"


# Hard bounds on the values of a sub-network.

FORM = re.compile(r"\s*(?P<name>.*?)\s*(?P<sense><=|>=)\s*(?P<number>[^\s%kMGms]+)\s*(?P<unit>%|k|M|G|ms|)\s*")
UNITS = {"": 1.0, "%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9, "ms": 1.0}


@dataclass(frozen=True)
class Constraint:
    """A bound on a value of an evaluation, such as ``Constraint.parse("parameters <= 60 %")``."""

    name: str
    """Name under which an evaluation gives the value."""
    sense: Literal["<=", ">="]
    """``"<="`` for an upper bound, ``">="`` for a lower one."""
    bound: float
    """The bound in the unit of the value; if `relative`, a fraction of the maximal sub-network's value."""
    relative: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.sense not in ("<=", ">="):
            raise SearchError(f"constraint on {self.name!r}: {self.sense!r} is neither '<=' nor '>='")
        if not math.isfinite(self.bound):
            raise SearchError(f"constraint on {self.name!r}: the bound {self.bound} is not a finite number")

    def __str__(self) -> str:
        """Return the constraint in the form that `parse` reads."""
        return f"{self.name} {self.sense} " + (f"{100 * self.bound:.12g} %" if self.relative else f"{self.bound:.12g}")

    @classmethod
    def of(cls, given: Constraint | str) -> Constraint:
        """Return `given` if it is a constraint, else parse it."""
        return cls.parse(given) if isinstance(given, str) else given

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Return the constraint that a text such as ``NAME <= NUMBER`` or ``NAME >= NUMBER`` describes.

        The number may be followed by k, M or G (1e3, 1e6, 1e9), by ms (for latencies), or by % (of the maximal
        sub-network's value).

        Raises:
            SearchError: the text has another form.
        """
        found = FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError("no comparison")
            number = float(found["number"]) * UNITS[found["unit"]]
        except ValueError as error:
            allowed = "'NAME <= NUMBER' or 'NAME >= NUMBER'; the number may be followed by k, M, G, ms or %"
            raise SearchError(f"constraint {text!r}: must have the form {allowed}") from error
        return cls(found["name"], "<=" if found["sense"] == "<=" else ">=", number, found["unit"] == "%")

    def resolved(self, maximal: Mapping[str, float]) -> Constraint:
        """Return the constraint with an absolute bound, computed from the values of the maximal sub-network.

        Raises:
            SearchError: The maximal sub-network has no such value.
        """
        if self.relative and self.name not in maximal:
            raise SearchError(
                f"{self}: the maximal sub-network has no value {self.name!r}; {nearest(self.name, maximal)}"
            )
        return Constraint(self.name, self.sense, self.bound * maximal[self.name]) if self.relative else self

    def violation(self, values: Mapping[str, float]) -> float:
        """Return how far values are outside an absolute bound, as a fraction of it (absolute if it is 0), or 0."""
        excess = values[self.name] - self.bound
        return max(0.0, excess if self.sense == "<=" else -excess) / (abs(self.bound) or 1.0)


def violation(constraints: Sequence[Constraint], values: Mapping[str, float]) -> float:
    """Return the sum of the violations of absolute bounds; 0 if all are met."""
    return sum(one.violation(values) for one in constraints)


# The Pareto front.


def pareto_front(evaluations: Sequence[Evaluation], objectives: Sequence[Objective]) -> tuple[Evaluation, ...]:
    """Return the evaluations that no other one dominates, best first in the first objective that is minimised.

    An evaluation dominates another one if it is worse in no objective and better in at least one. Equal evaluations
    are all on the front. Without a minimised objective, the front is sorted by the first objective.
    """
    if not evaluations:
        return ()
    costs = np.array([[o.sign * e.values[o.name] for o in objectives] for e in evaluations], dtype=np.float64)
    kept = _undominated(costs)
    leading = next((place for place, o in enumerate(objectives) if o.direction == "min"), 0)
    # The other costs and the index make the order the same whatever the order of the evaluations.
    kept.sort(key=lambda row: (costs[row][leading], *costs[row], evaluations[row].index))
    return tuple(evaluations[row] for row in kept)


def _undominated(costs: NDArray[np.float64]) -> list[int]:
    """Return the indices of the rows that no other row dominates."""
    kept: list[int] = []
    front = np.empty_like(costs)
    # In lexicographic order, a row that dominates another one comes first; if any does, one of the kept rows does too.
    for row in np.lexsort(costs.T[::-1]):
        known = front[: len(kept)]
        nowhere_worse = (known <= costs[row]).all(axis=1)
        if not (known[nowhere_worse] < costs[row]).any():
            front[len(kept)] = costs[row]
            kept.append(int(row))
    return kept
