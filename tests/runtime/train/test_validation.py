"""What is measured after an epoch, what is kept as the best, and what the training ends with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import batches, plain, same, supernet, tensors

from bnas.runtime import EpochRecord, Evaluator, Stage, SuperNetwork, Trainer, TrainingError
from bnas.runtime.evaluate.evaluation import Batch, recalibrate
from bnas.runtime.train.validation import watched

HELD = batches(2, seed=7)


class Script:
    """A metric that says what stands written: one number an epoch, for each of the watched sub-networks."""

    def __init__(self, scores: Sequence[float], watch: int) -> None:
        self.left = iter([score for score in scores for _ in range(watch)])

    def __call__(self, module: nn.Module, data: Iterable[Batch]) -> float:
        return next(self.left)


def scripted(
    folder: Path | None, scores: Sequence[float], **options: Any
) -> tuple[tuple[EpochRecord, ...], dict[int, Any]]:
    """The records of a training with those scores, and what a training up to each epoch ends with."""
    stages = [Stage(epochs=len(scores))]
    metric = Script(scores, 3)
    trainer = Trainer(supernet(), stages, plain(), directory=folder, metric=metric, watch=1, **options)
    kept: dict[int, Any] = {}
    trainer.on_epoch = lambda record: kept.update({record.epoch: tensors(trainer.supernet)})
    return trainer.fit(batches(3), HELD), kept


@pytest.mark.parametrize(
    ("scores", "best"),
    [([80.0, 70.0, 90.0, 60.0], 2), ([80.0, 70.0, 60.0], 0), ([-3.0, -2.0, -1.0], 2)],
    ids=["third", "first", "last"],
)
def test_best_is_the_best(tmp_path: Path, scores: list[float], best: int) -> None:
    records, kept = scripted(tmp_path, scores)
    assert [record.score for record in records] == scores
    found = tensors(SuperNetwork.load(tmp_path / "best", supernet(seed=3).model))
    assert [same(found, kept[epoch]) for epoch in range(len(scores))] == [epoch == best for epoch in range(len(scores))]


def test_best_survives_a_resumed_training(tmp_path: Path) -> None:
    """The peer forgets what was best: an epoch after the resume must beat those before."""
    scripted(tmp_path / "whole", [80.0, 90.0, 85.0])
    stages = [Stage(epochs=3)]

    class Stop(Exception):
        pass

    def stop(record: EpochRecord) -> None:
        if record.epoch == 1:
            raise Stop

    options: dict[str, Any] = {"directory": tmp_path / "cut", "watch": 1, "checkpoint_every": 3}
    with pytest.raises(Stop):
        Trainer(supernet(), stages, plain(), metric=Script([80.0, 90.0], 3), on_epoch=stop, **options).fit(
            batches(3), HELD
        )
    records = Trainer(supernet(), stages, plain(), metric=Script([85.0], 3), **options).fit(
        batches(3), HELD, resume=True
    )
    assert [record.score for record in records] == [80.0, 90.0, 85.0]
    whole, cut = (SuperNetwork.load(tmp_path / name / "best", supernet().model) for name in ("whole", "cut"))
    assert same(tensors(whole), tensors(cut))
    last = json.loads((tmp_path / "cut" / "last" / "training.json").read_text())
    assert [one["metrics"]["maximal"] for one in last["state"]["history"]] == [80.0, 90.0, 85.0]
    whole_history, cut_history = (
        json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "cut")
    )
    assert whole_history == cut_history
    assert [one["metrics"]["minimal"] for one in cut_history["epochs"]] == [80.0, 90.0, 85.0]
    assert cut_history["stages"] == [{"train_dims": None, "epochs": 3}]
    assert cut_history["metric"] == "Script"


def test_record_holds_the_accuracies_that_an_evaluator_measures() -> None:
    net = supernet()
    data = batches(3)
    recipe = plain(num_bn_adaptation_samples=20, ema_decay=0.5)
    records = Trainer(net, [Stage(("depth",)), Stage()], recipe, watch=2).fit(data, HELD)
    subnets = watched(net.space, 2, recipe.seed)
    assert list(records[-1].metrics) == list(subnets) == ["maximal", "minimal", "random1", "random2"]
    calibration = [data[0], data[1], (data[2][0][:4], data[2][1][:4])]
    evaluator = Evaluator(net, calibration, HELD)  # the training ended with what its last epoch was measured on
    expected = {name: evaluator.measure(evaluator.prepare(subnet)) for name, subnet in subnets.items()}
    assert records[-1].metrics == expected
    assert [(record.epoch, record.stage) for record in records] == [(0, 0), (1, 1)]
    assert records[0].learning_rate == pytest.approx(0.0025)  # a cosine over 3 steps: the last one's
    assert records[-1].score == pytest.approx(sum(expected.values()) / 4)


def test_without_validation_data_nothing_is_measured(tmp_path: Path) -> None:
    net = supernet()
    records = Trainer(net, [Stage(epochs=2)], plain(), directory=tmp_path).fit(batches(3))
    assert [record.metrics for record in records] == [{}, {}]
    assert records[0].score == float("-inf")
    assert same(tensors(SuperNetwork.load(tmp_path / "best", supernet().model)), tensors(net))  # the last one


def test_loss_of_a_record_is_the_mean_of_its_steps() -> None:
    losses: list[float] = []
    trainer = Trainer(supernet(), [Stage(epochs=2)], plain(), on_step=lambda step: losses.append(step.loss))
    records = trainer.fit(batches(3))
    assert [record.loss for record in records] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])
    assert records[0].loss != pytest.approx(records[1].loss)


def test_training_does_not_depend_on_being_validated() -> None:
    nets = [supernet(dropout=0.5) for _ in range(2)]
    for net, held in zip(nets, (None, HELD), strict=True):
        torch.manual_seed(2)
        Trainer(net, [Stage(epochs=2, bn_adapt=True)], plain(num_bn_adaptation_samples=16)).fit(batches(3), held)
    assert same(tensors(nets[0]), tensors(nets[1]))


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [model.norm1.running_mean, model.norm1.running_var, model.norm2.running_mean, model.norm2.running_var]


def test_ends_with_statistics_of_the_maximal() -> None:
    net, data = supernet(dropout=0.4), batches(3)
    Trainer(net, [Stage()], plain(num_bn_adaptation_samples=24, ema_decay=0.9)).fit(data)
    found = [one.clone() for one in statistics(net.model)]
    recalibrate(net.model, data)
    for mine, expected in zip(found, statistics(net.model), strict=True):
        torch.testing.assert_close(mine, expected)
    recalibrate(net.model, data[:1])
    assert not torch.allclose(found[0], statistics(net.model)[0])


@pytest.mark.parametrize("adapt", [True, False])
def test_bn_adapt_recalibrates_before_the_stage(monkeypatch: pytest.MonkeyPatch, adapt: bool) -> None:
    from bnas.runtime.train.learner import Learner, Moment

    net, data = supernet(), batches(3)
    seen: dict[int, tuple[list[torch.Tensor], dict[str, torch.Tensor]]] = {}
    accumulate = Learner.accumulate

    def note(self: Learner, subnets: Any, group: Any, moment: Moment) -> list[float]:
        seen[moment.step] = ([one.clone() for one in statistics(net.model)], tensors(net))
        return accumulate(self, subnets, group, moment)

    monkeypatch.setattr(Learner, "accumulate", note)
    recipe = plain(num_bn_adaptation_samples=24)
    Trainer(net, [Stage(("depth",)), Stage(bn_adapt=adapt)], recipe).fit(data)
    other = supernet()
    other.load_state_dict(seen[3][1])
    recalibrate(other.model, data)
    close = [
        torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(seen[3][0], statistics(other.model), strict=True)
    ]
    assert all(close) is adapt


def test_bn_adapt_without_samples_is_an_error() -> None:
    with pytest.raises(TrainingError, match="bn_adapt needs samples, and num_bn_adaptation_samples is 0"):
        Trainer(supernet(), [Stage(bn_adapt=True)], plain())


def test_metric_that_is_no_number_names_the_subnetwork(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the metric of the sub-network 'maximal' is nan"):
        scripted(tmp_path, [float("nan")])


def test_files_need_a_directory() -> None:
    with pytest.raises(TrainingError, match="checkpoint_every needs a directory"):
        Trainer(supernet(), [Stage()], checkpoint_every=2)
    with pytest.raises(TrainingError, match="checkpoint_every: 0 is smaller than 1"):
        Trainer(supernet(), [Stage()], directory="x", checkpoint_every=0)
