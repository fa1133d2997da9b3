"""Deep copies of models: hooks and replaced forwards of the copy read the copy, and the model is never touched."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_cases import everything, image, same_as_before
from torch import Tensor, nn

from bnas.passes.frontend.copies import deep_copy
from bnas.runtime import SuperNetwork, verify
from bnas.testing import assert_extracted_is_oracle


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


class Taps(nn.Module):
    """Collects features by a hook, and returns them, as models with several outputs do."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept = Net(), dict[str, Tensor]()
        self.net.first.register_forward_hook(lambda module, args, out: self.kept.update(first=out))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), self.kept["first"].mean((2, 3))


def reads_another_layer(net: Net) -> None:
    net.second.register_forward_hook(lambda module, args, out: out + net.first.weight.mean())


def reads_a_default(net: Net) -> None:
    def hook(
        module: nn.Module, args: Any, out: Tensor, first: nn.Module = net.first, *, last: Any = net.last
    ) -> Tensor:
        return out + first.weight.mean() + last.weight.mean()

    net.second.register_forward_hook(hook)


def wrapped(net: nn.Module) -> None:
    before = net.forward

    @functools.wraps(before)
    def forward(x: Tensor) -> Tensor:
        return before(x * 0.9) * 2

    net.forward = forward


def a_layer_wrapped(net: Net) -> None:
    wrapped(net.second)


def wrapped_twice(net: Net) -> None:
    wrapped(net)
    wrapped(net)


def by_a_function_in_a_list(net: Net) -> None:
    steps = [lambda x: net.first.weight.mean() + x]
    net.second.register_forward_hook(lambda module, args, out: steps[0](out))


def beside_what_cannot_be_copied(net: Net) -> None:
    lock = threading.Lock()

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        with lock:
            return out + net.first.weight.mean()

    net.second.register_forward_hook(hook)


CHANGES = [
    reads_another_layer,
    reads_a_default,
    wrapped,
    a_layer_wrapped,
    wrapped_twice,
    by_a_function_in_a_list,
    beside_what_cannot_be_copied,
]


def changed(change: Callable[[Net], None]) -> Net:
    net = Net().eval()
    change(net)
    return net


def doubled(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(2)


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_reads_its_own_tensors(change: Callable[[Net], None]) -> None:
    net, x = changed(change), image()
    before, expected = everything(net), net(x)
    twin = deep_copy(net)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    doubled(twin)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    same_as_before(net, before)
    doubled(net)
    torch.testing.assert_close(twin(x), net(x), rtol=0, atol=0)


def test_pythons_own_copy_reads_the_model() -> None:
    """The twin: without functions of its own, a copy runs the model that it was made of."""
    net, x = changed(wrapped), image()
    twin, expected = copy.deepcopy(net), net(x)
    doubled(twin)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("change", CHANGES)
def test_sub_networks_are_right_and_the_model_stays(change: Callable[[Net], None]) -> None:
    net = changed(change)
    before = everything(net)
    supernet = SuperNetwork.from_model(net, image())
    assert supernet.space.widths
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        assert_extracted_is_oracle(supernet, subnet, image())
        verify(net, supernet, subnet, image())
    same_as_before(net, before)


def test_collected_features_are_those_of_the_copy() -> None:
    model, x = Taps().eval(), image()
    before = everything(model)
    supernet = SuperNetwork.from_model(model, x)
    verify(model, supernet, supernet.space.minimal(), x)
    same_as_before(model, before)
    assert next(model.parameters()).dtype == torch.float32


def test_a_copy_of_a_super_network_runs_its_own_model() -> None:
    supernet, x = SuperNetwork.from_model(changed(wrapped), image()), image()
    expected = supernet(x)
    doubled(twin := copy.deepcopy(supernet))
    torch.testing.assert_close(supernet(x), expected, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(twin(x), expected)
