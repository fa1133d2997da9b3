"""What a lowering rule sees of one call, and the table of rules.

While a graph is lowered its tensors live on the meta device, where only shapes and dtypes are computed, and its batch
is the large prime `BATCH`: a size that is a multiple of it stays dynamic in the ONNX graph, every other one is fixed.
What does not depend on the inputs is really computed and becomes a stored tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import Node

from .calls import Call, Operator
from .errors import LoweringError, RuleError
from .lowering_builder import OnnxBuilder, onnx_type
from .lowering_simplify import through_reshapes, through_transposes

BATCH = 1_299_709
"""The batch while lowering: a prime that no axis of a model has as a factor, or comes near to, by accident."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph: its shape and dtype, and its numbers if it does not depend on the inputs."""

    tensor: Tensor
    """On the meta device if it depends on the inputs."""
    name: str
    """Its name in the ONNX graph; what it should be called there if it is not stored yet."""
    state: bool = False
    """Whether it is a parameter or buffer of the model."""

    @property
    def constant(self) -> bool:
        """Whether its numbers are known."""
        return not self.tensor.is_meta


Source: TypeAlias = "Value | Tensor | str | None"
"""What a node can read: a value, a tensor to store, the name of an earlier node's output, or nothing."""


class Site:
    """One call in the middle of being lowered.

    The arguments of `call` are resolved: a tensor is a `Value`, everything else is the plain Python value.
    """

    def __init__(self, builder: OnnxBuilder, call: Call, result: Any, scope: str, root: nn.Module) -> None:
        self.builder = builder
        self.call = call
        self.result = result
        """What PyTorch returns for the call: tensors on the meta device."""
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
        """A tensor or Python number as an operand of `dtype`: cast or stored as needed."""
        if isinstance(given, Value):
            same = given.tensor.dtype == dtype
            return self.name(given) if same else self.emit("Cast", given, to=onnx_type(dtype, self.scope))
        if isinstance(given, int) and batch_multiple(given):
            raise self.refuse("computes with the size of the batch")
        if not isinstance(given, bool | int | float):
            raise self.refuse(f"{given!r} is neither a tensor nor a number")
        return self.name(torch.tensor(given, dtype=dtype))

    def ints(self, numbers: Sequence[int]) -> str:
        """A stored vector of integers: axes, sizes, starts; none of them may depend on the batch."""
        if any(batch_multiple(number) for number in numbers):
            raise self.refuse("needs the size of the batch where ONNX wants a fixed number")
        return self.name(torch.tensor(list(numbers), dtype=torch.int64))

    def sizes(self, sizes: Sequence[int]) -> str:
        """A vector of sizes, computed from the graph's input where they are multiples of the batch."""
        if not any(batch_multiple(size) for size in sizes):
            return self.ints(sizes)
        batch = self.emit("Shape", self.builder.batched, start=0, end=1)
        parts = [self._size(size, batch) for size in sizes]
        return parts[0] if len(parts) == 1 else self.emit("Concat", *parts, axis=0)

    def _size(self, size: int, batch: str) -> str:
        count = batch_multiple(size)
        if not count:
            return self.ints([size])
        return batch if count == 1 else self.emit("Mul", batch, self.ints([count]))

    def transpose(self, source: Source, perm: Sequence[int]) -> str:
        """`source` with its axes in the order `perm`: no node if that is theirs, one for several in a row."""
        name, order = through_transposes(self.builder.producer, self.name(source), perm)
        return name if order == sorted(order) else self.emit("Transpose", name, perm=order)

    def reshape(self, source: Source, sizes: Sequence[int]) -> str:
        """`source` viewed with `sizes`: no node if they are its own, one for several in a row."""
        if isinstance(source, Value) and tuple(source.tensor.shape) == tuple(sizes):
            return self.name(source)
        source = through_reshapes(self.builder.producer, self.name(source))
        dynamic = [bool(batch_multiple(size)) for size in sizes]
        if sum(dynamic) > 1:
            return self.emit("Reshape", source, self.sizes(sizes))
        fixed = [-1 if free else size for size, free in zip(sizes, dynamic, strict=True)]
        return self.emit("Reshape", source, self.ints(fixed))

    def refuse(self, reason: str) -> LoweringError:
        """The error that this call cannot be lowered for `reason`, to be raised."""
        return LoweringError(f"{self.scope}: {operator_name(self.call.op)} (node {self.node.name!r}) {reason}")


Rule: TypeAlias = Callable[[Site], "str | Sequence[str]"]
"""Emits the nodes of a call and returns the names of its results, one for each tensor that PyTorch returns."""

LOWERING: dict[Operator, Rule] = {}
"""Canonical operator: how it is written in ONNX."""


def register_lowering(*ops: Operator) -> Callable[[Rule], Rule]:
    """Make the decorated function the lowering rule of `ops`; a second rule for one of them is a `RuleError`."""

    def register(rule: Rule) -> Rule:
        if taken := [operator_name(op) for op in ops if op in LOWERING]:
            raise RuleError(f"{', '.join(taken)}: already has a lowering rule, so {rule.__name__} cannot be another")
        LOWERING.update(dict.fromkeys(ops, rule))
        return rule

    return register


def batch_multiple(size: int) -> int:
    """How many times the batch `size` is; 0 if it does not depend on the batch."""
    return size // BATCH if size % BATCH == 0 else 0


def is_made_of_batch(size: int) -> bool:
    """Whether a size that is no multiple of the batch must come from it all the same, as in ``x[1:]`` or ``x[::2]``."""
    if size < BATCH // 16 or batch_multiple(size):
        return False
    rests = (size * step % BATCH for step in range(1, 9))
    return any(min(rest, BATCH - rest) <= 64 for rest in rests)


def operator_name(op: Any) -> str:
    """A readable name of an operator for messages."""
    if isinstance(op, str):
        return f"Tensor.{op}"
    module = str(getattr(op, "__module__", None) or "torch")
    # PyTorch's built-in functions say that they belong to some private module.
    return f"{'torch' if module.startswith('torch._') else module}.{getattr(op, '__name__', op)}"
