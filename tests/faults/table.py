"""Tables on the screen, and the problems that a harness found, each kind once."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN = 4
"""Causes of a problem that are named."""


@dataclass(frozen=True)
class Problem:
    """Something that went wrong: where, by what, and how."""

    place: str
    """Such as ``search: rename evaluations.csv``."""
    cause: str
    """Such as ``EIO once``."""
    what: str


@dataclass(frozen=True)
class Found:
    """What a harness found."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    problems: Sequence[Problem]

    def show(self) -> int:
        """Print the table and the problems; returns the exit code."""
        show(self.head, self.rows)
        return show_problems(self.problems)


def show(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_problems(problems: Sequence[Problem]) -> int:
    """Print each kind of problem with the places and causes that it has; returns the exit code."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in problems:
        step, _, place = one.place.partition(": ")
        kinds[step, one.what].append(f"{place} ({one.cause})" if place else one.cause)
    for (step, what), causes in sorted(kinds.items()):
        say(f"FAILS  {step}: {what}\n       {len(causes)} times: {'; '.join(dict.fromkeys(causes[:SHOWN]))}")
    say(f"{len(problems)} problems of {len(kinds)} kinds" if problems else "no problems")
    return 1 if problems else 0


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
