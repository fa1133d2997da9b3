"""Fine-tuning of winners inside a run: what it leaves, resumed where it was stopped, before and after in the report."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from job_cases import Shuffled, job
from safetensors.torch import load_file

from bnas.page import write_page
from bnas.run.files.mark import OutputError
from bnas.run.files.output import Output
from bnas.run.job import Job, Watch
from bnas.run.pipeline import run_job
from bnas.run.steps import Steps
from bnas.run.winners.tuned import read_record, tuned_modules
from bnas.runtime import Distillation, FineTune, Recipe, TrainingError
from bnas.runtime.storage.files import there
from bnas.search import Constraint

TARGETS = {"most": Constraint.parse("macs <= 80 %"), "few": Constraint.parse("macs <= 25 %")}
ORDERS = ("separate", "shared")


def tuned(order: Any = "separate", **changes: Any) -> Job:
    return job(targets=TARGETS, int8=None, fine_tune=FineTune(2, learning_rate=0.1, order=order), **changes)


def weights(folder: Path) -> dict[str, str]:
    """The tuned winners and what was exported, by digest."""
    files = [*(folder / "tuning").glob("*.safetensors"), *(folder / "subnets").glob("*.safetensors")]
    return {str(one.relative_to(folder)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


@pytest.fixture(scope="module", params=ORDERS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run that nobody disturbed, in each order."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_job(tuned(request.param), folder)
    return request.param, folder


@pytest.mark.parametrize("order", ORDERS)
def test_winners_are_better_after_it(order: Any, tmp_path: Path) -> None:
    settings = FineTune(15, learning_rate=0.2, distillation=None, order=order)
    report = run_job(replace(tuned(), fine_tune=settings), tmp_path / "run")
    for row in report.rows[1:]:
        assert row.before is not None
        assert row.accuracy > row.before + 0.1


def test_the_report_says_what_winners_were_before_and_after(whole: tuple[str, Path]) -> None:
    _, folder = whole
    record, rows = read_record(Output(folder)), json.loads((folder / "report.json").read_text())["rows"]
    assert record is not None
    assert record.finished
    assert [one.name for one in record.winners] == ["most", "few"], "the larger one is first"
    original, *winners = rows
    assert original["test_accuracy_before"] is None
    for one, row in zip(record.winners, winners, strict=True):  # validation and test data are the same here
        assert (one.before, one.after) == (row["test_accuracy_before"], row["test_accuracy"])
    page = write_page(folder).read_text(encoding="utf-8")
    assert f"{100 * winners[0]['test_accuracy_before']:.2f} % before fine-tuning" in page
    table = (folder / "report" / "winners.csv").read_text().splitlines()
    assert table[0].split(",")[2] == "test_accuracy_before"
    assert float(table[2].split(",")[2]) == winners[0]["test_accuracy_before"]


def test_what_is_exported_is_what_was_tuned(whole: tuple[str, Path]) -> None:
    _, folder = whole
    for name in TARGETS:
        mine, exported = (load_file(folder / place / f"{name}.safetensors") for place in ("tuning", "subnets"))
        assert mine.keys() == exported.keys()
        assert all(torch.equal(tensor, exported[key]) for key, tensor in mine.items())
    steps = Steps(tuned(), Output(folder, resumed=True))
    subnet = steps.winners().found["few"].subnet
    state = steps.module(subnet).state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in mine.items())
    plain = steps.evaluator.prepare(subnet).state_dict()
    assert not torch.equal(plain["head.weight"], mine["head.weight"])


def test_the_super_network_of_the_run_stays_as_it_is(whole: tuple[str, Path], tmp_path: Path) -> None:
    order, folder = whole
    run_job(replace(tuned(order), fine_tune=None), tmp_path / "without")
    names = [one.name for one in (folder / "supernet").glob("*.safetensors")]
    assert names == [one.name for one in (tmp_path / "without/supernet").glob("*.safetensors")], "named by content"


class StopError(Exception):
    """Ends a run in the middle."""


def stopping(after: int, where: str) -> Watch:
    """Stops after so many steps of the phase `where`."""
    phases, steps = [""], [0]

    def on_step(_: Any) -> None:
        steps[0] += phases[-1] == where
        if steps[0] == after:
            raise StopError

    return Watch(phase=phases.append, on_step=on_step)


@pytest.mark.parametrize(("after", "where"), [(3, "fine-tuning most"), (6, "fine-tuning most"), (3, "fine-tuning few")])
def test_a_stopped_fine_tuning_goes_on_to_the_bit(
    whole: tuple[str, Path], after: int, where: str, tmp_path: Path
) -> None:
    order, folder = whole
    with pytest.raises(StopError):
        run_job(tuned(order, training={"checkpoint_every": 1}), tmp_path / "run", stopping(after, where))
    assert there(tmp_path / "run" / "tuning.json")
    assert not there(tmp_path / "run" / "report.json")
    run_job(tuned(order, training={"checkpoint_every": 1}), tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(folder)


def test_the_orders_differ_where_one_goes_on_with_what_another_trained(tmp_path: Path) -> None:
    found = {}
    for order in ORDERS:
        run_job(tuned(order), tmp_path / order)
        found[order] = load_file(tmp_path / order / "tuning" / "few.safetensors")
    assert not torch.equal(found["separate"]["stem.weight"], found["shared"]["stem.weight"])


@pytest.mark.parametrize("order", ORDERS)
def test_small_winners_are_trained_less_long_where_they_share(order: str, tmp_path: Path) -> None:
    steps = dict.fromkeys(("fine-tuning most", "fine-tuning few"), 0)
    phases = [""]

    def on_step(_: Any) -> None:
        if phases[-1] in steps:
            steps[phases[-1]] += 1

    longer = replace(tuned(), fine_tune=FineTune(epochs=4, order=order))
    report = run_job(longer, tmp_path, Watch(phases.append, on_step=on_step))
    macs = {row.name: row.costs["macs"] for row in report.rows}
    most, few = steps.values()
    expected = (macs["few"] / macs["most"]) ** 0.5 if order == "shared" else 1.0
    assert few / most == pytest.approx(expected, abs=1 / most + 0.05)


def test_a_finished_fine_tuning_is_not_done_again(whole: tuple[str, Path], tmp_path: Path) -> None:
    order, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    before = {one: one.stat().st_mtime_ns for one in (tmp_path / "run" / "tuning").rglob("*")}
    phases: list[str] = []
    run_job(tuned(order), tmp_path / "run", Watch(phases.append), resume=True)
    assert {one: one.stat().st_mtime_ns for one in (tmp_path / "run" / "tuning").rglob("*")} == before
    assert not any("tuning" in one for one in phases)


def test_other_winners_are_tuned_anew_and_others_are_not_exported(whole: tuple[str, Path], tmp_path: Path) -> None:
    order, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    other = replace(tuned(order), targets={"few": Constraint.parse("macs <= 30 %")})
    steps = Steps(other, Output(tmp_path / "run", resumed=True))
    winners = steps.search()
    with pytest.raises(
        OutputError, match=r"no finished fine-tuning of its winners; run it with `bnas tune .*run --resume`"
    ):
        steps.export()
    record = steps.tune()
    assert [one.name for one in record.winners] == ["few"]
    assert not there(tmp_path / "run" / "tuning" / "most.safetensors"), "left from other winners"
    assert list(tuned_modules(steps.output, steps.supernet, winners)) == [winners.found["few"].subnet]
    steps.export()


def test_settings_that_a_fine_tuning_has_used_are_not_changed(whole: tuple[str, Path], tmp_path: Path) -> None:
    order, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    changed = replace(tuned(order), fine_tune=FineTune(3, learning_rate=0.1, order=order))
    with pytest.raises(OutputError, match=r"job\.fine_tune\.epochs was 2 and is now 3"):
        run_job(changed, tmp_path / "run", resume=True)


def test_a_winner_of_two_names_is_tuned_once(tmp_path: Path) -> None:
    same = {"one": Constraint.parse("macs <= 80 %"), "two": Constraint.parse("macs <= 81 %")}
    report = run_job(replace(tuned(), targets=same), tmp_path / "run")
    record = read_record(Output(tmp_path / "run"))
    assert record is not None
    assert [one.name for one in record.winners] == ["one"]
    _, one, two = report.rows
    assert one.before is not None
    assert (one.accuracy, one.before) == (two.accuracy, two.before)


def test_without_settings_nothing_is_tuned(tmp_path: Path) -> None:
    given = replace(tuned(), fine_tune=None)
    assert all(row.before is None for row in run_job(given, tmp_path / "run").rows)
    assert not there(tmp_path / "run" / "tuning.json")
    with pytest.raises(OutputError, match="give fine_tune, at least its number of epochs"):
        Steps(given, Output(tmp_path / "run", resumed=True)).tune()


def test_the_recipe_of_a_winner_is_that_of_the_run_but_for_what_is_said() -> None:
    base = Recipe(rule="sandwich", subnets_per_step=4, sampling="attentive", clip_norm=2.0, label_smoothing=0.1)
    found = FineTune(3).recipe(base)
    assert (found.rule, found.subnets_per_step, found.sampling) == ("maximal", 1, "uniform")
    assert (found.learning_rate, found.weight_decay, found.clip_norm) == (0.025, 5e-4, 10.0)
    assert found.distillation == Distillation("original", hard=1.0)
    assert found.label_smoothing == 0.1
    adam = FineTune(3).recipe(Recipe(optimizer="adamw", learning_rate=1e-4, weight_decay=0.05))
    assert (adam.learning_rate, adam.weight_decay) == (1e-4, 0.05)
    given = FineTune(3, learning_rate=0.5, weight_decay=0.0, distillation=None, train_steps=48).recipe(base)
    assert (given.learning_rate, given.weight_decay, given.distillation, given.train_steps) == (0.5, 0.0, None, 48)
    with pytest.raises(TrainingError, match='its teacher must be "original"'):
        FineTune(3, distillation=Distillation())


def test_data_in_an_order_of_their_own_do_not_depend_on_what_was_drawn_before() -> None:
    """What the tests above rely on: their loader has another order each time."""
    loader = Shuffled(0)
    first, second = ([targets.tolist() for _, targets in loader] for _ in range(2))
    assert first != second
