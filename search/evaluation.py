"""What was found out about one sub-network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnas.passes import Subnet
from bnas.passes.wording import amount
from bnas.search.errors import MetricError
from bnas.search.objective import check_name, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Evaluation:
    """The values of one sub-network: finite numbers by name; or why there are none."""

    index: int
    """Place among the evaluations of its log or search, from 0."""
    subnet: Subnet
    values: Mapping[str, float] = field(hash=False)
    """Empty where the evaluation failed."""
    seconds: float = field(compare=False)
    """How long it took. Not compared: a search that is run again finds the same in another time."""
    failure: str | None = None
    """Why there are no values."""

    def __repr__(self) -> str:
        """The values in few digits, or the failure, and the sub-network."""
        values = ", ".join(f"{name} {amount(value)}" for name, value in self.values.items())
        found = values if self.failure is None else f"failed with {self.failure}"
        return f"<Evaluation {self.index}: {found}; {self.subnet!r}>"

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; `from_json` gives an equal one."""
        data = {"index": self.index, "subnet": self.subnet.to_json(), "seconds": self.seconds}
        return {**data, "values": dict(self.values)} if self.failure is None else {**data, "failure": self.failure}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation that `to_json` described.

        Raises:
            MetricError: A value is not a finite number.
            KeyError, TypeError, ValueError: It is malformed.
        """
        subnet, failure = Subnet.from_json(data["subnet"]), data.get("failure")
        values = checked_values(subnet, {} if failure is not None else data["values"])
        return cls(int(data["index"]), subnet, values, float(data["seconds"]), failure and str(failure))


def shown(subnet: Subnet) -> str:
    """Return a sub-network as messages name it: as JSON that can be read back."""
    return json.dumps(subnet.to_json(), sort_keys=True)


def checked_values(subnet: Subnet, values: object) -> dict[str, float]:
    """Return the values as floats, or raise MetricError naming the sub-network and the value that is at fault."""
    if not isinstance(values, Mapping):
        raise MetricError(
            f"{shown(subnet)}: evaluation gave {type(values).__name__}, not a mapping of names to numbers"
        )
    return {name: _finite(subnet, name, value) for name, value in values.items()}


def check_names(subnet: Subnet, values: Mapping[str, float], names: Iterable[str]) -> None:
    """Raise MetricError where a value of these names is missing."""
    for name in names:
        if name not in values:
            raise MetricError(f"{shown(subnet)}: evaluation gave no value for {name!r}; {nearest(name, values)}")


def _finite(subnet: Subnet, name: str, value: object) -> float:
    check_name(name)
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy's and torch's scalars are numbers too
    except (TypeError, ValueError, OverflowError) as error:
        raise MetricError(f"{shown(subnet)}: {name!r} is {value!r}, not a number") from error
    if not math.isfinite(number):
        raise MetricError(f"{shown(subnet)}: {name!r} is {number}, which cannot be compared; a value must be finite")
    return number
