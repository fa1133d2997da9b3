"""Patterns on module paths, in our spelling and in BootstrapNAS's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bnas.passes import IR, ElasticityError, find_scopes, trace
from bnas.passes.space.scopes import scope_name


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * 2


class Net(nn.Module):
    """The second layer has two names, and so has its convolution's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Sequential(Layer(), Layer()), nn.Sequential(Layer())
        self.again = self.layer1[1]
        self.layer2[0].conv.weight = self.layer1[0].conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x))


@pytest.fixture(scope="module")
def ir() -> IR:
    return trace(Net().eval(), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("layer1", "layer1.0.conv", "layer2.0.conv"),
        ("layer1", "layer1", "layer"),
        ("layer*.conv", "layer2.0.conv", "layer2.0.norm"),
        ("*.0", "layer2.0.norm", "layer1.1.norm"),
        ("again", "layer1.1.conv", "layer1.0.conv"),
        ("Net", "layer1.0", "layer2"),
        ("Net/Sequential[layer1]/Layer[1]/NNCFConv2d[conv]/conv2d_0", "layer1.1.conv", "layer1.1.norm"),
        ("Net/Sequential[layer1]/Layer[0]/__mul___0", "layer1.0.norm", "layer1.1"),
        ("{re}Sequential\\[layer\\d\\]/Layer\\[0\\]/NNCFConv2d", "layer2.0.conv", "layer2.0.norm"),
    ],
)
def test_what_a_pattern_covers(ir: IR, pattern: str, inside: str, outside: str) -> None:
    scopes = find_scopes(ir, "pin", [pattern])
    assert scopes.covers(inside)
    assert scopes.covers(outside) == (pattern == "Net")


def test_a_tied_tensor_is_covered_by_all_its_names(ir: IR) -> None:
    scopes = find_scopes(ir, "pin", ["layer2"])
    assert scopes.covers_tensor("layer1.0.conv.weight")
    assert not scopes.covers_tensor("layer1.0.conv.bias")


def test_nodes_are_covered_by_the_module_whose_code_made_them(ir: IR) -> None:
    scopes = find_scopes(ir, "pin", ["layer2"])
    covered = [str(node.target) for node in ir.graph.nodes if scopes.covers_node(node) and node.op == "call_module"]
    assert covered == ["layer2.0.conv", "layer2.0.norm"]
    assert sum(scopes.covers_node(node) for node in ir.graph.nodes) == 3


def test_parameters_are_named_only_where_that_is_allowed(ir: IR) -> None:
    assert find_scopes(ir, "pin", ["*.bias"], parameters=True).covers_tensor("layer1.0.norm.bias")
    with pytest.raises(ElasticityError, match=r"ignored_scopes: '\*\.bias' matches no part of the model"):
        find_scopes(ir, "ignored_scopes", ["*.bias"])


@pytest.mark.parametrize("pattern", ["layer1.0.conf", "Net/Sequential[layer1]/Layer[0]/Conv2d[conf]/conv2d_0"])
def test_a_pattern_that_matches_nothing_names_the_nearest(ir: IR, pattern: str) -> None:
    with pytest.raises(ElasticityError, match=r"matches no part of the model; the nearest are layer1\.") as caught:
        find_scopes(ir, "pin", [pattern])
    assert pattern in str(caught.value)


def test_names_in_the_spelling_of_bootstrapnas() -> None:
    net = Net()
    assert scope_name(net, "layer1.1.conv.weight") == "Net/Sequential[layer1]/Layer[1]/Conv2d[conv]"
    assert scope_name(net, "") == "Net"
