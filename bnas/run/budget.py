"""How a budget of time is divided between super-network, search and winners: numbers only, nothing is measured here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnas.passes.errors import BnasError
from bnas.passes.wording import counted

# The rule of thumb.

SHARES: Mapping[str, float] = {"train": 1 / 16, "search": 1 / 8, "tune": 13 / 16}
"""Of the time that is left beside what a run needs anyhow: super-network, search, fine-tuning of the winners.

Measured in docs/results.md: a quarter for the super-network takes more from the winners than the search gains by it.
"""
INFORMED: float = 1 / 24
"""Of the whole time at most: importance from data, which tells what a search begins with."""
MEASURED: float = 1 / 10
"""The same: latencies of sub-networks, for the model of latency and for the choice of winners."""
QUICKER: Sequence[Mapping[str, int]] = (
    {},
    {"turns": 1},
    {"turns": 1, "runs": 20},
    {"turns": 1, "runs": 10, "warmup": 5, "subnets": 10},
)
"""Ways to measure these, each quicker: `LatencySettings` that are changed where the given ones are larger."""
USEFUL_STEPS = 100
"""A super-network that is trained for fewer steps is left as it was.

They disturb the weights, and train no sub-network: on MobileNetV2, 14 steps took 1.5 points from a winner
(docs/results.md).
"""
UNITS: Mapping[str, str] = {"train": "step", "search": "evaluation", "tune": "step"}
"""What is counted in each phase."""
TITLES: Mapping[str, str] = {"train": "super-network", "search": "search", "tune": "winners"}
"""What each phase is called in the table of a plan."""


def told(phase: str, number: int) -> str:
    """A number of steps or evaluations in words."""
    return counted(number, UNITS[phase]) + (" of the largest winner" if phase == "tune" else "")


class BudgetError(BnasError, ValueError):
    """A budget is not a time, or is too small; the message has the smallest possible budget."""


# Times as people write them.

_PARTS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_FORM = re.compile(r"\s*" + "".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?)\s*{unit}\s*)?" for unit in _PARTS))


def seconds_of(given: str | float) -> float:
    """The seconds of a time such as "30m", "1h30m", "90s", or a number of seconds.

    Raises:
        BudgetError: It is no time, or not positive.
    """
    if isinstance(given, str):
        found = _FORM.fullmatch(given)
        parts = [] if found is None else [float(found[unit] or 0) * each for unit, each in _PARTS.items()]
        seconds = sum(parts)
    else:
        seconds = float(given)
    if not (math.isfinite(seconds) and seconds > 0):
        raise BudgetError(
            f"budget {given!r}: must be a time such as 30m, 1h30m or 90s, or a positive number of seconds"
        )
    return seconds


def time_told(seconds: float) -> str:
    """Seconds in words that `seconds_of` reads: "90s", "12m", "1h05m"."""
    if seconds < 120:
        return f"{seconds:.3g}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 120 else f"{minutes // 60}h{minutes % 60:02d}m"


def bytes_told(count: float) -> str:
    """Bytes in words: "830 kB", "35 MB", "1.2 GB"."""
    scale, unit = next((one for one in ((1e9, "GB"), (1e6, "MB")) if count >= one[0]), (1e3, "kB"))
    number = count / scale
    return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"


# The division.


@dataclass(frozen=True)
class Phase:
    """A phase that time is given to."""

    name: str
    """A key of `SHARES`."""
    unit: float
    """Seconds of one step or evaluation."""
    least: int = 1
    """So many steps or evaluations at least."""
    most: int | None = None
    """More are of no use; their time goes to the last phase."""
    samples: int | None = None
    """Validation samples of an evaluation, where there is no time for all of them."""
    useful: int = 0
    """Fewer do harm, beyond the least: a phase whose share is not enough for so many gets its least."""


@dataclass(frozen=True)
class Planned:
    """Plan of one phase."""

    name: str
    count: int
    """Steps or evaluations."""
    seconds: float
    """Predicted duration."""
    samples: int | None = None
    """As `Phase.samples`."""

    def __str__(self) -> str:
        """What it does, in words."""
        part = "" if self.samples is None else f", each on {counted(self.samples, 'validation sample')}"
        return told(self.name, self.count) + part


def _filled(phase: Phase, extra: float) -> Planned:
    """The least of a phase, and as many more as fit into the time `extra`."""
    count = phase.least + int(extra / phase.unit)
    count = count if phase.most is None else max(phase.least, min(count, phase.most))
    return Planned(phase.name, count, count * phase.unit, phase.samples)


def least_seconds(phases: Sequence[Phase]) -> float:
    """What all phases take at least."""
    return sum(one.least * one.unit for one in phases)


def divide(seconds: float, phases: Sequence[Phase], fixed: float = 0.0) -> tuple[Planned, ...]:
    """Divide a time between phases: each gets its least, and its share of what is left.

    A longer time gives no phase less; the last one has less where an earlier one gets what is `useful` to it.

    Args:
        seconds: The whole time.
        phases: In order; the last one gets what another cannot use.
        fixed: What is needed beside them, such as for the export.

    Raises:
        BudgetError: The time is too small; says the least possible.
    """
    needed = least_seconds(phases) + fixed
    if seconds < needed:
        least = ", ".join(f"{told(one.name, one.least)} ({time_told(one.least * one.unit)})" for one in phases)
        raise BudgetError(
            f"a budget of {time_told(seconds)} is too small: the run needs at least {time_told(math.ceil(needed))}: "
            f"{least}, and {time_told(fixed)} for the steps that every run has"
        )
    left, total = seconds - needed, sum(SHARES[one.name] for one in phases)
    extras = [_usable(one, left * SHARES[one.name] / total) for one in phases[:-1]]
    extras.append(max(0.0, left - sum(extras)))
    return tuple(_filled(one, extra) for one, extra in zip(phases, extras, strict=True))


PACES = (0.5, 4.0)
"""A winner is trained for at least this part of what was planned, and at most so many times as long."""


def pace_of(planned: Sequence[float], paces: Sequence[float], taken: float, whole: float) -> float:
    """How many times as long as planned the next winner is trained, so that all that remain end in time.

    The first one is trained as planned, and what it takes tells how long a step really takes. A step may take longer or
    shorter than measured, and small winners are last: without this they alone would pay for it, and nobody would use
    time that is left over.

    Args:
        planned: Seconds of each winner, in their order.
        paces: Those of the winners that are trained.
        taken: Seconds that these took.
        whole: Seconds that all winners have.
    """
    done = sum(one * pace for one, pace in zip(planned, paces, strict=False))
    if not done or taken <= 0:
        return 1.0
    left = (whole - taken) * done / taken  # in planned seconds
    return min(max(left / sum(planned[len(paces) :]), PACES[0]), PACES[1])


def _usable(phase: Phase, extra: float) -> float:
    """As much of a time as a phase can use."""
    if phase.least + extra / phase.unit < phase.useful:
        return 0.0
    return extra if phase.most is None else min(extra, max(0, phase.most - phase.least) * phase.unit)


# A plan, as it is told and kept.


@dataclass(frozen=True)
class Plan:
    """The plan of a run: what it does from now on, and how long each phase takes."""

    budget: float | None
    """Budget of the whole run in seconds, if there is one."""
    spent: float
    """Seconds already used."""
    phases: tuple[Planned, ...]
    """The remaining phases."""
    fixed: float
    """Seconds for export and measurement, which every run needs."""
    disk: int = 0
    """Bytes that the run needs on disk; 0 if unknown."""
    free: int | None = None
    """Free bytes on that disk."""

    @property
    def seconds(self) -> float:
        """Predicted duration of the whole run."""
        return self.spent + self.fixed + sum(one.seconds for one in self.phases)

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: phase, what it does, predicted time."""
        spent = [("so far", "", time_told(self.spent))] if self.spent >= 1 else []
        planned = [(TITLES[one.name], str(one), time_told(one.seconds)) for one in self.phases]
        whole = ("in all", "" if self.budget is None else f"budget {time_told(self.budget)}", time_told(self.seconds))
        disk = [("disk", self._disk, "")] if self.disk else []
        return [*spent, *planned, ("export and measurement", "", time_told(self.fixed)), whole, *disk]

    @property
    def _disk(self) -> str:
        free = "" if self.free is None else f", {bytes_told(self.free)} free"
        return f"about {bytes_told(self.disk)}{free}{': too little' if free and self.disk > (self.free or 0) else ''}"

    def __str__(self) -> str:
        """The table as text."""
        widths = [max(len(row[place]) for row in self.rows()) for place in range(3)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in self.rows())

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        phases = {one.name: {"count": one.count, "seconds": one.seconds} for one in self.phases}
        return {"budget": self.budget, "spent": self.spent, "phases": phases, "fixed": self.fixed}
