"""Python's global random stream, lent to a library that draws from it and taken back afterwards."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class GlobalRandom:
    """A stream of random numbers of its own for code that uses the global functions of ``random``.

    What is drawn within `lent` depends on the seed and on what was drawn within it before, on nothing else; the
    caller's global state is as it was. Not for use from several threads: there is only one global state.
    """

    def __init__(self, seed: int) -> None:
        self._state = random.Random(seed).getstate()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the global functions of ``random`` go on with this stream."""
        outer = random.getstate()
        random.setstate(self._state)
        try:
            yield
        finally:
            self._state = random.getstate()
            random.setstate(outer)
