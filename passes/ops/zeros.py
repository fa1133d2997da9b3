"""Zero rules: would the removed entries of a value be zero if all removed parameters were zero?

A sum over an elastic axis, or a product that contracts one, equals the result over the kept entries only if the
removed entries would add nothing. That is so after a layer, whose removed weights and biases are zero, and after
``relu``. It is not so after ``exp`` or ``sigmoid``, which do not map zero to zero, or after ``x + 1``. A record names
the rule of its operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import Node

from bnas.passes.axes.terms import Term, symbols
from bnas.passes.frontend.ir import memory_of

from .calls import Call, TensorRef
from .record import ZeroRule
from .registry import OPERATORS

if TYPE_CHECKING:
    from bnas.passes.axes.types import AxisTypes

Bound = tuple[int, str, Any]
"""An argument of a call: its position, its name and its default."""

Zeros = tuple[bool, ...]
"""For each axis of a tensor, whether its removed entries are zero; a rigid axis has no removed entries."""


def note_zeros(types: AxisTypes, node: Node) -> None:
    """Compute the `Zeros` of the value of a node whose type is known, nested like the value.

    What is written in place is no longer zero in any value that shares the memory, unless the result is.
    """
    made = zeros_of(types, node) if node.op == "get_attr" else _nested(types, types.ir.calls.get(node), node)
    types.zeros[node] = made
    if types.ir.writes(node) and not (isinstance(made, tuple) and all(made)):
        memory = memory_of(node.all_input_nodes[0])
        for other in [other for other in types.zeros if memory_of(other) == memory is not None]:
            types.zeros[other] = _nested(types, None, other)


def zeros_of(types: AxisTypes, value: Any) -> Zeros:
    """`Zeros` of an argument of a call: parameters are gone where they are left out; buffers must hold zeros."""
    if isinstance(value, Node) and value.op != "get_attr":
        found = types.zeros.get(value)
        return found if isinstance(found, tuple) else ()
    name = value.name if isinstance(value, TensorRef) else str(value.target)
    rigid = [not any(symbols(axis)) for axis in types.type(value)]
    if all(rigid):  # most buffers: nothing has to look at their numbers
        return tuple(rigid)
    gone = name not in types.ir.constants and isinstance(types.ir.tensor(name), nn.Parameter)
    gone = gone or (isinstance(value, Node) and _holds_zeros(types, value, name))
    return tuple(gone or one for one in rigid)


def _holds_zeros(types: AxisTypes, node: Node, name: str) -> bool:
    """Whether a tensor of the model is zero and stays so, as the bias that some attention has for its keys.

    A buffer must not be persistent: others may be loaded from a checkpoint later.
    """
    tensor = types.ir.tensor(name)
    return not types.ir.is_saved(name) and not (tensor.is_meta or any(types.ir.writers(node)) or bool(tensor.any()))


def _nested(types: AxisTypes, call: Call | None, node: Node) -> Any:
    def zeros(axes: Any) -> Any:
        if isinstance(axes, list):
            return _zeros(types, call, axes)
        return [zeros(part) for part in axes] if isinstance(axes, tuple) else None

    return zeros(types.values[node])


def _zeros(types: AxisTypes, call: Call | None, axes: Sequence[Term]) -> Zeros:
    rule = None if call is None else OPERATORS.of(call.op).zeros
    return tuple(
        not any(symbols(term)) or (rule is not None and call is not None and rule(types, call, axes, axis))
        for axis, term in enumerate(axes)
    )


# The rules that records name ---------------------------------------------------------------------------------------


def keeps(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero if all operands are zero there; unknown for operators with several results, such as places."""
    return not isinstance(call.node.meta["value"], tuple) and parted(types, call, axes, axis)


def parted(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero if all operands are zero there; each result is a part of the input."""
    found = list(sources(types, call, axes[axis]))
    return bool(found) and all(found)


def picked(alone: ZeroRule) -> ZeroRule:
    """The rule `alone` of a single result. Of several, the first has entries of the input; the others are places."""

    def rule(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
        if not isinstance(call.node.meta["value"], tuple):
            return alone(types, call, axes, axis)
        return axes is types.values[call.node][0] and parted(types, call, axes, axis)

    return rule


def product(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero if any factor is zero at this place: two axes of one product may have the same symbol."""
    return any(_aligned(types, call, axis - len(axes)))


def dividend(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero if the first operand is zero at this place."""
    return next(_aligned(types, call, axis - len(axes)), False)


def outer_product(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero along the axis of a vector if this vector is zero there."""
    return zeros_of(types, (call.argument(0, "input"), call.argument(1, "vec2"))[axis])[-1:] == (True,)


def _aligned(types: AxisTypes, call: Call, place: int) -> Iterator[bool]:
    """Return for both operands whether they are zero on an axis counted from the right; false if broadcast there."""
    for operand in (call.argument(0, "input"), call.argument(1, "other")):
        found, shape = (zeros_of(types, operand), types.shape(operand)) if types.is_tensor(operand) else ((), ())
        yield len(found) >= -place and shape[place] != 1 and found[place]


def powered(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero if the base is zero there and the exponent is a positive number."""
    exponent = call.argument(1, "exponent")
    return isinstance(exponent, int | float) and exponent > 0 and keeps(types, call, axes, axis)


def summed(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero if both operands are zero there: a number, or a tensor without the axis, is added to all entries."""
    operands = call.argument(0, "input"), call.argument(1, "other")
    shapes = [types.shape(one) if types.is_tensor(one) else () for one in operands]
    place = axis - len(axes)
    elsewhere = any(len(shape) < -place or shape[place] == 1 for shape in shapes)
    return not elsewhere and keeps(types, call, axes, axis)


def between(low: Bound | None, high: Bound | None) -> ZeroRule:
    """Zero stays zero between two arguments that are numbers, of which none is on the other side of it."""

    def rule(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
        bounds = [None if one is None else call.argument(*one) for one in (low, high)]
        numbers = all(one is None or isinstance(one, int | float) for one in bounds)
        return numbers and (bounds[0] or 0) <= 0 <= (bounds[1] or 0) and keeps(types, call, axes, axis)

    return rule


def made(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Zero everywhere."""
    return True


def by_weight(place: int, position: int, made: int | None = -1) -> ZeroRule:
    """Zero along the axis at `place`, whose entries the weight at `position` of the call makes, and the bias behind it.

    They are made along the axis `made` of the weight: what its other axes hold does not matter. With None all count.
    """

    def rule(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
        weight, bias = call.argument(position, "weight"), call.argument(position + 1, "bias")
        if place % len(axes) != axis or not types.is_tensor(weight):
            return False
        zeros = zeros_of(types, weight)
        gone = all(zeros) if made is None or len(zeros) < 2 else zeros[made]
        return gone and not (types.is_tensor(bias) and not all(zeros_of(types, bias)))

    return rule


def sources(types: AxisTypes, call: Call, term: Term) -> Iterator[bool]:
    """Yield, for each axis of an operand that shares symbols with `term`, whether it is zero."""
    wanted = set(symbols(term))
    for operand in call.tensors():
        if isinstance(operand, TensorRef):
            found = _pairs(types.type(operand), zeros_of(types, operand))
        else:
            found = _pairs(types.values[operand], types.zeros[operand])
        for own, zero in found:
            if wanted & set(symbols(own)):
                yield zero


def _pairs(axes: Any, zeros: Any) -> Iterator[tuple[Term, bool]]:
    """Yield the axes of one tensor, or of all tensors in a tuple, each with whether it is zero."""
    if isinstance(axes, list):
        yield from zip(axes, zeros, strict=True)
    for part, inner in zip(axes, zeros, strict=True) if isinstance(axes, tuple) else ():
        yield from _pairs(part, inner)
