"""Super-networks of random networks with a sub-network and inputs of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from bnas.passes import Elasticity, Subnet
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import Branches, Downsample, Head, Layer, Network, Residual, Twice, networks, subnets

ELASTICITY = Elasticity(width_multipliers=(1.0, 0.75, 0.5, 0.25), min_width=1, divisor=1)
EXACT = 1e-9
"""For double precision: what is left is rounding, enlarged where BatchNorm divides by a small deviation."""


class Case:
    """A super-network with a sub-network and inputs; shows what it was made from."""

    def __init__(self, network: Network, supernet: SuperNetwork, subnet: Subnet) -> None:
        self.network, self.supernet, self.subnet = network, supernet, subnet
        self.inputs = network.example_inputs.to(supernet.ir.dtype)

    def __repr__(self) -> str:
        return f"{self.network!r} with {self.subnet!r}"


def supernet_of(network: Network, dtype: torch.dtype = torch.float32) -> SuperNetwork:
    """Its kernel matrices are no identities, at which mistakes would be hidden."""
    supernet = SuperNetwork.from_model(network.module.to(dtype), network.example_inputs.to(dtype), ELASTICITY)
    generator = torch.Generator().manual_seed(network.seed)
    for matrix in supernet.kernel_matrices.parameters():
        matrix.data += 0.2 * torch.randn(matrix.shape, generator=generator)
    return supernet


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> Case:
    network = draw(networks())
    supernet = supernet_of(network, dtype)
    return Case(network, supernet, draw(subnets(supernet.space)))


def everything(dtype: torch.dtype = torch.float64) -> Case:
    """A network with views, gathered layers, a gathered parameter and a skipped block, and a sub-network of it."""
    network = Network(
        Layer(8, 3, norm=True),
        (
            Residual(8, groups=8, norm=True, gate=4, after="relu_"),
            Residual(6, norm=True, scale=True),
            Branches((Layer(4, 3, norm=True),), keep=True),
            Residual(6, scale=True, norm=True),
            Twice(3, norm=True),
            Downsample(16, project=False, norm=True),
        ),
        Head(flatten=True, hidden=6),
    )
    supernet = supernet_of(network, dtype)
    widths = {name: sizes[len(sizes) // 2] for name, sizes in supernet.space.widths.items()}
    subnet = Subnet(widths, frozenset(supernet.space.blocks[:1]))
    return Case(network, supernet, subnet)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that hangs at the modules of a model: tensors by value, everything else by identity."""
    found: dict[str, Any] = {f"tensor {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found[f"{path} {name}"] = dict(value) if isinstance(value, dict) else value
    return found


def assert_same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if name.startswith("tensor ") else value == after[name]
        assert same, name
