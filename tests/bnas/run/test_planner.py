"""A run with a budget: planned before each phase with what is left, and the same numbers when it is resumed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from job_cases import job

from bnas.run.files.lock import kept as held
from bnas.run.files.mark import OutputError
from bnas.run.files.output import Output
from bnas.run.job import Job, Watch
from bnas.run.pipeline import plan_run, run_job
from bnas.run.plan import budget, planner
from bnas.run.plan.budget import PACES, BudgetError, Plan, pace_of
from bnas.run.plan.planner import MOST_DRIFT, Planner
from bnas.run.plan.probe import Probe
from bnas.run.steps import Steps
from bnas.runtime import CosineSchedule, FineTune, Recipe, Stage
from bnas.runtime.evaluate.evaluation import counted_samples
from bnas.runtime.storage.files import write_json
from bnas.search import NSGA2, Constraint, SearchSettings

TARGETS = {"half": Constraint.parse("macs <= 60 %"), "few": Constraint.parse("macs <= 3 %")}
STEP, EVALUATION, TUNE, DELIVERY = 0.5, 1.0, 0.25, 10.0
SHARES = {"train": 1 / 4, "search": 1 / 8, "tune": 5 / 8}


@pytest.fixture(autouse=True)
def known_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and evaluations that take what the test says, and shares that leave each phase some."""
    monkeypatch.setattr(budget, "SHARES", SHARES)
    monkeypatch.setattr(planner, "USEFUL_STEPS", 0)
    monkeypatch.setattr(Probe, "train_step", lambda _: STEP)
    monkeypatch.setattr(Probe, "evaluation", lambda _: (EVALUATION, 0.0))
    monkeypatch.setattr(Probe, "tune_step", lambda _, __, subnets, *___: [TUNE] * len(subnets))
    monkeypatch.setattr(Probe, "tune_alone", lambda _, __, subnets, *___: ([TUNE] * len(subnets), 0.0))
    monkeypatch.setattr(Probe, "delivery", lambda *_: DELIVERY)


def planned(budget: Any = 100.0, **changes: Any) -> Job:
    search = SearchSettings(algorithm=NSGA2(population=4), num_evals=10)
    return job(targets=TARGETS, int8=None, budget=budget, search=search, **changes)


@dataclass
class Seen:
    """What a run told."""

    plans: list[Plan] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def watch(self, after: int = -1) -> Watch:
        """Notes it; the run ends with an error after so many steps."""

        def on_step(progress: Any) -> None:
            self.steps.append(progress.steps)
            if len(self.steps) == after:
                raise StopError

        return Watch(phase=self.phases.append, on_plan=self.plans.append, on_step=on_step)


class StopError(Exception):
    """Ends a run in the middle."""


def counts(plan: Plan) -> dict[str, int]:
    return {one.name: one.count for one in plan.phases}


def kept(folder: Path, phase: str) -> Any:
    return json.loads((folder / "plan" / f"{phase}.json").read_text())


def test_a_run_is_planned_before_each_phase_and_does_what_is_planned(tmp_path: Path) -> None:
    seen = Seen()
    report = run_job(planned(), tmp_path / "run", seen.watch())
    first, second, third = seen.plans
    assert [list(counts(one)) for one in seen.plans] == [["train", "search", "tune"], ["search", "tune"], ["tune"]]
    assert first.fixed == pytest.approx(10 + 2, abs=1.0), "the export, and evaluations of two winners"
    # A stage takes 0.5 s, the 6 sub-networks 6 s, a step of both winners 0.5 s; a share of the rest is for training.
    left = 100.0 - first.spent - first.fixed - 7.0
    assert counts(first)["train"] == 1 + int(left * SHARES["train"] / STEP)
    assert counts(first)["search"] == 6
    epochs = [kept(tmp_path / "run", name)["epochs"] for name in ("train", "tune")]
    train, tune = (sum(one["stages"]) * one["steps"] for one in epochs)
    paces = [one["pace"] for one in kept(tmp_path / "run", "tune")["paces"]]
    assert paces == [1.0, PACES[1]], "steps take much less than was said to have been measured"
    assert train + tune < len(seen.steps) < train + tune * sum(paces), "the smaller winner has fewer, but for the pace"
    assert report.evaluations == counts(second)["search"]
    assert counts(third)["tune"] > counts(first)["tune"], "the training took less time than planned"
    assert first.seconds <= 100.0
    assert all(row.before is not None for row in report.rows[1:]), "winners are fine-tuned, though nobody said so"


def test_smaller_winners_are_chosen_again_where_there_is_time_for_some_candidates() -> None:
    alone = FineTune(1, order="separate")
    short, long, separate = (
        plan_run(one).fixed for one in (planned(100.0), planned(200.0), planned(200.0, fine_tune=alone))
    )
    assert long - short == pytest.approx(5, abs=0.5), "four candidates, and the choice once more"
    assert separate == pytest.approx(short, abs=0.5)


def test_later_phases_have_what_earlier_ones_leave(tmp_path: Path) -> None:
    """A training that took longer than planned leaves less."""
    steps = Steps(planned(), Output(tmp_path / "run"))
    steps.train()
    left = {}
    for late in (0.0, 30.0, 60.0, 500.0):
        seen = Seen()
        planner = Planner(steps.job, Output(tmp_path / f"late{late}"), seen.watch(), 0.0, lambda late=late: 30.0 + late)
        searched, _ = planner.search(steps.supernet)
        left[late] = counts(seen.plans[0])
        assert searched.search.num_evals == left[late]["search"]
    assert left[0.0]["tune"] > left[30.0]["tune"] > left[60.0]["tune"] == left[500.0]["tune"] == 1
    assert left[500.0]["search"] == 6, "where nothing is left, the least is done"


def test_a_training_that_took_longer_makes_everything_take_longer(tmp_path: Path) -> None:
    steps = Steps(planned(), Output(tmp_path / "run"))
    supernet, found = steps.train(), {}
    for factor in (1.0, 1.5, 100.0):
        now, seen = [0.0], Seen()
        with held(tmp_path / f"by{factor}") as ledger:
            ledger.begin()
            planner = Planner(steps.job, Output(ledger.folder), seen.watch(), 0.0, lambda now=now: now[0])
            planner.train(supernet)
            now[0] += factor * seen.plans[0].phases[0].seconds
            planner.ended("train")
            planner.search(supernet)
        found[factor] = kept(tmp_path / f"by{factor}", "search")["times"]["tune"] / TUNE
    assert found == pytest.approx({1.0: 1.0, 1.5: 1.5, 100.0: MOST_DRIFT})


def test_a_stopped_run_goes_on_with_the_numbers_that_it_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that stands still: else a busy machine plans another number of steps for the second of the two runs.
    monkeypatch.setattr(Planner, "spent", property(lambda planner: planner.carried))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings: Any = {"training": {"checkpoint_every": 1}}
    run_job(planned(**settings), whole)
    with pytest.raises(StopError):
        run_job(planned(**settings), stopped, Seen().watch(after=5))
    before = kept(stopped, "train")
    seen = Seen()
    with pytest.raises(StopError):
        run_job(planned(**settings), stopped, seen.watch(after=len(Seen().steps) + 40), resume=True)
    assert {key: value for key, value in kept(stopped, "train").items() if key != "ended"} == {
        key: value for key, value in before.items() if key != "ended"
    }
    assert kept(stopped, "train")["ended"] >= before["spent"] + before["seconds"], "as long as planned, at least"
    assert weights(whole / "supernet") == weights(stopped / "supernet")
    assert "train" not in {name for plan in seen.plans for name in counts(plan)}
    again = Seen()
    tune = kept(stopped, "tune")["count"]
    run_job(planned(**settings), stopped, again.watch(), resume=True)
    assert again.plans == []
    assert kept(stopped, "tune")["count"] == tune


def weights(folder: Path) -> set[str]:
    return {hashlib.sha256(one.read_bytes()).hexdigest() for one in folder.glob("*.safetensors")}


def test_too_small_a_budget_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    seen = Seen()
    with pytest.raises(BudgetError, match=r"a budget of 15s is too small: the run needs at least 2\ds: 1 step \("):
        run_job(planned("15s"), tmp_path / "run", seen.watch())
    assert not seen.steps
    run_job(planned("1m"), tmp_path / "run")
    with pytest.raises(OutputError, match="holds a run already"):
        run_job(planned("1m"), tmp_path / "run")


def test_a_budget_that_a_training_has_used_stays(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        run_job(planned(), tmp_path / "run", Seen().watch(after=len(Seen().steps) + 30))
    with pytest.raises(OutputError, match=r"job\.budget was 100\.0 and is now 50\.0"):
        run_job(planned(50.0), tmp_path / "run", resume=True)


def test_stages_keep_their_proportions_and_schedules_their_form() -> None:
    stages = [Stage(("depth",), epochs=10), Stage(epochs=30, epochs_lr=40)]
    schedule = CosineSchedule(0.1, num_epochs=40, warmup_epochs=5)
    given = planned(4000.0, stages=stages, recipe=Recipe(lr_schedule=schedule, memory_format="contiguous"))
    plan = plan_run(given)
    assert counts(plan)["train"] > 1000


def test_stages_are_shortened(tmp_path: Path) -> None:
    stages = [Stage(("depth",), epochs=10), Stage(epochs=30, epochs_lr=40)]
    given = planned(60.0, stages=stages)
    steps = Steps(given, Output(tmp_path / "run"))
    seen = Seen()
    steps.watch = seen.watch()
    steps.train()
    history = json.loads((tmp_path / "run" / "training" / "history.json").read_text())
    assert [one["epochs"] for one in history["stages"]] in ([1, 3], [2, 6], [3, 9])
    assert all(not one["metrics"] for one in history["epochs"]), "a budget is not spent on validation"
    assert len(seen.steps) <= counts(seen.plans[0])["train"]


def test_a_plan_is_made_without_a_run() -> None:
    given = planned()
    before = {name: one.clone() for name, one in given.model.state_dict().items()}
    plan = plan_run(given)
    assert list(counts(plan)) == ["train", "search", "tune"]
    assert all((one == before[name]).all() for name, one in given.model.state_dict().items())
    with pytest.raises(BudgetError, match="too small: the run needs at least"):
        plan_run(replace(given, budget=1.0))


def test_how_winners_are_tuned_is_kept_but_for_the_length(tmp_path: Path) -> None:
    given = planned(fine_tune=FineTune(1, learning_rate=0.3, order="shared"))
    run_job(given, tmp_path / "run")
    noted = json.loads((tmp_path / "run" / "tuning.json").read_text())["settings"]
    epochs = kept(tmp_path / "run", "tune")["epochs"]
    assert (noted["learning_rate"], noted["order"]) == (0.3, "shared")
    assert (noted["epochs"], noted["train_steps"]) == (epochs["stages"][0], epochs["train_steps"])


def test_where_time_is_short_a_search_measures_on_a_part_of_the_validation_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it says so in the plan, in what the report reads, and in a process that comes later."""
    monkeypatch.setattr(Probe, "evaluation", lambda _: (0.0, 0.002))
    given = planned(40.0, num_bn_adaptation_samples=0)
    long_validation = replace(given.data, validation=list(given.data.validation) * 20)
    seen, job = Seen(), replace(given, data=long_validation)
    run_job(job, tmp_path / "run", seen.watch())
    part = kept(tmp_path / "run", "search")["samples"]
    assert part is not None
    assert f"each on {part} validation samples" in str(seen.plans[1]), "as planned before the search"
    assert json.loads((tmp_path / "run" / "search.json").read_text())["samples"] == part
    with held(tmp_path / "run"):
        later = Steps(job, Output(tmp_path / "run")).evaluator
    assert counted_samples(later.validation) == part
    assert counted_samples(long_validation.validation) > part


def test_training_that_would_be_too_short_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time goes to the winners."""
    whole = counts(plan_run(planned()))
    monkeypatch.setattr(planner, "USEFUL_STEPS", whole["train"] + 10)
    without = counts(plan_run(planned()))
    assert (without["train"], without["search"]) == (1, whole["search"])
    assert without["tune"] > whole["tune"]
    monkeypatch.setattr(planner, "USEFUL_STEPS", whole["train"] - 5)
    assert counts(plan_run(planned()))["train"] > 1


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.2, 1.6])
def test_a_winner_gets_the_time_that_an_earlier_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Steps take `factor` of what was measured: the first winner is as long as planned, the second ends in time."""
    now, lengths, steps = [0.0], [0], Seen()
    monkeypatch.setattr(planner, "USEFUL_STEPS", 10**9)

    def on_step(_: Any) -> None:
        lengths[-1] += 1
        now[0] += factor * TUNE

    def phase(name: str) -> None:
        lengths.append(0)

    watch = Watch(phase=phase, on_plan=steps.plans.append, on_step=on_step)
    given = planned(fine_tune=FineTune(1, order="separate"))
    with held(tmp_path / "run") as ledger:
        ledger.begin()
        run = Steps(given, Output(tmp_path / "run"), watch, lambda: now[0])
        run.train(), run.search()
        begun = now[0]
        run.tune()
    plan = kept(tmp_path / "run", "tune")
    assert len(plan["paces"]) == 2
    assert plan["paces"][0]["pace"] == 1.0
    assert lengths[-1] == pytest.approx(lengths[-2] * max((2 - factor) / factor, 0.5), rel=0.15)
    assert factor > 1.5 or now[0] - begun == pytest.approx(plan["seconds"], rel=0.1)


def test_a_resumed_winner_is_as_long_as_it_began(tmp_path: Path) -> None:
    """The clock says something else after an interruption; the checkpoint is of the first length."""
    noted = {"spent": 10.0, "seconds": 40.0, "ended": None, "count": 40, "times": {}, "each": [0.5, 0.5], "paces": []}
    noted["epochs"] = {"stages": [2], "steps": 20, "train_steps": 320}
    with held(tmp_path / "run") as ledger:
        ledger.begin()
        output = Output(tmp_path / "run")
        write_json(output.path("plan/tune.json"), noted)
        assert Planner(planned(), output, Watch(), 0.0, lambda: 0.0).pace(0) == 1.0
        late = Planner(planned(), output, Watch(), 0.0, lambda: 15.0)
        assert late.spent == 25.0, "10 s before this process"
        assert late.pace(0) == 1.0
        assert late.pace(1) == pytest.approx((50 - 25) / 20 * 20 / 15), "15 s were planned to be 20 s"
        again = Planner(planned(), output, Watch(), 0.0, lambda: 0.0)
        assert again.spent == 25.0, "at least what was noted"
        assert again.pace(1) == late.pace(1)


@pytest.mark.parametrize(("taken", "left"), [(2.0, 4.0), (9.0, -3.0)])
def test_time_that_a_choice_takes_less_than_planned_goes_to_the_training(
    tmp_path: Path, taken: float, left: float
) -> None:
    noted = {"spent": 0.0, "seconds": 40.0, "ended": None, "count": 40, "times": {}, "each": [0.5, 0.5], "paces": []}
    noted |= {"epochs": {"stages": [2], "steps": 20, "train_steps": 320}, "choosing": 6.0}
    now = [0.0]

    def choice(*_: Any) -> Any:
        now[0] += taken
        return "chosen"

    with held(tmp_path / "run") as ledger:
        ledger.begin()
        output = Output(tmp_path / "run")
        write_json(output.path("plan/tune.json"), noted)
        plan = Planner(planned(), output, Watch(), 0.0, lambda: now[0])
        assert plan.pace(0) == 1.0
        now[0] = 15.0
        again: Any = plan.timed(choice)
        assert again("net", "few", "larger") == "chosen"
        assert plan.pace(1) == pytest.approx((40 + left - 15) / 15), "the first winner took 15 s for 20 s"
        assert plan.timed(None) is None


@pytest.mark.parametrize("ended", [True, False])
def test_other_winners_are_planned_anew_with_the_time_that_the_former_ones_had(tmp_path: Path, ended: bool) -> None:
    """Targets of a finished run may be changed: a plan of one winner says nothing of two others."""
    now = [0.0]
    one = replace(planned(), targets={"few": TARGETS["few"]})
    for given in (one, planned(), one):
        with held(tmp_path / "run") as ledger:
            ledger.begin()
            run = Steps(given, Output(tmp_path / "run", resumed=True), Watch(), lambda: now[0])
            run.train(), run.search()
            record = run.tune()
            plan = kept(tmp_path / "run", "tune")
            assert len(record.winners) == len(plan["each"]) == len(plan["paces"]) == len(given.targets)
            now[0] += 50.0  # much later
            if not ended:
                write_json(run.output.path("plan/tune.json"), {**plan, "ended": None})
        assert plan["count"] > 10, "the time that the former winners used is not missing"


@pytest.mark.parametrize(
    ("paces", "taken", "pace"),
    [
        ([], 0.0, 1.0),
        ([1.0], 30.0, 1.0),
        ([1.0], 15.0, 35 / 15 * 30 / 20),
        ([1.0], 40.0, 0.5),
        ([1.0], 1000.0, PACES[0]),
        ([1.0], 1.0, PACES[1]),
        ([1.0, 2.0], 45.0, 1.0 * 60 / 45),
    ],
)
def test_what_is_left_is_for_the_winners_that_remain(paces: list[float], taken: float, pace: float) -> None:
    assert pace_of([30.0, 15.0, 5.0], paces, taken, 50.0) == pytest.approx(pace)
