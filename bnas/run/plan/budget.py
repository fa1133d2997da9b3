"""Division of a time budget between training, search and fine-tuning. Pure arithmetic; nothing is measured here."""

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
"""Shares of the time that remains after fixed costs: training the super-network, search, fine-tuning the winners.

From measurements in docs/results.md: with a quarter for the super-network, the winners lose more than the search gains.
"""
INFORMED: float = 1 / 24
"""Largest share of the whole time for measuring importance on data, which determines the first sub-networks."""
CHOSEN: tuple[float, float] = (1 / 24, 1 / 12)
"""Largest shares of the whole time for choosing one smaller winner again, and for choosing all of them.

Half of it is for importance, half for evaluations.
"""
MEASURED: float = 1 / 10
"""Largest share of the whole time for measuring latencies, for latency models and for the choice of winners."""
QUICKER: Sequence[Mapping[str, int]] = (
    {},
    {"turns": 1},
    {"turns": 1, "runs": 20},
    {"turns": 1, "runs": 10, "warmup": 5, "subnets": 10},
)
"""Ever quicker ways to measure latencies: upper limits for fields of `LatencySettings`."""
USEFUL_STEPS = 100
"""With time for fewer steps, the super-network is not trained at all.

A few steps disturb the weights without training sub-networks: on MobileNetV2, 14 steps took 1.5 points from a winner
(docs/results.md).
"""
UNITS: Mapping[str, str] = {"train": "step", "search": "evaluation", "tune": "step"}
"""The unit that each phase counts, for messages."""
TITLES: Mapping[str, str] = {"train": "super-network", "search": "search", "tune": "winners"}
"""Name of each phase in the table of a plan."""


def told(phase: str, number: int) -> str:
    """Return a number of steps or evaluations in words."""
    return counted(number, UNITS[phase]) + (" of the largest winner" if phase == "tune" else "")


class BudgetError(BnasError, ValueError):
    """A budget is not a time, or is too small; the message has the smallest possible budget."""


# Durations as text.

_PARTS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_FORM = re.compile(r"\s*" + "".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?)\s*{unit}\s*)?" for unit in _PARTS))


def seconds_of(given: str | float) -> float:
    """Return the seconds of a duration such as "30m", "1h30m" or "90s", or of a number of seconds.

    Raises:
        BudgetError: The text is not a duration, or the duration is not positive.
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
    """Return seconds as a text that `seconds_of` reads: "90s", "12m", "1h05m"."""
    if seconds < 120:
        return f"{seconds:.3g}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    return f"{minutes}m" if minutes < 120 else f"{minutes // 60}h{minutes % 60:02d}m"


def bytes_told(count: float) -> str:
    """Return bytes as a text: "830 kB", "35 MB", "1.2 GB"."""
    scale, unit = next((one for one in ((1e9, "GB"), (1e6, "MB")) if count >= one[0]), (1e3, "kB"))
    number = count / scale
    return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"


# The division.


@dataclass(frozen=True)
class Phase:
    """A phase of a run that gets a part of the budget."""

    name: str
    """Name of the phase, a key of `SHARES`."""
    unit: float
    """Seconds per step or evaluation."""
    least: int = 1
    """Least number of steps or evaluations."""
    most: int | None = None
    """Largest useful number; the time for more goes to the last phase."""
    samples: int | None = None
    """Number of validation samples of an evaluation, if there is no time for all of them."""
    useful: int = 0
    """Number below which more than the least does harm. If its share allows fewer, the phase gets its least."""


@dataclass(frozen=True)
class Planned:
    """Plan of one phase."""

    name: str
    count: int
    """Number of steps or evaluations."""
    seconds: float
    """Predicted duration."""
    samples: int | None = None
    """See `Phase.samples`."""

    def __str__(self) -> str:
        """Return the work of the phase in words."""
        part = "" if self.samples is None else f", each on {counted(self.samples, 'validation sample')}"
        return told(self.name, self.count) + part


def _filled(phase: Phase, extra: float) -> Planned:
    """Plan a phase: its least number, plus as many as fit into the time `extra`."""
    count = phase.least + int(extra / phase.unit)
    count = count if phase.most is None else max(phase.least, min(count, phase.most))
    return Planned(phase.name, count, count * phase.unit, phase.samples)


def least_seconds(phases: Sequence[Phase]) -> float:
    """Return the least seconds of all phases together."""
    return sum(one.least * one.unit for one in phases)


def divide(seconds: float, phases: Sequence[Phase], fixed: float = 0.0) -> tuple[Planned, ...]:
    """Divide a time between phases: each gets its least, and its share of what is left.

    With more time no phase gets less, with one exception: the last phase gets less when an earlier phase reaches its
    `useful` number.

    Args:
        seconds: The whole time.
        phases: The phases in order; the last one gets the time that others cannot use.
        fixed: Seconds that are needed besides the phases, such as for the export.

    Raises:
        BudgetError: The time is too small; the message has the smallest possible budget.
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
"""Limits for the training of a winner, as multiples of its planned length."""


def pace_of(planned: Sequence[float], paces: Sequence[float], taken: float, whole: float) -> float:
    """Return by which factor the next winner is trained longer than planned, so that all winners end in time.

    The first winner is trained as planned, and its duration shows how long a step really takes. Without this
    correction, the last (smallest) winners alone would bear every delay, and time left over would stay unused.

    Args:
        planned: The planned seconds of each winner, in order.
        paces: The factors of the winners that are trained already.
        taken: The seconds that these winners took.
        whole: The seconds available for all winners.
    """
    done = sum(one * pace for one, pace in zip(planned, paces, strict=False))
    if not done or taken <= 0:
        return 1.0
    left = (whole - taken) * done / taken  # in planned seconds
    return min(max(left / sum(planned[len(paces) :]), PACES[0]), PACES[1])


def latest(plan: Mapping[str, Any]) -> float:
    """Return the latest time recorded in the saved plan of a phase, in seconds since the start of the run."""
    if plan["ended"] is not None:
        return float(plan["ended"])
    return max(float(one["spent"]) for one in (plan, *plan.get("paces", ())))


def _usable(phase: Phase, extra: float) -> float:
    """Return the part of the time `extra` that a phase can use."""
    if phase.least + extra / phase.unit < phase.useful:
        return 0.0
    return extra if phase.most is None else min(extra, max(0, phase.most - phase.least) * phase.unit)


# A plan as a value, to be shown and saved.


@dataclass(frozen=True)
class Plan:
    """The plan of a run: its remaining phases, and how long each will take."""

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
