"""What cannot be recorded is exported alone, where that gives ordinary operators; all else stays opaque."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from alone_cases import (
    Images,
    Part,
    Whole,
    asserts_a_number,
    branches,
    goes_through_numpy,
    has_a_backward,
    keeps_a_count,
    loops,
    multiplies_by_a_number,
    selects,
)
from torch import Tensor
from torch.fx import Graph, Node

import bnas
from bnas import SuperNetwork
from bnas.passes.frontend.exported import modules
from bnas.testing.assertions import (
    assert_gradients_match,
    assert_maximal_is_original,
    assert_maximal_trains_as_original,
    assert_onnx_is_extracted,
)


def built(step: Callable[[Part, Tensor], Tensor]) -> SuperNetwork:
    return SuperNetwork.from_model(Whole(Part(step)).eval(), torch.randn(4, 8))


def told(supernet: SuperNetwork, words: str) -> bool:
    return any(one.place == "part" and words in one.reason for one in supernet.diagnostics)


def test_an_exported_part_is_elastic_and_right() -> None:
    supernet, x = built(asserts_a_number), torch.randn(3, 8)
    assert "part.up" in supernet.space.widths
    assert told(supernet, "captured by torch.export")
    assert not told(supernet, "opaque")
    assert_maximal_is_original(supernet, x)
    assert_maximal_trains_as_original(supernet, x)
    smallest = supernet.space.minimal()
    assert bnas.verify(supernet.model, supernet, smallest, x) < 1e-12
    assert_gradients_match(supernet, smallest, x)
    assert_onnx_is_extracted(supernet, smallest, x)


def test_layers_of_an_exported_part_are_layers() -> None:
    model, x = Images().eval(), torch.randn(2, 3, 12, 12)
    supernet = SuperNetwork.from_model(model, x)
    assert (dict(supernet.space.kernels), supernet.space.blocks) == ({"part.first": (3, 5)}, ("part",))
    assert_maximal_trains_as_original(supernet, x)  # statistics too
    assert bnas.verify(model, supernet, supernet.space.minimal(), x) < 1e-12


def test_layers_that_are_exported_in_another_way_are_functions() -> None:
    padded, hooked, x = Images("reflect").eval(), Images().eval(), torch.randn(2, 3, 12, 12)
    hooked.part.first.register_forward_hook(lambda module, args, value: value * 2)
    for model in (padded, hooked):
        supernet = SuperNetwork.from_model(model, x)
        assert told(supernet, "captured by torch.export")
        torch.testing.assert_close(supernet.program(supernet.space.maximal())(x), model(x))


def test_functions_of_numpy_are_nodes() -> None:
    supernet = built(goes_through_numpy)
    assert told(supernet, "captured by torch.export")
    assert_maximal_is_original(supernet, torch.randn(5, 8))


def test_dropout_of_an_exported_part_follows_the_mode() -> None:
    supernet, x = built(asserts_a_number), torch.randn(3, 8)
    program = supernet.program(supernet.space.maximal())
    supernet.train()
    program.train()
    assert not torch.equal(program(x), program(x))
    supernet.eval()
    program.eval()
    torch.testing.assert_close(program(x), program(x), rtol=0, atol=0)


@pytest.mark.parametrize("step", [branches, multiplies_by_a_number, selects, has_a_backward])
def test_what_no_graph_can_have_stays_opaque(step: Callable[[Part, Tensor], Tensor]) -> None:
    supernet = built(step)
    assert told(supernet, "opaque")
    assert not told(supernet, "captured by torch.export")
    assert_maximal_is_original(supernet, torch.randn(3, 8))
    assert_maximal_is_original(supernet, -torch.ones(3, 8))


def test_an_export_that_grows_with_the_batch_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    create, sizes = Graph.create_node, []

    def counted(graph: Graph, *args: Any, **kwargs: Any) -> Node:
        sizes.append(len(graph.nodes))
        return create(graph, *args, **kwargs)

    monkeypatch.setattr(Graph, "create_node", counted)
    monkeypatch.setattr(modules, "MOST_NODES", 100)
    supernet = built(loops)
    assert told(supernet, "opaque")
    assert max(sizes) == 99
    assert_maximal_is_original(supernet, torch.randn(3, 8))
    assert told(built(asserts_a_number), "captured by torch.export")  # far fewer nodes


def test_nothing_stays_behind() -> None:
    model, x = Whole(Part(keeps_a_count)).eval(), torch.randn(4, 8)
    before, drawn, environment = dict(vars(model.part)), torch.get_rng_state(), dict(os.environ)
    SuperNetwork.from_model(model, x)
    assert vars(model.part) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.is_grad_enabled()
    assert dict(os.environ) == environment
