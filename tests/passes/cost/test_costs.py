"""Costs are those of the extracted module; reordering keeps the maximal sub-network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_cases import watch
from network_cases import EXACT, Case, cases, everything, supernet_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bnas.passes import Subnet
from bnas.passes.assembly.importance import importance
from bnas.runtime import SuperNetwork
from bnas.testing import Einsum, Layer, Network, assert_extracted_is_oracle, assert_program_is_extracted, subnets

# (i): costs


@contextmanager
def without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # said when a flag is set back
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def assert_costs(case: Case, costs: Mapping[str, int], subnet: Subnet) -> None:
    part = case.supernet.extract(subnet)
    # Of fused attention on the CPU, and of oneDNN's LSTM, the counter sees nothing.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), without_onednn():
        part(case.inputs[:1])
    recurs = any(isinstance(module, nn.RNNBase) for module in part.modules())  # unknown to the counter
    if recurs or "einsum" in part.code:  # where it sums over one entry, PyTorch calls no product of matrices
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
    layers = case.supernet.cost_model.many(chosen[:1], ["layers"])
    assert list(layers) == ["layers"]
    assert layers["layers"].tolist() == [layers_that_run(case)]


def substituted(supernet: SuperNetwork, subnet: Subnet, name: str) -> int:
    """What the expression says, with the choices of a sub-network put in."""
    values = {**subnet.widths, **{f"kernel:{kernel}": size for kernel, size in subnet.kernels.items()}}
    values |= {f"keep:{block}": int(block not in subnet.skipped) for block in supernet.space.blocks}
    expression = supernet.cost_model.expressions[name]
    number = expression.xreplace({symbol: sympy.Integer(values[symbol.name]) for symbol in expression.free_symbols})
    return int(number.doit())


@given(case=cases())
def test_functions_are_what_the_expressions_say(case: Case) -> None:
    space = case.supernet.space
    expressions = case.supernet.cost_model.expressions
    assert list(expressions) == ["macs", "parameters", "activations", "peak_memory"]
    costs, maximal = case.supernet.costs(case.subnet), case.supernet.costs(space.maximal())
    assert costs == {name: substituted(case.supernet, case.subnet, name) for name in expressions}
    if costs != maximal:
        assert maximal != {name: substituted(case.supernet, case.subnet, name) for name in expressions}


class Mixing(nn.Module):
    """Opaque, since it decides by values; it reads a parameter of the model."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight if x.sum() > -1e9 else x


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.mixing, self.last = nn.Parameter(torch.ones(8, 8)), Mixing(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mixing(x, self.weight))


def test_a_parameter_that_an_opaque_module_reads_is_counted() -> None:
    supernet = SuperNetwork.from_model(Mixed().eval(), torch.ones(2, 8))
    assert supernet.costs(supernet.space.maximal())["parameters"] == 64 + 16 + 2


def layers_that_run(case: Case) -> int:
    """Nodes of the extracted graph that the cost model counts where nothing is skipped."""
    counted = {node.name for node, _ in case.supernet.skeleton.types.macs}
    return sum(node.name in counted for node in case.supernet.extract(case.subnet).graph.nodes)


def test_layers_are_counted_while_they_run() -> None:
    case = everything(torch.float32)
    counted = case.supernet.cost_model.many([case.subnet, case.supernet.space.maximal()], ["layers"])["layers"]
    assert counted[0] < counted[1] == len({node for node, _ in case.supernet.skeleton.types.macs})


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


# activations and memory


def assert_memory(case: Case, subnet: Subnet) -> None:
    """Activations are the entries that the extracted module really makes; memory is what it really takes, or more.

    More only where blocks are skipped, or where an axis of one entry spares a copy. Nodes that only a sub-network has
    are copies that the expressions leave out.
    """
    found = watch(case.supernet.extract(subnet), case.inputs[:1])
    own = {node.name for node in case.supernet.ir.graph.nodes if node.op != "placeholder"}
    costs, made = case.supernet.costs(subnet), sum(count for name, count in found.made.items() if name in own)
    assert made <= costs["activations"] <= made + found.viewed
    assert costs["peak_memory"] >= found.peak
    if subnet == case.supernet.space.maximal() and not found.viewed:
        assert costs["peak_memory"] == found.peak


@given(case=cases())
def test_activations_and_memory_are_those_of_the_extracted(case: Case) -> None:
    for subnet in (case.supernet.space.maximal(), case.subnet, case.supernet.space.minimal()):
        assert_memory(case, subnet)


def test_memory_of_another_subnet_is_rejected() -> None:
    case = everything(torch.float32)
    costs = case.supernet.costs(case.supernet.space.minimal())
    found = watch(case.supernet.extract(case.supernet.space.maximal()), case.inputs[:1])
    assert costs["peak_memory"] < found.peak
    assert costs["activations"] < sum(found.made.values())


class Wide(nn.Module):
    """A block whose inner value is four times as wide as the input, which is read once more at the end."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 8, 1)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.second(self.first(x))
        if self.inplace:
            y.add_(x)
            return y * 2
        return (y + x) * 2


@pytest.mark.parametrize(("inplace", "activations"), [(False, 8 + 32 + 8 + 8 + 8), (True, 8 + 32 + 8 + 8)])
def test_activations_and_memory_by_hand(inplace: bool, activations: int) -> None:
    images = torch.zeros(2, 8, 5, 5)
    supernet = SuperNetwork.from_model(Wide(inplace), images, {"divisor": 1, "min_width": 1})
    costs = supernet.costs(supernet.space.maximal())
    assert costs["activations"] == 25 * activations
    assert costs["peak_memory"] == 4 * 25 * (8 + 32 + 8)  # x, the inner value, and what the second makes of it
    for block in supernet.space.blocks:
        skipped = Subnet(skipped=frozenset({block}))
        assert supernet.costs(skipped)["activations"] == 25 * (8 + 8)
        assert supernet.costs(skipped)["peak_memory"] == 4 * 25 * (8 + 8)


@given(multiple=st.sampled_from([2, 4, 8]), data=st.data())
def test_rounded_costs_are_those_of_the_network_with_rounded_widths(multiple: int, data: st.DataObject) -> None:
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 5, 3))
    settings = {"dimensions": ("width",), "width_step": 1, "divisor": 1, "min_width": 1}
    supernet = SuperNetwork.from_model(net, torch.zeros(1, 1, 8, 8), settings)
    subnet = data.draw(subnets(supernet.space))
    rounded = Subnet({name: -(-width // multiple) * multiple for name, width in subnet.widths.items()})
    names = ("macs", "parameters", "activations", "layers")
    costs = supernet.cost_model
    found, expected = costs.many([subnet], names, multiple), costs.many([rounded], names)
    assert {name: found[name].tolist() for name in names} == {name: expected[name].tolist() for name in names}
    exact = costs.many([subnet], names)
    assert (exact["macs"] < found["macs"]).all() == (rounded.widths != subnet.widths), "the twin"
