"""Latencies that were really measured, against the original's in the same rounds, before winners are chosen by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnas.passes import Subnet
from bnas.runtime import LatencySettings, SuperNetwork
from bnas.runtime.latency.measurement import ratios
from bnas.search import Constraint

MARGIN = 0.99
"""A bound is kept by this share of it, so that it also holds when the winner is measured again."""


@dataclass
class Stopwatch:
    """Measures sub-networks of a super-network where its settings say, each once."""

    supernet: SuperNetwork
    settings: LatencySettings
    ratios: dict[Subnet, float] = field(default_factory=dict)
    """Latency of each sub-network that was measured, divided by the maximal one's."""
    level_ms: float = 0.0
    """Milliseconds of the maximal one, when something was measured first."""

    def measure(self, subnets: Sequence[Subnet]) -> None:
        """Measure these together, as far as they are not known."""
        new = [one for one in dict.fromkeys(subnets) if one not in self.ratios]
        if not new:
            return
        found = ratios(self.supernet, new, self.settings)
        self.level_ms = self.level_ms or found.level_ms
        self.ratios |= found.found

    def within(self, bound: Constraint, subnet: Subnet) -> bool:
        """Whether a measured sub-network keeps an upper bound of latency, by `MARGIN`."""
        return self._found(bound, subnet) <= MARGIN * bound.bound

    def uses(self, bound: Constraint, subnet: Subnet, share: float) -> bool:
        """Whether a measured sub-network uses at least this share of an upper bound of latency."""
        return self._found(bound, subnet) >= share * bound.bound

    def _found(self, bound: Constraint, subnet: Subnet) -> float:
        """The latency in the unit of the bound."""
        return self.ratios[subnet] * (1.0 if bound.relative else self.level_ms)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        found = [{"subnet": subnet.to_json(), "ratio": ratio} for subnet, ratio in self.ratios.items()]
        return {"original_ms": self.level_ms, "latencies": found}

    def recall(self, data: Mapping[str, Any]) -> None:
        """Know what `to_json` told.

        Raises:
            KeyError, TypeError, ValueError: It is damaged.
        """
        self.level_ms = float(data["original_ms"])
        self.ratios |= {Subnet.from_json(one["subnet"]): float(one["ratio"]) for one in data["latencies"]}
