"""The width policy: which sizes a width may have, which symbols become variables, and what their names are."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnas.passes import BnasError, Choices, Elasticity, ElasticityError, analyse, choose, find_blocks, trace
from bnas.passes.space.scopes import find_vetoes
from bnas.passes.space.widths import find_widths, tie_groups
from bnas.runtime import SuperNetwork
from bnas.testing import assert_extracted_is_oracle, assert_program_is_extracted

FINE = Elasticity(width_multipliers=(1.0, 0.5), min_width=1, divisor=1)


def choices_of(net: nn.Module, elasticity: Elasticity = FINE, size: int = 4) -> Choices:
    types = analyse(trace(net.eval(), torch.randn(2, 3, size, size)))
    tie_groups(types, elasticity.overwrite_groups or ())
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
        pytest.param({"width_step": 32, "min_width": 32}, 144, 1, (48, 80, 112, 144), id="steps-as-in-the-peer"),
        pytest.param({"width_step": 32, "min_width": 32}, 64, 1, (32, 64), id="steps-down-to-the-minimum"),
        pytest.param({"width_step": 32, "max_num_widths": 3}, 2048, 1, (1984, 2016, 2048), id="three-steps"),
        pytest.param({"width_step": 32}, 100, 1, (32, 64, 100), id="steps-are-rounded"),
        pytest.param({"width_step": 200}, 100, 1, (100,), id="step-larger-than-the-width"),
        pytest.param({"width_step": 32}, 4, 32, (1, 2, 3, 4), id="steps-of-one-head"),
        pytest.param({"width_step": 32, "width_multipliers": (0.5,)}, 64, 1, (32, 64), id="multipliers-come-first"),
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
        (
            {"dimensions": ("depth", "kernels")},
            r"dimensions\[1\] is 'kernels': must be 'depth', 'width' or 'kernel'; did you mean 'kernel'",
        ),
        ({"width_multipliers": (1.0, 1.5)}, r"width_multipliers\[1\] is 1\.5: must be less than or equal to 1"),
        ({"width_multipliers": (0.0,)}, r"width_multipliers\[0\] is 0\.0: must be greater than 0"),
        ({"width_multipliers": (float("nan"),)}, r"width_multipliers\[0\] is nan: must be a finite number"),
        ({"min_width": 0}, "min_width is 0: must be greater than or equal to 1"),
        ({"divisor": -8}, "divisor is -8: must be greater than or equal to 1"),
        ({"max_num_widths": 0}, "max_num_widths is 0: must be greater than or equal to 1"),
        ({"min_kernel": 0}, "min_kernel is 0: must be greater than or equal to 1"),
        ({"max_num_kernels": -1}, "max_num_kernels is -1: must be greater than or equal to 1"),
        ({"width_step": 0}, "width_step is 0: must be greater than or equal to 1"),
        ({"widths": {"a": []}}, r"widths\.a is \[\]: must have at least 1 item"),
        ({"widths": {"a": [0, 4]}}, r"widths\.a\[0\] is 0: must be greater than or equal to 1"),
        ({"widths": [1.0]}, r"widths is \[1\.0\]: must be a valid dictionary"),
        ({"overwrite_groups": [["a"]], "overwrite_groups_widths": []}, "0 lists for 1 groups of overwrite_groups"),
        (
            {"filter_importance": "L3"},
            "filter_importance is 'L3': must be 'L1', 'L2', 'geometric_median', 'taylor' or 'external'",
        ),
        ({"filter_importance": "external"}, "'external' and external_importance_path need each other"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ElasticityError, match=reason) as caught:
        Elasticity(**settings)
    assert isinstance(caught.value, BnasError)
    assert isinstance(caught.value, ValueError)


def test_all_settings_out_of_bounds_are_told_at_once() -> None:
    with pytest.raises(ElasticityError) as caught:
        Elasticity(min_width=0, filter_importance="L3", divsor=8)  # type: ignore[arg-type,call-arg]
    assert str(caught.value).splitlines() == [
        "Elasticity: 3 faults",
        "  min_width is 0: must be greater than or equal to 1",
        "  filter_importance is 'L3': must be 'L1', 'L2', 'geometric_median', 'taylor' or 'external'",
        "  divsor is not a setting of Elasticity; did you mean 'divisor'?",
    ]


def test_settings_from_a_file() -> None:
    assert hash(Elasticity()) == hash(Elasticity(("depth", "width", "kernel")))
    found = Elasticity(**{"dimensions": ["width"], "width_multipliers": [1.0, 0.5], "max_num_widths": None})
    assert found == Elasticity(("width",), (1.0, 0.5))
    assert hash(found) == hash(Elasticity(("width",), (1.0, 0.5)))
    named = Elasticity(**{"widths": {"a": [2, 4]}, "pin": "b", "filter_importance": "geometric mean"})
    assert (named.sizes, named.pin, named.filter_importance) == ({"a": (2, 4)}, ("b",), "geometric_median")
    assert Elasticity(**json.loads(json.dumps(asdict(named)))) == named
    with pytest.raises(ElasticityError, match="width is not a setting of Elasticity; did you mean 'widths'"):
        Elasticity(**{"width": 3})


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


# overrides


class Heads(nn.Module):
    """Heads times head size, with a gain for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.values, self.last = nn.Linear(3, 16), nn.Linear(16, 32), nn.Linear(32, 2)
        self.gain = nn.Parameter(torch.rand(8, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        heads = self.values(x).reshape(x.shape[0], x.shape[1], 8, 4) * self.gain
        return self.last(heads.reshape(x.shape[0], x.shape[1], 32)).mean(1)


def refused(net: nn.Module, elasticity: Elasticity) -> dict[str, str]:
    types = analyse(trace(net.eval(), torch.randn(2, 3, 4, 4)))
    return {one.place: one.reason for one in find_widths(types, elasticity, find_vetoes(types.ir, elasticity)).refused}


def test_heads_are_elastic_and_the_head_size_only_when_it_is_named() -> None:
    assert choices_of(Heads(), Elasticity()).space.widths == {"embed": (8, 16), "values": (4, 6, 8)}
    assert "head size" in refused(Heads(), Elasticity())["values:inner"]
    sizes = choices_of(Heads(), Elasticity(widths={"values:inner": [3]})).space.widths
    assert sizes == {"embed": (8, 16), "values": (4, 6, 8), "values:inner": (3, 4)}
    assert "values:inner" not in choices_of(Heads(), Elasticity(widths={"*": [3]})).space.widths
    assert choices_of(Heads(), Elasticity(widths={"*:inner": [1]})).space.widths["values:inner"] == (1, 4)


@pytest.mark.parametrize("net", [Heads, Grouped, Residual])
def test_subnets_of_single_sizes_compute_what_the_oracle_does(net: type[nn.Module]) -> None:
    settings = {"min_width": 1, "divisor": 1, "widths": {"stem*": [3]}, "dimensions": ("width",)}
    if net is not Residual:
        name = "values:inner" if net is Heads else next(n for n in refused(net(), FINE) if ":inner" in n)
        settings["widths"] = {name: [1, 3]}
    inputs = torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(net().eval(), inputs, settings)
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        assert_program_is_extracted(supernet, subnet, inputs)
        assert_extracted_is_oracle(supernet, subnet, inputs)


def test_single_sizes_by_name_and_glob() -> None:
    found = choices_of(Residual(), Elasticity(widths={"*e*": [1], "expand": [5, 3]})).space.widths
    assert found == {"stem": (1, 8), "expand": (3, 5, 16)}
    assert choices_of(Residual(), Elasticity(widths={"expand": [16]})).space.widths == {}
    assert Elasticity(widths={"expand": range(3, 6)}) == Elasticity(widths={"expand": [3, 4, 5]})
    with pytest.raises(ElasticityError, match="widths: 17 for expand; allowed are 1 up to 16, its full size"):
        choices_of(Residual(), Elasticity(widths={"expand": [17]}))
    with pytest.raises(ElasticityError, match=r"'expnd' matches no width; the nearest are expand"):
        choices_of(Residual(), Elasticity(widths={"expnd": [8]}))


@pytest.mark.parametrize(
    ("settings", "widths", "blocks", "reasons"),
    [
        (
            {"ignored_scopes": ["expand"]},
            {"stem"},
            0,
            {"add": "contains a part of ignored", "expand": "ignored_scopes"},
        ),
        ({"ignored_scopes": ["project"]}, {"expand"}, 0, {"stem": "a layer of ignored_scopes produces it"}),
        ({"ignored_scopes": ["last"]}, {"stem", "expand"}, 1, {}),
        (
            {"target_scopes": ["expand", "project"]},
            {"expand"},
            0,
            {"stem": "layers outside target_scopes also produce it"},
        ),
        ({"target_scopes": ["stem", "project"]}, {"stem"}, 0, {"add": "it is not inside target_scopes"}),
        ({"target_scopes": ["Residual"]}, {"stem", "expand"}, 1, {}),
        ({"pin": ["last.weight"]}, {"expand"}, 1, {"stem": "pinned by a setting"}),
        (
            {"pin": ["project"]},
            set(),
            0,
            {"add": "something inside it is pinned by a setting", "expand": "pinned by a setting"},
        ),
        ({"pin": ["expand.bias"]}, {"stem"}, 0, {"add": "something inside it is pinned by a setting"}),
    ],
)
def test_what_scopes_and_pins_keep(
    settings: dict[str, Any], widths: set[str], blocks: int, reasons: dict[str, str]
) -> None:
    found = choices_of(Residual(), Elasticity(width_multipliers=(0.5,), min_width=1, divisor=1, **settings))
    assert found.space.widths.keys() == widths
    assert len(found.space.blocks) == blocks
    told = {one.place: one.reason for one in found.refused}
    assert all(reason in told[place] for place, reason in reasons.items())


def test_groups_replace_the_automatic_ones_and_tie() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1))
    net = net.eval()
    assert choices_of(net).space.widths.keys() == {"0", "2", "3"}
    groups = (("0", "Sequential/NNCFConv2d[2]/conv2d_0"),)
    found = choices_of(net, Elasticity(overwrite_groups=groups, overwrite_groups_widths=((16, 12, 5),)))
    assert found.space.widths == {"0": (5, 12, 16)}
    assert {one.reason for one in found.refused} == {"it is in no group of overwrite_groups"}
    assert choices_of(net, Elasticity(overwrite_groups=groups)).space.widths == {"0": (8, 16)}
    settings = {"overwrite_groups": groups, "overwrite_groups_widths": ((16, 12, 5),)}
    inputs = torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(net, inputs, settings)
    small = supernet.extract(supernet.space.minimal())
    assert (small.get_submodule("0").out_channels, small.get_submodule("2").out_channels) == (5, 5)
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), inputs)


def test_sizes_of_a_group_count_channels() -> None:
    settings = {"overwrite_groups": (("grouped",),), "overwrite_groups_widths": ((32, 16),)}
    assert list(choices_of(Grouped(), Elasticity(**settings)).space.widths.values()) == [(4, 8)]


@pytest.mark.parametrize(
    ("groups", "sizes", "reason"),
    [
        ([["stem", "expand"]], None, r"overwrite_groups\[0\] \(stem, expand\): layers of 8 and 16 channels"),
        ([["stm"]], None, r"overwrite_groups\[0\]: 'stm' matches no part of the model; the nearest are stem"),
        ([["last"]], None, "its width is rigid: the output of the model fixes it"),
        ([["stem"], ["project"]], None, r"overwrite_groups\[1\] \(project\): the width stem is in another group too"),
        ([["expand"]], [[8, 4]], r"sizes \[8, 4\]; must be multiples of 1, including the full size 16"),
        ([["expand"]], [[32, 16]], r"sizes \[32, 16\]; must be multiples of 1, including the full size 16"),
    ],
)
def test_groups_that_cannot_be_are_refused(groups: Any, sizes: Any, reason: str) -> None:
    with pytest.raises(ElasticityError, match=reason):
        choices_of(Residual(), Elasticity(overwrite_groups=groups, overwrite_groups_widths=sizes))


@pytest.mark.parametrize("setting", ["ignored_scopes", "pin", "target_scopes"])
def test_kernels_are_kept_too(setting: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 8, 5, padding=2), nn.Conv2d(8, 2, 1)).eval()
    inputs = torch.randn(2, 3, 6, 6)
    assert SuperNetwork.from_model(net, inputs).space.kernels == {"0": (3, 5), "1": (3, 5)}
    supernet = SuperNetwork.from_model(net, inputs, {setting: ["0"]})
    assert supernet.space.kernels.keys() == ({"0"} if setting == "target_scopes" else {"1"})
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), inputs)
    kept = "1" if setting == "target_scopes" else "0"
    assert any(one.place == kept for one in supernet.analysis.refusals["choose"])


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        pytest.param(Elasticity(), "min_width=8 and divisor=8 are too large: lower them", id="few-heads"),
        pytest.param(
            Elasticity(min_width=1, divisor=1, width_multipliers=(0.9,), max_num_widths=1),
            "give smaller width_multipliers",
            id="one-size",
        ),
    ],
)
def test_a_width_without_sizes_says_what_would_help(settings: Elasticity, advice: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    types = analyse(trace(model.eval(), torch.randn(2, 3)))
    (refused,) = find_widths(types, settings, find_vetoes(types.ir, settings)).refused
    assert advice in refused.reason
    assert "widths={'0': [2, 4]}" in refused.reason
