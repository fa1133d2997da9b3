"""Checks of values that only raise are left out of the graph; every other branch on values is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture_cases import Between, captured, image
from torch import Tensor, nn

from bnas.passes import CaptureError, trace
from bnas.runtime import SuperNetwork


def raises(net: Any, x: Tensor) -> Tensor:
    if torch.isnan(x).any():
        raise ValueError("not a number")
    return net.inner(x)


def raises_unless(net: Any, x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        message = f"the largest is {x.max()}"
        raise ValueError(message)
    return net.inner(x)


def asserts(net: Any, x: Tensor) -> Tensor:
    assert (x == x).all(), "not a number"
    assert not x.isinf().any()
    return net.inner(x)


def asserts_false(net: Any, x: Tensor) -> Tensor:
    if x.isnan().any():
        torch._assert(False, "not a number")
    return net.inner(x)


def over_lines(net: Any, x: Tensor) -> Tensor:
    if torch.isnan(
        x,
    ).any():
        raise ValueError("not a number")
    return net.inner(x)


@pytest.mark.parametrize("step", [raises, raises_unless, asserts, asserts_false, over_lines])
def test_a_check_that_only_raises_is_left_out_and_told(step: Any) -> None:
    net = Between(step).eval()
    supernet = captured(net, image(), [image(5)])
    told = [one for one in supernet.ir.diagnostics if "a check of tensor values is left out" in one.reason]
    assert len({one.reason for one in told}) == len(told) == (2 if step is asserts else 1)
    assert all(__file__ in one.reason for one in told)
    assert not [node for node in supernet.ir.graph.nodes if node.target in ("any", "all", torch.isnan, torch.isfinite)]


def computes(net: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = net.inner(x)
    return x


def raises_or_computes(net: Any, x: Tensor) -> Tensor:
    if x.isnan().any():
        raise ValueError("not a number")
    else:
        x = net.inner(x)
    return x


def one_of_two(net: Any, x: Tensor) -> Tensor:
    if x.isnan().any() or x.max() > 9:
        raise ValueError("not a number")
    return x


def chosen(net: Any, x: Tensor) -> Tensor:
    assert (x if x.sum() > 0 else -x).mean() != 3
    return x


def repeated(net: Any, x: Tensor) -> Tensor:
    while x.abs().max() > 1:
        x = x / 2
    return x


def inside_a_call(net: Any, x: Tensor) -> Tensor:
    if bool(x.sum() > 0) is True:
        return x
    return -x


@pytest.mark.parametrize("step", [computes, raises_or_computes, one_of_two, chosen, repeated, inside_a_call])
def test_every_other_branch_is_refused(step: Any) -> None:
    with pytest.raises(CaptureError, match="it reads values of a tensor"):
        trace(Between(step).eval(), image())


def test_a_branch_in_a_function_that_a_check_calls_is_refused() -> None:
    def positive(x: Tensor) -> bool:
        return bool(x.sum() > 0)

    def step(net: Any, x: Tensor) -> Tensor:
        if positive(x):
            raise ValueError("positive")
        return x

    with pytest.raises(CaptureError, match="it reads values of a tensor"):
        trace(Between(step).eval(), image())


# What forward may do to autograd and autocast.


class Forces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.layer(x).tanh().sum(), x)[0]


class Casts(nn.Module):
    def __init__(self, on: bool) -> None:
        super().__init__()
        self.layer, self.on = nn.Linear(3, 3), on

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.on):
            return self.layer(x).float()  # type: ignore[no-any-return]


class Part(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.first, self.last = part, nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(self.part(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("part", "reason"),
    [(Forces(), "computes gradients by grad: return what"), (Casts(on=True), "changes torch.autocast: call the model")],
)
def test_gradients_and_autocast_in_forward_are_named_and_kept_in_a_submodule(part: nn.Module, reason: str) -> None:
    x = torch.randn(4, 3)
    with pytest.raises(CaptureError, match=reason):
        SuperNetwork.from_model(part, x)
    model = Part(part)
    supernet = SuperNetwork.from_model(model, x)
    assert any(one.place == "part" and reason in one.reason for one in supernet.diagnostics)
    assert "first" in supernet.space.widths
    torch.testing.assert_close(supernet.program(supernet.space.maximal())(x), model(x))


def test_autocast_that_changes_nothing_is_no_reason() -> None:
    supernet = SuperNetwork.from_model(Part(Casts(on=False)), torch.randn(4, 3))
    assert not any("autocast" in one.reason for one in supernet.diagnostics)
