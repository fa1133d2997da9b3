"""What an ONNX rule sees of one call.

While a graph is lowered its tensors live on the meta device, where only shapes and dtypes are computed, at two sets of
sizes of its dynamic axes: a size that differs stays dynamic in the ONNX graph, every other one is fixed. What does not
depend on the inputs is really computed and becomes a stored tensor.
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
    """One call in the middle of being lowered.

    The arguments of `call` are resolved: a tensor is a `Value`, a number that follows the sizes of the inputs is a
    `Size`, everything else is the plain Python value.
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
        """The graph node, with its arguments as they stand in the graph."""
        return self.call.node

    @property
    def x(self) -> Value:
        """The first argument, a tensor."""
        return self.value(0, "input")

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position` of the canonical signature, or called `name`, or `default`."""
        return self.call.argument(position, name, default)

    def value(self, position: int, name: str) -> Value:
        """The argument at `position`, or called `name`, that must be a tensor."""
        found = self.arg(position, name)
        if not isinstance(found, Value):
            raise self.refuse(f"argument {name!r} must be a tensor, not {found!r}")
        return found

    def optional(self, position: int, name: str) -> Value | None:
        """The argument at `position`, or called `name`, if it is given and not ``None``."""
        return None if self.arg(position, name) is None else self.value(position, name)

    def emit(self, op_type: str, *inputs: Source, **attributes: Any) -> str:
        """Append an ONNX node with one output and return that output's name."""
        return self.emit_many(op_type, inputs, 1, **attributes)[0]

    def emit_many(self, op_type: str, inputs: Sequence[Source], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Append an ONNX node and return the names of its outputs."""
        return self.builder.emit(op_type, [self.name(one) for one in inputs], self.scope, outputs, attributes)

    def name(self, source: Source) -> str:
        """The name under which a node reads `source`; empty for an input that is left out."""
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
        """A tensor or number as an operand of `dtype`: cast or stored as needed."""
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
        """The shape of the result, a single tensor: its dynamic sizes are still to be found in the graph."""
        return [size_of(one, other) for one, other in zip(self.result.shape, self.twin.shape, strict=True)]

    def ints(self, numbers: Sequence[AnySize]) -> str:
        """A vector of integers, such as axes or sizes: stored if all are fixed, and else computed from the inputs."""
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
        """A size as a tensor without axes."""
        if not isinstance(size, Size):
            return self.name(torch.tensor(size))
        name = self._vector(size) if size.whole else str(size.name)
        return self.emit("Squeeze", name, self.ints([0]))

    def _found(self, size: Size) -> Size:
        """`size` with its place: it is that of an operand or of an input, a multiple of one, or a product of two."""
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
        """`first` and `second`, of which each is a number or a `Size`, under an operator of `ARITHMETIC`."""
        function = ARITHMETIC[op_type]
        sample, twin = (function(*pair) for pair in zip(pair_of(first), pair_of(second), strict=True))
        if not (isinstance(first, Size) or isinstance(second, Size)):
            return sample
        whole = isinstance(sample, int)
        left, right = (self._number(one, whole) for one in (first, second))
        if op_type == "FloorDiv" and whole:
            # ONNX cuts the fraction off, PyTorch rounds down: they differ below zero.
            return Size(sample, twin, self.emit("Div", self.emit("Sub", left, self.emit("Mod", left, right)), right))
        name = self.emit("Div" if op_type == "FloorDiv" else op_type, left, right)
        return Size(sample, twin, self.emit("Floor", name) if op_type == "FloorDiv" else name)

    def _number(self, given: Any, whole: bool) -> str:
        """A vector of one entry, of int64 or of float32."""
        if not isinstance(given, Size):
            return self.name(torch.tensor([given], dtype=torch.int64 if whole else torch.float32))
        name = self._vector(given) if given.whole else str(given.name)
        return self.emit("Cast", name, to=TensorProto.FLOAT) if given.whole and not whole else name

    def product(self, sizes: Sequence[AnySize]) -> AnySize:
        """The product of sizes."""
        result: AnySize = math.prod(size for size in sizes if isinstance(size, int))
        for size in sizes:
            if isinstance(size, Size):
                result = size if result == 1 else self.calculated("Mul", size, result)
        return result

    def range(self, stop: AnySize) -> str:
        """All integers from 0 to before `stop`."""
        if not isinstance(stop, Size):
            return self.name(torch.arange(stop))
        zero, one = (self.name(torch.tensor(number)) for number in (0, 1))
        return self.emit("Range", zero, self.scalar(stop), one)

    def shape(self, source: Value) -> str:
        """The shape of `source` as a vector: stored if it is fixed."""
        sizes = source.sizes
        return self.emit("Shape", source) if any(isinstance(one, Size) for one in sizes) else self.ints(sizes)

    def derived(self, op: Callable[..., Any], *args: Any) -> Site:
        """The site of another operator on given arguments, whose result is computed here on the meta device."""
        with torch.device("meta"):
            result, twin = (called(op, args, second) for second in (False, True))
        return Site(self.builder, Call(self.node, op, args), result, self.scope, self.root, twin)

    def at(self, op: Target, first: Value, *rest: Any) -> Site:
        """The site of another operator, whose result has the shape of `first`."""
        return Site(self.builder, Call(self.node, op, (first, *rest)), first.tensor, self.scope, self.root, first.twin)

    def lowered(self, op: Callable[..., Any], *args: Any) -> Value:
        """The value of another operator of one result, lowered by its own rule."""
        site = self.derived(op, *args)
        return Value(site.result, site.written(), twin=site.twin)

    def written(self) -> str:
        """The name of the one result of the call, whose operator has an ONNX rule."""
        rule = OPERATORS.of(self.call.op).onnx
        if rule is None:
            raise self.refuse("has no ONNX rule")
        return str(rule(self))

    def positions(self, source: Value) -> Value:
        """The number of each entry of `source` in row-major order, in its shape."""
        if all(isinstance(size, int) for size in source.sizes):
            tensor = torch.arange(source.tensor.numel()).reshape(source.tensor.shape)
            return Value(tensor.to("meta"), self.name(tensor), twin=tensor.to("meta"))
        zero, one = (self.name(torch.tensor(number)) for number in (0, 1))
        row = self.emit("Range", zero, self.emit("Size", source), one)
        return self.like(source, self.emit("Reshape", row, self.shape(source)), torch.int64)

    def like(self, source: Value, name: str, dtype: torch.dtype | None = None) -> Value:
        """A value of the shape of `source` that is called `name`."""
        both = source.tensor, source.tensor if source.twin is None else source.twin
        tensor, twin = (torch.empty(one.shape, dtype=dtype or one.dtype, device="meta") for one in both)
        return Value(tensor, name, twin=twin)

    def transpose(self, source: Source, perm: Sequence[int]) -> str:
        """`source` with its axes in the order `perm`: no node if that is theirs, one for several in a row."""
        name, order = through_transposes(self.builder.producer, self.name(source), perm)
        return name if order == sorted(order) else self.emit("Transpose", name, perm=order)

    def reshape(self, source: Source, sizes: Sequence[AnySize]) -> str:
        """`source` viewed with `sizes`: no node if they are its own, one for several in a row."""
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
        """The error that this call cannot be lowered for `reason`, to be raised."""
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
"""What can be calculated with sizes: ONNX' operators, and what they do."""


def _same(sizes: Sequence[AnySize], others: Sequence[AnySize]) -> bool:
    return len(sizes) == len(others) and all(map(same_size, sizes, others))


def _runs(numbers: Sequence[AnySize]) -> Iterator[Size | list[int]]:
    """Dynamic sizes one by one, and fixed ones together as far as they stand side by side."""
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
