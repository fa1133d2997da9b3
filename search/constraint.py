"""Hard bounds on the values of a sub-network."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bnas.search.errors import SearchError
from bnas.search.objective import check_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORM = re.compile(r"\s*(?P<name>.*?)\s*(?P<sense><=|>=)\s*(?P<number>[^\s%kMGms]+)\s*(?P<unit>%|k|M|G|ms|)\s*")
UNITS = {"": 1.0, "%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9, "ms": 1.0}


@dataclass(frozen=True)
class Constraint:
    """A bound that a value must keep, such as ``Constraint.parse("parameters <= 60 %")``."""

    name: str
    """Name under which an evaluation gives the value."""
    sense: Literal["<=", ">="]
    """``"<="`` where the bound is an upper one."""
    bound: float
    """In the unit of the value, or where `relative` as a fraction of the maximal sub-network's value."""
    relative: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.sense not in ("<=", ">="):
            raise SearchError(f"constraint on {self.name!r}: {self.sense!r} is neither '<=' nor '>='")
        if not math.isfinite(self.bound):
            raise SearchError(f"constraint on {self.name!r}: the bound {self.bound} is not a finite number")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.name} {self.sense} " + (f"{100 * self.bound:.12g} %" if self.relative else f"{self.bound:.12g}")

    @classmethod
    def of(cls, given: Constraint | str) -> Constraint:
        """`given`, or what `parse` reads in it."""
        return cls.parse(given) if isinstance(given, str) else given

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """The constraint ``NAME <= NUMBER`` or ``NAME >= NUMBER``.

        The number may be followed by k, M or G (1e3, 1e6, 1e9), by ms, which latencies are in, or by %: of the maximal
        sub-network's value.

        Raises:
            SearchError: the text has another form.
        """
        found = FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError("no comparison")
            number = float(found["number"]) * UNITS[found["unit"]]
        except ValueError as error:
            allowed = "'NAME <= NUMBER' or '>=', the number followed by nothing, k, M, G, ms or %"
            raise SearchError(f"constraint {text!r}: needs the form {allowed}") from error
        return cls(found["name"], "<=" if found["sense"] == "<=" else ">=", number, found["unit"] == "%")

    def resolved(self, maximal: Mapping[str, float]) -> Constraint:
        """The same with an absolute bound, given the values of the maximal sub-network."""
        return Constraint(self.name, self.sense, self.bound * maximal[self.name]) if self.relative else self

    def violation(self, values: Mapping[str, float]) -> float:
        """By how much the values miss an absolute bound, as a fraction of it (as they are where it is 0), or 0."""
        excess = values[self.name] - self.bound
        return max(0.0, excess if self.sense == "<=" else -excess) / (abs(self.bound) or 1.0)


def violation(constraints: Sequence[Constraint], values: Mapping[str, float]) -> float:
    """By how much the values miss absolute bounds together; 0 where all are kept."""
    return sum(one.violation(values) for one in constraints)
