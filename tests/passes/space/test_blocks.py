"""Skippable blocks: which are found, how they are named, and why the others are left alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes import AxisTypes, Blocks, analyse, find_blocks, trace


class Net(nn.Module):
    """Two layers, a parameter and activations for `step` to use, between two convolutions."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.body, self.more, self.wide = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1)
        self.narrow = nn.Conv2d(16, 8, 1)
        self.relu, self.gamma = nn.ReLU(inplace=True), nn.Parameter(torch.ones(8, 1, 1))
        self.part = Part()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self, self.first(x)))


class Part(nn.Module):
    """A module with blocks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.inner = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(x)
        x = x + self.two(x)
        return self.inner[1](self.inner[0](x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def blocks_of(step: Callable[[Any, Tensor], Tensor]) -> Blocks:
    return find_blocks(types_of(step))


def types_of(step: Callable[[Any, Tensor], Tensor]) -> AxisTypes:
    return analyse(trace(Net(step).eval(), torch.randn(2, 3, 4, 4)))


def chained(net: Net, x: Tensor) -> Tensor:
    return x + net.narrow(F.silu(net.wide(x)))


def entry_second(net: Net, x: Tensor) -> Tensor:
    return net.body(x) + x


def added_in_place(net: Net, x: Tensor) -> Tensor:
    x += net.body(x)
    return x


def method_with_scaled_branch(net: Net, x: Tensor) -> Tensor:
    return x.add(net.body(x), alpha=0.5)


def second_operand_by_name(net: Net, x: Tensor) -> Tensor:
    return torch.add(x, other=net.body(x))


def scaled_by_a_parameter(net: Net, x: Tensor) -> Tensor:
    return x + net.gamma * F.gelu(x)


def gated(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    return x + y * net.more(y.mean((2, 3), keepdim=True)).sigmoid()


def branch_that_splits(net: Net, x: Tensor) -> Tensor:
    y = net.wide(x)
    return x + net.narrow(y) * net.body(x)


def written_inside(net: Net, x: Tensor) -> Tensor:
    return x + net.body(net.relu(net.more(x)))


def with_sizes_of_the_batch(net: Net, x: Tensor) -> Tensor:
    return x + net.body(x).view(x.size(0), -1).view(x.shape)


def same_layer_twice(net: Net, x: Tensor) -> Tensor:
    return x + net.body(net.body(x))


@pytest.mark.parametrize(
    "step",
    [
        chained,
        entry_second,
        added_in_place,
        method_with_scaled_branch,
        second_operand_by_name,
        scaled_by_a_parameter,
        gated,
        branch_that_splits,
        written_inside,
        with_sizes_of_the_batch,
        same_layer_twice,
    ],
)
def test_finds_one_block(step: Any) -> None:
    types = types_of(step)
    found = find_blocks(types)
    (block,) = found.found
    assert not found.refused
    assert block.entry.name == "first"
    assert block.out not in block.body
    assert block.entry not in block.body
    assert all(set(node.users) <= block.body | {block.out} for node in block.body)
    assert find_blocks(types) == found


def test_the_input_itself_may_be_the_entry() -> None:
    class OnInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x)

    (block,) = find_blocks(analyse(trace(OnInput().eval(), torch.randn(2, 3, 4, 4)))).found
    assert block.entry.op == "placeholder"


def test_an_opaque_module_may_be_the_branch() -> None:
    class Undecided(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else y * 2

    def step(net: Net, x: Tensor) -> Tensor:
        return x + net.body(x)

    net = Net(step)
    net.body = Undecided(8, 8, 1)
    (block,) = find_blocks(analyse(trace(net.eval(), torch.randn(2, 3, 4, 4)))).found
    assert [node.name for node in block.body] == ["body"]


# names


def test_blocks_are_named_by_the_module_that_holds_them() -> None:
    found = blocks_of(lambda net, x: net.part(x)).found
    assert [block.name for block in found] == ["part#1", "part#2", "part.inner.0", "part.inner.1"]
    first, second = found[:2]
    assert second.entry is first.out


def test_a_block_in_no_module_has_the_name_of_its_sum() -> None:
    assert [block.name for block in blocks_of(entry_second).found] == ["add"]


def test_one_module_called_twice_makes_two_blocks() -> None:
    found = blocks_of(lambda net, x: net.part.inner[0](net.part.inner[0](x))).found
    assert [block.name for block in found] == ["part.inner.0#1", "part.inner.0#2"]
    assert not found[0].body & found[1].body


# refusals: a case for each reason


def doubled_input(net: Net, x: Tensor) -> Tensor:
    return x + x


def number_added(net: Net, x: Tensor) -> Tensor:
    return net.body(x) + 1


def projected_shortcut(net: Net, x: Tensor) -> Tensor:
    return net.body(x) + net.more(x)


def second_input(net: Net, x: Tensor) -> Tensor:
    return x + net.gamma


def scaled_shortcut(net: Net, x: Tensor) -> Tensor:
    return torch.add(net.body(x), x, alpha=0.5)


def broadcast_shortcut(net: Net, x: Tensor) -> Tensor:
    x = x.mean((2, 3), keepdim=True)
    return x + net.body(F.interpolate(x, size=(4, 4)))


def tapped_body(net: Net, x: Tensor) -> Tensor:
    y = net.body(x)
    return (x + net.more(y)) * y


def writes_into_its_input(net: Net, x: Tensor) -> Tensor:
    return x + net.body(net.relu(x))


def writes_through_a_view(net: Net, x: Tensor) -> Tensor:
    return x + net.body(F.relu(x.view(x.shape), inplace=True))


def sum_of_constants(net: Net, x: Tensor) -> Tensor:
    return x + net.gamma.view(8, 1, 1).relu()


def no_parameter(net: Net, x: Tensor) -> Tensor:
    return x + F.relu(x)


@pytest.mark.parametrize(
    ("step", "place", "reason"),
    [
        pytest.param(doubled_input, "add", "two different values", id="x-plus-x"),
        pytest.param(number_added, "add", "two different values", id="plus-a-number"),
        pytest.param(projected_shortcut, "add", "both branches change the tensor", id="projection-shortcut"),
        pytest.param(second_input, "add", "both branches change the tensor", id="plus-a-parameter"),
        pytest.param(scaled_shortcut, "add", "shortcut is scaled", id="scaled-shortcut"),
        pytest.param(
            broadcast_shortcut, "add", r"\(1009, 8, 1, 1\) and sum \(1009, 8, 4, 4\)", id="broadcast-shortcut"
        ),
        pytest.param(tapped_body, "body", "also read outside", id="inner-value-escapes"),
        pytest.param(writes_through_a_view, "add", "writes into its own input", id="in-place-on-a-view-of-it"),
        pytest.param(sum_of_constants, "add", "both branches change the tensor", id="sum-of-parameters"),
        pytest.param(no_parameter, "add", "no parameter inside", id="nothing-to-skip"),
    ],
)
def test_leaves_block_alone_and_says_why(step: Any, place: str, reason: str) -> None:
    blocks = blocks_of(step)
    assert not blocks.found
    (refused,) = blocks.refused
    assert refused.place == place
    assert re.search(reason, refused.reason)


def test_a_write_into_the_entry_is_the_entry() -> None:
    """``x + body(relu_(x))`` adds the result of the write: `x` is that tensor by then."""
    (block,) = blocks_of(writes_into_its_input).found
    assert (block.entry.name, block.out.name, {node.name for node in block.body}) == ("relu", "add", {"body"})


def test_a_write_into_an_inner_value_belongs_to_the_block() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        y = net.body(x).clone()
        y[:, :4].zero_()
        return x + net.more(y)

    (block,) = blocks_of(step).found
    assert {"getitem", "zero_"} <= {node.name for node in block.body}


def test_of_nested_blocks_the_inner_one_is_taken() -> None:
    def step(net: Net, x: Tensor) -> Tensor:
        y = net.body(x)
        return x + (y + net.more(y))

    blocks = blocks_of(step)
    assert [block.entry.name for block in blocks.found] == ["body"]
    assert [str(one) for one in blocks.refused] == ["add_1: encloses a smaller skippable block"]
