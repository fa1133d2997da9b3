"""The layers that a picture shows are those of the extracted sub-network, in every sub-network."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from network_cases import Case, cases
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from bnas.passes import Subnet
from bnas.passes.cost.architecture import Architecture, ArchitectureError, LayerSize, size_of
from bnas.runtime import SuperNetwork
from bnas.testing import subnets

LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)


class Watcher(Interpreter):
    """Runs a module and notes what its layers with weights really put out, in order."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.seen: list[tuple[str, int, tuple[int, ...]]] = []

    def run_node(self, n: Node) -> Any:
        """Note the channels of the output, and the kernel."""
        value = super().run_node(n)
        layer = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(layer, LAYERS):
            kernel = () if isinstance(layer, nn.Linear) else tuple(layer.weight.shape[2:])
            channels = value.shape[-1 if isinstance(layer, nn.Linear) else 1]
            self.seen.append((str(n.target), channels, kernel))
        return value


def drawn(supernet: SuperNetwork, subnet: Subnet, only: set[str]) -> list[tuple[str, int, tuple[int, ...]]]:
    """What the architecture says of the layers that are modules."""
    architecture = supernet.architecture
    pairs = zip(architecture.layers, architecture.of(subnet), strict=True)
    return [(one.name, size.width, size.kernel) for one, size in pairs if size is not None and one.name in only]


def really(supernet: SuperNetwork, subnet: Subnet, inputs: Tensor) -> list[tuple[str, int, tuple[int, ...]]]:
    watcher = Watcher(supernet.extract(subnet))
    with torch.no_grad():
        watcher.run(inputs)
    return watcher.seen


def layers(supernet: SuperNetwork) -> set[str]:
    """Those that are called as modules; the inner ones of attention are read by functions."""
    called = {str(node.target) for node in supernet.ir.graph.nodes if node.op == "call_module"}
    return {name for name, one in supernet.model.named_modules() if isinstance(one, LAYERS) and name in called}


@given(case=cases(), data=st.data())
def test_every_layer_of_random_networks_is_as_in_the_extracted_module(case: Case, data: st.DataObject) -> None:
    supernet = case.supernet
    for subnet in (case.subnet, supernet.space.maximal(), data.draw(subnets(supernet.space))):
        assert drawn(supernet, subnet, layers(supernet)) == really(supernet, subnet, case.inputs[:2])


def test_a_wrong_choice_is_noticed() -> None:
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 64, 64))
    inputs, least = torch.zeros(1, 3, 64, 64), supernet.space.minimal()
    assert drawn(supernet, least, layers(supernet)) == really(supernet, least, inputs)
    for wrong in (
        Subnet({**least.widths, "conv1": 64}, least.skipped, least.kernels),
        Subnet(least.widths, frozenset(list(least.skipped)[1:]), least.kernels),
        Subnet(least.widths, least.skipped, {"conv1": 7}),
    ):
        assert drawn(supernet, wrong, layers(supernet)) != really(supernet, least, inputs)


def test_it_is_read_back_as_it_was_written() -> None:
    supernet = SuperNetwork.from_model(torchvision.models.mobilenet_v3_small().eval(), torch.zeros(1, 3, 64, 64))
    architecture = supernet.architecture
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again == architecture
    assert again.of(supernet.space.minimal()) == architecture.of(supernet.space.minimal())
    assert any(layer.kind == "depthwise conv2d" and layer.kernel == (5, 5) for layer in again.layers)


def test_sizes_of_products_and_sums() -> None:
    size = ("sum", 3, ("product", ("width", "a", 8), 2), ("width", "b", 4))
    assert size_of(size, {}) == 3 + 8 * 2 + 4
    assert size_of(size, {"a": 4, "b": 2}) == 3 + 4 * 2 + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1"),
        ({"layers": [{"name": "a"}]}, "malformed architecture: KeyError"),
        ({"layers": None}, "malformed architecture: TypeError"),
        (
            {
                "layers": [
                    {"name": "a", "kind": "b", "width": ["power", 2], "kernel": [], "kernel_choice": None, "blocks": []}
                ]
            },
            "a size of",
        ),
    ],
)
def test_what_is_no_architecture_is_refused(change: dict[str, Any], message: str) -> None:
    data = Architecture("Net", ()).to_json()
    assert Architecture.from_json(data) == Architecture("Net", ())
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_json({**data, **change})


def test_a_kernel_without_a_choice_is_full() -> None:
    supernet = SuperNetwork.from_model(nn.Sequential(nn.Conv2d(1, 8, 5, padding=2)), torch.zeros(1, 1, 8, 8))
    assert supernet.architecture.of(Subnet()) == (LayerSize(8, (5, 5)),)
    assert supernet.architecture.of(Subnet(kernels={"0": 3})) == (LayerSize(8, (3, 3)),)
