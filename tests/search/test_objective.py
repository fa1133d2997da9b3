"""An objective is a name and a direction, and a wrong one says what is allowed."""

from __future__ import annotations

import pytest

from bnas.search import Objective, SearchError
from bnas.search.objectives import nearest


def test_cost_is_less_where_the_value_is_better() -> None:
    accuracy, macs = Objective("accuracy", "max"), Objective("macs", "min")
    assert accuracy.sign * 0.9 < accuracy.sign * 0.8
    assert macs.sign * 10 < macs.sign * 20
    assert (accuracy.weight, macs.weight) == (1.0, -1.0)


@pytest.mark.parametrize(
    ("name", "direction", "reason"),
    [
        pytest.param("macs", "down", "direction is 'down': must be 'min' or 'max'", id="direction"),
        pytest.param("", "min", "non-empty", id="empty"),
        pytest.param("a\nb", "min", "printable", id="newline"),
        pytest.param("seconds", "min", "already have the columns index, seconds, failure, subnet", id="reserved"),
    ],
)
def test_refuses_and_says_what_is_allowed(name: str, direction: str, reason: str) -> None:
    with pytest.raises(SearchError, match=reason):
        Objective(name, direction)


def test_a_measure_is_a_function() -> None:
    with pytest.raises(SearchError, match=r"measure is 3: must be a function of a sub-network"):
        Objective("energy", "min", measure=3)  # type: ignore[arg-type]


def test_nearest_names_what_was_meant_only_if_something_is_near() -> None:
    assert nearest("acuracy", ["accuracy", "macs"]) == "known are 'accuracy', 'macs'; did you mean 'accuracy'?"
    assert nearest("zzz", ["accuracy"]) == "known are 'accuracy'"
    assert nearest("zzz", []) == "known are none"
