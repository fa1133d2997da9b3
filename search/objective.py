"""What a search optimises: a named number and the direction that is better."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from bnas.search.errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bnas.passes import Subnet

RESERVED = ("index", "seconds", "failure", "subnet")
"""Columns that every file of evaluations has beside the values."""


@dataclass(frozen=True)
class Objective:
    """One of the values that an evaluation gives, to be made as small or as large as possible."""

    name: str
    """Name under which an evaluation gives the value."""
    direction: Literal["min", "max"]
    """``"min"`` where less is better, ``"max"`` where more is."""
    measure: Callable[[Subnet], float] | None = field(default=None, compare=False, repr=False)
    """Gives the value where the evaluation does not."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.direction not in ("min", "max"):
            raise SearchError(f"objective {self.name!r}: direction {self.direction!r} is neither 'min' nor 'max'")

    @property
    def sign(self) -> float:
        """Return the factor that turns a value into a cost: less is better."""
        return 1.0 if self.direction == "min" else -1.0

    @property
    def weight(self) -> float:
        """Return the factor that turns a value into a fitness, as DEAP wants it: more is better."""
        return -self.sign


def check_name(name: str) -> None:
    """Raise SearchError unless a value of this name can be a column of a file of evaluations."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise SearchError(f"value name {name!r}: needs to be a non-empty string of printable characters")
    if name in RESERVED:
        raise SearchError(f"value name {name!r} is taken: evaluations have their own columns {', '.join(RESERVED)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what a message says about the names that exist: all of them, and the one that was meant."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is {', '.join(map(repr, names)) or 'none'}{hint}"
