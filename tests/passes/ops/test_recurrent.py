"""Recurrent layers: a smaller sub-network is the layer that somebody would cut by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from bnas.passes import Elasticity, Subnet, VerificationError
from bnas.passes.axes.terms import Prod
from bnas.passes.ops import recurrent as rules
from bnas.passes.ops.rnn import gru, gru_cell, lstm, lstm_cell, rnn, rnn_cell
from bnas.runtime import SuperNetwork, verify

FINE = Elasticity(width_multipliers=(1.0, 0.75, 0.5, 0.25), min_width=1, divisor=1)
INPUTS, HIDDEN, STEPS = 8, 8, 5
X = torch.randn(3, STEPS, 4, generator=torch.Generator().manual_seed(0))
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"batch_first": True},
    "two layers": {"num_layers": 2, "batch_first": True},
    "both directions": {"bidirectional": True, "batch_first": True},
    "both directions of two": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "time first": {"num_layers": 2},
    "no bias": {"bias": False, "batch_first": True},
}
KINDS: tuple[type[nn.RNNBase], ...] = (nn.LSTM, nn.GRU, nn.RNN)
CELL_KINDS: tuple[type[nn.RNNCellBase], ...] = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Sequences(nn.Module):
    """A layer in the middle, with a head on its outputs and one on its last states."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, INPUTS)
        self.layer: nn.Module = kind(INPUTS, HIDDEN, **settings)
        self.head, self.other = nn.Linear(HIDDEN * (1 + bool(settings.get("bidirectional"))), 3), nn.Linear(HIDDEN, 2)
        self.batch_first = bool(settings.get("batch_first"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        outputs, last = self.layer(x if self.batch_first else x.transpose(0, 1))
        outputs = outputs if self.batch_first else outputs.transpose(0, 1)
        last = last[0] * last[1] if isinstance(self.layer, nn.LSTM) else last
        return self.head(outputs), self.other(last).transpose(0, 1)


class Steps(nn.Module):
    """A loop over a cell, that begins with zeros: its own or the caller's."""

    def __init__(self, kind: type[nn.RNNCellBase], given: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.cell, self.head = nn.Linear(4, INPUTS), kind(INPUTS, HIDDEN), nn.Linear(HIDDEN, 3)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        two = isinstance(self.cell, nn.LSTMCell)
        zeros = x.new_zeros(len(x), HIDDEN)
        state: Any = ((zeros, torch.zeros(len(x), HIDDEN, dtype=x.dtype)) if two else zeros) if self.given else None
        for step in range(STEPS):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if two else state)


def supernet_of(model: nn.Module) -> SuperNetwork:
    return SuperNetwork.from_model(model.eval(), X, FINE)


def subnet_of(supernet: SuperNetwork, inputs: int, hidden: int) -> Subnet:
    names = {"first": inputs}
    return Subnet({name: names.get(name, hidden) for name in supernet.space.widths})


def kept(name: str, shape: torch.Size, inputs: int, hidden: int) -> list[Tensor]:
    """The entries of each axis of a tensor of a recurrent layer that are left, counted by hand."""
    rows = torch.cat([gate * HIDDEN + torch.arange(hidden) for gate in range(shape[0] // HIDDEN)])
    if len(shape) == 1:
        return [rows]
    if "_hh" in name:
        return [rows, torch.arange(hidden)]
    if "_l0" in name or "_l" not in name:
        return [rows, torch.arange(inputs)]
    return [rows, torch.cat([run * HIDDEN + torch.arange(hidden) for run in range(shape[1] // HIDDEN)])]


def cut(layer: nn.Module, inputs: int, hidden: int) -> nn.Module:
    """The smaller layer, made and filled by hand."""
    options = ("num_layers", "bidirectional", "batch_first", "bias", "nonlinearity")
    settings = {name: getattr(layer, name) for name in options if hasattr(layer, name)}
    small: nn.Module = type(layer)(inputs, hidden, **settings)
    for name, parameter in small.named_parameters():
        parameter.data.copy_(taken(layer.get_parameter(name).data, name, inputs, hidden))
    return small


def taken(tensor: Tensor, name: str, inputs: int, hidden: int) -> Tensor:
    for axis, entries in enumerate(kept(name, tensor.shape, inputs, hidden)):
        tensor = tensor.index_select(axis, entries)
    return tensor


def cut_model(model: Any, inputs: int, hidden: int) -> nn.Module:
    """All of the model, cut by hand."""
    small = copy.deepcopy(model)
    part = "layer" if isinstance(model, Sequences) else "cell"
    setattr(small, part, cut(getattr(model, part), inputs, hidden))
    small.first.weight, small.first.bias = (nn.Parameter(p.data[:inputs]) for p in model.first.parameters())
    weight = model.head.weight.data
    small.head.weight = nn.Parameter(weight.unflatten(1, (-1, HIDDEN))[:, :, :hidden].flatten(1))
    if isinstance(model, Sequences):
        small.other.weight = nn.Parameter(model.other.weight.data[:, :hidden])
    return small.eval()


def models() -> Iterator[Any]:
    for kind in KINDS:
        for name, settings in SETTINGS.items():
            yield pytest.param(Sequences(kind, **settings), id=f"{kind.__name__}, {name}")
    yield pytest.param(Sequences(nn.RNN, nonlinearity="relu", batch_first=True), id="RNN, relu")


def loops() -> Iterator[Any]:
    for kind in CELL_KINDS:
        yield pytest.param(Steps(kind, False), id=kind.__name__)


everything = pytest.mark.parametrize("model", [*models(), *loops()])


@everything
def test_the_maximal_sub_network_is_the_model(model: nn.Module) -> None:
    supernet = supernet_of(model)
    assert len(supernet.space.widths) == 2
    for found, expected in zip(supernet.program(supernet.space.maximal())(X), model(X), strict=True):
        assert torch.equal(found, expected)


@everything
@pytest.mark.parametrize(("inputs", "hidden"), [(4, 6), (8, 2), (2, 8), (6, 4)])
def test_a_smaller_one_is_the_layer_cut_by_hand(model: nn.Module, inputs: int, hidden: int) -> None:
    supernet, expected = supernet_of(model), cut_model(model, inputs, hidden)(X)
    subnet = subnet_of(supernet, inputs, hidden)
    torch.testing.assert_close(supernet.program(subnet)(X), expected)
    torch.testing.assert_close(supernet.extract(subnet)(X), expected)
    other = cut_model(model, inputs, hidden)
    for name, parameter in other.named_parameters():
        if "weight_ih" in name:
            parameter.data.add_(0.5)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(supernet.program(subnet)(X), other(X))


@everything
def test_all_widths_equal_the_oracle(model: nn.Module) -> None:
    supernet = supernet_of(model)
    for inputs in (2, 4, 8):
        for hidden in (2, 4, 6, 8):
            verify(model, supernet, subnet_of(supernet, inputs, hidden), X)


@pytest.mark.parametrize("model", [Sequences(nn.LSTM, batch_first=True), Sequences(nn.GRU, batch_first=True)])
def test_gates_in_another_order_are_caught(model: nn.Module) -> None:
    with mock.patch.object(rules, "Prod", lambda terms: Prod(terms[::-1])):  # hidden x gates
        supernet = supernet_of(model)
    with pytest.raises(VerificationError, match="differs"):
        verify(model, supernet, subnet_of(supernet, 8, 4), X)


@everything
def test_gradients_are_those_of_the_small_layer(model: nn.Module) -> None:
    supernet, small = supernet_of(copy.deepcopy(model)), cut_model(model, 4, 6)
    program = supernet.program(subnet_of(supernet, 4, 6))
    for module in (program, small):
        sum(out.square().sum() for out in module(X)).backward()
    for name, parameter in small.named_parameters():
        whole = supernet.model.get_parameter(name).grad
        assert whole is not None
        if name.startswith(("layer", "cell")):
            part = taken(whole, name.partition(".")[2], 4, 6)
            torch.testing.assert_close(part, parameter.grad)
            assert int(whole.count_nonzero()) == int(part.count_nonzero()) > 0


@everything
def test_what_is_extracted_is_a_plain_layer_of_its_size(model: nn.Module) -> None:
    supernet = supernet_of(model)
    part = supernet.extract(subnet_of(supernet, 4, 6))
    layer: Any = part.layer if isinstance(model, Sequences) else part.cell
    assert type(layer) in (*KINDS, *CELL_KINDS)
    assert (layer.input_size, layer.hidden_size) == (4, 6)
    assert "flatten_parameters" not in vars(layer)
    if isinstance(layer, nn.RNNBase):
        assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))
    again = cut_model(model, 4, 6)
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(again(X), part(X))
    part.double()(X.double())


@everything
def test_the_model_keeps_its_own_weights(model: Any) -> None:
    layer = model.layer if isinstance(model, Sequences) else model.cell
    own = list(layer.parameters())
    supernet = supernet_of(model)
    supernet.program(subnet_of(supernet, 4, 6))(X)
    supernet.extract(subnet_of(supernet, 4, 6))
    assert all(a is b for a, b in zip(layer.parameters(), own, strict=True))
    assert layer.hidden_size == HIDDEN
    if isinstance(layer, nn.RNNBase):
        assert all(a is b for a, b in zip(layer._flat_weights, own, strict=True))


def test_a_program_holds_no_graph_after_its_call() -> None:
    model = Sequences(nn.LSTM, batch_first=True)
    supernet = supernet_of(model)
    program = supernet.program(subnet_of(supernet, 4, 6))
    assert program(X)[0].grad_fn is not None
    layer: Any = program.get_submodule("layer.layer")
    assert all(weight.grad_fn is None for weight in layer._flat_weights)


def test_programs_follow_weights_that_change() -> None:
    model = Sequences(nn.GRU, batch_first=True, num_layers=2)
    supernet = supernet_of(model)
    programs = {hidden: supernet.program(subnet_of(supernet, 8, hidden)) for hidden in (4, 8)}
    with torch.no_grad():
        model.layer.weight_hh_l1.mul_(2)
    for hidden, program in programs.items():
        torch.testing.assert_close(program(X), cut_model(model, 8, hidden)(X))
    supernet.load_state_dict({name: tensor * 0.5 for name, tensor in supernet.state_dict().items()}, assign=True)
    for hidden, program in programs.items():
        torch.testing.assert_close(program(X), cut_model(model, 8, hidden)(X))


@pytest.mark.parametrize("kind", CELL_KINDS)
def test_zeros_made_in_forward_are_as_wide_as_the_cell(kind: type[nn.RNNCellBase]) -> None:
    model = Steps(kind, True)
    supernet = supernet_of(model)
    assert len(supernet.space.widths) == 2
    torch.testing.assert_close(supernet.extract(subnet_of(supernet, 4, 6))(X), cut_model(Steps(kind, False), 4, 6)(X))
    verify(model, supernet, supernet.space.minimal(), X)


class Given(nn.Module):
    """States that are not zero to begin with, or learned ones."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.GRU(4, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 3)
        state = torch.randn(1, 1, HIDDEN)
        self.state = nn.Parameter(state) if learned else None
        self.register_buffer("fixed", None if learned else state)

    def forward(self, x: Tensor) -> Tensor:
        state = self.fixed if self.state is None else self.state
        outputs, _ = self.layer(x, state.expand(-1, len(x), -1).contiguous())
        return self.head(outputs * outputs.sum(-1, keepdim=True))


@pytest.mark.parametrize("learned", [True, False])
def test_only_states_that_vanish_let_what_reads_them_sum(learned: bool) -> None:
    model = Given(learned).eval()
    supernet = supernet_of(model)
    assert bool(supernet.space.widths) is learned
    verify(model, supernet, supernet.space.minimal(), X)


class Handed(nn.Module):
    """The states of one layer are the first of another; the outputs are averaged over the steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.LSTM(4, HIDDEN, batch_first=True), nn.LSTM(4, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, states = self.one(x)
        return self.head(self.two(x, states)[0].mean(1))


def test_states_tie_two_layers() -> None:
    model = Handed().eval()
    supernet = supernet_of(model)
    (choices,) = supernet.space.widths.values()
    assert len(choices) == 4
    verify(model, supernet, supernet.space.minimal(), X)


class Along(nn.Module):
    """Runs along the channels of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(4, 8), nn.GRU(STEPS, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.first(x).mT)[0])


def test_steps_are_rigid() -> None:
    supernet = supernet_of(Along())
    assert len(supernet.space.widths) == 1
    assert any("runs along it" in one.reason for one in supernet.diagnostics)


class Packing(nn.Module):
    """A part that packs sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(INPUTS, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.full((len(x),), STEPS), batch_first=True)
        return self.layer(packed)[1][0][0]


class Projecting(nn.Module):
    """Outputs that are narrower than the states."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(INPUTS, HIDDEN, batch_first=True, proj_size=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(("part", "width"), [(Packing, HIDDEN), (Projecting, 3)])
def test_packed_sequences_and_projections_stay_whole(part: type[nn.Module], width: int) -> None:
    model = nn.Sequential(nn.Linear(4, INPUTS), nn.ReLU(), part(), nn.Linear(width, 2))
    supernet = supernet_of(model)
    assert not supernet.space.widths
    torch.testing.assert_close(supernet.program(supernet.space.maximal())(X), model(X))


def test_importance_brings_entries_to_the_front() -> None:
    model = Sequences(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True).eval()
    supernet, before = supernet_of(model), model(X)
    supernet.reorder()
    torch.testing.assert_close(supernet.program(supernet.space.maximal())(X), before)
    assert not torch.equal(
        model.layer.weight_hh_l0, Sequences(nn.LSTM, num_layers=2, bidirectional=True).layer.weight_hh_l0
    )
    verify(model, supernet, supernet.space.minimal(), X)


@pytest.mark.parametrize("model", [*models(), *loops()][::3])
def test_costs_are_those_of_the_extracted_module(model: nn.Module) -> None:
    supernet = supernet_of(model)
    for subnet in (supernet.space.maximal(), subnet_of(supernet, 4, 6)):
        parameters = sum(p.numel() for p in supernet.extract(subnet).parameters())
        assert supernet.costs(subnet)["parameters"] == parameters


def test_multiplications_are_counted() -> None:
    supernet = supernet_of(Sequences(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True))
    first, last = STEPS * 4 * INPUTS, STEPS * 2 * HIDDEN * 3 + 4 * HIDDEN * 2
    gates = 4 * HIDDEN * STEPS * 2 * ((INPUTS + HIDDEN) + (2 * HIDDEN + HIDDEN))
    assert supernet.costs(supernet.space.maximal())["macs"] == first + gates + last


FUNCTIONS = dict(zip((*KINDS, *CELL_KINDS), (lstm, gru, rnn, lstm_cell, gru_cell, rnn_cell), strict=True))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_compute_what_layers_do(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(4, 6)
    names = () if layer.__class__ in CELL_KINDS else ("num_layers", "bidirectional", "batch_first")
    given = dict(layer.named_parameters()) | {name: getattr(layer, name) for name in names}
    x = X[:, 0] if layer.__class__ in CELL_KINDS else X
    torch.testing.assert_close(FUNCTIONS[kind](x, **given), layer(x))
    shapes = [leaf.shape for leaf in _leaves(FUNCTIONS[kind](x.to("meta"), **given))]
    assert shapes == [leaf.shape for leaf in _leaves(layer(x))]
    with pytest.raises(ValueError, match="4 inputs"):
        FUNCTIONS[kind](torch.empty(3, 5, device="meta"), **given)


def _leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [leaf for part in value for leaf in _leaves(part)]


def test_functions_are_in_the_order_of_the_layers() -> None:
    assert [lstm, gru, rnn, lstm_cell, gru_cell, rnn_cell] == list(FUNCTIONS.values())


def test_a_saved_part_is_loaded_again() -> None:
    model = Sequences(nn.LSTM, batch_first=True)
    supernet = supernet_of(model)
    part = supernet.extract(subnet_of(supernet, 4, 6))
    again = pickle.loads(pickle.dumps(part))
    torch.testing.assert_close(again(X), part(X))
