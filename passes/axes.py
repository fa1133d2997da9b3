"""The analysis: every axis of every tensor in the graph gets a type, by one rule per operator.

An operator without a rule pins all its inputs and gives rigid outputs: sound by default, never a guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from .errors import Diagnostic, RuleError
from .frontend.opaque_method import OpaqueMethod
from .frontend.structure import holds_tensors, is_record, tensors_of
from .ir import IR
from .ops.calls import Call, Dynamic, TensorRef, with_numbers
from .ops.record import AxisRule
from .ops.registry import OPERATORS, operator_name
from .ops.zeros import note_zeros, zeros_of
from .terms import K, Sym, Term, leaves, normalise, symbols
from .unifier import Unifier

Axes = list[Term]
"""The type of a tensor: a term for each axis."""


@dataclass(frozen=True)
class Rewrite:
    """A constant argument of a node that depends on the sub-network: terms stand for their active sizes."""

    node: Node
    position: int
    """Position among the arguments of the graph node; a module's setting is found by `name`."""
    name: str
    value: Any
    """A term, or lists, tuples and slices that hold terms."""


@dataclass(frozen=True)
class Replacement:
    """A call that a node becomes where the sub-network keeps less than all: terms stand for their active sizes."""

    node: Node
    target: Callable[..., Any]
    args: tuple[Any, ...]
    """The arguments after the first, which is the node's own."""


@dataclass(frozen=True)
class Moved:
    """Among the arguments of a `Replacement`: where the kept entries of ``Perm(term, order)`` come from."""

    term: Term
    order: tuple[int, ...]


@dataclass
class AxisTypes(Unifier):
    """The types of all tensors of a graph, and what else the rules stated; rules get it as their first argument."""

    ir: IR = None  # type: ignore[assignment]
    values: dict[Node, Any] = field(default_factory=dict)
    """Type of every node's value."""
    zeros: dict[Node, Any] = field(default_factory=dict)
    """Where the entries of a node's value that are left out would be zero, by the rules of the operators."""
    tensors: dict[str, Axes] = field(default_factory=dict)
    """Type of every parameter and buffer that the forward reads, by its first name."""
    users: dict[str, set[Node]] = field(default_factory=dict)
    """The nodes that read a parameter or buffer."""
    rewrites: list[Rewrite | Replacement] = field(default_factory=list)
    following: set[Node] = field(default_factory=set)
    """The nodes that are computed from the inputs, and not from parameters and buffers alone."""
    slices: list[tuple[Term, Term]] = field(default_factory=list)
    """Axes of parameters and buffers with what slices take of them, before an input comes in."""
    macs: list[tuple[Node, tuple[Term, ...]]] = field(default_factory=list)
    """Multiply-accumulates of a node, as the axes whose sizes are multiplied."""
    producers: dict[str, int] = field(default_factory=dict)
    """Weights by name, with the axis that makes new channels: importance is measured there."""

    trained: AxisTypes | None = None
    """The types of the graph of training mode, where there is one, of the same parameters."""
    fills: list[Sym] = field(default_factory=list)
    """Axes of tensors of zeros, which are as wide as what they are used with."""

    def type(self, value: Any) -> Axes:
        """The type of an argument: a node's value, or a module's parameter or buffer."""
        if isinstance(value, TensorRef):
            return self.tensor(value.name)
        if not isinstance(value, Node):
            raise RuleError(f"{value!r} is not a tensor of the graph")
        found = self.values[value]
        if not isinstance(found, list):
            raise RuleError(f"{value.name} is not a tensor")
        return found

    def tensor(self, name: str) -> Axes:
        """The type of a parameter or buffer: fresh symbols at first use; integers and constants are rigid."""
        name = self.ir.aliases.get(name, name)
        if name not in self.tensors:
            data = self.ir.tensor(name)
            elastic = data.is_floating_point() and name not in self.ir.constants
            self.tensors[name] = [Sym(n, name) if elastic and n > 1 else K(n) for n in data.shape]
        return self.tensors[name]

    def is_tensor(self, value: Any) -> bool:
        """Whether an argument is a tensor with a type of its own: no number, and no tuple of tensors."""
        return isinstance(value, TensorRef) or (isinstance(value, Node) and isinstance(self.values[value], list))

    def fill(self, size: int, origin: str) -> Sym:
        """A new axis of a tensor of zeros."""
        self.fills.append(Sym(size, origin))
        return self.fills[-1]

    def shape(self, value: Any) -> tuple[int, ...]:
        """Full sizes of an argument; the batch axis is `BATCH`."""
        return tuple(term.size for term in self.type(value))

    def output_shape(self, call: Call) -> tuple[int, ...]:
        """Full sizes of the call's output, which must be one tensor."""
        return tuple(call.node.meta["value"].shape)

    def is_fixed(self, term: Term) -> bool:
        """Whether no rigid part of an axis can follow a size of the inputs, whatever they are."""
        return not any(isinstance(leaf, K) and leaf.n % n == 0 for leaf in leaves(term) for n in self._input_sizes)

    @cached_property
    def _input_sizes(self) -> frozenset[int]:
        """The sizes of the inputs, and all numbers that the graph computes of them."""
        values = [node.meta.get("value") for node in self.ir.graph.nodes if node.op != "output"]
        inputs = (
            n
            for node in self.ir.graph.find_nodes(op="placeholder")
            for tensor in tensors_of(node.meta["value"])
            for n in tensor.shape
        )
        numbers = (value for value in values if isinstance(value, int) and not isinstance(value, bool))
        return frozenset(n for n in (*inputs, *numbers) if n > 1)

    def pin_axes(self, axes: Sequence[Term], why: str) -> None:
        """Pin each of `axes`."""
        for axis in axes:
            self.pin(axis, why)

    def broadcast(self, *operands: Axes) -> Axes:
        """Right-align the operands; an axis of size 1 is neutral, all others are one axis."""
        out: Axes = []
        for axis in range(-max(map(len, operands), default=0), 0):
            terms = [t[axis] for t in operands if len(t) >= -axis and t[axis].size != 1]
            for term in terms[1:]:
                self.unify(terms[0], term)
            out.append(terms[0] if terms else K(1))
        return out

    def contract(self, *operands: tuple[Any, int]) -> None:
        """State that a sum runs over these axes of values, which are one: what is left out of one must be zero."""
        if not any(zeros[axis] for value, axis in operands if (zeros := zeros_of(self, value))):
            for value, axis in operands:
                self.pin(self.type(value)[axis], "it is summed over, and what is left out of it is not zero")

    def rewrite(self, call: Call, position: int, name: str, value: Any) -> None:
        """State that a constant argument is the active size of a term, or holds such sizes; one of an input stays."""
        if isinstance(call.argument(position, name), Dynamic):
            self.pin_axes([value] if isinstance(value, Term) else [], "its size is computed from an input")
            return
        self.rewrites.append(Rewrite(call.node, position, name, value))

    def replace(self, call: Call, target: Callable[..., Any], *args: Any) -> None:
        """State that a smaller sub-network calls `target` on the first input and `args`; terms are active sizes."""
        self.rewrites.append(Replacement(call.node, target, args))

    def count_macs(self, call: Call, axes: Sequence[Term]) -> None:
        """State the multiply-accumulates of the call: the product of the sizes of `axes`."""
        self.macs.append((call.node, tuple(axes)))

    def produces(self, weight: Any, axis: int) -> None:
        """State that `axis` of a weight makes new channels."""
        name = weight.name if isinstance(weight, TensorRef) else str(weight.target) if weight.op == "get_attr" else None
        if name is not None:
            self.producers[self.ir.aliases.get(name, name)] = axis

    def settle(self) -> None:
        """Bring the types of all parameters and buffers into normal form: after equations that were stated late.

        Zeros that no weight makes entries for, such as padding, are rigid.
        """
        made = {s for name, axis in self.producers.items() for s in symbols(self.tensors[name][axis])}
        self.pin_axes([s for s in self.fills if s.binding is None and s not in made], "no weight makes it")
        for axes in self.tensors.values():
            axes[:] = [normalise(term) for term in axes]

    def free_symbols(self) -> list[Sym]:
        """All free symbols, in the order of the parameters that they stand in."""
        found = (s for axes in self.tensors.values() for axis in axes for s in symbols(axis))
        return list(dict.fromkeys(found))


def analyse(ir: IR) -> AxisTypes:
    """Type all axes of the graph. Nothing of the model or the graph is changed."""
    types = AxisTypes(ir=ir)
    _type_nodes(types)
    if ir.trained is not None:
        types.trained = replace(types, ir=ir.trained, **_fresh())
        _type_nodes(types.trained)
        types.trained.settle()
        _pin_only_trained(types)
    _pin_unread(types)
    types.settle()
    return types


def _fresh() -> dict[str, Any]:
    """The tables of a graph of its own: parameters, pins and reasons are shared with the other."""
    return {"values": {}, "zeros": {}, "users": {}, "rewrites": [], "macs": [], "fills": [], "following": set()}


def _pin_only_trained(types: AxisTypes) -> None:
    """What only training mode has, such as an auxiliary head, has no widths of its own."""
    read = {s for name in types.users for axis in types.tensor(name) for s in symbols(axis)}
    for name, axes in types.tensors.items():
        if name not in types.users:
            for axis in axes:
                types.pin_axes([s for s in set(symbols(axis)) if s not in read], "only training mode reads it")


def _type_nodes(types: AxisTypes) -> None:
    """Type every node of the graph of `types`."""
    for node in types.ir.graph.nodes:
        if node.op == "placeholder" or not types.following.isdisjoint(_tensors(node)):
            types.following.add(node)
        types.values[node] = _type_of(types, node)
        note_zeros(types, node)


def _tensors(node: Node) -> list[Node]:
    """The inputs of a node that are no sizes."""
    return [source for source in node.all_input_nodes if not isinstance(source.meta.get("value"), int)]


def _pin_unread(types: AxisTypes) -> None:
    """Pin the parts of parameters and buffers that are only cut off, as rows for longer inputs are: no widths."""
    left = {symbol for axis, _ in types.slices for symbol in symbols(axis)}
    if not left:
        return
    read = [taken for _, taken in types.slices]
    for node in types.following:
        read += tree_leaves(types.values[node], is_leaf=lambda value: isinstance(value, Term))
    used = {symbol for term in read if isinstance(term, Term) for symbol in symbols(term)}
    for symbol in left - used:
        types.pin(symbol, "no operator reads this part of it")


def _type_of(types: AxisTypes, node: Node) -> Any:
    if node.op == "placeholder":
        return rigid(node.meta["value"], "it is an input of the model")
    if node.op == "get_attr":
        return types.tensor(str(node.target))
    if node.op == "output":
        _pin_inputs(types, node, "it is an output of the model")
        return None
    gives = holds_tensors(node.meta["value"])
    if not gives and node.target is not operator.setitem:
        return None  # a size: a number and not a tensor
    if isinstance(node.target, type):  # a container of a user's class, which is made to be returned, or to be given
        returned = all(user.op == "output" for user in node.users)
        _pin_inputs(types, node, "it is an output of the model" if returned else "it is in a list or dict of a class")
        return None
    call = types.ir.calls.get(node)
    rule = None if call is None else OPERATORS.of(call.op).axes
    for ref in node.all_input_nodes if call is None else call.tensors():
        _note_use(types, node, ref)
    if rule is None or call is None:
        what = _opaque_name(types, node) if call is None else f"operator {operator_name(call.op)}"
        return _refuse(types, node, f"{what} has no rule")
    return _by_rule(types, node, rule, with_numbers(call))


def _by_rule(types: AxisTypes, node: Node, rule: AxisRule, call: Call) -> Any:
    """What the rule says; a rule that meets what it was not written for, or gives another shape, freezes the node."""
    try:
        found = rule(types, call)
    except Exception as error:
        return _refuse(types, node, f"operator {operator_name(call.op)}: {error}")
    if fits(found, node.meta["value"]):
        return None if node.meta["value"] is None else found  # a write into an item gives nothing
    why = "its rule gives axes of another shape; this is a fault of bnas's rule, please report it"
    return _refuse(types, node, f"operator {operator_name(call.op)}: {why}")


def fits(axes: Any, value: Any) -> bool:
    """Whether a type has the sizes of a value, nested as it is."""
    if isinstance(value, Tensor):
        terms = isinstance(axes, list) and all(isinstance(term, Term) for term in axes)
        return terms and [term.size for term in axes] == list(value.shape)
    if not holds_tensors(value):
        return True
    if isinstance(value, list | tuple):
        return isinstance(axes, list | tuple) and all(map(fits, axes, value)) and len(axes) == len(value)
    if isinstance(value, dict):
        return isinstance(axes, dict) and all(fits(axes.get(key), item) for key, item in value.items())
    return True


def _opaque_name(types: AxisTypes, node: Node) -> str:
    """An opaque module by its class, so that many of a kind have one reason; a method by its name."""
    module = types.ir.module(str(node.target))
    if isinstance(module, OpaqueMethod):
        return f"the opaque method {module.place}"
    return f"the opaque module {type(module).__name__}"


def _note_use(types: AxisTypes, node: Node, ref: Node | TensorRef) -> None:
    name = ref.name if isinstance(ref, TensorRef) else str(ref.target) if ref.op == "get_attr" else None
    if name is not None:
        types.users.setdefault(types.ir.aliases.get(name, name), set()).add(node)


def _refuse(types: AxisTypes, node: Node, why: str) -> Any:
    """Freeze what is not understood, and say so."""
    types.pins.append(Diagnostic(node.name, f"{why}: its inputs and outputs are rigid"))
    types.rewrites[:] = [rewrite for rewrite in types.rewrites if rewrite.node is not node]
    types.macs[:] = [(counted, axes) for counted, axes in types.macs if counted is not node]
    _pin_inputs(types, node, why)
    call = types.ir.calls.get(node)
    for ref in [] if call is None else call.tensors():
        if isinstance(ref, TensorRef):
            types.pin_axes(types.tensor(ref.name), why)
    return rigid(node.meta["value"], why)


def _pin_inputs(types: AxisTypes, node: Node, why: str) -> None:
    def pin(value: Any) -> None:
        if isinstance(value, Term):
            types.pin(value, why)

    for source in node.all_input_nodes:
        tree_map(pin, types.values[source], is_leaf=lambda v: isinstance(v, Term))


def rigid(value: Any, why: str = "") -> Any:
    """The rigid type of a value, nested as the value is; None for what is not a tensor."""
    if isinstance(value, Tensor):
        return [K(n, why) for n in value.shape]
    if isinstance(value, list | tuple):
        return tuple(rigid(item, why) for item in value)
    if isinstance(value, dict):
        return {key: rigid(item, why) for key, item in value.items()}
    if is_record(value):
        return {name: rigid(item, why) for name, item in vars(value).items()}
    return None
