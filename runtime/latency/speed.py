"""How many times as fast one network is as another: the one number that tables, verdicts, bounds and pages tell."""

from __future__ import annotations

from typing import Protocol


class Timed(Protocol):
    """A latency, as measured or as read back from a file."""

    @property
    def median_ms(self) -> float:
        """Median of all rounds."""

    @property
    def ratio(self) -> float | None:
        """Median, over the rounds, of this time divided by that of the reference in the same round."""


def times_as_fast(own: Timed, reference: Timed) -> float:
    """How many times as long the reference takes.

    By the rounds in which both were measured, where it is known: while the machine is slow, both are. The quotient of
    the two medians may differ from it, since each median may be of another round.
    """
    return 1 / own.ratio if own.ratio else reference.median_ms / own.median_ms
