"""How a budget is divided, as numbers: sums hold, more time gives nobody less, and the least is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.run.plan.budget import SHARES, BudgetError, Phase, Plan, Planned, divide, least_seconds, seconds_of, time_told
from bnas.runtime import TrainingError
from bnas.runtime.train.timing import spread

UNIT = st.floats(1e-3, 50.0)
PHASES = st.tuples(
    st.builds(Phase, st.just("train"), UNIT, st.integers(1, 5)),
    st.builds(Phase, st.just("search"), UNIT, st.integers(4, 8), st.integers(8, 200) | st.none()),
    st.builds(Phase, st.just("tune"), UNIT),
).flatmap(lambda phases: st.sampled_from([phases, phases[1:], phases[2:]]))
EXTRA, FIXED = st.floats(0.0, 1e5), st.floats(0.0, 500.0)


@given(phases=PHASES, extra=EXTRA, fixed=FIXED)
def test_no_plan_takes_longer_than_the_budget_and_nearly_all_of_it_is_used(
    phases: Sequence[Phase], extra: float, fixed: float
) -> None:
    seconds = least_seconds(phases) + fixed + extra
    found = divide(seconds, phases, fixed)
    used = fixed + sum(one.seconds for one in found)
    assert used <= seconds * (1 + 1e-9)
    assert seconds - used <= sum(one.unit for one in phases) + 1e-6, "less than a step of each phase is left"


@given(phases=PHASES, extra=EXTRA, fixed=FIXED)
def test_each_phase_has_its_bounds(phases: Sequence[Phase], extra: float, fixed: float) -> None:
    found = divide(least_seconds(phases) + fixed + extra, phases, fixed)
    assert [one.name for one in found] == [one.name for one in phases]
    for phase, planned in zip(phases, found, strict=True):
        assert planned.count >= phase.least
        assert phase.most is None or planned.count <= phase.most
        assert planned.seconds == planned.count * phase.unit


@given(phases=PHASES, extra=EXTRA, more=EXTRA, fixed=FIXED)
def test_more_time_gives_no_phase_less(phases: Sequence[Phase], extra: float, more: float, fixed: float) -> None:
    least = least_seconds(phases) + fixed
    short, long = divide(least + extra, phases, fixed), divide(least + extra + more, phases, fixed)
    assert all(a.count <= b.count for a, b in zip(short, long, strict=True))


@given(extra=st.floats(0, 1000), more=st.floats(0, 1000))
def test_a_phase_gets_what_is_useful_to_it_or_its_least(extra: float, more: float) -> None:
    phases = [Phase("train", 1.0, 2, useful=20), Phase("search", 1.0, 4), Phase("tune", 1.0)]
    plain = [replace(one, useful=0) for one in phases]
    short, long = (divide(7 + one, phases) for one in (extra, extra + more))
    assert short[0].count == 2 or short[0].count >= 20
    assert short[0].count <= long[0].count
    assert short[0].count in (2, divide(7 + extra, plain)[0].count)
    assert sum(one.seconds for one in short) > 7 + extra - 3, "its time goes to the last phase"
    assert short[1] == divide(7 + extra, plain)[1], "and not to the search"


@given(phases=PHASES, fixed=FIXED, missing=st.floats(0.01, 1.0))
def test_too_small_a_budget_says_the_least_possible(phases: Sequence[Phase], fixed: float, missing: float) -> None:
    least = least_seconds(phases) + fixed
    with pytest.raises(BudgetError, match=r"the run needs at least \S+: .*, and \S+ for the steps that every run has"):
        divide(least * (1 - missing), phases, fixed)
    assert [one.count for one in divide(least, phases, fixed)] == [one.least for one in phases]


def test_the_shares_are_those_of_the_rule_of_thumb() -> None:
    assert sum(SHARES.values()) == 1
    found = divide(8000.0, [Phase("train", 0.1), Phase("search", 0.1), Phase("tune", 0.1)])
    assert [round(one.seconds / 8000, 2) for one in found] == [round(one, 2) for one in SHARES.values()]


def test_what_a_search_cannot_use_goes_to_the_winners() -> None:
    found = divide(1000.0, [Phase("search", 1.0, 4, 10), Phase("tune", 1.0)])
    assert [one.count for one in found] == [10, 990]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), (" 2 h 5 m ", 7500), (45, 45), (0.5, 0.5)],
)
def test_times_are_read(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "30 min", "-5m", "0s", 0, -1.0, math.inf, math.nan, "5m1h"])
def test_what_is_no_time_is_told(text: str | float) -> None:
    with pytest.raises(BudgetError, match="must be a time such as 30m"):
        seconds_of(text)


@given(seconds=st.floats(0.5, 1e6))
def test_times_that_are_told_are_read_again(seconds: float) -> None:
    assert seconds_of(time_told(seconds)) == pytest.approx(seconds, rel=0.3 / 60 + 0.01)


def test_a_plan_is_a_table() -> None:
    plan = Plan(1800.0, 12.0, (Planned("train", 1400, 420.0), Planned("search", 60, 210.0)), 60.0)
    assert plan.seconds == 702.0
    assert str(plan).splitlines()[1].split() == ["super-network", "1,400", "steps", "7m"]
    assert str(plan).splitlines()[-1].split() == ["in", "all", "budget", "30m", "12m"]
    assert str(replace(plan, budget=None)).splitlines()[-1].split() == ["in", "all", "12m"]
    assert replace(plan, disk=8_200_000).rows()[-1] == ("disk", "about 8.2 MB", "")
    assert replace(plan, disk=8_200_000, free=57e9).rows()[-1][1] == "about 8.2 MB, 57 GB free"
    assert replace(plan, disk=82_000_000, free=900_000).rows()[-1][1] == "about 82 MB, 900 kB free: too little"


@given(
    steps=st.integers(1, 100_000),
    weights=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    per_epoch=st.integers(1, 3000),
)
def test_steps_as_epochs(steps: int, weights: list[int], per_epoch: int) -> None:
    if steps < len(weights):
        with pytest.raises(TrainingError, match=f"{steps} steps are too few for {len(weights)} stages"):
            spread(steps, weights, per_epoch)
        return
    epochs, each = spread(steps, weights, per_epoch)
    total = sum(epochs) * each
    assert len(epochs) == len(weights)
    assert min(epochs) >= 1
    assert 1 <= each <= per_epoch
    assert total <= steps < total + sum(epochs), "one step more an epoch would be too many"


def test_stages_keep_their_proportions() -> None:
    assert spread(1000, [10, 40], 100) == ((2, 8), 100)
    assert spread(150, [10, 40], 100) == ((1, 4), 30)
    assert spread(6, [10, 40], 100) == ((1, 1), 3), "too few to divide them so"
    assert spread(900, [50], 100) == ((9,), 100)
