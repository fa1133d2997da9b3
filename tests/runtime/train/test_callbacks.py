"""Callbacks of a training: when they are called and with what, that they change no number, and what their errors do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_cases import Broken, Noted
from resume_cases import RECIPE, STAGES, shuffled
from training_cases import batches, plain, same, supernet, tensors

from bnas.runtime import Stage, Trainer, TrainingCallback, TrainingError
from bnas.runtime.train import parallel

HELD = batches(1, seed=8)


def test_every_event_comes_in_its_place() -> None:
    noted = Noted()
    recipe = plain(rule="sandwich", learning_rate=0.05)
    records = Trainer(supernet(), [Stage(epochs=2)], recipe, watch=1, callbacks=[noted]).fit(batches(3), HELD)
    epoch = ["epoch start", *["step"] * 3, "epoch"]
    assert noted.events() == ["start", *epoch, *epoch, "end"]
    start, steps = noted.told[0][1], noted.all("step")
    assert (start.name, start.recipe, start.epochs, start.steps, start.taken) == ("", recipe, 2, 6, 0)
    assert [(one.epoch, one.step, one.steps, len(one.losses)) for one in steps] == [(n // 3, n, 6, 3) for n in range(6)]
    assert len({one.losses for one in steps}) == 6
    assert steps[0].learning_rate == 0.05 > steps[-1].learning_rate > 0
    assert tuple(noted.all("epoch")) == records == noted.told[-1][1]
    assert records[1].loss == pytest.approx(sum(one.loss for one in steps[3:]) / 3)
    with pytest.raises(FrozenInstanceError):
        steps[0].step = 7


def trained(directory: Path, *callbacks: TrainingCallback) -> dict[str, torch.Tensor]:
    """Of a training with dropout, random sub-networks and an order that the global generator gives."""
    net = supernet(dropout=0.4)
    torch.manual_seed(3)
    trainer = Trainer(net, STAGES, RECIPE, directory=directory, checkpoint_every=2, callbacks=callbacks)
    trainer.fit(shuffled(own_generator=False), HELD)
    return tensors(net)


def test_a_training_with_callbacks_is_bitwise_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = trained(tmp_path / "without")
    assert same(trained(tmp_path / "with", Noted(), Noted()), without)
    monkeypatch.setattr("bnas.runtime.train.random_state.Numbers._set", lambda _: None)
    assert not same(trained(tmp_path / "drawn", Noted()), without)


PLACES = [
    ("on_train_start", 1),
    ("on_epoch_start", 2),
    ("on_step_end", 1),
    ("on_step_end", 8),
    ("on_epoch_end", 1),
    ("on_epoch_end", 4),
    ("on_train_end", 1),
]


@pytest.mark.parametrize(("event", "count"), PLACES)
def test_an_error_of_a_callback_stops_a_training_that_can_be_resumed(event: str, count: int, tmp_path: Path) -> None:
    whole, noted = trained(tmp_path / "whole"), Noted()
    with pytest.raises(OSError, match="the server is gone"):
        trained(tmp_path / "cut", noted, Broken(event, count))
    assert list(map(str, noted.all("exception"))) == ["the server is gone"]
    assert ("end" in noted.events()) == (event == "on_train_end")
    again, net = Noted(), supernet(dropout=0.4)
    torch.manual_seed(3)
    trainer = Trainer(net, STAGES, RECIPE, directory=tmp_path / "cut", checkpoint_every=2, callbacks=[again])
    trainer.fit(shuffled(own_generator=False), HELD, resume=True)
    assert same(tensors(net), whole)
    taken = again.told[0][1].taken
    steps = [one.step for one in again.all("step")]
    assert steps == list(range(taken, 20))


def test_an_error_is_told_to_all_also_where_one_fails_again() -> None:
    class Worse(TrainingCallback):
        def on_exception(self, error: BaseException) -> None:
            raise RuntimeError("cannot close") from error

    first, last = Noted(), Noted()
    trainer = Trainer(supernet(), [Stage()], plain(), callbacks=[first, Worse(), last, Broken("on_step_end", 2)])
    with pytest.raises(RuntimeError, match="cannot close") as raised:
        trainer.fit(batches(3))
    assert isinstance(raised.value.__cause__, OSError)
    assert first.told[-1] == ("exception", raised.value.__cause__)
    assert last.told[-1][0] == "exception"


def test_only_process_0_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Noted()
    trainer = Trainer(supernet(), [Stage()], plain(), callbacks=[noted], on_step=lambda _: noted.note("function", None))
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    trainer.fit(batches(2))
    assert noted.told == []
    monkeypatch.setattr(parallel, "rank", lambda: 0)
    trainer.fit(batches(2))
    assert noted.events().count("step") == 2 == noted.events().count("function")


class Misspelt(Noted):
    """Has an event of its own under a wrong name, and another method whose name is none of bnas."""

    def on_epoch_ends(self, record: Any) -> None:
        """Never called."""

    def once(self) -> None:
        """Called by others."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: [print],
            "callbacks: <built-in function print> is not a callback: derive its class from bnas.Callback",
        ),
        (lambda: [Noted], "callbacks: <class '.*Noted'> is a class: give an object of it"),
        (lambda: Noted(), r"callbacks: .* is not a list; write callbacks=\[...\]"),
        (
            lambda: [Noted(), Misspelt()],
            "callbacks: Misspelt.on_epoch_ends would never be called; did you mean 'on_epoch_end'\\?",
        ),
    ],
)
def test_what_is_no_callback_is_told_at_once(given: Callable[[], Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Trainer(supernet(), [Stage()], callbacks=given())
