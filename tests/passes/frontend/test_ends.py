"""Sizes far from the example's, at which a model runs other code: an axis ends where the graph would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnas.passes import InputError, trace
from bnas.passes.frontend import capture
from bnas.runtime import SuperNetwork

WIDTH = 4


class Branches(nn.Module):
    """Does something else where its input is long, short or large."""

    def __init__(self, step: Callable[[Branches, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.near, self.far, self.conv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Conv2d(3, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


def another_layer(limit: int) -> Callable[[Branches, Tensor], Tensor]:
    return lambda net, x: (net.far if x.shape[1] > limit else net.near)(x)


def another_layer_below(limit: int) -> Callable[[Branches, Tensor], Tensor]:
    return lambda net, x: (net.far if x.shape[1] < limit else net.near)(x)


def a_number_that_stays(limit: int) -> Callable[[Branches, Tensor], Tensor]:
    return lambda net, x: net.near(x)[:, -min(x.shape[1], limit) :].sum(1)


def another_layer_in_training(limit: int) -> Callable[[Branches, Tensor], Tensor]:
    return lambda net, x: (net.far if x.shape[1] > limit and net.training else net.near)(x)


def text(length: int) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(length))


def answers(net: Branches, example: Tensor, others: list[Tensor], *, training: bool = False) -> list[bool]:
    """Return for each of `others` whether it is refused; all others must have the output of the model."""
    supernet = SuperNetwork.from_model(net.eval(), example)
    program = supernet.program(supernet.space.maximal()).train(training)
    return [_refused(program, net.train(training), x) for x in others]


def _refused(program: nn.Module, net: nn.Module, x: Tensor) -> bool:
    try:
        found = program(x)
    except InputError:
        return True
    torch.testing.assert_close(found, net(x))
    return False


KINDS = [another_layer, another_layer_below, a_number_that_stays, another_layer_in_training]


@given(
    kind=st.sampled_from(KINDS),
    limit=st.integers(3, 3000),
    example=st.integers(4, 200),
    other=st.integers(2, 4000),
)
@settings(max_examples=40, deadline=None)
def test_a_size_has_the_output_of_the_model_or_is_refused(
    kind: Callable[[int], Callable[[Branches, Tensor], Tensor]], limit: int, example: int, other: int
) -> None:
    near = [text(size) for size in (example, limit, limit + 1, max(2, limit - 1), other)]
    refused = answers(Branches(kind(limit)), text(example), near, training=kind is another_layer_in_training)
    assert not refused[0]


@pytest.mark.parametrize("kind", [another_layer, a_number_that_stays, another_layer_in_training])
def test_the_largest_size_is_exact(kind: Callable[[int], Callable[[Branches, Tensor], Tensor]]) -> None:
    ir = trace(Branches(kind(512)).eval(), text(16))
    assert ir.sizes.axis("length").most == 512
    (told,) = (one for one in ir.diagnostics if one.place == "length")
    assert told.reason.startswith("its size must be at most 512: ")
    assert __file__ in told.reason


def test_the_smallest_size_is_exact() -> None:
    ir = trace(Branches(another_layer_below(8)).eval(), text(64))
    assert (ir.sizes.axis("length").least, ir.sizes.axis("length").most) == (8, None)


def test_the_refusal_names_the_sizes_and_the_line() -> None:
    supernet = SuperNetwork.from_model(Branches(another_layer(512)).eval(), text(16))
    with pytest.raises(InputError, match=r"axis 1 has size 513, expected at most 512\. Reason: .*calls far here"):
        supernet.program(supernet.space.minimal())(text(513))


def test_without_the_trials_the_output_is_wrong() -> None:
    """The twin: what these tests look for is there, and they see it."""
    with (
        mock.patch.object(capture, "ended", lambda session, axes: list(axes)),
        pytest.raises(AssertionError, match="not close"),
    ):
        answers(Branches(another_layer(512)), text(16), [text(600)])


def test_a_limit_of_the_area_holds_for_both_sides() -> None:
    net = Branches(lambda net, x: (x if x.shape[2] * x.shape[3] <= 10000 else -x).mean((2, 3)) + net.conv.bias[:3])
    images = [torch.randn(1, 3, *size) for size in ((32, 32), (90, 90), (101, 101), (400, 40), (40, 400))]
    refused = answers(net, images[0], images)
    assert refused == [False, False, True, True, True]


def test_an_axis_that_is_not_limited_stays_unlimited() -> None:
    net = Branches(lambda net, x: x.mean((2, 3)) if x.shape[3] <= 500 else x.sum((2, 3)))
    ir = trace(net.eval(), torch.randn(1, 3, 32, 32))
    assert (ir.sizes.axis("height").most, ir.sizes.axis("width").most) == (None, 500)


def test_the_limit_is_a_whole_number_of_steps_away() -> None:
    def step(net: Branches, x: Tensor) -> Tensor:
        assert x.shape[1] % 4 == 0
        return (net.near if x.shape[1] <= 50 else net.far)(x)

    axis = trace(Branches(step).eval(), text(8)).sizes.axis("length")
    assert (axis.step, axis.most) == (4, 48)


def test_a_model_that_refuses_long_inputs_is_tried_at_shorter_ones() -> None:
    def step(net: Branches, x: Tensor) -> Tensor:
        if x.shape[1] > 1024:
            raise ValueError("too long")
        return (net.near if x.shape[1] <= 300 else net.far)(x)

    assert trace(Branches(step).eval(), text(16)).sizes.axis("length").most == 300


def test_tables_that_grow_do_not_stop_the_trials() -> None:
    def step(net: Branches, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1]).tril()
        return (net.near if x.shape[1] <= 512 else net.far)(mask @ x)

    assert trace(Branches(step).eval(), text(16)).sizes.axis("length").most == 512


def test_a_branch_on_the_batch_fixes_the_batch() -> None:
    net = Branches(lambda net, x: (net.far if x.shape[0] > 64 else net.near)(x))
    refused = answers(net, text(5), [torch.randn(count, 5, WIDTH) for count in (2, 3, 100)])
    assert refused == [False, True, True]


def test_a_plain_model_has_no_limits() -> None:
    ir = trace(Branches(lambda net, x: net.near(x).mean(1)).eval(), text(16))
    assert [axis.ends for axis in ir.sizes.axes] == ["", ""]


def test_a_batch_of_one_is_refused_where_the_model_splits_the_batch() -> None:
    net = Branches(lambda net, x: torch.cat([net.near(part) for part in x.chunk(2)]))
    refused = answers(net, text(5), [torch.randn(count, 5, WIDTH) for count in (1, 2, 3, 7)])
    assert refused == [True, False, False, False]
