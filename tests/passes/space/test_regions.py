"""Skippable regions: which are found, that skipping them is the identity, and why others are left alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from region_cases import Fire, Gate, Row, layer, rows
from torch import Tensor, nn

from bnas.passes import AxisTypes, Blocks, Diagnostic, Elasticity, Subnet, analyse, find_blocks, skippable_blocks, trace
from bnas.passes.axes.selection import index
from bnas.passes.axes.terms import Sym, normalise
from bnas.passes.space.blocks import given_values
from bnas.passes.space.regions import find_regions, match_region, rigid_if_tied
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import assert_extracted_is_oracle, assert_maximal_is_original, assert_program_is_extracted, subnets

ELASTICITY = Elasticity(width_multipliers=(1.0, 0.75, 0.5, 0.25), min_width=1, divisor=1)


def typed(net: nn.Module, inputs: Tensor | None = None) -> AxisTypes:
    return analyse(trace(net.eval(), torch.randn(2, 3, 6, 6) if inputs is None else inputs))


def found_in(net: nn.Module, elasticity: Elasticity = ELASTICITY) -> Blocks:
    return skippable_blocks(typed(net), elasticity)


class Net(nn.Module):
    """Layers for `step` to use, between a stem and a head."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.stem, self.last = layer(3, 8), nn.Conv2d(channels, 2, 1)
        self.one, self.two, self.three, self.wide = layer(8, 8), layer(8, 8), layer(8, 8), layer(8, 12)
        self.narrow, self.gate, self.fire = layer(12, 8), Gate(8, 8), Fire(8, 8)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self, self.stem(x)))


# what is found, and that it is an identity


@given(row=rows(), data=st.data())
def test_a_skipped_region_is_the_identity(row: Row, data: st.DataObject) -> None:
    supernet = SuperNetwork.from_model(row.module, row.inputs, ELASTICITY)
    whole = [name for name in supernet.space.blocks if re.fullmatch(r"body\.[\d-]+", name)]
    skipped = frozenset(name for name in whole if data.draw(st.booleans(), label=name))
    subnet = Subnet({}, skipped)
    expected = row.without(skipped)(row.inputs)
    for module in (supernet.program(subnet), supernet.extract(subnet)):
        torch.testing.assert_close(module(row.inputs), expected, rtol=0, atol=0)


@given(row=rows(), data=st.data())
def test_any_subset_with_any_widths_computes_what_the_model_does(row: Row, data: st.DataObject) -> None:
    supernet = SuperNetwork.from_model(row.module, row.inputs, ELASTICITY)
    assert_maximal_is_original(supernet, row.inputs)
    for _ in range(2):
        subnet = data.draw(subnets(supernet.space))
        part = supernet.extract(subnet)
        assert part(row.inputs).shape == (2, 2)
        assert supernet.costs(subnet)["parameters"] == sum(p.numel() for p in part.parameters())
        assert_program_is_extracted(supernet, subnet, row.inputs)
        assert_extracted_is_oracle(supernet, subnet, row.inputs, tolerance=1e-9)


def test_skipping_another_region_is_noticed() -> None:
    row = Row((("layer", 8), ("layer", 8), ("fire", 8)))
    supernet = SuperNetwork.from_model(row.module, row.inputs, ELASTICITY)
    first, second = supernet.space.blocks
    assert (first, second) == ("body.0-1", "body.2")
    found, other = supernet.extract(Subnet({}, frozenset([first])))(row.inputs), row.without(frozenset([second]))
    with pytest.raises(AssertionError, match="not equal"):
        torch.testing.assert_close(found, other(row.inputs), rtol=0, atol=0)


@given(row=rows(), data=st.data())
def test_the_ends_keep_the_same_entries(row: Row, data: st.DataObject) -> None:
    types = typed(row.module, row.inputs)
    for block in skippable_blocks(types, ELASTICITY).found:
        for entry, out in zip(types.type(block.entry), types.type(block.out), strict=True):
            kept = {s: data.draw(st.integers(1, s.n)) for s in types.free_symbols()}
            assert index(entry, kept).tolist() == index(out, kept).tolist()


def test_without_a_tie_the_ends_would_keep_different_entries() -> None:
    types = typed(Net(lambda net, x: net.two(net.one(x))))
    (block,) = find_regions(types, frozenset(), range(5, 51))[:1]
    symbol = normalise(types.type(block.entry)[1])
    assert isinstance(symbol, Sym)
    ends = [index(types.type(node)[1], {symbol: 3}).tolist() for node in (block.entry, block.out)]
    assert ends[0] != ends[1]


@given(row=rows())
def test_regions_have_no_node_in_common(row: Row) -> None:
    blocks = skippable_blocks(typed(row.module, row.inputs), ELASTICITY).found
    nodes = [node for block in blocks for node in block.nodes]
    assert len(nodes) == len(set(nodes))
    assert all(5 <= block.size <= 50 for block in blocks)
    assert len({block.name for block in blocks}) == len(blocks)


def pair(net: Any, x: Tensor) -> Tensor:
    return net.two(net.one(x))


@pytest.mark.parametrize(
    ("step", "names"),
    [
        pytest.param(pair, ["one-two"], id="layers"),
        pytest.param(lambda net, x: net.narrow(net.wide(x)), ["wide-narrow"], id="another-width-inside"),
        pytest.param(lambda net, x: net.fire(x), ["fire"], id="branches"),
        pytest.param(lambda net, x: net.gate(x), ["gate"], id="the-whole-gate-and-not-its-inside"),
        pytest.param(lambda net, x: net.fire(pair(net, x)), ["one-two", "fire"], id="two"),
        pytest.param(lambda net, x: x + pair(net, x), ["add"], id="a-residual-block-covers-it"),
        pytest.param(lambda net, x: net.one(x), [], id="too-small"),
        pytest.param(lambda net, x: pair(net, F.max_pool2d(x, 2)), ["one-two"], id="after-pooling"),
    ],
)
def test_finds(step: Any, names: list[str]) -> None:
    assert [block.name for block in found_in(Net(step)).found] == names


def test_finds_regions_on_a_branch_unless_it_gates_another() -> None:
    def summed(net: Any, x: Tensor) -> Tensor:
        return torch.cat([pair(net, net.three(x)), net.wide(x)], 1)

    def gated(net: Any, x: Tensor) -> Tensor:
        return net.wide(x) * net.wide(pair(net, net.three(x))).sigmoid()

    assert [block.name for block in found_in(Net(summed, 20)).found] == ["one-two"]
    assert [block.name for block in found_in(Net(gated, 12)).found] == []


def test_a_region_that_is_no_module_is_named_by_its_ends() -> None:
    def step(net: Any, x: Tensor) -> Tensor:
        for part in (net.one, net.two):
            x = F.relu(part[1](part[0](x)))
        return x.exp()

    (block,) = found_in(Net(step)).found
    assert block.name == f"{block.entry.name}-{block.out.name}"


def test_one_module_called_twice_makes_two_regions() -> None:
    net = Net(lambda net, x: net.fire(net.fire(x)))
    assert [block.name for block in found_in(net).found] == ["fire#1", "fire#2"]
    inputs = torch.randn(2, 3, 6, 6)
    supernet = SuperNetwork.from_model(net, inputs, ELASTICITY)
    for name in supernet.space.blocks:
        subnet = Subnet(supernet.space.minimal().widths, frozenset([name]))
        assert_extracted_is_oracle(supernet, subnet, inputs)
        assert_program_is_extracted(supernet, subnet, inputs)


def test_ties_are_told_and_not_made_without_depth() -> None:
    net = Net(pair)
    assert [str(tie) for tie in found_in(net).ties] == [
        "one-two: skippable: the widths at stem_2 and two_2 are tied; 2 free symbols became 1, 0 of them rigid"
    ]
    types = typed(net)
    assert skippable_blocks(types, Elasticity(("width",))) == Blocks((), ())
    assert len(types.free_symbols()) == 3


def test_once_found_they_are_found_again() -> None:
    types = typed(Row((("layer", 8), ("layer", 8), ("fire", 8), ("split", 8))).module)
    first = skippable_blocks(types, ELASTICITY)
    again = skippable_blocks(types, ELASTICITY)
    assert again.found == first.found
    assert first.ties
    assert not again.ties


# settings


def test_sizes_bound_all_blocks() -> None:
    net = Net(lambda net, x: net.fire(x + net.two(net.one(x))))
    sizes = {block.name: block.size for block in found_in(net).found}
    assert sizes == {"add": 6, "fire": 9}
    assert [b.name for b in found_in(net, Elasticity(max_block_size=8)).found] == ["add"]
    larger = found_in(net, Elasticity(min_block_size=7))
    assert "add" not in [b.name for b in larger.found]
    assert "add: its size 6 is not allowed by the settings" in [str(one) for one in larger.refused]
    assert found_in(net, Elasticity(min_block_size=60, max_block_size=70)).found == ()


@pytest.mark.parametrize(("fused", "sizes"), [(True, [2]), (False, [0, 0, 0])])
def test_fused_operators_stay_together(fused: bool, sizes: list[int]) -> None:
    elasticity = Elasticity(min_block_size=0, hw_fused_ops=fused)
    assert [block.size for block in found_in(Net(lambda net, x: net.one(x)), elasticity).found] == sizes


# refusals: a case for each reason


def in_place(net: Any, x: Tensor) -> Tensor:
    return net.two(net.one(F.relu(x, inplace=True)).exp())


@pytest.mark.parametrize(
    ("step", "ends", "reason"),
    [
        pytest.param(lambda net, x: torch.cat(x.chunk(2, 1), 1), ("chunk", "cat"), "not tensors", id="several-values"),
        pytest.param(lambda net, x: net.narrow(net.wide(x)), ("stem_2", "wide_2"), "differ in shape", id="shape"),
        pytest.param(lambda net, x: net.one(x), ("x", "one_2"), "differ in shape", id="image-channels"),
        pytest.param(lambda net, x: net.one(x), ("one_2", "stem_2"), "not computed from one_2 alone", id="backwards"),
        pytest.param(
            lambda net, x: net.two(net.one(x)) + x, ("one_2", "add"), "not computed from one_2 alone", id="second-entry"
        ),
        pytest.param(lambda net, x: net.one(x) * x, ("stem_2", "one_0"), "", id="none"),
        pytest.param(
            lambda net, x: net.two(y := net.one(x)) * y,
            ("stem_2", "two_2"),
            "also read outside",
            id="inner-value-escapes",
        ),
        pytest.param(lambda net, x: net.one(x.exp().abs()), ("stem_2", "abs_1"), "no parameter", id="nothing-to-skip"),
        pytest.param(in_place, ("stem_2", "two_2"), "writes into its own input", id="in-place-on-entry"),
    ],
)
def test_leaves_region_alone_and_says_why(step: Any, ends: tuple[str, str], reason: str) -> None:
    types = typed(Net(step))
    nodes = {node.name: node for node in types.ir.graph.nodes}
    found = match_region(types, nodes[ends[0]], nodes[ends[1]], given_values(types.ir))
    if reason:
        assert isinstance(found, Diagnostic)
        assert re.search(reason, found.reason)
    else:
        assert not isinstance(found, Diagnostic)


class Ends(nn.Module):
    """A region from the input, and one up to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(layer(3, 3), layer(3, 3)), nn.Sequential(layer(3, 3), layer(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_no_region_begins_at_an_input_or_ends_at_an_output() -> None:
    types = typed(Ends())
    assert found_in(Ends(), Elasticity(min_block_size=6)).found == ()
    nodes = {node.name: node for node in types.ir.graph.nodes}
    for ends in (("x", "first_1_2"), ("first_1_2", "second_1_2")):
        found = match_region(types, *(nodes[name] for name in ends), given_values(types.ir))
        assert isinstance(found, Diagnostic)
        assert "begins after the inputs and ends before the outputs" in found.reason


class Rigid(nn.Module):
    """The region begins at image channels, which stay."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = layer(3, 8), layer(8, 3), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(F.max_pool2d(x, 2))))


def test_a_tie_that_makes_widths_rigid_is_made_only_where_widths_are_not_elastic() -> None:
    types = typed(Rigid())
    free = types.free_symbols()
    blocks = skippable_blocks(types, ELASTICITY)
    assert not blocks.found
    assert [str(d) for d in blocks.refused] == [
        "one-two: making it skippable would make 1 axes rigid, the first: last.weight: the input of the model fixes it"
    ]
    assert types.free_symbols() == free
    assert [b.name for b in skippable_blocks(types, Elasticity(("depth",))).found] == ["one-two"]
    assert len(types.free_symbols()) == len(free) - 1


def test_a_trial_changes_nothing() -> None:
    types = typed(Row((("layer", 8), ("fire", 8))).module)
    before = [repr(types.type(node)) for node in types.ir.calls]
    (block,) = find_regions(types, frozenset(), range(7, 51))[:1]
    assert rigid_if_tied(types, block) == []
    assert [repr(types.type(node)) for node in types.ir.calls] == before


def test_what_is_computed_from_parameters_only_is_no_branch() -> None:
    def step(net: Any, x: Tensor) -> Tensor:
        return x + net.one[0].weight.mean((1, 2, 3)).view(1, 8, 1, 1)

    blocks = find_blocks(typed(Net(step)))
    assert not blocks.found
    assert [d.reason for d in blocks.refused] == ["not a skippable residual block: both branches change the tensor"]


def test_a_width_inside_a_skipped_region_does_not_matter() -> None:
    row = Row((("layer", 12), ("layer", 8)))
    supernet = SuperNetwork.from_model(row.module, row.inputs, ELASTICITY)
    (name,) = supernet.space.blocks
    assert supernet.space.inside == {"body.0.0": (frozenset([name]),)}


class Stream(nn.Module):
    """A residual stream with anchors added, and its last norm, written by hand, before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.scale = nn.Linear(4, 16), nn.Linear(16, 2), nn.Parameter(torch.ones(16))
        self.register_buffer("anchors", torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x.sigmoid() * 2 - 0.5 + self.anchors).exp().tanh().square().neg().add(1)
        hidden = x.float()
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.head(self.scale * hidden.type_as(x))


def test_what_has_no_parameter_and_what_only_normalises_is_no_region() -> None:
    types = analyse(trace(Stream().eval(), torch.randn(2, 4)))
    assert not skippable_blocks(types, Elasticity(("depth",), min_block_size=1)).found
    nodes = {node.name: node for node in types.ir.graph.nodes}
    decoded = match_region(types, nodes["stem"], nodes["add_1" if "add_2" in nodes else "add"], given_values(types.ir))
    assert isinstance(decoded, Diagnostic)
    assert re.search("no parameter inside", decoded.reason)


class Positions(nn.Module):
    """Adds a table of positions in the size of the image, as image transformers do, or multiplies by one."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.stem, self.head, self.adds = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1), adds
        self.table = nn.Parameter(torch.randn(1, 16, 2, 2) if adds else torch.randn(16, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, table = self.stem(x).tanh(), self.table.flip(1)
        x = x + F.interpolate(table, size=x.shape[2:]) if self.adds else F.conv2d(x, table)
        return self.head(x.tanh())


@pytest.mark.parametrize("adds", [True, False])
def test_a_table_that_is_added_is_no_region(adds: bool) -> None:
    """Without positions a model does not know its inputs; a weight that is computed makes a layer."""
    types = analyse(trace(Positions(adds).eval(), torch.randn(2, 3, 4, 4)))
    found = skippable_blocks(types, Elasticity(("depth",), min_block_size=1)).found
    assert bool(found) is not adds


class Turned(nn.Module):
    """Turns an image by a quarter between two layers: its ends have one shape only where the image is square."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.last = layer(3, 8), layer(8, 8), layer(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.one(self.stem(x)).mT))


def test_ends_that_have_one_shape_at_the_examples_size_only_are_no_region() -> None:
    types = typed(Turned())
    nodes = {node.name: node for node in types.ir.graph.nodes}
    entry, out = nodes["stem_2"], next(node for node in types.ir.graph.nodes if "mT" in str(node.args))
    told = match_region(types, entry, out, given_values(types.ir))
    assert isinstance(told, Diagnostic)
    assert re.fullmatch(
        r"at other sizes of the input, its ends \(1009, 8, (\d+), (\d+)\) and .* differ in shape", told.reason
    )


def test_at_a_fixed_size_the_ends_of_a_region_have_one_shape() -> None:
    """The twin: where no axis can change, only the example's size counts."""
    types = analyse(trace(Turned().eval(), torch.randn(2, 3, 6, 6), dynamic={}))
    nodes = {node.name: node for node in types.ir.graph.nodes}
    out = next(node for node in types.ir.graph.nodes if "mT" in str(node.args))
    assert not isinstance(match_region(types, nodes["stem_2"], out, given_values(types.ir)), Diagnostic)
