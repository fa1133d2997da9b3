"""Recurrent layers: the hidden width is one symbol in all gates, layers and directions; inputs are contracted.

What is left out of the hidden width stays zero from step to step if it is so at first: of zero parameters an LSTM makes
``sigmoid(0) * tanh(0)``, a GRU ``(1 - z) * tanh(0) + z * 0``, and an RNN ``tanh(0)`` or ``relu(0)``.
"""

from __future__ import annotations

from typing import Any

from bnas.passes.axes import Axes, AxisTypes, register_rule
from bnas.passes.calls import Call
from bnas.passes.recurrent import CELLS, LAYERS, NAMES, lstm, lstm_cell, suffixes
from bnas.passes.terms import K, Prod, Term


@register_rule(*LAYERS)
def layer(types: AxisTypes, call: Call) -> tuple[Any, ...]:
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


@register_rule(*CELLS)
def cell(types: AxisTypes, call: Call) -> Any:
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
