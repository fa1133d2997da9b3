"""The global random stream is lent, not used up."""

from __future__ import annotations

import random

import pytest

from bnas.search.algorithms.nsga2 import GlobalRandom


def draw(stream: GlobalRandom, count: int) -> list[float]:
    with stream.lent():
        return [random.random() for _ in range(count)]


def test_stream_depends_on_its_seed_alone_and_goes_on_where_it_was() -> None:
    whole = draw(GlobalRandom(3), 4)
    stream = GlobalRandom(3)
    first = draw(stream, 2)
    random.seed(99)
    assert first + draw(stream, 2) == whole
    assert draw(GlobalRandom(4), 4) != whole


def test_callers_state_is_as_it_was_also_after_an_error() -> None:
    def fail() -> None:
        with GlobalRandom(0).lent():
            random.random()
            raise RuntimeError("inside")

    before = random.getstate()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert random.getstate() == before
