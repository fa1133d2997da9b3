"""The policy: which sizes a width may have, which symbols become variables, and what their names are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnas.passes import BnasError, Choices, Elasticity, ElasticityError, analyse, choose, find_blocks, trace

FINE = Elasticity(width_multipliers=(1.0, 0.5), min_width=1, divisor=1)


def choices_of(net: nn.Module, elasticity: Elasticity = FINE, size: int = 4) -> Choices:
    types = analyse(trace(net.eval(), torch.randn(2, 3, size, size)))
    return choose(types, find_blocks(types), elasticity)


# sizes


@pytest.mark.parametrize(
    ("settings", "full", "unit", "sizes"),
    [
        pytest.param({}, 64, 1, (32, 48, 64), id="defaults"),
        pytest.param({}, 40, 1, (16, 24, 40), id="rounded-down-to-the-divisor"),
        pytest.param({}, 20, 1, (8, 20), id="equal-sizes-once"),
        pytest.param({}, 12, 1, (8, 12), id="not-below-the-minimum"),
        pytest.param({}, 8, 1, (8,), id="at-the-minimum"),
        pytest.param({}, 6, 1, (6,), id="smaller-than-the-minimum"),
        pytest.param({}, 1, 1, (1,), id="one"),
        pytest.param({"divisor": 1, "min_width": 1}, 10, 1, (5, 7, 10), id="any-size"),
        pytest.param({"divisor": 1, "min_width": 1}, 3, 1, (1, 2, 3), id="down-to-one"),
        pytest.param({"width_multipliers": (0.5,)}, 32, 1, (16, 32), id="full-is-always-a-choice"),
        pytest.param({"width_multipliers": ()}, 32, 1, (32,), id="no-multipliers"),
        pytest.param(
            {"width_multipliers": (0.3, 0.9), "divisor": 1, "min_width": 1}, 10, 1, (3, 9, 10), id="exact-tenths"
        ),
        pytest.param({"width_multipliers": (0.01,), "min_width": 1}, 64, 1, (1, 64), id="rounds-to-nothing"),
        pytest.param({"max_num_widths": 2}, 64, 1, (48, 64), id="the-largest-two"),
        pytest.param({"max_num_widths": 1}, 64, 1, (64,), id="the-largest"),
        pytest.param({"max_num_widths": 9}, 64, 1, (32, 48, 64), id="more-than-there-are"),
        pytest.param({}, 8, 16, (4, 6, 8), id="heads-of-16"),
        pytest.param({}, 8, 4, (4, 6, 8), id="groups-of-4"),
        pytest.param({}, 6, 4, (2, 4, 6), id="groups-of-4-in-steps-of-8"),
        pytest.param({}, 4, 2, (4,), id="groups-of-2-at-the-minimum"),
        pytest.param({"min_width": 20}, 8, 4, (5, 6, 8), id="minimum-in-groups"),
    ],
)
def test_sizes_of_a_width(settings: dict[str, Any], full: int, unit: int, sizes: tuple[int, ...]) -> None:
    assert Elasticity(**settings).choices(full, unit) == sizes


@given(
    full=st.integers(1, 300),
    unit=st.integers(1, 32),
    multipliers=st.lists(st.floats(0.01, 1.0), max_size=4),
    least=st.integers(1, 40),
    divisor=st.integers(1, 16),
    count=st.none() | st.integers(1, 4),
)
def test_sizes_are_what_the_settings_allow(
    full: int, unit: int, multipliers: list[float], least: int, divisor: int, count: int | None
) -> None:
    elasticity = Elasticity(("width",), tuple(multipliers), least, divisor, count)
    sizes = elasticity.choices(full, unit)
    assert sizes[-1] == full
    assert list(sizes) == sorted(set(sizes))
    assert len(sizes) <= min(len(multipliers) + 1, count or 5)
    smallest = min(full, -(-least // unit))
    for size in sizes[:-1]:
        assert smallest <= size < full
        assert size == smallest or size * unit % divisor == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dimensions": ("depth", "kernels")}, "dimensions: 'kernels' is not one of depth, width, kernel"),
        ({"width_multipliers": (1.0, 1.5)}, r"width_multipliers: 1\.5 is not in \(0, 1\]"),
        ({"width_multipliers": (0.0,)}, r"width_multipliers: 0\.0 is not in"),
        ({"width_multipliers": (float("nan"),)}, "width_multipliers: nan is not in"),
        ({"min_width": 0}, "min_width: 0 is smaller than 1"),
        ({"divisor": -8}, "divisor: -8 is smaller than 1"),
        ({"max_num_widths": 0}, "max_num_widths: 0 is smaller than 1"),
        ({"min_kernel": 0}, "min_kernel: 0 is smaller than 1"),
        ({"max_num_kernels": -1}, "max_num_kernels: -1 is smaller than 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], reason: str) -> None:
    for make in (lambda: Elasticity(**settings), lambda: Elasticity.of(settings)):
        with pytest.raises(ElasticityError, match=reason) as caught:
            make()
        assert isinstance(caught.value, BnasError)
        assert isinstance(caught.value, ValueError)


def test_settings_from_a_file() -> None:
    assert Elasticity.of({}) == Elasticity()
    found = Elasticity.of({"dimensions": ["width"], "width_multipliers": [1.0, 0.5], "max_num_widths": None})
    assert found == Elasticity(("width",), (1.0, 0.5))
    assert hash(found) == hash(Elasticity(("width",), (1.0, 0.5)))
    with pytest.raises(ElasticityError, match="no setting 'width'; there are dimensions, width_multipliers, min_width"):
        Elasticity.of({"width": 3})


# variables


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.expand, self.project = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x + self.project(F.relu(self.expand(x))))


def test_widths_are_named_by_the_layer_that_makes_them() -> None:
    found = choices_of(Residual())
    assert found.space.widths == {"stem": (4, 8), "expand": (8, 16)}
    assert found.space.blocks == ("add",)
    assert {name: symbol.n for name, symbol in found.symbols.items()} == {"stem": 8, "expand": 16}
    assert found.blocks["add"].name == "add"


def test_widths_inside_a_block_are_known() -> None:
    assert choices_of(Residual()).space.inside == {"expand": (frozenset({"add"}),)}


@pytest.mark.parametrize(
    ("dimensions", "widths", "blocks"),
    [(("width",), 2, 0), (("depth",), 0, 1), ((), 0, 0), (("width", "depth"), 2, 1)],
)
def test_dimensions_can_be_switched_off(dimensions: tuple[str, ...], widths: int, blocks: int) -> None:
    found = choices_of(Residual(), Elasticity(dimensions, (1.0, 0.5), 1, 1))
    assert (len(found.space.widths), len(found.space.blocks)) == (widths, blocks)
    assert (len(found.symbols), len(found.blocks)) == (widths, blocks)


def test_a_width_with_one_choice_is_no_variable() -> None:
    found = choices_of(Residual(), Elasticity(width_multipliers=(1.0, 0.5), min_width=8))
    assert found.space.widths == {"expand": (8, 16)}
    assert found.symbols.keys() == {"expand"}


class Grouped(nn.Module):
    """Groups times channels: two symbols in one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.last = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.grouped(self.stem(x)))


def test_of_a_product_only_the_first_symbol_is_elastic() -> None:
    net = Grouped()
    types = analyse(trace(net.eval(), torch.randn(2, 3, 4, 4)))
    assert sorted(symbol.n for symbol in types.free_symbols()) == [4, 4, 8]
    found = choose(types, find_blocks(types), Elasticity())
    assert [symbol.n for symbol in found.symbols.values()] == [8]
    (sizes,) = found.space.widths.values()
    assert sizes == (4, 6, 8)  # groups of 4 channels: 16, 24 and 32 of them


class Parts(nn.Module):
    """Two symbols of one layer, cut by a concatenation that is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.whole(x) + torch.cat([self.left(x), self.right(x)], 1))


def test_several_widths_of_one_layer_are_numbered() -> None:
    widths = choices_of(Parts()).space.widths
    assert sorted(widths.values()) == [(2, 4), (4, 8)]
    assert list(widths) in (["left", "right"], ["whole#1", "whole#2"])


class Shared(nn.Module):
    """A layer used inside a block and outside it: its width always matters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.expand, self.project = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(F.relu(self.expand(x)))
        return self.last(self.project(self.expand(x).sigmoid()))


def test_a_width_that_is_used_outside_too_is_never_unused() -> None:
    found = choices_of(Shared())
    assert "expand" in found.space.widths
    assert found.space.inside == {}


def test_a_linear_layer_after_flatten_keeps_its_positions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10), nn.Linear(10, 2))
    assert choices_of(net).space.widths == {"0": (4, 8), "3": (5, 10)}
