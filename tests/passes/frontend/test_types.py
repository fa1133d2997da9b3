"""A type that forward reads from a tensor follows that tensor in what is captured; a type that it states stays."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from capture_cases import Between, captured, image, same_outputs
from torch import Tensor, nn

from bnas.passes.onnx.lower import lower
from bnas.runtime import SuperNetwork


def table(net: nn.Module, y: Tensor) -> Tensor:
    return y + (torch.arange(y.shape[3]) % 3).to(y.dtype)


def of_parameter(net: nn.Module, y: Tensor) -> Tensor:
    weight: Tensor = net.inner.weight  # type: ignore[assignment, union-attr]
    return y * torch.ones(y.shape[2:], dtype=torch.bool).to(dtype=weight.dtype)


def made(net: nn.Module, y: Tensor) -> Tensor:
    return y + torch.linspace(0, 1, y.shape[3], dtype=y.dtype) + torch.zeros((), dtype=y.dtype)


def norm_in_single(net: nn.Module, y: Tensor) -> Tensor:
    single = y.to(torch.float32)
    return (single * torch.rsqrt(single.pow(2).mean(1, keepdim=True) + 1e-6)).to(y.dtype)


def masked(net: nn.Module, y: Tensor) -> Tensor:
    future = torch.ones(y.shape[3], y.shape[3], dtype=torch.bool).triu(1)
    scores = (y.transpose(2, 3) @ y).masked_fill(future, torch.finfo(y.dtype).min)
    return y @ scores.softmax(-1, dtype=torch.float32).to(y.dtype)


def bias_of_mask(net: nn.Module, y: Tensor) -> Tensor:
    """As text models add a mask to scores: a tensor full of the least number, of the type of the scores."""
    size = y.shape[3]
    bias = torch.full((size, size), torch.finfo(y.dtype).min, dtype=y.dtype, device=y.device).triu(1)
    return y @ (y.transpose(2, 3) @ y + bias).softmax(-1)


def by_mode_too(net: nn.Module, y: Tensor) -> Tensor:
    y = y + 0.5 if net.training else y
    return y + (torch.arange(y.shape[3]) % 2).to(y.dtype)


def by_name(net: nn.Module, y: Tensor) -> Tensor:
    """As YOLOX passes a type on to its grids: by the old name of a tensor's type."""
    return y + (torch.arange(y.shape[3]) % 3).type(y.type())


STEPS = [table, by_name, of_parameter, made, norm_in_single, masked, bias_of_mask, by_mode_too]
CONVERTED = [torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_type_follows_the_tensor_it_is_read_from(step: Callable[[nn.Module, Tensor], Tensor]) -> None:
    net = Between(step).eval()
    maximal = (supernet := captured(net, image())).extract(supernet.space.maximal())
    for dtype in CONVERTED:
        same_outputs((copy.deepcopy(maximal).to(dtype),), copy.deepcopy(net).to(dtype), image(3, 5, 4).to(dtype))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_what_was_captured_in_double_precision_is_lowered_in_single(
    step: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    supernet = SuperNetwork.from_model(Between(step).double().eval(), image().double())
    lower(supernet.float().extract(supernet.space.minimal()), [image()])


def test_a_type_that_is_stated_stays() -> None:
    net = Between(lambda net, y: (y.to(torch.float64) * 3).to(torch.float32)).eval()
    captured(net, image())
    double = Between(lambda net, y: y + torch.ones(4, dtype=torch.float64).sum().to(torch.float64)).double().eval()
    graph = captured(double, image().double()).ir.graph
    assert not [node for node in graph.nodes if node.args[1:2] == ("dtype",)]


def test_a_model_that_works_in_one_type_only_keeps_it() -> None:
    class OneType(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("single precision only")
            return self.last(self.first(x) + (torch.arange(x.shape[0]) % 2).to(x.dtype)[:, None])

    captured(OneType().eval(), torch.randn(2, 4), [torch.randn(3, 4)])


@pytest.mark.parametrize("dtype", ["torch.DoubleTensor", torch.DoubleTensor, torch.float64])
def test_a_type_may_have_its_old_name(dtype: object) -> None:
    supernet = captured(Between(lambda net, y: (y.type(dtype) * y.type(dtype)).type(torch.FloatTensor)).eval(), image())
    assert {node.args[1] for node in supernet.ir.graph.nodes if node.target == "type"} == {torch.float64, torch.float32}


def test_numbers_that_differ_by_the_mode_are_no_types() -> None:
    """The recording of another type is one of evaluation mode: what training mode does stays what it is."""

    def step(net: nn.Module, y: Tensor) -> Tensor:
        least = torch.finfo(y.dtype).min if net.training else 0.0
        return y.clamp(min=least).to(y.dtype)

    supernet = captured(Between(step).eval(), image())
    program = supernet.train().program(supernet.space.maximal())
    torch.testing.assert_close(program(image()), supernet.model(image()), rtol=0, atol=0)


@pytest.mark.parametrize(
    "step",
    [
        lambda net, y: y + net.inner((y + torch.arange(y.shape[3], device=y.device).to(y.dtype)).relu()),
        lambda net, y: y + F.dropout(net.inner(y), 0.25 if net.training else 0.0, training=True),
    ],
    ids=["a type and a device", "a number that follows the mode"],
)
def test_plain_values_may_be_read_in_a_block(step: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """A residual block is skippable though it reads what stands before it, such as the type of the first tensor."""
    twice = Between(lambda net, y: step(net, step(net, y))).eval()
    assert len(captured(twice, image()).space.blocks) == 2
