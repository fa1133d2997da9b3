"""The plan of a run without a budget: what is to be done, how long it takes, and that nothing changes by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from job_cases import job
from torch import nn

from bnas.passes import BnasError
from bnas.run.job import Job, Splits, Watch
from bnas.run.pipeline import plan_run, run_job
from bnas.run.plan.budget import Plan
from bnas.run.plan.forecast import REPORT
from bnas.run.plan.probe import Probe
from bnas.runtime import FineTune, LatencySettings, Recipe, Stage
from bnas.search import NSGA2, Constraint, SearchSettings

TARGETS = {"half": Constraint.parse("macs <= 60 %")}
STEP, EVALUATION, TUNE, DELIVERY = 0.5, 1.0, 0.25, 10.0


@pytest.fixture
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and evaluations that take what the test says."""
    monkeypatch.setattr(Probe, "train_step", lambda _: STEP)
    monkeypatch.setattr(Probe, "evaluation", lambda _: (EVALUATION, 0.0))
    monkeypatch.setattr(Probe, "tune_step", lambda _, __, subnets, *___: [TUNE] * len(subnets))
    monkeypatch.setattr(Probe, "delivery", lambda *_: DELIVERY)


def settled(**changes: Any) -> Job:
    return job(targets=TARGETS, int8=None, fine_tune=FineTune(epochs=3), **changes)


def found(plan: Plan) -> dict[str, tuple[int, float]]:
    return {one.name: (one.count, one.seconds) for one in plan.phases}


@pytest.mark.usefixtures("known_costs")
def test_a_plan_says_what_the_job_says_with_the_time_that_it_takes() -> None:
    plan = plan_run(settled())
    # 2 epochs of 4 steps, and 5 watched sub-networks after each; 6 evaluations; 3 epochs of 4 steps of one winner.
    assert found(plan) == {
        "train": (8, pytest.approx(8 * STEP + 2 * 5 * EVALUATION)),
        "search": (6, 6 * EVALUATION),
        "tune": (12, 12 * TUNE),
    }
    assert plan.budget is None
    assert plan.fixed == pytest.approx(DELIVERY + EVALUATION, abs=1.0)
    assert plan.seconds == pytest.approx(14 + 6 + 3 + plan.fixed)
    assert [row[0] for row in plan.rows()][-2:] == ["in all", "disk"]
    untuned = plan_run(job(int8=None))
    assert list(found(untuned)) == ["train", "search"]
    assert untuned.fixed == pytest.approx(DELIVERY + 2 * EVALUATION, abs=1.0), "two winners where there are no targets"


def test_a_run_that_tells_its_plan_does_the_same_as_one_that_does_not(tmp_path: Path) -> None:
    plans: list[Plan] = []
    quiet = run_job(settled(), tmp_path / "quiet")
    told = run_job(settled(), tmp_path / "told", Watch(on_plan=plans.append))
    assert len(plans) == 1, "before the first phase, and no more"
    assert [row.subnet for row in told.rows] == [row.subnet for row in quiet.rows]
    weights = [(tmp_path / name / "subnets" / "half.safetensors").read_bytes() for name in ("quiet", "told")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "told" / "plan").exists(), "only a budget needs to know its plan again"


def test_a_run_goes_on_where_its_plan_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Probe) -> Any:
        raise BnasError("the sub-network that stands in for the winners fails")

    monkeypatch.setattr(Probe, "evaluation", fails)
    plans: list[Plan] = []
    report = run_job(settled(), tmp_path / "run", Watch(on_plan=plans.append))
    assert plans == []
    assert report.evaluations == 6


@pytest.mark.usefixtures("known_costs")
def test_a_resumed_run_is_planned_as_far_as_it_is_to_come(tmp_path: Path) -> None:
    class StopError(Exception):
        """Ends a run in the middle."""

    def stop_training(record: Any) -> None:
        raise StopError

    def stop_search(evaluation: Any, _: int) -> None:
        if evaluation.index == 3:
            raise StopError

    for watch, left in (
        (Watch(on_epoch=stop_training), {"train": 4, "search": 6, "tune": 12}),
        (Watch(on_evaluation=stop_search), {"search": 2, "tune": 12}),
    ):
        with pytest.raises(StopError):
            run_job(settled(), tmp_path / "run", watch, resume=(tmp_path / "run").exists())
        plans: list[Plan] = []

        def note(plan: Plan, plans: list[Plan] = plans) -> None:
            plans.append(plan)
            raise StopError

        with pytest.raises(StopError):
            run_job(settled(), tmp_path / "run", Watch(on_plan=note), resume=True)
        assert {name: count for name, (count, _) in found(plans[0]).items()} == left


class Wide(nn.Module):
    """Nearly all of it is weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(64, 640), nn.Linear(640, 640), nn.Linear(640, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.body(x)))


@pytest.mark.parametrize("fine_tune", [None, FineTune(1)], ids=["not-tuned", "tuned"])
def test_the_disk_that_is_planned_is_what_a_run_takes(fine_tune: FineTune | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 64), torch.arange(8) % 3)]
    given = Job(
        Wide().eval(),
        Splits(batches, batches, batches),
        torch.zeros(1, 64),
        stages=[Stage(epochs=1)],
        recipe=Recipe(optimizer="adam"),
        search=SearchSettings(algorithm=NSGA2(population=4), num_evals=4),
        latency=LatencySettings(runs=2),
        targets=TARGETS,
        fine_tune=fine_tune,
    )
    planned = plan_run(given).disk - REPORT
    run_job(given, tmp_path / "run")
    taken = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert taken > 10_000_000
    assert 0.7 < planned / taken < 1.4, json.dumps([planned, taken])
