"""Stages of progressive shrinking: their settings, and which may follow which."""

from __future__ import annotations

from itertools import chain, combinations, product
from typing import Any

import pytest
from training_cases import supernet

from bnas.runtime import Stage, TrainingError
from bnas.runtime.train.stages import PROGRESSIVITY, STAGES, check_stages


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_dims": ("depht",)}, r"train_dims\[0\] is 'depht': must be 'depth', 'width' or 'kernel'"),
        ({"train_dims": ()}, r"train_dims is \(\): must have at least 1 item"),
        ({"epochs": 0}, "epochs is 0: must be greater than or equal to 1"),
        ({"epochs": -3}, "epochs is -3: must be greater than or equal to 1"),
        ({"sample_rate": 0}, "sample_rate is 0: must be greater than or equal to 1"),
        ({"sample_rate": -1}, "sample_rate is -1: must be greater than or equal to 1"),
        ({"depth_indicator": 0}, "depth_indicator is 0: must be greater than or equal to 1"),
        ({"width_indicator": 0}, "width_indicator is 0: must be greater than or equal to 1"),
        ({"epochs_lr": 0}, "epochs_lr is 0: must be greater than or equal to 1"),
        ({"epochs": 3, "epochs_lr": 2}, "epochs_lr is 2: smaller than the 3 epochs"),
        ({"init_lr": 0.0}, "init_lr is 0.0: must be greater than 0"),
        ({"init_lr": float("nan")}, "init_lr is nan: must be a finite number"),
        ({"init_lr": float("inf")}, "init_lr is inf: must be a finite number"),
    ],
)
def test_settings_of_a_stage_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Stage(**settings)


def test_bounds_themselves_are_allowed() -> None:
    stage = Stage(("width",), 2, 1, 1, init_lr=1e-9, epochs_lr=2, sample_rate=1)
    assert (stage.epochs, stage.epochs_lr, stage.sample_rate) == (2, 2, 1)


def test_stage_restricts_the_space_as_it_says() -> None:
    space = supernet().space
    depth = Stage(("depth",)).space(space)
    assert depth.blocks == space.blocks
    assert space.blocks
    assert all(len(choices) == 1 for choices in depth.widths.values())
    two = Stage(width_indicator=2).space(space)
    assert {name: choices[-2:] for name, choices in space.widths.items()} == dict(two.widths)
    one = Stage(width_indicator=1).space(space)
    assert all(len(choices) == 1 for choices in one.widths.values())
    assert any(len(choices) > 1 for choices in space.widths.values())
    assert Stage(depth_indicator=1).space(space).depth_limit == 1
    assert not Stage(("width",)).space(space).blocks
    assert Stage().space(space).size == space.size


DIMS = [frozenset(c) for n in (1, 2, 3) for c in combinations(PROGRESSIVITY, n)]


def allowed(stages: tuple[frozenset[str], ...], available: frozenset[str], order: tuple[str, ...]) -> bool:
    """BootstrapNAS's documented rule, in its own words: indices in the order of the available dimensions."""
    places = [name for name in order if name in available]
    lowest, highest = len(places), -1
    for dims in stages:
        if not dims <= available:
            return False
        indices = sorted(places.index(name) for name in dims)
        if indices[0] > lowest or indices[-1] < highest:
            return False
        if indices != list(range(indices[0], indices[-1] + 1)):
            return False
        lowest, highest = indices[0], indices[-1]
    return True


@pytest.mark.parametrize("available", DIMS, ids=lambda dims: "-".join(sorted(dims)))
@pytest.mark.parametrize("order", [PROGRESSIVITY, ("width", "depth", "kernel")], ids=["peer", "turned"])
def test_progressivity_is_that_of_the_peer(available: frozenset[str], order: tuple[str, ...]) -> None:
    verdicts = set()
    for dims in chain(product(DIMS), product(DIMS, DIMS), product(DIMS, DIMS[:4], DIMS[3:])):
        expected = allowed(dims, available, order)
        try:
            check_stages([Stage(tuple(sorted(one))) for one in dims], sorted(available), order)
            found = True
        except TrainingError:
            found = False
        assert found == expected, (dims, available)
        verdicts.add(expected)
    assert verdicts == {True, False}


@pytest.mark.parametrize(
    ("dims", "available", "message"),
    [
        ([("kernel",)], ("depth", "width"), r"\[0\].train_dims: 'kernel' is not elastic .* elastic are depth, width"),
        ([("depth", "width"), ("width",)], PROGRESSIVITY, r"\[1\].train_dims: 'depth' is missing"),
        ([("kernel", "width")], PROGRESSIVITY, r"\[0\].train_dims: 'depth' is missing between"),
        ([None, ("depth",)], PROGRESSIVITY, r"\[1\].train_dims: 'kernel' is missing"),
        ([], PROGRESSIVITY, "stages is empty"),
    ],
)
def test_faults_name_stage_and_dimension(dims: list[Any], available: tuple[str, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        check_stages([Stage(one) for one in dims], available)


def test_progressivity_names_all_that_is_elastic() -> None:
    with pytest.raises(TrainingError, match="progressivity_of_elasticity: kernel, depth leaves out 'width'"):
        check_stages([Stage(("depth",))], ("depth", "width"), ("kernel", "depth"))
    check_stages([Stage(("depth",))], ("depth",), ("kernel", "depth"))


def test_missing_dims_are_all_that_there_are() -> None:
    check_stages([Stage(), Stage()], ("depth", "width"))
    check_stages([Stage(("depth",)), Stage()], ("depth", "width"))
    check_stages(STAGES, PROGRESSIVITY)
