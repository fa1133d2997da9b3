"""Recurrent layers on ONNX Runtime against PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowering_checks import Net, assert_dynamic, op_types
from torch import Tensor, fx, nn
from torch.fx import GraphModule

from bnas.passes.ops import recurrent as lowering_recurrent

TOKENS = {0: "batch", 1: "length"}
SIZES = [{"batch": 1, "length": 7}, {"batch": 3, "length": 12}]

LAYERS: dict[str, nn.Module] = {
    "lstm": nn.LSTM(8, 5, batch_first=True),
    "lstm-deep": nn.LSTM(8, 5, num_layers=3, batch_first=True, bidirectional=True),
    "lstm-no-bias": nn.LSTM(8, 5, bias=False, dropout=0.0),
    "gru": nn.GRU(8, 5, batch_first=True),
    "gru-deep": nn.GRU(8, 5, num_layers=2, bidirectional=True),
    "rnn": nn.RNN(8, 5, batch_first=True),
    "rnn-relu": nn.RNN(8, 5, 2, nonlinearity="relu", bidirectional=True),
}

CELLS: dict[str, nn.Module] = {
    "lstm": nn.LSTMCell(8, 5),
    "gru": nn.GRUCell(8, 5),
    "rnn": nn.RNNCell(8, 5),
    "rnn-relu": nn.RNNCell(8, 5, nonlinearity="relu"),
}


class Leaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def graph_of(net: nn.Module) -> GraphModule:
    return GraphModule(net.eval(), Leaves().trace(net))


class Called(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    layer = LAYERS[name]
    axes = TOKENS if layer.batch_first else {0: "length", 1: "batch"}
    model = assert_dynamic(graph_of(Called(layer)), [axes], torch.randn(2, 9, 8), sizes=SIZES)
    assert op_types(model).count(type(layer).__name__) == layer.num_layers


class WithStates(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> Any:
        return self.layer(x, (hidden, cell) if isinstance(self.layer, nn.LSTM) else hidden)


@pytest.mark.parametrize("name", LAYERS)
def test_initial_states(name: str) -> None:
    layer = LAYERS[name]
    axes = TOKENS if layer.batch_first else {0: "length", 1: "batch"}
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    states = torch.randn(count, (axes == TOKENS and 2) or 9, 5)
    assert_dynamic(
        graph_of(WithStates(layer)),
        [axes, {1: "batch"}, {1: "batch"}],
        torch.randn(2, 9, 8),
        states,
        states,
        sizes=SIZES,
    )


def test_without_a_batch() -> None:
    net = graph_of(Called(nn.LSTM(8, 5, 2, bidirectional=True)))
    assert_dynamic(net, [{0: "length"}], torch.randn(9, 8), sizes=[{"length": 1}, {"length": 6}])


class Twice(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, hidden: Tensor, other: Tensor) -> Any:
        return self.cell(x, self.cell(x, hidden)), self.cell(x)


class LstmTwice(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, hidden: Tensor, other: Tensor) -> Any:
        first = self.cell(x, (hidden, other))
        return self.cell(x, (first[0], first[1])), self.cell(x)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    cell = CELLS[name]
    net: Net = graph_of(LstmTwice(cell) if name == "lstm" else Twice(cell))
    axes = [{0: "batch"}] * 3
    states = torch.randn(2, 5)
    assert_dynamic(net, axes, torch.randn(2, 8), states, states, sizes=[{"batch": 1}, {"batch": 3}])


def test_a_wrong_order_of_gates_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lowering_recurrent.GATES, "LSTM", (0, 1, 2, 3))
    with pytest.raises(AssertionError, match="not close"):
        assert_dynamic(graph_of(Called(LAYERS["lstm"])), [TOKENS], torch.randn(2, 9, 8), sizes=SIZES)
