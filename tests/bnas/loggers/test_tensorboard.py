"""TensorBoard as a logger: what it reads back, also after an interruption."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from logger_cases import Stop, search, train

from bnas.loggers import LoggerError, TensorBoard
from bnas.search import EvaluationLog

Scalars = dict[str, list[tuple[int, float]]]


def read(directory: Path) -> Scalars:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_step_and_epoch_is_there(tmp_path: Path) -> None:
    kept = train(TensorBoard(tmp_path))
    told = read(tmp_path)
    assert set(told) == {"train/loss", "train/learning_rate", "val/maximal", "val/minimal", "val/random1"}
    for name, values in (
        ("train/loss", [one.loss for one in kept.steps]),
        ("train/learning_rate", [one.learning_rate for one in kept.steps]),
    ):
        assert told[name] == [(n, pytest.approx(value)) for n, value in enumerate(values, 1)]
    for name in kept.epochs[0].metrics:
        assert told[f"val/{name}"] == [(3 * n, pytest.approx(r.metrics[name])) for n, r in enumerate(kept.epochs, 1)]


def test_every_step_is_there_once_after_resuming(tmp_path: Path) -> None:
    options: dict[str, Any] = {"directory": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):  # after the fifth step, with a checkpoint after the fourth
        train(TensorBoard(tmp_path / "events"), Stop(steps=5), **options)
    assert [step for step, _ in read(tmp_path / "events")["train/loss"]] == [1, 2, 3, 4, 5]
    train(TensorBoard(tmp_path / "events"), **options)
    told = read(tmp_path / "events")
    assert [step for step, _ in told["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in told["val/maximal"]] == [3, 6]


def test_every_evaluation_is_there_once_after_resuming(tmp_path: Path) -> None:
    log, logger = EvaluationLog(), TensorBoard(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        search(logger, Stop(evaluations=7), log=log)
    _, kept = search(logger, log=log)
    told = read(tmp_path)
    assert told["search/evaluations"] == [(n, n) for n in range(1, 13)]
    assert told["search/hypervolume"] == [(n, pytest.approx(r.hypervolume)) for n, r in enumerate(kept.evaluations, 1)]
    best = [(n, pytest.approx(r.best)) for n, r in enumerate(kept.evaluations, 1) if r.best is not None]
    assert told["search/best_accuracy"] == best
    assert 6 < len(best) < 12
    done = [(r.evaluation.index + 1, r.evaluation.values) for r in kept.evaluations if r.evaluation.failure is None]
    assert told["search/last_macs"] == [(number, values["macs"]) for number, values in done]
    assert len(done) == 11


def test_training_search_and_a_named_training_share_a_directory(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    train(logger)
    for _ in range(2):
        search(logger)
    train(logger, name="half")
    assert len(read(tmp_path)["train/loss"]) == 6
    assert len(read(tmp_path)["search/evaluations"]) == 12
    assert len(read(tmp_path / "half")["train/loss"]) == 6


def test_missing_tensorboard_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(LoggerError, match=r"tensorboard cannot be imported \(.*\): pip install 'bnas\[tensorboard\]'"):
        TensorBoard(tmp_path)
    assert not list(tmp_path.iterdir())
