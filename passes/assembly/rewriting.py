"""Changes to the graph of a sub-network: settings of layers, constants, and directly read tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.fx.node import map_aggregate

from bnas.passes.axes.selection import active, moved
from bnas.passes.axes.terms import Sym, Term
from bnas.passes.axes.types import Moved, Replacement, Rewrite, SizeOf
from bnas.passes.ops.calls import Dynamic
from bnas.passes.ops.registry import OPERATORS
from bnas.passes.ops.rnn import fit as fit_recurrent
from bnas.passes.space.kernels import is_convolution

from .slot import Slot, fit_kernel


class Holder(nn.Module):
    """Holds one tensor that forward reads directly; if the tensor must be computed, a call returns it."""

    name: str

    def forward(self) -> Any:
        """The tensor."""
        return getattr(self, self.name)


def holder_of(path: str) -> Holder:
    """Return the path of the holder for the tensor at `path`."""
    holder = Holder()
    holder.name = leaf_of(path)
    return holder


def path_of(owner: str, name: str) -> str:
    """The path of `name` in the module at `owner`."""
    return f"{owner}.{name}" if owner else name


def leaf_of(path: str) -> str:
    """The last part of a path."""
    return path.rpartition(".")[2]


def held_tensor(path: str, holder: nn.Module) -> nn.Module | Tensor:
    """Return the tensor that forward reads directly or, if it must be computed, the module to call for it."""
    name = leaf_of(path)
    tensor = holder._parameters.get(name, holder._buffers.get(name))
    return holder if tensor is None else tensor


def targets_of(nodes: Iterable[Node], op: str) -> list[str]:
    """Return the targets of all nodes with this op, each once."""
    return list(dict.fromkeys(str(node.target) for node in nodes if node.op == op))


def fit(shell: nn.Module, slots: Mapping[str, Slot]) -> None:
    """Set those settings of a layer that follow from the shapes of its tensors, such as ``in_channels``."""
    first = slots.get("weight") or slots.get("running_mean")
    if fit_recurrent(shell, slots) or first is None:
        return
    fit_shape(shell, first.shape)
    if is_convolution(shell):
        fit_kernel(shell, tuple(first.shared.shape[2:]), first.shape[2:])


def fit_shape(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Set the size attributes of a layer from the shape of its weight."""
    sizes = OPERATORS.sizes(type(layer))
    if sizes is not None:
        vars(layer).update(sizes(layer, tuple(shape)))  # bypasses ``nn.Module.__setattr__``, which is slow


def is_layer(module: nn.Module) -> bool:
    """Whether the size attributes of a module follow from its tensors; see `fit`."""
    recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase)
    return recurrent or OPERATORS.sizes(type(module)) is not None


def write_constant(
    copies: Mapping[Node, Node],
    rewrite: Rewrite | Replacement,
    assignment: Mapping[Sym, int],
    orders: dict[str, Tensor],
) -> None:
    """Write a constant that depends on widths into the graph; an order of channels becomes a tensor of the graph."""
    node, new = copies[rewrite.node], active_value(rewrite, assignment)
    if new == (_literal(rewrite) if isinstance(rewrite, Rewrite) else active_value(rewrite, {})):
        return
    new = fx.node.map_arg(new, copies.__getitem__)  # sizes of inputs
    new = map_aggregate(new, lambda entry: _size(node, entry) if isinstance(entry, SizeOf) else entry)
    if isinstance(rewrite, Rewrite) and len(node.args) > rewrite.position:
        node.update_arg(rewrite.position, new)
    elif isinstance(rewrite, Rewrite):
        node.update_kwarg(rewrite.name, new)
    else:
        node.op, node.target, node.kwargs = "call_function", rewrite.target, {}
        node.args = (node.all_input_nodes[0], *_arguments(node, rewrite, new, orders))


def _size(node: Node, size: SizeOf) -> Node:
    """Insert nodes, just before `node`, that compute the number of entries of some axes of its input."""
    with node.graph.inserting_before(node):
        sizes = [node.graph.call_method("size", (node.all_input_nodes[0], axis)) for axis in size.axes]
        return reduce(lambda one, other: node.graph.call_function(operator.mul, (one, other)), sizes)


def _literal(rewrite: Rewrite) -> Any:
    """Return the constant in the traced graph, with an index always as a tuple."""
    args, kwargs = rewrite.node.args, rewrite.node.kwargs
    given = args[rewrite.position] if len(args) > rewrite.position else kwargs.get(rewrite.name)
    return (given,) if isinstance(rewrite.value, tuple) and not isinstance(given, list | tuple) else given


def _arguments(node: Node, rewrite: Replacement, values: tuple[Any, ...], orders: dict[str, Tensor]) -> Iterator[Any]:
    for given, value in zip(rewrite.args, values, strict=True):
        if isinstance(given, Moved):
            name = f"_order_of_{node.name}"
            orders[name] = torch.tensor(value)
            with node.graph.inserting_before(node):
                yield node.graph.get_attr(name)
        else:
            yield value


def _value(rewrite: Rewrite | Replacement) -> Any:
    return rewrite.value if isinstance(rewrite, Rewrite) else rewrite.args


def terms_of(rewrite: Rewrite | Replacement) -> Iterator[Term]:
    """The terms in a constant of the graph."""
    return _terms(_value(rewrite))


def _terms(value: Any) -> Iterator[Term]:
    if isinstance(value, Term):
        yield value
    elif isinstance(value, Moved):
        yield value.term
    elif isinstance(value, slice):
        yield from _terms((value.start, value.stop, value.step))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _terms(entry)


def active_value(rewrite: Rewrite | Replacement, assignment: Mapping[Sym, int]) -> Any:
    """Return the constant, or the arguments, with all terms replaced by their active sizes."""

    def value(entry: Any) -> Any:
        if isinstance(entry, Term):
            return active(entry, assignment)
        if isinstance(entry, Dynamic):
            return entry.node
        if isinstance(entry, Moved):
            return moved(entry.order, entry.term, assignment)
        if isinstance(entry, slice):
            return slice(value(entry.start), value(entry.stop), value(entry.step))
        return type(entry)(map(value, entry)) if type(entry) in (list, tuple) else entry

    return value(_value(rewrite))
