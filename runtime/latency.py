"""How long a model takes on ONNX Runtime, as a value, and when it counts as stable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .latency_settings import CPU
from .machine import machine

TRUSTED_RUNS = 50
"""Fewer runs than that never count as stable."""

TRUSTED_SPREAD = 0.1
"""A wider spread than that never counts as stable."""


@dataclass(frozen=True)
class Latency:
    """How long one run of a model takes, in milliseconds, over all timed runs."""

    median_ms: float
    """Median CPU time of the process: the number to compare, since others on the machine do not disturb it."""
    quartiles_ms: tuple[float, float]
    """First and third quartile of the CPU time."""
    spread: float
    """The distance between the quartiles, divided by the median."""
    wall_median_ms: float
    """Median time on the wall clock; with several threads or another device, what a user waits."""
    wall_quartiles_ms: tuple[float, float]
    """First and third quartile of the time on the wall clock."""
    runs: int
    """How many timings were taken."""
    repeats: int
    """How many runs of the model each timing covers and is divided by: more than 1 where all models are very quick."""
    threads: int
    batch: int
    ratio: float | None
    """Median, over the rounds, of this CPU time divided by the reference's in the same round."""
    unstable: str | None = None
    """Why the number is not stable: too few runs, too wide a spread, not warm; ``None`` if it is."""
    provider: str = CPU
    """The execution provider of ONNX Runtime."""
    machine: Mapping[str, Any] = field(default_factory=machine, repr=False)
    """What it was measured on, see `bnas.runtime.machine`."""

    @property
    def stable(self) -> bool:
        """Whether there were at least `TRUSTED_RUNS` timings of a warm model with a spread of `TRUSTED_SPREAD`."""
        return self.unstable is None

    def to_json(self) -> dict[str, Any]:
        """All fields, by name, as JSON values, and whether it is stable."""
        pairs = {name: list(getattr(self, name)) for name in ("quartiles_ms", "wall_quartiles_ms")}
        return {**asdict(self), **pairs, "stable": self.stable}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Latency:
        """The latency that `to_json` wrote."""
        pairs = {name: tuple(data[name]) for name in ("quartiles_ms", "wall_quartiles_ms")}
        return cls(**{name: value for name, value in {**data, **pairs}.items() if name != "stable"})
