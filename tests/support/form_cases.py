"""The module form of a sub-network: that it is its graph, and its copies."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from network_cases import EXACT
from torch import nn

from bnas import SuperNetwork
from bnas.passes import Elasticity, Subnet
from bnas.passes.modules.trial import difference

FINE = Elasticity(width_multipliers=(1.0, 0.75, 0.5), min_width=1, divisor=1)


def run(module: nn.Module, *inputs: Any) -> Any:
    with torch.no_grad():
        return module(*inputs)


def assert_is_graph(supernet: SuperNetwork, subnet: Subnet, *inputs: Any, allowed: float = EXACT) -> nn.Module:
    """The module form of `subnet`, which gives what the graph gives and has no other tensors."""
    made, graph = supernet.extract(subnet, form="module"), supernet.extract(subnet)
    error, _ = difference(run(made, *inputs), run(graph, *inputs))
    assert error <= allowed
    found, expected = made.state_dict(), graph.state_dict()
    assert expected.keys() - supernet.ir.constants.keys() <= found.keys()
    assert all(found[name].shape == tensor.shape for name, tensor in expected.items() if name in found)
    assert type(made) is type(supernet.model)
    return made


def copies(module: nn.Module) -> list[nn.Module]:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    return [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded]
