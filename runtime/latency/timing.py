"""How long a model takes on a target: loaded, run until it is warm, then timed in turns with others."""

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

# How long a model takes, as a value, and when it counts as stable.

TRUSTED_SPREAD = 0.1
"""A wider spread than that never counts as stable."""


@dataclass(frozen=True)
class Latency:
    """Measured latency of a model: milliseconds of one run, over all timed runs."""

    median_ms: float
    """Median of the time that counts, the number to compare: of a target that runs in this process on the CPU the CPU
    time of the process, since others on the machine do not disturb it, and otherwise the wall clock; see `clock`."""
    quartiles_ms: tuple[float, float]
    """First and third quartile of the same."""
    spread: float
    """The distance between the quartiles, divided by the median."""
    wall_median_ms: float
    """Median time on the wall clock; with several threads or another device, what a user waits."""
    wall_quartiles_ms: tuple[float, float]
    """First and third quartile of the time on the wall clock."""
    runs: int
    """Number of timings."""
    repeats: int
    """Number of runs within each timing (which is divided by it); more than 1 if all models are very fast."""
    threads: int
    batch: int
    ratio: float | None
    """Median, over the rounds, of this time divided by the reference's in the same round."""
    unstable: str | None = None
    """Why the number is not stable (too few runs, too large a spread, times did not settle); ``None`` if it is."""
    provider: str = CPU
    """The execution provider of ONNX Runtime, or the target where that is another one."""
    clock: Literal["cpu", "wall"] = "cpu"
    """The time that counts, of a target."""
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


# Loaded models are run until they are warm, then timed in turns.

QUICK_MS = 0.2
"""Where all models are quicker than that, each is run several times within one timing."""

TIMING_MS = 1.0
"""How long such a timing is to be: a thousand times what reading the clock costs."""

SETTLED = 0.05
"""A model is warm once the median of some runs is within this share of the one of the runs before."""

WINDOWS = 10
"""The warm-up is given up after so many times its least number of runs."""


@dataclass(frozen=True)
class Runner:
    """A loaded model with its inputs."""

    target: Target
    loaded: Any
    feed: Mapping[str, Array]
    repeats: int = 1
    warm: bool = True
    quickest_ms: float = 0.0
    """The quickest run of the warm-up, on the wall clock."""

    def time(self) -> tuple[float, float]:
        """CPU and wall milliseconds of one run."""
        return self.target.time(self.loaded, self.feed, self.repeats)


def loaded(network: Network, target: Target, inputs: Inputs, settings: LatencySettings, folder: Path) -> Runner:
    """A network on a target, with the inputs that it is timed on.

    Raises:
        LatencyError: the target cannot build or load it, or the inputs are not those of the model.
    """
    feed = feed_of(network.name, network.graph, inputs, settings)
    try:
        return Runner(target, target.load(target.build(network, folder), feed, settings.threads), feed)
    except TargetError as error:
        raise LatencyError(f"{network.name}: {error}") from error


def warmed(name: str, runner: Runner, warmup: int) -> Runner:
    """The runner once its times have settled.

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
    """Whether the CPU time of the last runs is about that of the runs before."""
    if len(windows) < 2:
        return False
    before, now = (float(np.median([cpu for cpu, _ in window])) for window in windows[-2:])
    return abs(now - before) <= SETTLED * before


def repeats_for(milliseconds: float) -> int:
    """How often each model is run within one timing, where the slowest takes that long."""
    if milliseconds >= QUICK_MS:
        return 1
    return math.ceil(TIMING_MS / max(milliseconds, 1e-4))


def rounds(runners: Mapping[str, Runner], runs: int, generator: np.random.Generator) -> dict[str, Array]:
    """For each name an array of rounds x (CPU, wall) milliseconds."""
    names = list(runners)
    times = {name: np.empty((runs, 2)) for name in names}
    for turn in range(runs):
        for place in generator.permutation(len(names)):
            times[names[place]][turn] = runners[names[place]].time()
    return times
