"""Process CPU time of one thread: single runs, and ratios of two that take turns."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

BUDGET, ROUNDS = 8.0, (9, 41)
"""A comparison goes on for so many CPU seconds, but no fewer and no more rounds than these."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.values)

    def shown(self, digits: int, factor: float = 1.0) -> str:
        """The median with the quartiles; a single measurement by itself."""
        if len(self.values) == 1:
            return f"{factor * self.values[0]:.{digits}f}"
        low, middle, high = (f"{factor * v:.{digits}f}" for v in quantiles(self.values, n=4, method="inclusive"))
        return f"{middle} ({low} to {high})"


def seconds(run: Callable[[Any], object], arguments: Iterable[Any]) -> list[float]:
    """CPU seconds of `run` for each argument; what it made is gone, and collected, before the next."""
    found = []
    for argument in arguments:
        gc.collect()
        start = time.process_time()
        kept = run(argument)
        found.append(time.process_time() - start)
        del kept
    return found


def ratio(run: Callable[[], object], reference: Callable[[], object], budget: float = BUDGET) -> Spread:
    """CPU time of `run` over that of `reference`, one ratio a round; each goes first in every second round."""
    run(), reference()
    ratios: list[float] = []
    start = time.process_time()
    while len(ratios) < ROUNDS[0] or (len(ratios) < ROUNDS[1] and time.process_time() - start < budget):
        pair = (run, reference) if len(ratios) % 2 else (reference, run)
        took = dict(zip(pair, seconds(lambda one: one(), pair), strict=True))
        ratios.append(took[run] / took[reference])
    return Spread(ratios)
