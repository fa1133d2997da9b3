"""The oracle's own way to skip a region: the model's forward with hooks, against the model with ``nn.Identity``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from region_cases import Fire, Gate, Row, rows
from torch import Tensor, nn

from bnas.passes import Block, Elasticity, Subnet, VerificationError, analyse, skippable_blocks, trace
from bnas.passes.oracle.detour import ModuleOutput, OracleWarning, detour, module_output
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.verification import verify


@given(row=rows(), data=st.data())
def test_the_detour_is_the_identity(row: Row, data: st.DataObject) -> None:
    types = analyse(trace(row.module, row.inputs))
    blocks = skippable_blocks(types, Elasticity(("depth",))).found
    chosen = [b for b in blocks if b.name.startswith("body.") and b.name.count(".") == 1 and data.draw(st.booleans())]
    around = detour(copy.deepcopy(row.module), types.ir, chosen)
    expected = row.without(frozenset(b.name for b in chosen))(row.inputs)
    for _ in range(2):  # calls are counted anew in each forward
        torch.testing.assert_close(around(row.inputs), expected, rtol=0, atol=0)
    torch.testing.assert_close(row.module(row.inputs), row.without(frozenset())(row.inputs), rtol=0, atol=0)


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fire, self.last = nn.Conv2d(3, 8, 1), Fire(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fire(self.fire(self.stem(x).tanh())))


class Once(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.fire(self.stem(x).tanh()))


class Plain(nn.Module):
    """A region whose ends are values of one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.last = nn.Conv2d(3, 8, 1), Gate(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.last(self.gate(x).exp() * torch.tensor(0.5))


def region(net: nn.Module, number: int, inputs: Tensor) -> tuple[Any, Block]:
    types = analyse(trace(net.eval(), inputs))
    return types.ir, skippable_blocks(types, Elasticity(("depth",))).found[number]


def test_only_the_call_that_is_meant_is_replaced() -> None:
    inputs, net = torch.randn(2, 3, 4, 4), Twice()
    once = Once().eval()
    once.load_state_dict(net.state_dict())
    ir, block = region(net, 1, inputs)
    assert block.name == "fire#2"
    assert module_output(block.entry) == ModuleOutput("fire", 0)
    assert module_output(block.out) == ModuleOutput("fire", 1)
    torch.testing.assert_close(detour(net, ir, [block])(inputs), once(inputs), rtol=0, atol=0)


def test_ends_that_no_module_returns_are_interpreted_and_said() -> None:
    inputs, net = torch.randn(2, 3, 4, 4), Plain()
    ir, block = region(net, 0, inputs)
    assert module_output(block.entry) is None
    twin = copy.deepcopy(net)
    twin.gate = nn.Identity()
    with pytest.warns(OracleWarning, match="gate: its ends are not outputs of modules"):
        around = detour(net, ir, [block])
    torch.testing.assert_close(around(inputs), twin(inputs), rtol=0, atol=0)
    torch.testing.assert_close(around(x=inputs), twin(inputs), rtol=0, atol=0)


class Made(Plain):
    """Makes a module in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.last(nn.Sigmoid()(self.gate(x).exp()))


def test_modules_that_are_made_in_forward_are_run_by_the_interpreter() -> None:
    inputs, net = torch.randn(2, 3, 4, 4), Made()
    ir, block = region(net, 0, inputs)
    twin = copy.deepcopy(net)
    twin.gate = nn.Identity()
    with pytest.warns(OracleWarning, match="gate: its ends are not outputs of modules"):
        around = detour(net, ir, [block])
    torch.testing.assert_close(around(inputs), twin(inputs), rtol=0, atol=0)


def test_verification_needs_the_detour(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row((("layer", 8), ("layer", 8)))
    supernet = SuperNetwork.from_model(row.module, row.inputs)
    skipped = Subnet({}, frozenset(supernet.space.blocks))
    assert skipped.skipped
    verify(row.module, supernet, skipped, row.inputs)
    monkeypatch.setattr("bnas.runtime.verification.detour", lambda model, ir, regions: model)
    with pytest.raises(VerificationError, match="differs from the original model"):
        verify(row.module, supernet, skipped, row.inputs)


class Pair(nn.Module):
    """Returns two tensors, one of which looks like a region's end."""

    def __init__(self) -> None:
        super().__init__()
        self.fire = Fire(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fire(x).exp()
        return y, x.mean(1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pair, self.last = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh()), Pair(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.pair(self.stem(x))
        return self.last(y).sum(1) + z


def test_a_value_of_a_module_that_returns_several_is_replaced_in_the_graph() -> None:
    inputs, net = torch.randn(2, 3, 4, 4), Two()
    types = analyse(trace(net.eval(), inputs))
    nodes = {node.name: node for node in types.ir.graph.nodes}
    block = Block("pair", nodes["stem_1"], nodes["exp"], frozenset(), residual=False)
    with torch.no_grad():
        stem, found = net.stem(inputs), detour(net, types.ir, [block])(inputs)
        torch.testing.assert_close(found, net.last(stem).sum(1) + stem.mean(1))
        with pytest.raises(AssertionError, match="not close"):
            torch.testing.assert_close(found, net(inputs))


class Spelled(nn.Module):
    """A normalisation in one of its spellings, and a region whose ends are values of one forward."""

    def __init__(self, norm: Callable[[Tensor, nn.LayerNorm], Tensor]) -> None:
        super().__init__()
        self.stem, self.layer, self.norm = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), norm
        self.first, self.second, self.last = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).movedim(1, -1), self.layer).movedim(-1, 1)
        x = F.avg_pool2d(x, 2)
        return self.last(F.gelu(self.second(F.gelu(self.first(x)).mul(2).add(1).sub(1))).reshape(x.shape))


SPELLINGS: dict[str, Callable[[Tensor, nn.LayerNorm], Tensor]] = {
    "module": lambda x, layer: layer(x),
    "function": lambda x, layer: F.layer_norm(x, (8,), layer.weight, layer.bias),
    "torch": lambda x, layer: torch.layer_norm(x, (8,), layer.weight, layer.bias),
    "without weight": lambda x, layer: F.layer_norm(x.sigmoid(), (8,)),
    "by hand": lambda x, layer: layer.weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1).sqrt(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.filterwarnings("ignore::bnas.passes.oracle.detour.OracleWarning")
def test_statistics_are_those_of_kept_entries_however_they_are_called(
    spelling: str, change: Callable[..., Any]
) -> None:
    model, inputs = Spelled(SPELLINGS[spelling]).eval(), torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(model, inputs, Elasticity(min_width=1, divisor=1))
    assert "stem" in supernet.space.widths
    small = Subnet(supernet.space.minimal().widths, frozenset({"avg_pool2d-gelu_1"}))
    for subnet in (small, supernet.space.maximal()):
        verify(model, supernet, subnet, inputs)
    for op in (F.layer_norm, torch.mean, torch.var, torch.std):
        change(op, kept="")
    with pytest.raises(VerificationError, match="differs from the original"):
        verify(model, supernet, small, inputs)


class Standardised(nn.Module):
    """A weight is divided by its standard deviation: in a skipped block nothing of it is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        weight = self.inner.weight / (self.inner.weight.std(1, keepdim=True) + 1e-5)
        return self.last(x + nn.functional.linear(x, weight, self.inner.bias))  # type: ignore[no-any-return]


def test_a_standard_deviation_of_nothing_is_a_number() -> None:
    model, x = Standardised(), torch.randn(5, 4)
    supernet = SuperNetwork.from_model(model, x)
    (block,) = supernet.space.blocks
    assert verify(model, supernet, Subnet({"first": 16}, skipped=frozenset({block})), x) < 1e-12


class SharedValue(nn.Module):
    """Attention as a Temporal Fusion Transformer has it: all heads read one value, and their mean is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(5, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key = (layer(x).unflatten(2, (-1, 4)).transpose(1, 2) for layer in (self.query, self.key))
        return self.last(((query @ key.mT).softmax(-1) @ self.value(x).unsqueeze(1)).mean(1))


@pytest.mark.parametrize("heads", [2, 3])
def test_a_head_without_a_query_is_dropped_although_it_reads_what_others_keep(
    heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = SharedValue().double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    supernet = SuperNetwork.from_model(net, x, {"min_width": 1, "divisor": 1})
    subnet = Subnet({"query": heads})
    rows = slice(4 * heads)
    cut = copy.deepcopy(net)
    for layer in (cut.query, cut.key):
        layer.weight.data, layer.bias.data = layer.weight.data[rows], layer.bias.data[rows]
    torch.testing.assert_close(supernet.extract(subnet)(x), cut(x))
    verify(net, supernet, subnet, x)
    monkeypatch.setattr("bnas.passes.oracle.dependence.not_zero", lambda skeleton: set())
    with pytest.raises(VerificationError, match="differs"):
        verify(net, supernet, subnet, x)
