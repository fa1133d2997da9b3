"""The axis types of all tensors of a graph, and the constants of the graph that depend on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from bnas.passes.errors import RuleError
from bnas.passes.frontend.ir import IR
from bnas.passes.frontend.structure import tensors_of
from bnas.passes.ops.calls import Call, Dynamic, TensorRef
from bnas.passes.ops.zeros import zeros_of

from .terms import K, Sym, Term, leaves, normalise, symbols
from .unifier import Unifier

Axes = list[Term]
"""The type of a tensor: a term for each axis."""


@dataclass(frozen=True)
class Rewrite:
    """A constant argument of a node that depends on the sub-network. Terms in it stand for their active sizes."""

    node: Node
    position: int
    """Position among the arguments of the graph node; for the setting of a module, `name` is used."""
    name: str
    value: Any
    """A term, or lists, tuples and slices that hold terms."""


@dataclass(frozen=True)
class Replacement:
    """The call that replaces a node in smaller sub-networks. Terms in it stand for their active sizes."""

    node: Node
    target: Callable[..., Any]
    args: tuple[Any, ...]
    """The arguments after the first one, which is the first input of the node."""


@dataclass(frozen=True)
class Moved:
    """Among the arguments of a `Replacement`: where the kept entries of ``Perm(term, order)`` come from."""

    term: Term
    order: tuple[int, ...]


@dataclass(frozen=True)
class SizeOf:
    """Among the constants of a `Rewrite`: the number of entries that axes of the node's input have together."""

    axes: tuple[int, ...]


@dataclass
class AxisTypes(Unifier):
    """The axis types of all tensors of a graph, and all other statements of rules; the first argument of a rule."""

    ir: IR = None  # type: ignore[assignment]
    values: dict[Node, Any] = field(default_factory=dict)
    """Type of every node's value."""
    zeros: dict[Node, Any] = field(default_factory=dict)
    """For each axis of a node's value, whether removed entries would be zero (by the operators' rules)."""
    tensors: dict[str, Axes] = field(default_factory=dict)
    """Type of every parameter and buffer that the forward reads, by its first name."""
    users: dict[str, set[Node]] = field(default_factory=dict)
    """The nodes that read a parameter or buffer."""
    rewrites: list[Rewrite | Replacement] = field(default_factory=list)
    following: set[Node] = field(default_factory=set)
    """The nodes that depend on inputs of the model, not only on parameters and buffers."""
    slices: list[tuple[Term, Term]] = field(default_factory=list)
    """Axes of parameters and buffers, with the parts that slices take before any input is involved."""
    macs: list[tuple[Node, tuple[Term, ...]]] = field(default_factory=list)
    """MACs of a node: the axes whose sizes are multiplied."""
    producers: dict[str, int] = field(default_factory=dict)
    """Weights by name, with the axis that produces new channels; importance is measured along it."""
    computed: list[tuple[Term, list[str]]] = field(default_factory=list)
    """Axes of computed weights that produce new channels, each with the parameters that the weight is computed from."""

    trained: AxisTypes | None = None
    """The types of the graph of training mode, if there is one, over the same parameters."""
    fills: list[Sym] = field(default_factory=list)
    """Axes of tensors of zeros, whose width adapts to the tensors that they are combined with."""

    def type(self, value: Any) -> Axes:
        """Return the type of an argument: of a node's value, or of a module's parameter or buffer."""
        if isinstance(value, TensorRef):
            return self.tensor(value.name)
        if not isinstance(value, Node):
            raise RuleError(f"{value!r} is not a tensor of the graph")
        found = self.values[value]
        if not isinstance(found, list):
            raise RuleError(f"{value.name} is not a tensor")
        return found

    def tensor(self, name: str) -> Axes:
        """Return the type of a parameter or buffer: new symbols at first use; integers and constants are rigid."""
        name = self.ir.aliases.get(name, name)
        if name not in self.tensors:
            data = self.ir.tensor(name)
            elastic = data.is_floating_point() and name not in self.ir.constants
            self.tensors[name] = [Sym(n, name) if elastic and n > 1 else K(n) for n in data.shape]
        return self.tensors[name]

    def is_tensor(self, value: Any) -> bool:
        """Whether an argument is a single tensor, not a number and not a tuple of tensors."""
        return isinstance(value, TensorRef) or (isinstance(value, Node) and isinstance(self.values[value], list))

    def fill(self, size: int, origin: str) -> Sym:
        """A new axis of a tensor of zeros."""
        self.fills.append(Sym(size, origin))
        return self.fills[-1]

    def shape(self, value: Any) -> tuple[int, ...]:
        """Return the full sizes of an argument; the batch axis has size `BATCH`."""
        return tuple(term.size for term in self.type(value))

    def output_shape(self, call: Call) -> tuple[int, ...]:
        """Return the full sizes of the call's output, which must be a single tensor."""
        return tuple(call.node.meta["value"].shape)

    def is_fixed(self, term: Term) -> bool:
        """Whether the rigid parts of an axis are independent of all input sizes."""
        return not any(isinstance(leaf, K) and leaf.n % n == 0 for leaf in leaves(term) for n in self._input_sizes)

    @cached_property
    def _input_sizes(self) -> frozenset[int]:
        """The sizes of the inputs, and all numbers that the graph computes from them."""
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
        """Broadcast the operands: align axes from the right and unify those that are not of size 1."""
        out: Axes = []
        for axis in range(-max(map(len, operands), default=0), 0):
            terms = [t[axis] for t in operands if len(t) >= -axis and t[axis].size != 1]
            for term in terms[1:]:
                self.unify(terms[0], term)
            out.append(terms[0] if terms else K(1))
        return out

    def contract(self, *operands: tuple[Any, int]) -> None:
        """State that a sum of products runs over these axes, which are one common axis of several values.

        Removed entries must be zero in at least one of the values, because a product is zero if one factor is. For
        independent sums over several values, call this once for each value.
        """
        if not any(zeros[axis] for value, axis in operands if (zeros := zeros_of(self, value))):
            for value, axis in operands:
                self.pin(self.type(value)[axis], "it is summed over, and its dropped entries are not zero")

    def rewrite(self, call: Call, position: int, name: str, value: Any) -> None:
        """State that a constant argument is the active size of a term, contains such sizes, or becomes -1 (open).

        The size of an input stays unchanged, unless it is left open.
        """
        if isinstance(call.argument(position, name), Dynamic) and value != -1:
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
        """State that `axis` of a weight produces new channels, of a parameter or of what is computed from some."""
        if isinstance(weight, Node) and weight.op != "get_attr":
            self.computed.append((self.type(weight)[axis], self._parameters_behind(weight)))
            return
        name = weight.name if isinstance(weight, TensorRef) else str(weight.target)
        self.producers[self.ir.aliases.get(name, name)] = axis

    def _parameters_behind(self, weight: Node) -> list[str]:
        """The parameters that a weight is computed from; none if it is computed from an input, too."""
        found, waiting, seen = set[str](), [weight], {weight}
        while waiting:
            node = waiting.pop()
            if node.op == "placeholder":
                return []
            if node.op == "get_attr" and isinstance(self.ir.tensor(str(node.target)), nn.Parameter):
                found.add(self.ir.aliases.get(str(node.target), str(node.target)))
            new = {one for one in node.all_input_nodes if isinstance(one.meta.get("value"), Tensor)} - seen
            seen |= new
            waiting += new
        return [name for name in self.tensors if name in found]

    def settle(self) -> None:
        """Normalise the types of all parameters and buffers; call this after late equations.

        Tensors of zeros whose width no weight determines, such as padding, become rigid.
        """
        for term, names in self.computed:
            wanted = set(symbols(term))
            for name in names:
                shared = (place for place, own in enumerate(self.tensors[name]) if wanted & set(symbols(own)))
                if (place := next(shared, None)) is not None:
                    self.producers.setdefault(name, place)
        made = {s for name, axis in self.producers.items() for s in symbols(self.tensors[name][axis])}
        self.pin_axes([s for s in self.fills if s.binding is None and s not in made], "no weight produces it")
        for axes in self.tensors.values():
            axes[:] = [normalise(term) for term in axes]

    def free_symbols(self) -> list[Sym]:
        """All free symbols, in the order of the parameters that they stand in."""
        found = (s for axes in self.tensors.values() for axis in axes for s in symbols(axis))
        return list(dict.fromkeys(found))
