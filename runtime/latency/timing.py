"""Time models on a target: load, warm up, then time alternately with other models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bnas.runtime.onnx.session import Array
from bnas.runtime.targets.target import Network, Target, TargetError

from .candidates import Inputs, feed_of
from .machine import machine
from .settings import CPU, LatencyError, LatencySettings

# A latency as a value, and the criterion for a stable one.

TRUSTED_SPREAD = 0.1
"""Largest spread of a stable result."""


@dataclass(frozen=True)
class Latency:
    """Measured latency of a model: milliseconds of one run, over all timed runs."""

    median_ms: float
    """Median of the time by `clock`: the number to compare. For a target on the CPU and in this process it is CPU time,
    which other processes disturb little; otherwise it is wall-clock time."""
    quartiles_ms: tuple[float, float]
    """First and third quartile of the times by `clock`."""
    spread: float
    """The distance between the quartiles, divided by the median."""
    wall_median_ms: float
    """Median wall-clock time: the time that a user waits."""
    wall_quartiles_ms: tuple[float, float]
    """First and third quartile of the wall-clock times."""
    runs: int
    """Number of timings."""
    repeats: int
    """Number of consecutive runs in each timing; more than 1 if all models are very fast. Times are for one run."""
    threads: int
    batch: int
    ratio: float | None
    """Median, over the rounds, of this time divided by the time of the reference in the same round."""
    unstable: str | None = None
    """Why the result is not stable (too few runs, too large a spread, times did not settle); ``None`` if stable."""
    provider: str = CPU
    """Execution provider of ONNX Runtime, or the name of another target."""
    clock: Literal["cpu", "wall"] = "cpu"
    """The clock of the target: "cpu" or "wall"."""
    machine: Mapping[str, Any] = field(default_factory=machine, repr=False)
    """Description of the machine, see `bnas.runtime.machine`."""

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


# Warm-up of loaded models, and alternating timings.

QUICK_MS = 0.2
"""If all models take fewer milliseconds than this, one timing covers several runs."""

TIMING_MS = 1.0
"""Milliseconds of a timing with several runs: a thousand times the cost of reading the clock."""

SETTLED = 0.05
"""A model is warm once the median of its latest runs is within this share of the median of the runs before."""

WINDOWS = 10
"""The warm-up ends after this multiple of its least number of runs, settled or not."""


@dataclass(frozen=True)
class Runner:
    """A loaded model with its inputs."""

    target: Target
    loaded: Any
    feed: Mapping[str, Array]
    repeats: int = 1
    warm: bool = True
    quickest_ms: float = 0.0
    """Wall-clock milliseconds of the fastest warm-up run."""

    def time(self) -> tuple[float, float]:
        """Return CPU and wall-clock milliseconds of one run."""
        return self.target.time(self.loaded, self.feed, self.repeats)


def loaded(network: Network, target: Target, inputs: Inputs, settings: LatencySettings, folder: Path) -> Runner:
    """Build and load a network on a target, with its inputs.

    Raises:
        LatencyError: the target cannot build or load it, or the inputs are not those of the model.
    """
    feed = feed_of(network.name, network.graph, inputs, settings)
    try:
        return Runner(target, target.load(target.build(network, folder), feed, settings.threads), feed)
    except TargetError as error:
        raise LatencyError(f"{network.name}: {error}") from error


def warmed(name: str, runner: Runner, warmup: int) -> Runner:
    """Run a loaded model until its times have settled; return the runner.

    Raises:
        LatencyError: the target cannot run it.
    """
    try:
        windows = [[runner.time() for _ in range(warmup)]]
        while not (warm := _settled(windows)) and len(windows) < WINDOWS:
            windows.append([runner.time() for _ in range(warmup)])
    except TargetError as error:
        raise LatencyError(f"{name}: {error}") from error
    quickest = min(wall for window in windows for _, wall in window)
    return replace(runner, warm=warm, quickest_ms=quickest)


def _settled(windows: Sequence[Sequence[tuple[float, float]]]) -> bool:
    """Whether the CPU time of the latest runs is about the same as that of the runs before."""
    if len(windows) < 2:
        return False
    before, now = (float(np.median([cpu for cpu, _ in window])) for window in windows[-2:])
    return abs(now - before) <= SETTLED * before


def repeats_for(milliseconds: float) -> int:
    """Return the number of runs per timing, if the slowest model takes `milliseconds`."""
    if milliseconds >= QUICK_MS:
        return 1
    return math.ceil(TIMING_MS / max(milliseconds, 1e-4))


def rounds(runners: Mapping[str, Runner], runs: int, generator: np.random.Generator) -> dict[str, Array]:
    """Time all runners in rounds; return, for each name, an array of rounds x (CPU, wall) milliseconds."""
    names = list(runners)
    times = {name: np.empty((runs, 2)) for name in names}
    for turn in range(runs):
        for place in generator.permutation(len(names)):
            times[names[place]][turn] = runners[names[place]].time()
    return times
