"""Recurrent layers: the hidden width is one symbol in all gates, layers and directions; inputs are contracted.

What is left out of the hidden width stays zero from step to step if it is zero at first: of zero parameters an LSTM
makes ``sigmoid(0) * tanh(0)``, a GRU ``(1 - z) * tanh(0) + z * 0``, and an RNN ``tanh(0)`` or ``relu(0)``. ONNX has an
operator for each kind of layer, with other orders of gates and axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from bnas.passes.axes.terms import K, Prod, Term
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.onnx.site import Site
from bnas.passes.onnx.values import Source, Value

from .calls import Call, TensorRef
from .record import Layer, Operator, Sample
from .rnn import NAMES, gru, gru_cell, lstm, lstm_cell, recurrent, rnn, rnn_cell, suffixes, tensor_names
from .zeros import zeros_of


def layer_axes(types: AxisTypes, call: Call) -> tuple[Any, ...]:
    """Outputs (..., directions x hidden) and the last states (layers x directions, batch, hidden)."""
    inputs, hidden = types.type(call.argument(0, "input")), types.type(call.kwargs["weight_hh_l0"])[1]
    both, layers = bool(call.kwargs["bidirectional"]), int(call.kwargs["num_layers"])
    steps = 1 if call.kwargs["batch_first"] and len(inputs) == 3 else 0
    types.pin(inputs[steps], "a recurrent layer runs along it")
    batch = [axis for place, axis in enumerate(inputs[:-1]) if place != steps]
    states = [K((1 + both) * layers), *batch, hidden]
    out = Prod((K(1 + both), hidden))
    for number, end in suffixes(layers, both):
        _gates(types, call, end, [*inputs[:-1], out if number else inputs[-1]], hidden)
    types.contract((call.argument(0, "input"), -1), (call.kwargs["weight_ih_l0"], 1))
    _initial(types, call, states)
    last = (states, list(states)) if call.op is lstm else states
    return [*inputs[:-1], out], last


def cell_axes(types: AxisTypes, call: Call) -> Any:
    """The next states (batch, hidden)."""
    inputs, hidden = types.type(call.argument(0, "input")), types.type(call.kwargs["weight_hh"])[1]
    _gates(types, call, "", inputs, hidden)
    types.contract((call.argument(0, "input"), -1), (call.kwargs["weight_ih"], 1))
    states = [*inputs[:-1], hidden]
    _initial(types, call, states)
    return (states, list(states)) if call.op is lstm_cell else states


def _gates(types: AxisTypes, call: Call, end: str, inputs: Axes, hidden: Term) -> None:
    """The tensors of one layer and direction: rows are gates x hidden; columns are what it is fed, and hidden."""
    given = [call.kwargs.get(f"{name}{end}") for name in NAMES]
    fed, back = given[:2]
    rows = Prod((K(types.shape(fed)[0] // hidden.size), hidden))
    for tensor in given:
        if tensor is not None:
            types.unify(types.type(tensor)[0], rows)
    for weight, axis in ((fed, inputs[-1]), (back, hidden)):
        types.unify(types.type(weight)[1], axis)
        types.produces(weight, 0)
        types.count_macs(call, [*inputs[:-1], rows, axis])
    types.contract((back, 1))


def _initial(types: AxisTypes, call: Call, states: Axes) -> None:
    """The states that the layer begins with, if they are given: one, or two of an LSTM."""
    hx = call.argument(1, "hx")
    for given in () if hx is None else hx if isinstance(hx, list | tuple) else _parts(types, hx):
        axes = given if isinstance(given, list) else types.type(given)
        for own, axis in zip(axes, states, strict=True):
            types.unify(own, axis)


def _parts(types: AxisTypes, hx: Any) -> list[Axes]:
    """The types of a node's value: of a tensor, or of several."""
    found = types.values[hx]
    return [found] if isinstance(found, list) else list(found)


GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where PyTorch has the gates that ONNX wants in its own order."""


@dataclass(frozen=True)
class Weights:
    """The weights of a layer or cell for each direction, in the form of ONNX."""

    kind: str
    hidden: int
    rows: list[tuple[Tensor, Tensor, Tensor | None]]
    """For each direction the weights of the input, those of the state, and all biases."""
    activations: list[str] | None

    @property
    def direction(self) -> str:
        """The direction as an attribute of ONNX."""
        return "bidirectional" if len(self.rows) == 2 else "forward"


def recurrent_layer_onnx(site: Site) -> Sequence[str]:
    """All layers of a module, one behind the other; a cell is a sequence of one step."""
    layer = site.call.kwargs["layer"]
    if isinstance(layer, nn.RNNCellBase):
        return _cell(site, layer)
    if not isinstance(layer, nn.RNNBase) or layer.proj_size:
        raise site.refuse("projects its hidden state (proj_size)")
    if not isinstance(site.result[0], Tensor):
        raise site.refuse("gets a packed sequence")
    batched = site.x.tensor.ndim == 3
    states = [_state(site, one, batched) for one in _given_states(site)]
    output, last = _layers(site, layer, _steps_first(site, layer, batched), states)
    if not batched:
        return _without_batch(site, output, last)
    first = site.transpose(output, [1, 0, 2]) if layer.batch_first else output
    return [first, *last]


def _given_states(site: Site) -> list[Value]:
    """The initial states: one, or two of an LSTM; none means zeros."""
    given = site.arg(1, "hx")
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _steps_first(site: Site, layer: nn.RNNBase, batched: bool) -> str:
    if not batched:
        return site.emit("Unsqueeze", site.x, site.ints([1]))
    return site.transpose(site.x, [1, 0, 2]) if layer.batch_first else site.name(site.x)


def _state(site: Site, value: Value, batched: bool) -> str:
    return site.name(value) if batched else site.emit("Unsqueeze", value, site.ints([1]))


def _without_batch(site: Site, output: str, last: Sequence[str]) -> list[str]:
    return [site.emit("Squeeze", one, site.ints([1])) for one in (output, *last)]


def _layers(site: Site, layer: nn.RNNBase, source: str, states: Sequence[str]) -> tuple[str, list[str]]:
    """The output of the last layer, and the last states of all of them."""
    ways = 2 if layer.bidirectional else 1
    ends: list[list[str]] = []
    for number in range(layer.num_layers):
        initial: list[Source] = [_part(site, one, number, ways, layer.num_layers) for one in states]
        output, *last = _run(site, _weights(layer, number, ways), source, initial)
        # Steps, directions, batch, features: directions become features.
        turned = site.transpose(output, [0, 2, 1, 3])
        source = site.emit("Reshape", turned, site.ints([0, 0, -1]))
        ends.append(last)
    whole = [list(states) for states in zip(*ends, strict=True)]
    return source, [one[0] if len(one) == 1 else site.emit("Concat", *one, axis=0) for one in whole]


def _part(site: Site, states: str, number: int, ways: int, layers: int) -> str:
    """The initial states of one layer."""
    if layers == 1:
        return states
    first, last = site.ints([number * ways]), site.ints([(number + 1) * ways])
    return site.emit("Slice", states, first, last, site.ints([0]))


def _run(site: Site, weights: Weights, source: Source, initial: Sequence[Source]) -> tuple[str, ...]:
    """One ONNX operator: the states of all steps, and the last ones."""
    stacked = [None if row[0] is None else torch.stack(list(row)) for row in zip(*weights.rows, strict=True)]
    inputs: list[Source] = [source, *stacked, None, *initial]
    settings: dict[str, Any] = {"hidden_size": weights.hidden, "direction": weights.direction}
    if weights.kind == "GRU":
        settings["linear_before_reset"] = 1
    return site.emit_many(
        weights.kind, inputs, 3 if weights.kind == "LSTM" else 2, activations=weights.activations, **settings
    )


def _weights(layer: nn.RNNBase, number: int, ways: int) -> Weights:
    suffixes = [f"l{number}{'_reverse' if way else ''}" for way in range(ways)]
    kind = type(layer).__name__
    rows = [_row(layer, kind, f"_{suffix}") for suffix in suffixes]
    activations = ["Relu" if layer.nonlinearity == "relu" else "Tanh"] * ways if kind == "RNN" else None
    return Weights(kind, layer.hidden_size, rows, activations)


def _row(layer: nn.Module, kind: str, suffix: str) -> tuple[Tensor, Tensor, Tensor | None]:
    inner, outer = (_ordered(getattr(layer, f"weight_{name}{suffix}"), kind) for name in ("ih", "hh"))
    if not layer.bias:
        return inner, outer, None
    return inner, outer, torch.cat([_ordered(getattr(layer, f"bias_{name}{suffix}"), kind) for name in ("ih", "hh")])


def _ordered(tensor: Tensor, kind: str) -> Tensor:
    """The rows of `tensor` with the gates in ONNX' order."""
    gates = tensor.detach().cpu().chunk(len(GATES[kind]))
    return torch.cat([gates[place] for place in GATES[kind]])


def _cell(site: Site, layer: nn.RNNCellBase) -> list[str]:
    """One step; returns the states."""
    kind = type(layer).__name__.removesuffix("Cell")
    activations = [str(layer.nonlinearity).capitalize()] if kind == "RNN" else None
    weights = Weights(kind, layer.hidden_size, [_row(layer, kind, "")], activations)
    # A step and a direction in front, and a batch where there is none.
    front = [0] if site.x.tensor.ndim == 2 else [0, 1]
    source, *initial = (site.emit("Unsqueeze", one, site.ints(front)) for one in (site.x, *_given_states(site)))
    _, *last = _run(site, weights, source, list(initial))
    return [site.emit("Squeeze", one, site.ints(front)) for one in last]


def states_begin_with_zeros(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero in the hidden width, all of which the weights make."""
    return axis == len(axes) - 1 and _begins_with_zeros(types, call)


def _begins_with_zeros(types: AxisTypes, call: Call) -> bool:
    """Whether the states that a recurrent layer begins with are zero where they are left out: then all are."""
    weights = (ref for ref in call.kwargs.values() if isinstance(ref, TensorRef))
    return all(map(all, (zeros_of(types, ref) for ref in weights))) and _end_with_zeros(types, call.argument(1, "hx"))


def _end_with_zeros(types: AxisTypes, value: Any) -> bool:
    """Whether removed entries of the last axis are zero, in a tensor or all tensors of a tuple; true for None."""
    if isinstance(value, Node):
        found = zeros_of(types, value)
        return found[-1] if found else _all_end_with_zeros(types.zeros.get(value))
    return all(_end_with_zeros(types, one) for one in value) if isinstance(value, list | tuple) else value is None


def _all_end_with_zeros(found: Any) -> bool:
    """Like `_end_with_zeros`, for nested `Zeros`."""
    return isinstance(found, list) and all(z[-1] if isinstance(z, tuple) else _all_end_with_zeros(z) for z in found)


RECORDS = (
    Operator(
        lstm,
        layers={nn.LSTM: Layer(settings=("num_layers", "bidirectional", "batch_first"), names=tensor_names)},
        axes=layer_axes,
        zeros=states_begin_with_zeros,
        samples=(
            Sample(
                lambda x, layer: layer(x.flatten(2).mT)[0].mT, layer=lambda: nn.LSTM(8, 6, 2, True, True, 0.0, True)
            ),
        ),
    ),
    Operator(
        gru,
        layers={nn.GRU: Layer(settings=("num_layers", "bidirectional", "batch_first"), names=tensor_names)},
        axes=layer_axes,
        zeros=states_begin_with_zeros,
        samples=(
            Sample(lambda x, layer: layer(x.flatten(2).mT)[0].mT, layer=lambda: nn.GRU(8, 6, batch_first=True)),
            Sample(
                lambda x, layer: layer(x.flatten(2))[0],
                layer=lambda: nn.GRU(24, 6, batch_first=True),
                rigid="runs along it",
            ),
        ),
    ),
    Operator(
        rnn,
        layers={
            nn.RNN: Layer(settings=("num_layers", "bidirectional", "batch_first", "nonlinearity"), names=tensor_names)
        },
        axes=layer_axes,
        zeros=states_begin_with_zeros,
        samples=(
            Sample(lambda x, layer: layer(x.flatten(2).mT)[0].mT, layer=lambda: nn.RNN(8, 6, 2, batch_first=True)),
        ),
    ),
    Operator(
        lstm_cell,
        layers={nn.LSTMCell: Layer(tensors=("weight_ih", "weight_hh", "bias_ih", "bias_hh"))},
        axes=cell_axes,
        zeros=states_begin_with_zeros,
        samples=(Sample(lambda x, cell: cell(x.mean((2, 3)))[1], layer=lambda: nn.LSTMCell(8, 6)),),
    ),
    Operator(
        gru_cell,
        layers={nn.GRUCell: Layer(tensors=("weight_ih", "weight_hh", "bias_ih", "bias_hh"))},
        axes=cell_axes,
        zeros=states_begin_with_zeros,
        samples=(Sample(lambda x, cell: cell(x.mean((2, 3)), cell(x[:, :, 0, 0])), layer=lambda: nn.GRUCell(8, 6)),),
    ),
    Operator(
        rnn_cell,
        layers={
            nn.RNNCell: Layer(tensors=("weight_ih", "weight_hh", "bias_ih", "bias_hh"), settings=("nonlinearity",))
        },
        axes=cell_axes,
        zeros=states_begin_with_zeros,
        samples=(Sample(lambda x, cell: cell(x.mean((2, 3))), layer=lambda: nn.RNNCell(8, 6)),),
    ),
    Operator(recurrent, onnx=recurrent_layer_onnx),
)
