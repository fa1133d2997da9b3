"""Costs are those of the extracted module; reordering keeps the maximal sub-network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from network_cases import EXACT, Case, cases, everything, supernet_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bnas.passes import Subnet
from bnas.passes.reordering import importance
from bnas.testing import (
    Einsum,
    Layer,
    Network,
    assert_extracted_is_oracle,
    assert_program_is_extracted,
    subnets,
)

# (i): costs


def assert_costs(case: Case, costs: Mapping[str, int], subnet: Subnet) -> None:
    part = case.supernet.extract(subnet)
    # Of fused attention on the CPU the counter sees nothing.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        part(case.inputs[:1])
    if "einsum" in part.code:  # where it sums over one entry, PyTorch calls no product of matrices: nothing is counted
        assert costs["macs"] * 2 >= counter.get_total_flops()
    else:
        assert costs["macs"] * 2 == counter.get_total_flops()
    assert costs["parameters"] == sum(parameter.numel() for parameter in part.parameters())


def test_an_einsum_costs_what_its_letters_say() -> None:
    network = Network(Layer(4), (Einsum(4),))
    supernet = supernet_of(network)
    part = supernet.extract(supernet.space.maximal())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part(network.example_inputs[:1])
    assert supernet.costs(supernet.space.maximal())["macs"] * 2 == counter.get_total_flops()


@given(case=cases(), data=st.data())
def test_costs_are_those_of_the_extracted(case: Case, data: st.DataObject) -> None:
    others = [data.draw(subnets(case.supernet.space)) for _ in range(3)]
    chosen = [case.subnet, case.supernet.space.maximal(), case.supernet.space.minimal(), *others]
    one_by_one = [case.supernet.costs(subnet) for subnet in chosen]
    for subnet, costs in zip(chosen[:3], one_by_one, strict=False):
        assert_costs(case, costs, subnet)
    together = case.supernet.cost_model.many(chosen)
    for name in ("macs", "parameters"):
        assert together[name].dtype == np.int64
        assert together[name].tolist() == [costs[name] for costs in one_by_one]


def test_costs_of_another_subnet_are_rejected() -> None:
    case = everything(torch.float32)
    with pytest.raises(AssertionError):
        assert_costs(case, case.supernet.costs(case.supernet.space.maximal()), case.subnet)
    assert case.supernet.cost_model.many([])["macs"].shape == (0,)


# (j): reordering


@given(case=cases(torch.float64), norm=st.sampled_from(("L1", "L2")))
def test_reordering_keeps_the_maximal_and_sorts_by_importance(case: Case, norm: str) -> None:
    program = case.supernet.program(case.supernet.space.maximal())
    before = program(case.inputs)
    case.supernet.reorder(norm)
    torch.testing.assert_close(program(case.inputs), before, rtol=EXACT, atol=EXACT)
    for scores in importance(case.supernet.skeleton, norm).values():
        assert (np.diff(scores) <= EXACT).all()
    assert_program_is_extracted(case.supernet, case.subnet, case.inputs, tolerance=EXACT)
    assert_extracted_is_oracle(case.supernet, case.subnet, case.inputs)


def test_reordering_changes_what_small_subnets_keep() -> None:
    case = everything()
    before = case.supernet.extract(case.subnet)(case.inputs)
    scores = importance(case.supernet.skeleton)
    assert any((np.diff(one) > EXACT).any() for one in scores.values())
    case.supernet.reorder()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(case.supernet.extract(case.subnet)(case.inputs), before)


@pytest.mark.parametrize("left_out", ["0.0.1.running_mean", "0.0.1.bias", "0.4.scale", "0.6.layer.1.weight"])
def test_a_tensor_that_is_left_out_of_reordering_is_seen(left_out: str) -> None:
    case = everything()
    program = case.supernet.program(case.supernet.space.maximal())
    before = program(case.inputs)
    del case.supernet.skeleton.types.tensors[left_out]
    case.supernet.reorder()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(program(case.inputs), before)
