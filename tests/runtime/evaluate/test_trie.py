"""Modules that are run together give bitwise what each gives alone, and share what they can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_cases import supernet_of
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils._pytree import tree_leaves

from bnas.data.digits import DigitNet
from bnas.passes import SubnetError
from bnas.runtime import EvaluationError, Evaluator, SuperNetwork, accuracy
from bnas.runtime.evaluate.together import Layers, share_layers
from bnas.runtime.evaluate.trie import Trie
from bnas.testing import Network, networks, subnets

Data = list[tuple[Tensor, Tensor]]


def batches(count: int, *shape: int) -> Data:
    return [(torch.randn(20, *shape), torch.randint(10, (20,))) for _ in range(count)]


def mutated(supernet: SuperNetwork, count: int) -> list[Any]:
    """The maximal sub-network, and others that differ from it or from one another in a few genes."""
    generator, space = np.random.default_rng(0), supernet.space
    found = [space.maximal()]
    while len(found) < count:
        genes = list(space.encode(found[generator.integers(len(found))]))
        for place in generator.integers(len(genes), size=2):
            genes[place] = int(generator.integers(len(space.variables()[place].choices)))
        found.append(space.canonical(space.decode(genes)))
    return found


class InPlace(nn.Module):
    """Writes into values that a skipped block and a shortcut read, through a view too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.bodies = nn.ModuleList([nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)) for _ in "abc"])
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for body in self.bodies:
            x = body(x) + x
            y = self.relu(x).flatten(1)
            y.mul_(1.1)
            x += 0.1
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("model", [DigitNet, InPlace])
def test_numbers_are_bitwise_those_of_each_alone(model: type[nn.Module]) -> None:
    supernet = SuperNetwork.from_model(model().eval(), torch.zeros(2, 1, 8, 8))
    evaluator = Evaluator(supernet, batches(2, 1, 8, 8), batches(2, 1, 8, 8), metric=fingerprint)
    subnets = mutated(supernet, 12)
    together = evaluator.evaluate_many(subnets)
    assert together == [evaluator.evaluate(subnet) for subnet in subnets]
    assert len({one["accuracy"] for one in together}) == len(set(subnets))  # type: ignore[index]
    evaluator.group = 5
    assert evaluator.evaluate_many(subnets) == together


def fingerprint(module: nn.Module, data: Any) -> float:
    """A metric in which the last bit of any output shows."""
    with torch.inference_mode():
        return float(sum(module(inputs).double().cos().sum() for inputs, _ in data))


def test_statistics_of_another_prefix_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: with statistics shared by layer instead of by what comes before it, numbers differ."""
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    evaluator = Evaluator(supernet, batches(2, 1, 8, 8), batches(1, 1, 8, 8), metric=fingerprint)
    subnets = mutated(supernet, 6)

    def wrong(modules: list[GraphModule], layers: Layers) -> Trie:
        trie = share_layers(modules, layers)
        for module in modules[1:]:
            for path, norm in module.named_modules():
                if isinstance(norm, nn.BatchNorm2d):
                    first = dict(modules[0].named_modules()).get(path)
                    if first is not None and layers.key(first) == layers.key(norm):
                        module.set_submodule(path, first)
        return trie

    expected = [evaluator.evaluate(subnet) for subnet in subnets]
    monkeypatch.setattr("bnas.runtime.evaluate.evaluator.share_layers", wrong)
    assert evaluator.evaluate_many(subnets) != expected


def test_shared_beginnings_run_once() -> None:
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    space = supernet.space
    last = space.blocks[-1]
    subnets = [space.maximal(), space.canonical(type(space.maximal())(dict(space.maximal().widths), frozenset({last})))]
    layers = Layers()
    modules = [supernet.skeleton.build(subnet, layers).eval() for subnet in subnets]
    trie = share_layers(modules, layers)
    calls: list[str] = []
    for name, module in {**dict(modules[1].named_modules()), **dict(modules[0].named_modules())}.items():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    trie(torch.randn(2, 1, 8, 8))
    convolutions = [name for name, module in modules[0].named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(calls) == sorted(convolutions)


class Branching(nn.Module):
    """Reads a value again after writing into it."""

    def __init__(self, write: bool) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.view(-1)
        if self.write:
            z.add_(1)
        return y + 1


def test_what_one_writes_the_other_does_not_see() -> None:
    modules = [symbolic_trace(Branching(write)) for write in (True, False)]
    x = torch.randn(3, 4)
    for order in (modules, modules[::-1]):
        for found, module in zip(Trie(order, lambda *_: None)(x), order, strict=True):
            assert torch.equal(found, module(x))
    assert not torch.equal(modules[0](x), modules[1](x))


def test_error_of_one_is_its_own() -> None:
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    data = batches(1, 1, 8, 8)
    evaluator = Evaluator(supernet, data, data)
    wrong = type(supernet.space.maximal())({"nothing": 3})
    found = evaluator.evaluate_many([supernet.space.maximal(), wrong])
    assert found[0] == evaluator.evaluate(supernet.space.maximal())
    assert isinstance(found[1], SubnetError)


def test_error_of_the_metric_is_that_of_one() -> None:
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    data, asked = batches(1, 1, 8, 8), list[nn.Module]()

    def fails_once(module: nn.Module, given: Any) -> float:
        asked.append(module)
        if len(asked) == 2:
            raise RuntimeError("no memory")
        return accuracy(module, given)

    found = Evaluator(supernet, data, data, metric=fails_once).evaluate_many(mutated(supernet, 3))
    assert [type(one) for one in found] == [dict, EvaluationError, dict]
    assert "'fails_once'" in str(found[1])


def test_other_inputs_than_those_of_the_batches_are_computed() -> None:
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    data = batches(1, 1, 8, 8)

    def flipped(module: nn.Module, given: Any) -> float:
        return fingerprint(module, [(inputs.flip(3), targets) for inputs, targets in given])

    evaluator = Evaluator(supernet, data, data, metric=flipped, metric_name="flipped")
    assert evaluator.evaluate_many([supernet.space.minimal()]) == [evaluator.evaluate(supernet.space.minimal())]
    assert evaluator.names == ("flipped", *supernet.costs(supernet.space.minimal()))


def test_shared_tensors_and_statistics_of_the_supernetwork_are_as_they_were() -> None:
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(2, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    data = batches(1, 1, 8, 8)
    Evaluator(supernet, data, data).evaluate_many(mutated(supernet, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.state_dict().items())


@settings(max_examples=15)
@given(network=networks(), data=st.data())
def test_random_networks_give_bitwise_what_each_gives_alone(network: Network, data: st.DataObject) -> None:
    inputs = network.example_inputs
    supernet = supernet_of(network, torch.float32)
    chosen = [data.draw(subnets(supernet.space)) for _ in range(3)]
    layers = Layers()
    modules = [supernet.skeleton.build(subnet, layers).eval() for subnet in chosen]
    trie = Trie(modules, lambda number, path: layers.key(modules[number].get_submodule(path)))
    with torch.no_grad():
        alone = [tree_leaves(supernet.extract(subnet)(inputs.clone())) for subnet in chosen]
        together = [tree_leaves(outputs) for outputs in trie(inputs)]
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Two(nn.Module):
    """Adds two inputs, given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 10)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(left) - 2 * self.right(right)))


def test_inputs_by_name_reach_their_places() -> None:
    example = {"right": torch.zeros(2, 8), "left": torch.zeros(2, 8)}
    supernet = SuperNetwork.from_model(Two().eval(), example, {"min_width": 1, "divisor": 1})
    data = [({name: torch.randn(20, 8) for name in example}, torch.randint(10, (20,))) for _ in range(2)]

    def named(module: nn.Module, given: Any) -> float:
        with torch.inference_mode():
            return float(sum(module(**inputs).double().cos().sum() for inputs, _ in given))

    evaluator = Evaluator(supernet, None, data, named)
    subnets = [supernet.space.maximal(), supernet.space.minimal()]
    together = evaluator.evaluate_many(subnets)
    assert together == [evaluator.evaluate(subnet) for subnet in subnets]
    assert together[0] == {**supernet.costs(subnets[0]), "accuracy": named(supernet.model, data)}
