"""Lowering of recurrent layers: ONNX has operators for them, with other orders of gates and axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calls import recurrent
from .lowering_site import Site, Source, Value, register_lowering

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where PyTorch has the gates that ONNX wants in its own order."""


@dataclass(frozen=True)
class Weights:
    """What one layer or cell has for each direction, as ONNX wants it."""

    kind: str
    hidden: int
    rows: list[tuple[Tensor, Tensor, Tensor | None]]
    """For each direction the weights of the input, those of the state, and all biases."""
    activations: list[str] | None

    @property
    def direction(self) -> str:
        """ONNX' word for it."""
        return "bidirectional" if len(self.rows) == 2 else "forward"


@register_lowering(recurrent)
def recurrent_layer(site: Site) -> Sequence[str]:
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
    """One step, of which the states come out."""
    kind = type(layer).__name__.removesuffix("Cell")
    activations = [str(layer.nonlinearity).capitalize()] if kind == "RNN" else None
    weights = Weights(kind, layer.hidden_size, [_row(layer, kind, "")], activations)
    # A step and a direction in front, and a batch where there is none.
    front = [0] if site.x.tensor.ndim == 2 else [0, 1]
    source, *initial = (site.emit("Unsqueeze", one, site.ints(front)) for one in (site.x, *_given_states(site)))
    _, *last = _run(site, weights, source, list(initial))
    return [site.emit("Squeeze", one, site.ints(front)) for one in last]
