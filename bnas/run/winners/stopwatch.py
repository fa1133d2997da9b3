"""Measurements of latency for the choice of winners, relative to the original in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnas.passes import Subnet
from bnas.runtime import LatencySettings, SuperNetwork
from bnas.runtime.latency.measurement import ratios
from bnas.search import Constraint

MARGIN = 0.99
"""Share of a bound that a winner may use, so that a second measurement is also within the bound."""


@dataclass
class Stopwatch:
    """Measures the latency of sub-networks with the given settings, each once."""

    supernet: SuperNetwork
    settings: LatencySettings
    ratios: dict[Subnet, float] = field(default_factory=dict)
    """Latency of each measured sub-network, divided by that of the maximal one."""
    level_ms: float = 0.0
    """Milliseconds of the maximal sub-network in the first measurement."""

    def measure(self, subnets: Sequence[Subnet]) -> None:
        """Measure those sub-networks that have not been measured yet, together."""
        new = [one for one in dict.fromkeys(subnets) if one not in self.ratios]
        if not new:
            return
        found = ratios(self.supernet, new, self.settings)
        self.level_ms = self.level_ms or found.level_ms
        self.ratios |= found.found

    def within(self, bound: Constraint, subnet: Subnet) -> bool:
        """Whether a measured sub-network is within an upper bound of latency, by `MARGIN`."""
        return self._found(bound, subnet) <= MARGIN * bound.bound

    def uses(self, bound: Constraint, subnet: Subnet, share: float) -> bool:
        """Whether a measured sub-network uses at least this share of an upper bound of latency."""
        return self._found(bound, subnet) >= share * bound.bound

    def _found(self, bound: Constraint, subnet: Subnet) -> float:
        """Return the latency in the unit of the bound."""
        return self.ratios[subnet] * (1.0 if bound.relative else self.level_ms)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        found = [{"subnet": subnet.to_json(), "ratio": ratio} for subnet, ratio in self.ratios.items()]
        return {"original_ms": self.level_ms, "latencies": found}

    def recall(self, data: Mapping[str, Any]) -> None:
        """Restore the measurements that `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: The data are damaged.
        """
        self.level_ms = float(data["original_ms"])
        self.ratios |= {Subnet.from_json(one["subnet"]): float(one["ratio"]) for one in data["latencies"]}
