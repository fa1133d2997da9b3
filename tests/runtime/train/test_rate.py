"""Learning rates of every step, against BootstrapNAS's documented formulas computed another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnas.runtime import CosineSchedule, Stage, TrainingError
from bnas.runtime.train.stages import rate_of


def annealed(start: float, count: int) -> list[float]:
    """The rates that PyTorch's own scheduler gives `count` steps, and the one after them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], start)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    rates = []
    for _ in range(count + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@given(epochs=st.integers(1, 6), steps=st.integers(1, 7), warmup=st.integers(0, 3), more=st.integers(0, 2))
def test_cosine_with_warm_up(epochs: int, steps: int, warmup: int, more: int) -> None:
    length = max(epochs, warmup + 1) + more
    rate = CosineSchedule(0.1, length, warmup, 0.001).rate(epochs, steps)
    warm = [0.001 + (0.1 - 0.001) * k / (warmup * steps) for k in range(1, warmup * steps + 1)]
    expected = warm + annealed(0.1, (length - warmup) * steps)
    assert [rate(step) for step in range(length * steps + 1)] == pytest.approx(expected, abs=1e-12)
    assert rate(length * steps) == pytest.approx(0, abs=1e-12)
    if warmup:  # the peer divides by all epochs, so that its rate ends above 0: that is told apart
        assert annealed(0.1, length * steps)[(length - warmup) * steps] > 1e-4


def test_schedule_is_as_long_as_the_stages_where_nothing_else_is_said() -> None:
    stages = [Stage(("depth",), 2), Stage(epochs=3)]
    rate = rate_of(stages, 4, 0.5, CosineSchedule(0.1))
    assert [rate(step) for step in range(21)] == pytest.approx(annealed(0.1, 20), abs=1e-12)
    assert rate(8) != pytest.approx(0.1)  # the second stage does not begin anew


def test_each_stage_has_a_cosine_of_its_own() -> None:
    stages = [Stage(epochs=2, init_lr=0.1), Stage(epochs=1, init_lr=0.2, epochs_lr=3), Stage(epochs=2)]
    rate = rate_of(stages, 5, 0.3, None)
    expected = annealed(0.1, 10)[:10] + annealed(0.2, 15)[:5] + annealed(0.3, 10)[:10]
    assert [rate(step) for step in range(25)] == pytest.approx(expected, abs=1e-12)
    assert expected[5] != pytest.approx(annealed(0.1, 15)[5])  # what a step of drift an epoch would give


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_lr": 0.0}, "base_lr is 0.0: must be greater than 0"),
        ({"base_lr": float("inf")}, "base_lr is inf: must be a finite number"),
        ({"base_lr": 0.1, "warmup_lr": -1.0}, "warmup_lr is -1.0: must be greater than 0"),
        ({"base_lr": 0.1, "warmup_epochs": -1}, "warmup_epochs is -1: must be greater than or equal to 0"),
        (
            {"base_lr": 0.1, "num_epochs": 2, "warmup_epochs": 2},
            "warmup_epochs is 2: must be less than num_epochs, which is 2",
        ),
    ],
)
def test_bounds(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        CosineSchedule(**settings)


@pytest.mark.parametrize(
    ("schedule", "epochs"), [(CosineSchedule(0.1, 2), 3), (CosineSchedule(0.1, None, 3), 3)], ids=["short", "all-warm"]
)
def test_schedule_too_short_for_the_stages(schedule: CosineSchedule, epochs: int) -> None:
    with pytest.raises(TrainingError, match=rf"lr_schedule ends after \d epochs .* the stages have {epochs}"):
        schedule.rate(epochs, 5)
    schedule.rate(2, 5) if schedule.num_epochs else schedule.rate(4, 5)


@pytest.mark.parametrize("setting", [{"init_lr": 0.1}, {"epochs_lr": 2}])
def test_rate_of_a_stage_contradicts_a_schedule(setting: dict[str, Any]) -> None:
    stages = [Stage(("depth",)), Stage(**setting)]
    key = next(iter(setting))
    with pytest.raises(TrainingError, match=rf"list_stage_descriptions\[1\].{key} contradicts lr_schedule"):
        rate_of(stages, 5, 0.1, CosineSchedule(0.1))
    rate_of(stages, 5, 0.1, None)
