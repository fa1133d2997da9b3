"""`Site`: the call that an ONNX rule lowers, with methods to emit nodes.

While a graph is lowered, its tensors are on the meta device, which computes only shapes and dtypes. Every shape is
computed for two sets of sizes of the dynamic axes: sizes that differ stay dynamic in the ONNX graph, all others are
fixed. Values that do not depend on the inputs are really computed and stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.fx import Node

from bnas.passes.errors import LoweringError
from bnas.passes.ops.calls import Call
from bnas.passes.ops.record import Target
from bnas.passes.ops.registry import OPERATORS, qualified_name

from .builder import OnnxBuilder, onnx_type, through_reshapes, through_transposes
from .values import AnySize, Size, Source, Value, called, kept_axes, leaves, pair_of, same_size, size_of


class Site:
    """One call that is being lowered; the argument of ONNX rules.

    The arguments of `call` are resolved: a tensor is a `Value`, a number that depends on input sizes is a `Size`, and
    everything else is a plain Python value.
    """

    def __init__(
        self, builder: OnnxBuilder, call: Call, result: Any, scope: str, root: nn.Module, twin: Any = None
    ) -> None:
        self.builder = builder
        self.call = call
        self.result = result
        """What PyTorch returns for the call: tensors on the meta device."""
        self.twin = result if twin is None else twin
        """What PyTorch returns at the other set of sizes."""
        self.scope = scope
        """The path of the module, or the name of the node, that nodes and errors are named after."""
        self.root = root
        """The module whose graph the call is in."""

    @property
    def node(self) -> Node:
        """The graph node, with unresolved arguments."""
        return self.call.node

    @property
    def x(self) -> Value:
        """The first argument, a tensor."""
        return self.value(0, "input")

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return the argument at `position` of the canonical signature or called `name`, else `default`."""
        return self.call.argument(position, name, default)

    def value(self, position: int, name: str) -> Value:
        """Return the argument at `position`, or called `name`, which must be a tensor."""
        found = self.arg(position, name)
        if not isinstance(found, Value):
            raise self.refuse(f"argument {name!r} must be a tensor, not {found!r}")
        return found

    def optional(self, position: int, name: str) -> Value | None:
        """Return the argument at `position`, or called `name`; None if it is missing or ``None``."""
        return None if self.arg(position, name) is None else self.value(position, name)

    def emit(self, op_type: str, *inputs: Source, **attributes: Any) -> str:
        """Append an ONNX node with one output and return that output's name."""
        return self.emit_many(op_type, inputs, 1, **attributes)[0]

    def emit_many(self, op_type: str, inputs: Sequence[Source], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Append an ONNX node and return the names of its outputs."""
        return self.builder.emit(op_type, [self.name(one) for one in inputs], self.scope, outputs, attributes)

    def name(self, source: Source) -> str:
        """Return the name under which a node reads `source`; empty for an omitted input."""
        if source is None:
            return ""
        if isinstance(source, str):
            return source
        if isinstance(source, Tensor):
            return self.builder.constant(source)
        if not source.constant:
            return source.name
        return self.builder.initializer(source.tensor, source.name, copy=not source.state)

    def operand(self, given: Any, dtype: torch.dtype) -> str:
        """Return the name of a tensor or number as an operand of `dtype`, cast or stored if needed."""
        if isinstance(given, Value):
            same = given.tensor.dtype == dtype
            return self.name(given) if same else self.emit("Cast", given, to=onnx_type(dtype, self.scope))
        if isinstance(given, Size):
            return self.emit("Cast", self.scalar(given), to=onnx_type(dtype, self.scope))
        if not isinstance(given, bool | int | float):
            raise self.refuse(f"{given!r} is neither a tensor nor a number")
        return self.name(torch.tensor(given, dtype=dtype))

    @property
    def made(self) -> list[AnySize]:
        """Shape of the result, a single tensor. Its dynamic sizes are not located in the ONNX graph yet."""
        return [size_of(one, other) for one, other in zip(self.result.shape, self.twin.shape, strict=True)]

    def ints(self, numbers: Sequence[AnySize]) -> str:
        """Return the name of an integer vector (axes, sizes): stored if all are fixed, else computed from inputs."""
        if not any(isinstance(number, Size) for number in numbers):
            return self.name(torch.tensor(list(numbers), dtype=torch.int64))
        parts = [self._vector(part) for part in _runs(numbers)]
        return parts[0] if len(parts) == 1 else self.emit("Concat", *parts, axis=0)

    def _vector(self, part: Size | list[int]) -> str:
        if not isinstance(part, Size):
            return self.ints(part)
        if not part.whole:
            raise self.refuse("needs a whole number where the size is a fraction")
        if part.name is not None:
            return part.name
        if part.of is not None:
            return self.builder.axis_size(*part.of, self.scope)
        return self._vector(self._found(part))

    def scalar(self, size: AnySize) -> str:
        """Return the name of a size as a tensor without axes."""
        if not isinstance(size, Size):
            return self.name(torch.tensor(size))
        name = self._vector(size) if size.whole else str(size.name)
        return self.emit("Squeeze", name, self.ints([0]))

    def _found(self, size: Size) -> Size:
        """Locate `size` in the graph: as the size of an operand or input, a multiple of one, or a product of two."""
        known = {one.pair: one for one in self._known_sizes()}
        if size.pair in known:
            return known[size.pair]
        for one in known.values():
            for other in known.values():
                factor, rest = divmod(size.sample, one.sample * other.sample)
                if not rest and size.twin == factor * one.twin * other.twin:
                    product = self.calculated("Mul", self.calculated("Mul", one, other), factor)
                    return product if isinstance(product, Size) else size
            factor, rest = divmod(size.sample, one.sample)
            if not rest and size.twin == factor * one.twin:
                product = self.calculated("Mul", one, factor)
                return product if isinstance(product, Size) else size
        raise self.refuse("computes a size from the inputs in an unknown way")

    def _known_sizes(self) -> Iterator[Size]:
        for leaf in leaves([list(self.call.args), dict(self.call.kwargs)]):
            if isinstance(leaf, Value):
                yield from (size for size in leaf.sizes if isinstance(size, Size))
            elif isinstance(leaf, Size) and leaf.whole:
                yield leaf
        yield from self.builder.dims

    def calculated(self, op_type: str, first: Any, second: Any) -> Any:
        """Apply an operator of `ARITHMETIC` to `first` and `second`, each a number or a `Size`."""
        function = ARITHMETIC[op_type]
        sample, twin = (function(*pair) for pair in zip(pair_of(first), pair_of(second), strict=True))
        if not (isinstance(first, Size) or isinstance(second, Size)):
            return sample
        whole = isinstance(sample, int)
        left, right = (self._number(one, whole) for one in (first, second))
        if op_type == "FloorDiv" and whole:
            # ONNX truncates and PyTorch rounds down, which differs below zero.
            return Size(sample, twin, self.emit("Div", self.emit("Sub", left, self.emit("Mod", left, right)), right))
        name = self.emit("Div" if op_type == "FloorDiv" else op_type, left, right)
        return Size(sample, twin, self.emit("Floor", name) if op_type == "FloorDiv" else name)

    def _number(self, given: Any, whole: bool) -> str:
        """Return the name of a vector with one entry, int64 or float32."""
        if not isinstance(given, Size):
            return self.name(torch.tensor([given], dtype=torch.int64 if whole else torch.float32))
        name = self._vector(given) if given.whole else str(given.name)
        return self.emit("Cast", name, to=TensorProto.FLOAT) if given.whole and not whole else name

    def product(self, sizes: Sequence[AnySize]) -> AnySize:
        """Return the product of sizes."""
        result: AnySize = math.prod(size for size in sizes if isinstance(size, int))
        for size in sizes:
            if isinstance(size, Size):
                result = size if result == 1 else self.calculated("Mul", size, result)
        return result

    def range(self, stop: AnySize) -> str:
        """Return the name of a vector with all integers from 0 to `stop` - 1."""
        if not isinstance(stop, Size):
            return self.name(torch.arange(stop))
        zero, one = (self.name(torch.tensor(number)) for number in (0, 1))
        return self.emit("Range", zero, self.scalar(stop), one)

    def shape(self, source: Value) -> str:
        """Return the name of a vector with the shape of `source`; it is stored if the shape is fixed."""
        sizes = source.sizes
        return self.emit("Shape", source) if any(isinstance(one, Size) for one in sizes) else self.ints(sizes)

    def derived(self, op: Callable[..., Any], *args: Any) -> Site:
        """Return a site for another operator on given arguments; its result is computed on the meta device."""
        with torch.device("meta"):
            result, twin = (called(op, args, second) for second in (False, True))
        return Site(self.builder, Call(self.node, op, args), result, self.scope, self.root, twin)

    def at(self, op: Target, first: Value, *rest: Any) -> Site:
        """Return a site for another operator whose result has the shape of `first`."""
        return Site(self.builder, Call(self.node, op, (first, *rest)), first.tensor, self.scope, self.root, first.twin)

    def lowered(self, op: Callable[..., Any], *args: Any) -> Value:
        """Lower another operator with one result by its own rule; return its value."""
        site = self.derived(op, *args)
        return Value(site.result, site.written(), twin=site.twin)

    def written(self) -> str:
        """Lower the call by the rule of its operator; return the name of its single result."""
        rule = OPERATORS.of(self.call.op).onnx
        if rule is None:
            raise self.refuse("has no ONNX rule")
        return str(rule(self))

    def positions(self, source: Value) -> Value:
        """Return a value in the shape of `source` with the row-major position of each entry."""
        if all(isinstance(size, int) for size in source.sizes):
            tensor = torch.arange(source.tensor.numel()).reshape(source.tensor.shape)
            return Value(tensor.to("meta"), self.name(tensor), twin=tensor.to("meta"))
        zero, one = (self.name(torch.tensor(number)) for number in (0, 1))
        row = self.emit("Range", zero, self.emit("Size", source), one)
        return self.like(source, self.emit("Reshape", row, self.shape(source)), torch.int64)

    def like(self, source: Value, name: str, dtype: torch.dtype | None = None) -> Value:
        """Return the value called `name`, which has the shape of `source`."""
        both = source.tensor, source.tensor if source.twin is None else source.twin
        tensor, twin = (torch.empty(one.shape, dtype=dtype or one.dtype, device="meta") for one in both)
        return Value(tensor, name, twin=twin)

    def transpose(self, source: Source, perm: Sequence[int]) -> str:
        """Transpose `source` to the axis order `perm`; no node for the identity, one node for several in a row."""
        name, order = through_transposes(self.builder.producer, self.name(source), perm)
        return name if order == sorted(order) else self.emit("Transpose", name, perm=order)

    def reshape(self, source: Source, sizes: Sequence[AnySize]) -> str:
        """Reshape `source` to `sizes`; no node if they are its own sizes, one node for several in a row."""
        if isinstance(source, Value) and _same(source.sizes, sizes):
            return self.name(source)
        free = [axis for axis, size in enumerate(sizes) if isinstance(size, Size)]
        if len(free) <= 1:
            fixed = [-1 if axis in free else size for axis, size in enumerate(sizes)]
            return self.emit("Reshape", through_reshapes(self.builder.producer, self.name(source)), self.ints(fixed))
        kept = kept_axes(source, sizes)
        rest = [axis for axis in free if axis not in kept]
        wanted = [0 if axis in kept else size for axis, size in enumerate(sizes)]
        if rest:  # one follows from all others: that whose place is not known, or the last
            wanted[next((axis for axis in rest if _placeless(sizes[axis])), rest[-1])] = -1
        return self.emit("Reshape", source, self.ints(wanted))

    def refuse(self, reason: str) -> LoweringError:
        """Return the error, to be raised, that this call cannot be lowered because of `reason`."""
        return LoweringError(f"{self.scope}: {qualified_name(self.call.op)} (node {self.node.name!r}) {reason}")


def _placeless(size: AnySize) -> bool:
    return isinstance(size, Size) and size.name is None and size.of is None


ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a // b,
    "Div": lambda a, b: a / b,
    "Mod": lambda a, b: a % b,
    "Pow": lambda a, b: a**b,
    "Max": max,
    "Min": min,
}
"""Arithmetic on sizes: ONNX operators with their Python functions."""


def _same(sizes: Sequence[AnySize], others: Sequence[AnySize]) -> bool:
    return len(sizes) == len(others) and all(map(same_size, sizes, others))


def _runs(numbers: Sequence[AnySize]) -> Iterator[Size | list[int]]:
    """Yield dynamic sizes one by one, and adjacent fixed sizes together."""
    fixed: list[int] = []
    for number in numbers:
        if not isinstance(number, Size):
            fixed.append(number)
            continue
        if fixed:
            yield fixed
        yield number
        fixed = []
    if fixed:
        yield fixed
