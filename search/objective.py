"""What a search optimises: a named number and the direction that is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from bnas.passes.settings import NotInFile, settings
from bnas.search.errors import SearchError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bnas.passes import Subnet
else:
    Subnet = Any  # pydantic reads the annotations, and need not load it

RESERVED = ("index", "seconds", "failure", "subnet")
"""Columns that every file of evaluations has beside the values."""


@settings(SearchError)
class Objective:
    """One of the values that an evaluation gives, to be made as small or as large as possible.

    Raises:
        SearchError: names every setting that is wrong.
    """

    name: str
    """Name under which an evaluation gives the value: accuracy, macs, parameters, activations, peak_memory, latency or
    another one."""
    direction: Literal["min", "max"]
    """Which is better."""
    measure: NotInFile[Callable[[Subnet], float] | None] = field(default=None, compare=False, repr=False)
    """Gives the value where the evaluation does not."""

    @field_validator("name")
    @classmethod
    def _of_a_column(cls, name: str) -> str:
        try:
            check_name(name)
        except SearchError as error:
            raise ValueError(str(error)) from None
        return name

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
