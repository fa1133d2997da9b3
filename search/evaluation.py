"""What was found out about one sub-network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bnas.search.errors import MetricError
from bnas.search.objective import Objective, check_name, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bnas.passes import Subnet


@dataclass(frozen=True)
class Evaluation:
    """The values of one sub-network: finite numbers by name."""

    index: int
    """Place among the evaluations of its log or search, from 0."""
    subnet: Subnet
    values: Mapping[str, float] = field(hash=False)
    seconds: float = field(compare=False)
    """How long it took. Not compared: a search that is run again finds the same in another time."""


def shown(subnet: Subnet) -> str:
    """Return a sub-network as messages name it: as JSON that can be read back."""
    return json.dumps(subnet.to_json(), sort_keys=True)


def checked_values(subnet: Subnet, values: object, objectives: Iterable[Objective] = ()) -> dict[str, float]:
    """Return the values as floats, or raise MetricError naming the sub-network and the value that is at fault."""
    if not isinstance(values, Mapping):
        raise MetricError(
            f"{shown(subnet)}: evaluation gave {type(values).__name__}, not a mapping of names to numbers"
        )
    numbers = {name: _finite(subnet, name, value) for name, value in values.items()}
    for objective in objectives:
        if objective.name not in numbers:
            known = nearest(objective.name, numbers)
            raise MetricError(f"{shown(subnet)}: evaluation gave no value for objective {objective.name!r}; {known}")
    return numbers


def _finite(subnet: Subnet, name: str, value: object) -> float:
    check_name(name)
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy's and torch's scalars are numbers too
    except (TypeError, ValueError, OverflowError) as error:
        raise MetricError(f"{shown(subnet)}: {name!r} is {value!r}, not a number") from error
    if not math.isfinite(number):
        raise MetricError(f"{shown(subnet)}: {name!r} is {number}, which cannot be compared; a value must be finite")
    return number
