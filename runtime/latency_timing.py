"""Loaded models are run until they are warm, then timed in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .latency_settings import LatencyError
from .onnx_session import Array

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

    session: Any
    feed: Mapping[str, Array]
    repeats: int = 1
    warm: bool = True
    quickest_ms: float = 0.0
    """The quickest run of the warm-up, on the wall clock."""

    def time(self) -> tuple[float, float]:
        """CPU and wall milliseconds of one run."""
        run, feed, repeats = self.session.run, self.feed, range(self.repeats)
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in repeats:
            run(None, feed)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        return cpu / 1e6 / self.repeats, wall / 1e6 / self.repeats


def warmed(name: str, runner: Runner, warmup: int) -> Runner:
    """The runner once its times have settled.

    Raises:
        LatencyError: ONNX Runtime cannot run it.
    """
    try:
        windows = [[runner.time() for _ in range(warmup)]]
        while not (warm := _settled(windows)) and len(windows) < WINDOWS:
            windows.append([runner.time() for _ in range(warmup)])
    except Exception as error:
        raise LatencyError(f"{name}: ONNX Runtime cannot run it: {type(error).__name__}: {error}") from error
    quickest = min(wall for window in windows for _, wall in window)
    return Runner(runner.session, runner.feed, warm=warm, quickest_ms=quickest)


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
