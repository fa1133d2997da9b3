"""Where the entries that a sub-network leaves out would be zero, if all parameters that it leaves out were.

A sum over an elastic axis, or a product that contracts one, is that of the kept entries only because the others would
add nothing. They do so behind a layer, whose weights and biases are gone, and behind ``relu``; not behind ``exp`` or
``sigmoid``, which make something of zero, and not behind ``x + 1``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Node

from .calls import CONVOLUTIONS, DROPOUTS, TRANSPOSED_CONVOLUTIONS, Call, Operator, TensorRef, identity
from .ir import memory_of
from .recurrent import RECURRENT
from .terms import Sym, Term, symbols

if TYPE_CHECKING:
    from .axes import AxisTypes

Zeros = tuple[bool, ...]
"""For each axis of a tensor, whether what is left out of it is zero; a rigid axis leaves nothing out."""

LAYERS: dict[Operator, tuple[int, int]] = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS), (1, 1)),
    **dict.fromkeys((F.linear, F.embedding, F.embedding_bag), (-1, 1)),
    **dict.fromkeys((F.layer_norm, F.rms_norm), (-1, 2)),
    **dict.fromkeys((F.batch_norm, F.instance_norm), (1, 3)),
    **dict.fromkeys((F.group_norm, torch.group_norm), (1, 2)),
}
"""Operators whose weight makes all of an axis, without which nothing of an entry is left: axis, place of the weight."""

SUMS = frozenset({torch.add, torch.sub, torch.minimum, torch.maximum, torch.max, torch.min})
"""Operators of two operands that make zero of two zeros."""

MADE_OF_ZEROS = frozenset({torch.zeros, torch.zeros_like, "new_zeros"})
PRODUCTS = frozenset({torch.mul, torch.outer})
"""Operators that make zero of one zero."""

PARTED = frozenset({torch.unbind, torch.chunk, torch.split, torch.tensor_split, torch.split_with_sizes})
"""Operators whose values are parts of their input."""

KEEPING = frozenset(
    {
        *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish, F.celu, F.softsign),
        *(torch.tanh, torch.neg, torch.abs, torch.sqrt, torch.square, torch.erf, torch.sin, torch.round, torch.floor),
        *(torch.ceil, torch.sign, torch.log1p, torch.clone, torch.detach, identity, "contiguous", "to", "type"),
        *("float", "double", "half", "bfloat16", "cpu", "cuda", F.prelu, F.glu, F.normalize),
        *DROPOUTS,
        *(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze, "view_as", "reshape_as"),
        *(torch.permute, torch.transpose, torch.movedim, torch.t, torch.adjoint, getattr, "expand", "expand_as"),
        *("repeat", torch.tile, torch.repeat_interleave, F.channel_shuffle, F.pixel_shuffle, F.pixel_unshuffle),
        *(torch.narrow, torch.select, torch.unbind, torch.chunk, torch.split, torch.tensor_split),
        *(torch.split_with_sizes, torch.cat, torch.stack, operator.getitem, torch.sum, torch.mean, torch.amax),
        *(torch.amin, torch.matmul, torch.bmm, torch.mm, torch.mv, torch.einsum, F.scaled_dot_product_attention),
        *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.interpolate),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.unfold, F.fold, F.grid_sample),
        *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, torch._weight_norm, torch.triu),
        *(torch.tril, torch.outer, "unfold", torch.broadcast_to),
        *(*SUMS, torch.mul, torch.div, torch.pow),
    }
)
"""Operators that make zero of zeros: a product if any factor is zero, a quotient if the first operand is."""


def note_zeros(types: AxisTypes, node: Node) -> None:
    """Find `Zeros` of the value of a node whose type is known, nested as the value is.

    What is written in place is no longer zero in any value that shares the memory, unless the result is.
    """
    made = zeros_of(types, node) if node.op == "get_attr" else _nested(types, types.ir.calls.get(node), node)
    types.zeros[node] = made
    if types.ir.writes(node) and not (isinstance(made, tuple) and all(made)):
        memory = memory_of(node.all_input_nodes[0])
        for other in [other for other in types.zeros if memory_of(other) == memory is not None]:
            types.zeros[other] = _nested(types, None, other)


def zeros_of(types: AxisTypes, value: Any) -> Zeros:
    """`Zeros` of an argument of a call: parameters are gone where they are left out, buffers are not."""
    if isinstance(value, Node) and value.op != "get_attr":
        found = types.zeros.get(value)
        return found if isinstance(found, tuple) else ()
    name = value.name if isinstance(value, TensorRef) else str(value.target)
    gone = name not in types.ir.constants and isinstance(types.ir.tensor(name), nn.Parameter)
    return tuple(gone or not any(symbols(axis)) for axis in types.type(value))


def _nested(types: AxisTypes, call: Call | None, node: Node) -> Any:
    def zeros(axes: Any) -> Any:
        if isinstance(axes, list):
            return _zeros(types, call, axes)
        return [zeros(part) for part in axes] if isinstance(axes, tuple) else None

    return zeros(types.values[node])


def _zeros(types: AxisTypes, call: Call | None, axes: Sequence[Term]) -> Zeros:
    place = None if call is None else _made(types, call)
    found = []
    for axis, term in enumerate(axes):
        gone = place is not None and place % len(axes) == axis
        found.append(gone or not any(symbols(term)) or (call is not None and _handed_on(types, call, axes, axis)))
    return tuple(found)


def _made(types: AxisTypes, call: Call) -> int | None:
    """The axis that a weight makes all of."""
    if call.op in RECURRENT:
        return -1 if _begins_with_zeros(types, call) else None
    if call.op not in LAYERS:
        return None
    axis, position = LAYERS[call.op]
    weight = call.argument(position, "weight")
    return axis if weight is not None and all(zeros_of(types, weight)) else None


def _begins_with_zeros(types: AxisTypes, call: Call) -> bool:
    """Whether the states that a recurrent layer begins with are zero where they are left out: then all are."""
    weights = (ref for ref in call.kwargs.values() if isinstance(ref, TensorRef))
    return all(map(all, (zeros_of(types, ref) for ref in weights))) and _end_with_zeros(types, call.argument(1, "hx"))


def _end_with_zeros(types: AxisTypes, value: Any) -> bool:
    """Whether the last axis of a tensor is zero where it is left out, or of all in a tuple; of None too."""
    if isinstance(value, Node):
        found = zeros_of(types, value)
        return found[-1] if found else _all_end_with_zeros(types.zeros.get(value))
    return all(_end_with_zeros(types, one) for one in value) if isinstance(value, list | tuple) else value is None


def _all_end_with_zeros(found: Any) -> bool:
    """The same of `Zeros` that are nested as a value is."""
    return isinstance(found, list) and all(z[-1] if isinstance(z, tuple) else _all_end_with_zeros(z) for z in found)


def _handed_on(types: AxisTypes, call: Call, axes: Sequence[Term], axis: int) -> bool:
    """Whether an axis is zero since those that it comes from are: they share its symbols."""
    if call.op in MADE_OF_ZEROS:
        return True
    if isinstance(call.node.meta["value"], tuple) and call.op not in PARTED:
        return False  # places, for one, that a pooling gives beside the values
    if call.op not in KEEPING or (call.op in SUMS and _adds_elsewhere(types, call, axis - len(axes))):
        return False
    if call.op is torch.pow and not _is_positive(call.argument(1, "exponent")):
        return False
    sources = list(_sources(types, call, set(symbols(axes[axis]))))
    if call.op is torch.div:
        return sources[:1] == [True]
    return any(sources) if call.op in PRODUCTS else bool(sources) and all(sources)


def _is_positive(number: Any) -> bool:
    return isinstance(number, int | float) and number > 0


def _adds_elsewhere(types: AxisTypes, call: Call, axis: int) -> bool:
    """Whether something is added to all entries of the axis (from the end): a number, or a tensor without it."""
    operands = call.argument(0, "input"), call.argument(1, "other")
    shapes = [types.shape(one) if types.is_tensor(one) else () for one in operands]
    return any(len(shape) < -axis or shape[axis] == 1 for shape in shapes)


def _sources(types: AxisTypes, call: Call, wanted: set[Sym]) -> Iterator[bool]:
    """For each axis of an operand that shares symbols with those wanted, whether it is zero."""
    for operand in call.tensors():
        if isinstance(operand, TensorRef):
            found = _pairs(types.type(operand), zeros_of(types, operand))
        else:
            found = _pairs(types.values[operand], types.zeros[operand])
        for term, zero in found:
            if wanted & set(symbols(term)):
                yield zero


def _pairs(axes: Any, zeros: Any) -> Iterator[tuple[Term, bool]]:
    """The axes of one tensor, or of all in a tuple, each with whether it is zero."""
    if isinstance(axes, list):
        yield from zip(axes, zeros, strict=True)
    for part, inner in zip(axes, zeros, strict=True) if isinstance(axes, tuple) else ():
        yield from _pairs(part, inner)
