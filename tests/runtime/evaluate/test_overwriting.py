"""Sums and activations write over their input where only they read it, to bitwise the same numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_cases import supernet_of
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, symbolic_trace
from torch.utils._pytree import tree_leaves

from bnas.runtime.evaluate.overwriting import add_, is_fresh, overwrite
from bnas.testing import Network, networks, subnets

X = torch.linspace(-2, 2, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Small(nn.Module):
    """Two convolutions, and what `then` makes of the outputs of both."""

    def __init__(self, then: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.then = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.one(x), self.two(x))


def writes(module: GraphModule) -> int:
    """How many operators write over their input."""
    return sum(n.target is add_ or n.kwargs.get("inplace") is True for n in module.graph.nodes)


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        pytest.param(lambda a, b: F.relu(a + b), 2, id="sum-then-relu"),
        pytest.param(lambda a, b: a + F.relu(b), 2, id="relu-then-sum"),
        pytest.param(lambda a, b: F.relu6(a) * F.hardswish(b), 2, id="activations"),
        pytest.param(lambda a, b: torch.relu(a) + torch.add(b, 1.0), 2, id="functions-of-torch"),
        pytest.param(lambda a, b: F.relu(a) + a, 1, id="read-again-after-the-relu"),
        pytest.param(lambda a, b: F.relu(a.view(-1)).sum() + a.sum() + b.sum(), 1, id="view-is-read"),
        pytest.param(lambda a, b: F.relu(a[0]).sum() + b.sum(), 0, id="part"),
        pytest.param(lambda a, b: a + a, 0, id="twice-the-same"),
        pytest.param(lambda a, b: a + b[:1], 1, id="broadcast"),
        pytest.param(lambda a, b: b[:1] + a, 1, id="broadcast-from-the-left"),
        pytest.param(lambda a, b: a.mean((2, 3), keepdim=True) + b, 1, id="into-the-larger"),
        pytest.param(lambda a, b: F.leaky_relu(a) + torch.sigmoid(b), 0, id="not-known"),
    ],
)
def test_what_only_one_reads_is_overwritten(then: Callable[[Tensor, Tensor], Tensor], expected: int) -> None:
    module = symbolic_trace(Small(then).eval())
    plain = module(X)
    found = overwrite(module)
    assert writes(found) == expected
    x = X.clone()
    assert torch.equal(found(x), plain)
    assert torch.equal(x, X)
    assert torch.equal(found(x), plain)


def test_writing_over_what_is_read_again_would_be_noticed() -> None:
    """The twin: the shortcut that is spared above, written over."""
    module = symbolic_trace(Small(lambda a, b: F.relu(a) + a).eval())
    plain = module(X)
    for node in module.graph.nodes:
        if node.target is F.relu:
            node.kwargs = {"inplace": True}
    module.recompile()
    assert not torch.equal(module(X), plain)


def test_output_that_a_hook_kept_is_spared() -> None:
    net, kept = Small(lambda a, b: F.relu(a) + F.relu(b)).eval(), list[Tensor]()
    net.one.register_forward_hook(lambda _, given, out: kept.append(out))
    found = overwrite(symbolic_trace(net))
    found(X)
    assert torch.equal(kept[0], F.conv2d(X, net.one.weight, net.one.bias, padding=1))
    assert writes(found) == 2  # the other one's relu, and the sum into it


def test_gradients_are_those_of_the_plain_module() -> None:
    plain, module = Small(lambda a, b: F.relu(a + b)), symbolic_trace(Small(lambda a, b: F.relu(a + b)))
    plain(X).square().sum().backward()
    overwrite(module)(X).square().sum().backward()
    assert torch.equal(plain.one.weight.grad, module.one.weight.grad)


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(3, 4, dtype=torch.float64),
        torch.ones(4),
        torch.ones(4, 3).T,
        torch.ones(5, 3, 4),
        2.0,
    ],
    ids=["type", "shape", "layout", "larger", "number"],
)
def test_sum_of_another_form_is_a_new_tensor(other: Tensor | float) -> None:
    target = torch.ones(3, 4)
    found, expected = add_(target, other), torch.ones(3, 4) + other
    assert torch.equal(found, expected)
    assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
    assert torch.equal(target, torch.ones(3, 4))
    assert add_(target, torch.ones(3, 4)) is target


@settings(max_examples=25)
@given(network=networks(), data=st.data())
def test_random_networks_give_bitwise_what_they_gave(network: Network, data: st.DataObject) -> None:
    supernet = supernet_of(network, torch.float32)
    module = supernet.extract(data.draw(subnets(supernet.space)))
    inputs = network.example_inputs
    with torch.no_grad():
        plain = tree_leaves(module(inputs.clone()))
        found = tree_leaves(overwrite(module)(inputs.clone()))
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


@pytest.mark.parametrize("write", [operator.iadd, operator.imul, torch.relu_, F.relu_])
def test_what_a_function_wrote_into_is_no_memory_of_its_own(write: Callable[..., Tensor]) -> None:
    """An activation may not write over the result: it is the memory of the argument, which is read again."""
    graph = Graph()
    x = graph.placeholder("x")
    written = graph.call_function(write, (x, 2.0) if write.__module__ == "_operator" else (x,))
    graph.output((graph.call_function(F.silu, (written,)), x))
    module, inputs = GraphModule(nn.Module(), graph), torch.randn(2, 3)
    expected = [one.clone() for one in module(inputs.clone())]
    torch.testing.assert_close(list(overwrite(module)(inputs.clone())), expected, rtol=0, atol=0)
    assert not is_fresh(write)
    assert is_fresh(operator.add)
