"""The metric of a run: its values and differences in words, and winners by a metric of which less is better."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from bnas.passes import BnasError, Subnet
from bnas.run.job import Job, Splits
from bnas.run.quality import Quality
from bnas.run.search import check_task
from bnas.run.winners.winners import Winners, ranked
from bnas.runtime import EvaluationError, TrainingError
from bnas.search import Constraint, Evaluation, Objective, SearchError, SearchResult

MAE = Quality("mae", "min")


@pytest.mark.parametrize(
    ("quality", "values", "told"),
    [
        (Quality(), (0.896, 0.9), "at 0.4 points less accuracy"),
        (Quality(), (0.9001, 0.9), "at the same accuracy"),
        (Quality(), (0.9126, 0.9), "at 1.3 points more accuracy"),
        (MAE, (20.0, 20.001), "at the same mae"),
        (MAE, (0.5, 0.4), "at mae 0.5 (original: 0.4; lower is better)"),
        (Quality("f1"), (0.5, 0.4), "at f1 0.5 (original: 0.4; higher is better)"),
    ],
)
def test_a_network_against_the_original_in_words(quality: Quality, values: tuple[float, float], told: str) -> None:
    assert quality.told(*values) == told


def test_accuracies_are_told_in_percent_and_points_and_other_metrics_in_their_own_unit() -> None:
    assert [Quality().show(0.9126), Quality().amount(0.01), Quality().change(-0.004)] == [
        "91.26 %",
        "1 point",
        "-0.40 points",
    ]
    assert [MAE.show(0.9126), MAE.amount(0.01), MAE.change(-0.004)] == ["0.9126", "0.01 mae", "-0.004"]


@pytest.mark.parametrize(("quality", "lost"), [(MAE, 0.1), (Quality("f1"), -0.1)])
def test_worse_is_higher_or_lower(quality: Quality, lost: float) -> None:
    assert quality.lost(0.5, 0.4) == pytest.approx(lost)


# The choice of winners.


def searched(direction: Any) -> SearchResult:
    """The maximal sub-network, and three smaller ones with other values."""
    values = [(1.0, 100.0), (3.0, 50.0), (2.0, 50.0), (9.0, 10.0)]
    found = [
        Evaluation(place, Subnet(widths={"a": place}), {"mae": mae, "macs": macs}, 0.0)
        for place, (mae, macs) in enumerate(values)
    ]
    return SearchResult((Objective("mae", direction), Objective("macs", "min")), tuple(found), ())


@pytest.mark.parametrize(("direction", "best"), [("min", 2.0), ("max", 9.0)])
def test_the_best_within_a_bound_goes_by_the_direction(direction: str, best: float) -> None:
    first, *_ = ranked(searched(direction), Constraint.parse("macs <= 60"), by="mae")
    assert first.values["mae"] == best


@pytest.mark.parametrize(("delta", "missed", "smallest"), [(1.0, False, 50.0), (0.5, True, 100.0), (8.5, False, 10.0)])
def test_winners_may_lose_in_the_unit_of_the_metric(delta: float, missed: bool, smallest: float) -> None:
    winners = Winners.of(searched("min"), 1.0, delta, "mae")
    assert winners.missed == missed
    assert winners.found["best"].values["mae"] == 2.0
    assert winners.found["smallest"].values["macs"] == smallest


# What a job may say.


def job(**settings: Any) -> Job:
    return Job(nn.Linear(4, 1), Splits([], [], []), torch.zeros(1, 4), **settings)


def test_the_objectives_of_a_job_begin_with_its_metric() -> None:
    assert [(one.name, one.direction) for one in job(quality=MAE).sought] == [("mae", "min"), ("macs", "min")]
    assert job(quality=MAE).chosen_by == "mae"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quality": Quality("macs")}, "'macs' is already the name of another value"),
        ({"quality": MAE, "objectives": [Objective("accuracy", "max")]}, "'mae' must be one of them"),
        ({"quality": MAE, "objectives": [Objective("mae", "max")]}, "is 'max', but the metric says 'min'"),
        ({"quality": MAE, "objectives": [Objective("int8_accuracy", "max")]}, "leave out the objective or the metric"),
        ({"quality": MAE, "targets": {"half": "mae <= 3"}}, "winners are chosen by mae, so a target must bound a cost"),
    ],
)
def test_what_does_not_go_with_a_metric(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SearchError, match=told):
        job(**settings)


# The metric at work.


def mean_error(module: nn.Module, batches: Iterable[Any]) -> float:
    with torch.inference_mode():
        return float(torch.cat([(module(**inputs) - targets).abs() for inputs, targets in batches]).mean())


class Plus(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_a_metric_gets_pairs_whatever_the_loader_gives() -> None:
    x = torch.zeros(2, 1)
    batches = [{"x": x, "labels": x}, ({"x": x}, x + 3)]
    assert Quality("mae", "min", mean_error).measure(Plus(), batches) == 1.5


def test_what_a_metric_raises_is_told_with_its_line() -> None:
    with pytest.raises(
        EvaluationError, match=r"'mean_error' fails with .*test_quality.py:\d+; it is called as mean_error"
    ):
        Quality("mae", "min", mean_error).measure(Plus(), [(torch.zeros(2, 1), torch.zeros(2, 1))])


def test_a_metric_that_is_no_number_is_refused_with_what_to_look_for() -> None:
    nan = torch.full((2, 1), torch.nan)
    with pytest.raises(EvaluationError, match=r"'mae' is nan on the data, .*: look for NaN or inf"):
        Quality("mae", "min", mean_error).measure(Plus(), [({"x": nan}, nan)])


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(outputs, targets)


def wrong(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs["scores"].mean()


@pytest.mark.parametrize(
    ("metric", "criterion", "told"),
    [
        (lambda module, batches: module.nothing, squared, "metric '<lambda>' fails with AttributeError"),
        (
            lambda module, batches: 1.0,
            wrong,
            r"the criterion fails on outputs .*; it is called as criterion\(",
        ),
    ],
)
def test_what_is_wrong_with_metric_and_loss_shows_before_the_training(metric: Any, criterion: Any, told: str) -> None:
    batches = [(torch.zeros(2, 4), torch.zeros(2, 1))]
    settings = {"quality": Quality("mae", "min", metric), "training": {"criterion": criterion}}
    with pytest.raises(BnasError, match=told):
        check_task(Job(nn.Linear(4, 1), Splits(batches, batches, batches), torch.zeros(1, 4), **settings))
    right = {"quality": Quality("mae", "min", lambda *_: 1.0), "training": {"criterion": squared}}
    check_task(Job(nn.Linear(4, 1), Splits(batches, batches, batches), torch.zeros(1, 4), **right))


def test_the_loss_is_tried_on_training_targets_and_the_metric_on_those_of_validation() -> None:
    """An autoencoder learns to return its inputs; its validation targets say which of them are anomalies."""
    train, validation = [(torch.zeros(3, 4), torch.zeros(3, 4))], [(torch.zeros(3, 4), torch.tensor([0, 1, 1]))]

    def marked(module: nn.Module, batches: Iterable[Any]) -> float:
        return float(sum(marks.sum() for _, marks in batches))

    settings = {"quality": Quality("marked", "max", marked), "training": {"criterion": squared}}
    model, example = nn.Linear(4, 4), torch.zeros(1, 4)
    check_task(Job(model, Splits(train, validation, validation), example, **settings))
    with pytest.raises(TrainingError, match=r"the criterion fails on outputs of the model and targets \(3,\) int64"):
        check_task(Job(model, Splits(validation, validation, validation), example, **settings))


@pytest.mark.parametrize("found", ["0.9", True, None, torch.zeros(2)])
def test_a_metric_must_return_one_number(found: Any) -> None:
    with pytest.raises(EvaluationError, match=r"must return one number, such as 0\.93; it returned"):
        Quality("mine", "max", lambda *_: found).measure(Plus(), [])
    assert Quality("mine", "max", lambda *_: torch.tensor(0.9)).measure(Plus(), []) == pytest.approx(0.9)


def test_a_metric_that_needs_more_than_one_batch_is_measured_on_all() -> None:
    """As the area under a curve does, where the data are sorted by class."""
    batches = [(torch.randn(3, 4), torch.full((3, 1), float(label))) for label in (0, 1)]

    def apart(module: nn.Module, given: Iterable[Any]) -> float:
        kinds = {float(one) for _, targets in given for one in targets.flatten()}
        if len(kinds) < 2:
            raise ValueError("only one class is present")
        return 0.5

    def asked(data: Any) -> Job:
        return Job(nn.Linear(4, 1), Splits(data, data, data), torch.zeros(1, 4), quality=Quality("auc", "max", apart))

    check_task(asked(batches))
    one_class = asked([batches[0], batches[0]])
    with pytest.raises(EvaluationError, match="only one class is present"):
        check_task(one_class)
