"""A bound is read from text, is relative to the maximal sub-network or not, and says by how much it is missed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.search import Constraint, SearchError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency <= 5", Constraint("latency", "<=", 5.0)),
        ("latency <= 5 ms", Constraint("latency", "<=", 5.0)),
        ("accuracy>=0.9", Constraint("accuracy", ">=", 0.9)),
        ("macs <= 200 M", Constraint("macs", "<=", 2e8)),
        ("peak memory <= 1.5k", Constraint("peak memory", "<=", 1500.0)),
        ("parameters <= 60 %", Constraint("parameters", "<=", 0.6, relative=True)),
    ],
)
def test_text_is_read(text: str, expected: Constraint) -> None:
    assert Constraint.parse(text) == expected
    assert Constraint.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["latency < 5", "latency <= ", "<= 5", "latency <= 5 s", "latency <= 5 mss", "latency <= nan", "5", ""]
)
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(SearchError, match=r"constraint|value name"):
        Constraint.parse(text)


@given(value=st.floats(-100, 100), bound=st.floats(-100, 100))
def test_one_sense_is_kept_where_the_other_is_missed(value: float, bound: float) -> None:
    upper, lower = (Constraint("a", sense, bound).violation({"a": value}) for sense in ("<=", ">="))  # type: ignore[arg-type]
    assert (upper == 0) is (value <= bound)
    assert (lower == 0) is (value >= bound)
    assert upper + lower == pytest.approx(abs(value - bound) / (abs(bound) or 1.0))


def test_relative_bound_is_that_of_the_maximal_subnetwork() -> None:
    one = Constraint.parse("macs <= 50 %").resolved({"macs": 200.0})
    assert one == Constraint("macs", "<=", 100.0)
    assert one.violation({"macs": 150.0}) == 0.5
    assert one.resolved({"macs": 1.0}) is one


def test_sense_and_bound_are_checked() -> None:
    with pytest.raises(SearchError, match="'<' is neither"):
        Constraint("a", "<", 1.0)  # type: ignore[arg-type]
    with pytest.raises(SearchError, match="bound inf"):
        Constraint("a", "<=", float("inf"))
