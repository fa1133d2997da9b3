"""From a typed graph to the layers with weights, for drawing the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.fx import Node

from bnas.passes.axes.terms import K, Perm, Prod, Sym, Term, resolve
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.ops.calls import Call, TensorRef
from bnas.passes.ops.record import Trait
from bnas.passes.ops.registry import OPERATORS, operator_name
from bnas.passes.space.choices import Choices

from .architecture import Architecture, Size, SizedLayer


def architecture(types: AxisTypes, choices: Choices) -> Architecture:
    """Return the layers that multiply by their own weight, and embeddings, with their sizes in every sub-network."""
    blocks = choices.space.blocks
    return Architecture(type(types.ir.root).__name__, tuple(_layers(types, choices)), tuple(blocks))


def _layers(types: AxisTypes, choices: Choices) -> Iterator[SizedLayer]:
    names = {symbol: name for name, symbol in choices.symbols.items()}
    multiplying = {node for node, _ in types.macs}
    for node in types.ir.graph.nodes:
        call = types.ir.calls.get(node)
        if call is None or (node not in multiplying and not OPERATORS.of(call.op).has(Trait.LOOKUP)):
            continue
        weight = _weight(types, call)
        if weight is not None:
            yield _layer(types, choices, call, weight, names)


def _layer(types: AxisTypes, choices: Choices, call: Call, weight: str, names: Mapping[Sym, str]) -> SizedLayer:
    node, shape = call.node, types.ir.tensor(weight).shape
    convolves = OPERATORS.of(call.op).has(Trait.CONVOLUTION, Trait.TRANSPOSED_CONVOLUTION)
    depthwise = OPERATORS.of(call.op).has(Trait.CONVOLUTION) and call.argument(6, "groups", 1) > 1 and shape[1] == 1
    kernel = choices.kernels.by_weight.get(types.ir.aliases.get(weight, weight))
    around = tuple(name for name in choices.space.blocks if node in choices.blocks[name].nodes)
    return SizedLayer(
        str(node.target) if node.op == "call_module" else weight.rpartition(".")[0] or node.name,
        f"{'depthwise ' if depthwise else ''}{operator_name(call.op)}",
        _size(_first(types.values[node])[1 if convolves else -1], names),
        tuple(shape[2:]) if convolves else (),
        None if kernel is None else kernel.name,
        around,
    )


def _first(value: Any) -> Axes:
    """Return the type of a tensor, or of the first of several tensors."""
    while isinstance(value, tuple):
        value = value[0]
    assert isinstance(value, list)
    return value


def _weight(types: AxisTypes, call: Call) -> str | None:
    """Return the first parameter with at least two axes that the call reads."""
    for ref in call.tensors():
        name = _parameter(ref)
        if name is not None and name not in types.ir.constants and types.ir.tensor(name).ndim > 1:
            return name
    return None


def _parameter(ref: Node | TensorRef) -> str | None:
    if isinstance(ref, TensorRef):
        return ref.name
    return str(ref.target) if ref.op == "get_attr" else None


def _size(term: Term, names: Mapping[Sym, str]) -> Size:
    term = resolve(term)
    if isinstance(term, Sym) and term in names:
        return "width", names[term], term.n
    if isinstance(term, K | Sym):
        return term.n
    if isinstance(term, Perm):
        return _size(term.term, names)
    kind = "product" if isinstance(term, Prod) else "sum"
    return kind, *(_size(part, names) for part in term.terms)  # type: ignore[attr-defined]
