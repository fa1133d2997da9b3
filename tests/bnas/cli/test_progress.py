"""Progress in the terminal: the time that is left of each phase, bars that follow each other, and lines without one."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from bnas.cli import progress
from bnas.cli.progress import Phases, TimeLeft, seconds_left, watching
from bnas.passes import Subnet
from bnas.runtime import EpochRecord
from bnas.search import Evaluation


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(number: int, steps: int = 10, epoch: int = 0) -> Any:
    return SimpleNamespace(stage=0, epoch=epoch, step=number, steps=steps, loss=0.5)


def test_the_mean_speed_of_the_phase_counts() -> None:
    assert seconds_left(30.0, 10, 40) == pytest.approx(90.0)
    assert seconds_left(30.0, 40, 40) == 0.0
    assert seconds_left(30.0, 50, 40) == 0.0
    assert seconds_left(30.0, 0, 40) is None


def test_lines_say_how_long_the_phase_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, file = Clock(), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with watching(Console(file=file, width=200)) as watch:
        watch.phase("training")
        clock.now += 60
        watch.on_step(step(4))
        clock.now += 60
        watch.on_step(step(9))
        watch.phase("fine-tuning half")
        clock.now += 30
        watch.on_step(step(0, 4))
        watch.phase("searching")
        for number in range(20):
            clock.now += 1
            watch.on_evaluation(Evaluation(number, Subnet(), {"accuracy": 0.5}, 1.0), 60)
    lines = file.getvalue().splitlines()
    assert lines == [
        "training",
        "training, stage 1, epoch 1, loss 0.500, step 5 of 10, 5m left",
        "training, stage 1, epoch 1, loss 0.500, step 10 of 10",
        "fine-tuning half",
        "fine-tuning half, epoch 1, loss 0.500, step 1 of 4, 90s left",
        "searching",
        "searching, last accuracy 50.00 %, evaluation 20 of 60, 40s left",
    ]


@pytest.mark.parametrize(("epochs", "validated", "lines"), [(200, False, 20), (5, False, 5), (200, True, 200)])
def test_many_epochs_print_few_lines_unless_each_is_validated(epochs: int, validated: bool, lines: int) -> None:
    file = io.StringIO()
    with watching(Console(file=file, width=200)) as watch:
        watch.phase("training")
        for epoch in range(epochs):
            for number in range(3):
                watch.on_step(step(3 * epoch + number, 3 * epochs, epoch))
            watch.on_epoch(EpochRecord(epoch, 0, 0.5, 0.1, {"maximal": 0.9} if validated else {}))
    told = [line for line in file.getvalue().splitlines() if ": mean loss " in line]
    assert len(told) == lines
    assert told[-1].startswith(f"training, epoch {epochs}: mean loss 0.5")


def test_bars_follow_each_other_and_each_ends() -> None:
    clock, console = Clock(), Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(TimeLeft(), console=console, get_time=clock, auto_refresh=False) as bars:
        phases = Phases(bars, console)

        def shown() -> list[str]:
            return [str(TimeLeft().render(task)) for task in bars.tasks]

        phases.begin("loading model and data")
        clock.now += 3
        assert shown() == ["3s"]
        phases.begin("training")
        clock.now += 10
        phases.advance("training, stage 1", 7, 10, "step", False)  # six were done by an earlier process
        assert shown() == ["took 3s", "7 of 10, 30s left"]
        phases.begin("searching")
        clock.now += 2
        assert shown() == ["took 3s", "took 10s", "2s"]
        phases.advance("searching", 1, 1, "evaluation", False)
        clock.now += 5
        phases.end()
        assert shown() == ["took 3s", "took 10s", "took 2s"]
        assert [task.description for task in bars.tasks] == ["loading model and data", "training, stage 1", "searching"]


@pytest.mark.parametrize(
    ("phase", "told"), [("training", "maximal 90.00 %"), ("fine-tuning half", "validation accuracy 90.00 %")]
)
def test_an_epoch_names_the_network_only_where_there_are_several(phase: str, told: str) -> None:
    file = io.StringIO()
    with watching(Console(file=file, width=200)) as watch:
        watch.phase(phase)
        watch.on_epoch(EpochRecord(0, 0, 0.5, 0.1, {"maximal": 0.9}))
    assert file.getvalue().splitlines()[-1] == f"{phase}, epoch 1: mean loss 0.5000; {told}"


def test_results_stand_below_the_bars() -> None:
    file = io.StringIO()
    with watching(Console(file=file, force_terminal=True, width=120)) as watch:
        watch.phase("exporting and measuring")
        watch.on_results()
        Console(file=file, width=120).print("the results")
    assert file.getvalue().count("\n", file.getvalue().index("took"), file.getvalue().index("the results")) == 1
    assert "exporting" not in file.getvalue()[file.getvalue().index("the results") :]
