"""How many times as fast one network is as another. Tables, verdicts, bounds and reports all use this number."""

from __future__ import annotations

from typing import Protocol


class Timed(Protocol):
    """A latency, measured or read from a file."""

    @property
    def median_ms(self) -> float:
        """Median of all rounds."""

    @property
    def ratio(self) -> float | None:
        """Median, over the rounds, of this time divided by that of the reference in the same round."""


def times_as_fast(own: Timed, reference: Timed) -> float:
    """Return how many times as long the reference takes.

    If known, this is the median of the ratios within rounds, because a slow phase of the machine slows both networks.
    It may differ from the quotient of the two medians, which can come from different rounds.
    """
    return 1 / own.ratio if own.ratio else reference.median_ms / own.median_ms
