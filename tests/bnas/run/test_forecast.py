"""What a search needs beside its evaluations: no more than its share of a budget, and never less for a longer one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_cases import job

from bnas.run.files.output import Output
from bnas.run.job import Watch
from bnas.run.plan.budget import INFORMED, MEASURED, QUICKER, SHARES
from bnas.run.plan.forecast import LEAST_SAMPLES, LEAST_VALIDATION, Forecast
from bnas.run.plan.planner import Planner
from bnas.run.plan.probe import Probe, Times, samples_in
from bnas.run.search import FIRST
from bnas.runtime import FineTune, LatencySettings, SuperNetwork
from bnas.search import Constraint

GIVEN = job(budget=100.0)
SUPERNET = SuperNetwork.from_model(GIVEN.model, GIVEN.example_inputs, GIVEN.elasticity)
TARGETS = {"half": Constraint.parse("latency <= 50 %"), "few": Constraint.parse("macs <= 30 %")}


def forecast(budget: float, times: Times, latency: LatencySettings | None = None, **changes: Any) -> Forecast:
    return Forecast(job(budget=budget, latency=latency or LatencySettings(), **changes), SUPERNET, times, 2)


@given(budget=st.floats(1, 1e5), more=st.floats(1, 100), sample=st.floats(1e-5, 1))
def test_importance_has_its_share_of_a_budget(budget: float, more: float, sample: float) -> None:
    short, long = (forecast(one, Times(sample=sample)) for one in (budget, budget * more))
    assert LEAST_SAMPLES <= short.samples <= long.samples <= FIRST
    if short.samples > LEAST_SAMPLES:
        blocks = len(SUPERNET.space.blocks)
        assert short.samples * 2 * sample * (3 + 2 * (blocks + 1)) <= INFORMED * budget * (1 + 1e-6)


@given(budget=st.floats(1, 1e5), more=st.floats(1, 100), loading=st.floats(0, 5), run=st.floats(1e-5, 1))
def test_latencies_are_measured_as_thoroughly_as_their_share_allows(
    budget: float, more: float, loading: float, run: float
) -> None:
    times = Times(loading=loading, run=run)
    short, long = (forecast(one, times, targets=TARGETS) for one in (budget, budget * more))
    ways = [{name: getattr(one.measured_quicker.latency, name) for name in QUICKER[-1]} for one in (short, long)]
    assert all(ways[0][name] <= ways[1][name] for name in ways[0])
    beside = short.after_training - forecast(budget, Times(), targets=TARGETS).after_training
    assert beside <= MEASURED * budget * (1 + 1e-6) or ways[0] == QUICKER[-1]


@given(budget=st.floats(1, 1e5), more=st.floats(1, 100), sample=st.floats(1e-6, 1), own=st.floats(0, 1))
def test_the_fewest_evaluations_take_no_more_than_the_share_of_a_search(
    budget: float, more: float, sample: float, own: float
) -> None:
    long_validation = replace(GIVEN.data, validation=list(GIVEN.data.validation) * 20)
    times = Times(evaluation=own, sample=sample)
    short, long = (forecast(one, times, data=long_validation) for one in (budget, budget * more))
    whole = samples_in(long_validation.validation)
    assert min(LEAST_VALIDATION, whole) <= short.validated <= long.validated <= whole
    assert (short.part is None) == (short.validated == whole)
    if short.validated > LEAST_VALIDATION:
        assert short.fewest * short.evaluation <= SHARES["search"] * budget * (1 + 1e-6)
    if short.part is not None:
        more_samples = short.evaluation + 2 * sample
        assert short.fewest * more_samples > SHARES["search"] * budget, "no sample is left out that there is time for"


def test_without_a_budget_all_validation_samples_count() -> None:
    found = Forecast(replace(GIVEN, budget=None), SUPERNET, Times(evaluation=1.0, sample=1.0), 2)
    assert found.validated == samples_in(GIVEN.data.validation)
    assert found.part is None


def test_settings_that_are_quicker_than_those_of_a_short_budget_stay() -> None:
    own = LatencySettings(runs=5, subnets=8, turns=2)
    found = forecast(1.0, Times(loading=1.0, run=1.0), own, targets=TARGETS).measured_quicker.latency
    assert (found.runs, found.subnets, found.turns, found.warmup) == (5, 8, 1, 5)


def test_latencies_are_probed_where_something_asks_for_them(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(Probe, "latency", lambda *_: asked.append(1) or (0.5, 0.1))
    settled = {"fine_tune": FineTune(1), "int8": None, "budget": 1000.0}
    for targets in ({"few": TARGETS["few"]}, TARGETS):
        plan = Planner(job(targets=targets, **settled), Output(tmp_path), Watch(), 0.0, partial(next, count(0.0, 0.01)))
        plan.first(SUPERNET)
    assert len(asked) == 1


def test_loading_and_running_take_time() -> None:
    loading, run = Probe(GIVEN, SUPERNET).latency(LatencySettings())
    assert loading > run > 0
