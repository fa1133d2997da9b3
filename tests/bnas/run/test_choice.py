"""Smaller winners are chosen again in the weights that larger ones trained: what is chosen, kept, and handed back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from job_cases import job
from safetensors.torch import load_file

from bnas.page import write_page
from bnas.page.recorded import read_run
from bnas.passes import BnasError, Subnet
from bnas.run.files.output import Output
from bnas.run.job import Job, Watch
from bnas.run.pipeline import run_job
from bnas.run.search import SearchPlan
from bnas.run.steps import Steps
from bnas.run.winners.choice import Choice, Effort
from bnas.run.winners.tuned import read_record
from bnas.run.winners.winners import Chosen, Target, Winners, read_winners
from bnas.runtime import FineTune, SuperNetwork
from bnas.search import Constraint, Evaluation, Objective

TARGETS = {"most": Constraint.parse("macs <= 80 %"), "few": Constraint.parse("macs <= 30 %")}


def shared(**changes: Any) -> Job:
    tuning = FineTune(2, learning_rate=0.1, order="shared")
    return job(**{"targets": TARGETS, "int8": None, "fine_tune": tuning, **changes})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """A run whose search is finished."""
    steps = Steps(shared(), Output(tmp_path_factory.mktemp("run") / "run", resumed=True))
    steps.train()
    steps.search()
    return steps


def choice(steps: Steps, **changes: Any) -> Choice:
    made = replace(steps.job, **changes)
    plan = SearchPlan(made, steps.output, Watch(), steps.supernet)
    return Choice(plan, plan.fitted, steps.evaluator, read_winners(steps.output), steps._samples, Effort(24))


def other_weights(steps: Steps, seed: int) -> SuperNetwork:
    """The super-network with random weights: other sub-networks are good in it than the search found."""
    net = SuperNetwork.load(steps.output.folder / "supernet", steps.job.model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net


@pytest.mark.parametrize("seed", range(6))
def test_the_most_accurate_candidate_in_these_weights_is_chosen(searched: Steps, seed: int) -> None:
    """The oracle evaluates the whole space, one by one; candidates are a part of it, the search's choice among them."""
    net, before = other_weights(searched, seed), read_winners(searched.output).found["few"].subnet
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    larger = read_winners(searched.output).found["most"].subnet
    found = choice(searched)(net, "few", larger)
    limit, accuracy = 0.3 * net.costs(net.space.maximal())["macs"], searched.evaluator.on(net).evaluate
    assert found.evaluation.values["accuracy"] == accuracy(found.evaluation.subnet)["accuracy"]
    assert found.evaluation.values["macs"] == net.costs(found.evaluation.subnet)["macs"]
    assert found.missed == (found.evaluation.values["macs"] > limit)
    if net.costs(before)["macs"] <= limit:
        assert not found.missed
    if 0.9 * limit <= net.costs(before)["macs"] <= limit:
        assert found.evaluation.values["accuracy"] >= accuracy(before)["accuracy"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items()), "choosing trains nothing"


def test_candidates_come_from_the_larger_winner_and_the_search(
    searched: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    winners, seen = read_winners(searched.output), []
    evaluated = Choice._evaluated
    monkeypatch.setattr(
        Choice, "_evaluated", lambda self, plan, some: (seen.extend(some), evaluated(self, plan, some))[1]
    )
    larger = Subnet({name: 8 for name in searched.supernet.space.widths})
    larger = searched.supernet.space.canonical(searched.supernet.space.repair(larger))
    choice(searched)(other_weights(searched, 0), "few", larger)
    assert seen[0] == winners.found["few"].subnet
    assert len(seen) == len(set(seen)) <= Effort().candidates
    inside = [one for one in seen if all(one.widths[name] <= size for name, size in larger.widths.items())]
    assert inside, "the larger winner is pruned further down"
    seen.clear()
    few = replace(choice(searched), effort=Effort(24, 1))
    assert few(other_weights(searched, 0), "few", larger).evaluation.subnet == winners.found["few"].subnet
    assert seen == [winners.found["few"].subnet], "as many candidates as there is time for"


def test_constraints_of_the_search_hold(searched: Steps) -> None:
    net, winners = other_weights(searched, 1), read_winners(searched.output)
    settings = replace(searched.job.search, constraints=("parameters >= 5 k",))
    found = choice(searched, search=settings)(net, "few", winners.found["most"].subnet)
    assert found == Chosen(winners.found["few"], winners.targets["few"].missed), "nothing meets it: the search decides"


def channels(subnet: Subnet) -> float:
    return float(sum(subnet.widths.values()))


def test_a_bound_that_only_an_evaluation_knows_is_met_by_candidates_of_the_search(tmp_path: Path) -> None:
    targets = {"most": Constraint.parse("macs <= 80 %"), "few": Constraint.parse("channels <= 50 %")}
    objectives = (Objective("accuracy", "max"), Objective("channels", "min", channels))
    steps = Steps(shared(targets=targets, objectives=objectives), Output(tmp_path / "run", resumed=True))
    steps.train()
    steps.search()
    found = choice(steps)(other_weights(steps, 2), "few", read_winners(steps.output).found["most"].subnet)
    assert found.evaluation.values["channels"] == channels(found.evaluation.subnet) <= 8
    assert not found.missed


def test_a_missing_latency_model_is_told_before_a_winner_is_trained(tmp_path: Path) -> None:
    targets = {"most": Constraint.parse("macs <= 80 %"), "few": Constraint.parse("latency <= 90 %")}
    phases: list[str] = []
    steps = Steps(shared(targets=targets), Output(tmp_path / "run", resumed=True), Watch(phase=phases.append))
    steps.train()
    steps.search()
    (tmp_path / "run" / "latency.json").unlink()
    with pytest.raises(BnasError, match=r"latency\.json"):
        steps.tune()
    assert not [one for one in phases if one.startswith("fine-tuning")]


# In a run.


@pytest.fixture
def pruned_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every choice takes the smallest sub-network; the names that were chosen."""
    names: list[str] = []

    def smallest(self: Choice, net: SuperNetwork, name: str, larger: Subnet) -> Chosen:
        names.append(name)
        found = self._evaluated(replace(self.plan, supernet=net), [net.space.minimal()])
        return Chosen(replace(found.evaluations[0], index=77), False)

    monkeypatch.setattr(Choice, "_chosen", smallest)
    return names


def test_what_was_chosen_again_is_what_the_run_hands_back(tmp_path: Path, pruned_on: list[str]) -> None:
    report = run_job(shared(), tmp_path / "run")
    output = Output(tmp_path / "run", resumed=True)
    steps, record = Steps(shared(), output), read_record(output)
    assert pruned_on == ["few"], "the largest winner is the search's"
    minimal = steps.supernet.space.minimal()
    assert record is not None
    assert [one.subnet == minimal for one in record.winners] == [False, True]
    assert report.rows[-1].subnet == steps.winners().found["few"].subnet == minimal
    assert read_winners(output).found["few"].subnet == record.winners[1].searched
    weights = load_file(tmp_path / "run" / "tuning" / "few.safetensors")
    assert steps.module(minimal).state_dict().keys() == weights.keys()
    before = steps.evaluator.evaluate(minimal)["accuracy"]
    assert (record.winners[1].before, report.rows[-1].before) == (before, before)
    recorded = read_run(tmp_path / "run")
    assert not recorded.outdated
    assert recorded.again == ("few",)
    page = write_page(tmp_path / "run").read_text(encoding="utf-8")
    assert "Chosen during the fine-tuning, in the weights that larger winners trained: few." in page
    assert {**recorded.chosen}["few"].widths == dict(minimal.widths)  # type: ignore[dict-item]


def test_a_run_that_is_stopped_after_a_choice_keeps_it(tmp_path: Path, pruned_on: list[str]) -> None:
    whole = run_job(shared(), tmp_path / "whole")
    phases: list[str] = []

    class StopError(Exception):
        """Ends a run in the middle."""

    def on_step(_: Any) -> None:
        if phases[-1] == "fine-tuning few":
            raise StopError

    with pytest.raises(StopError):
        run_job(shared(), tmp_path / "run", Watch(phase=phases.append, on_step=on_step))
    pruned_on.clear()
    again = run_job(shared(), tmp_path / "run", resume=True)
    assert pruned_on == []
    assert [row.subnet for row in again.rows] == [row.subnet for row in whole.rows]
    files = [tmp_path / one / "tuning" / "few.safetensors" for one in ("whole", "run")]
    first, second = map(load_file, files)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_choice_of_other_winners_is_not_used(tmp_path: Path, pruned_on: list[str]) -> None:
    run_job(shared(), tmp_path / "run")
    output = Output(tmp_path / "run", resumed=True)
    winners, found = read_winners(output), read_record(output)
    assert found is not None
    record = replace(found, winners=tuple(replace(one, searched=found.winners[0].searched) for one in found.winners))
    assert record.applied(winners) == winners
    assert found.applied(winners) != winners


def test_winners_are_the_searchs_where_each_is_trained_alone(tmp_path: Path, pruned_on: list[str]) -> None:
    tuning = FineTune(1, learning_rate=0.1, order="separate")
    run_job(shared(fine_tune=tuning), tmp_path / "run")
    assert pruned_on == []


def test_a_winner_of_two_names_stays(tmp_path: Path, pruned_on: list[str]) -> None:
    same = {"most": "macs <= 80 %", "one": "macs <= 30 %", "two": "macs <= 30.1 %"}
    report = run_job(shared(targets={name: Constraint.parse(text) for name, text in same.items()}), tmp_path / "run")
    assert pruned_on == []
    assert report.rows[-1].subnet == report.rows[-2].subnet


def test_winners_after_a_choice_say_what_is_missed() -> None:
    some = [Evaluation(place, Subnet({"w": place + 1}), {"accuracy": 0.5}, 0.0) for place in range(3)]
    targets = {name: Target(Constraint.parse("macs <= 50 %"), False) for name in ("a", "b")}
    winners = Winners({"a": some[0], "b": some[1]}, 0.9, 0.01, 3, False, targets)
    found = winners.replaced({"b": Chosen(some[2], True)})
    assert (found.found, found.missed) == ({"a": some[0], "b": some[2]}, True)
    assert [one.missed for one in found.targets.values()] == [False, True]
