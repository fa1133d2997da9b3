"""What the commonest operators return on the meta device, without running them there.

PyTorch computes many shapes in Python: a layer norm takes 2 ms, most of a lowering. Only plain cases are taken here;
whatever else there is, wrong arguments too, is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .calls import CONVOLUTIONS, DROPOUTS, Call, Operator, form_of, identity, recurrent, writes_in_place
from .frontend.on_meta import run_leaf
from .lowering_site import Value

Shape = tuple[int, ...]
Given = Callable[[Value], Tensor]
"""The tensor of an argument at the sizes that are being tried."""
ShapeOf = Callable[[Call, Tensor, Given], Shape | None]
"""The shape that a call gives for its first argument; ``None`` if PyTorch is to say it."""

SHAPE_KEEPERS = frozenset(
    {F.batch_norm, F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu, F.selu, F.mish}
    | {F.gelu, F.softplus, F.silu, torch.sigmoid}
)
"""Operators of modules whose result has the shape, strides and dtype of the input."""

HANDED_ON = frozenset({identity, *DROPOUTS})
"""Operators of modules that return their input itself in eval mode."""


def quick_result(call: Call, given: Given) -> Any:
    """What `call`, whose arguments are resolved, returns on the meta device; ``None`` if it has to be run there.

    `given` has the tensor of each argument; one that a call writes into is written into.
    """
    first = call.argument(0, "input")
    if not isinstance(first, Value) or first.constant:
        return None
    if call.op is recurrent:
        return recurrent_result(call, given) if _fits(call) else None
    is_module = call.node.op == "call_module"
    if is_module and call.op in HANDED_ON:
        return given(first)
    if (is_module and call.op in SHAPE_KEEPERS) or call.node.target in (F.batch_norm, F.gelu):
        found = given(first)
        return found.zero_() if call.kwargs.get("inplace") else torch.empty_like(found)
    rule = SHAPES.get(call.op)
    if rule is None or writes_in_place(call.node) or not _plain(call):
        return None
    found = given(first)
    shape = rule(call, found, given)
    return None if shape is None else torch.empty(shape, dtype=found.dtype, device="meta")


def recurrent_result(call: Call, given: Given) -> Any:
    """What a recurrent layer or cell returns: PyTorch takes step for step on the meta device."""
    layer = call.kwargs["layer"]
    return run_leaf(layer, form_of(layer), (given(call.args[0]),), {})


def _fits(call: Call) -> bool:
    """Whether a recurrent layer gets what it takes; else PyTorch is to say what is wrong."""
    layer = call.kwargs["layer"]
    x = call.args[0] if call.args else None
    dims = (1, 2) if isinstance(layer, nn.RNNCellBase) else (2, 3)
    fits = isinstance(x, Value) and x.tensor.ndim in dims and x.tensor.shape[-1] == layer.input_size
    return fits and not getattr(layer, "proj_size", 0)


def _plain(call: Call) -> bool:
    """Whether all tensors among the arguments have one floating-point dtype, and nothing is written elsewhere."""
    dtypes = {one.tensor.dtype for one in (*call.args, *call.kwargs.values()) if isinstance(one, Value)}
    return len(dtypes) == 1 and dtypes.pop().is_floating_point and "out" not in call.kwargs


def _tensor(call: Call, given: Given, position: int, name: str) -> Tensor | None:
    """An argument, of which only the shape is read: what does not depend on the inputs is as it is."""
    found = call.argument(position, name)
    if not isinstance(found, Value):
        return None
    return found.tensor if found.constant else given(found)


def _spread(setting: Any, axes: int) -> Sequence[int] | None:
    """A setting of a convolution for each axis; ``None`` for words."""
    if isinstance(setting, int):
        return [setting] * axes
    return setting if isinstance(setting, list | tuple) and len(setting) == axes else None


def _convolution(call: Call, x: Tensor, given: Given) -> Shape | None:
    weight = _tensor(call, given, 1, "weight")
    if weight is None or x.ndim != weight.ndim or x.shape[1] != weight.shape[1] * call.argument(6, "groups", 1):
        return None
    wanted = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    stride, padding, dilation = (_spread(call.argument(*one), x.ndim - 2) for one in wanted)
    if stride is None or padding is None or dilation is None:
        return None
    if not (x.is_contiguous() and weight.is_contiguous()):
        return None
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    made = [(size + 2 * pad - step * (kernel - 1) - 1) // by + 1 for size, kernel, by, pad, step in sizes]
    return (x.shape[0], weight.shape[0], *made) if min(made, default=1) > 0 else None


def _linear(call: Call, x: Tensor, given: Given) -> Shape | None:
    weight = _tensor(call, given, 1, "weight")
    fits = weight is not None and weight.ndim == 2 and x.ndim > 1 and x.shape[-1] == weight.shape[1]
    return (*x.shape[:-1], weight.shape[0]) if weight is not None and fits and x.is_contiguous() else None


def _elementwise(call: Call, x: Tensor, given: Given) -> Shape | None:
    """Of two tensors of one shape: with others, sizes and dtypes may be those of the other."""
    other = _tensor(call, given, 1, "other")
    same = other is not None and other.shape == x.shape and x.is_contiguous() and other.is_contiguous()
    return tuple(x.shape) if same else None


def _layer_norm(call: Call, x: Tensor, given: Given) -> Shape | None:
    """Its result is contiguous, whatever the input is."""
    sizes = call.argument(1, "normalized_shape")
    fits = isinstance(sizes, list | tuple) and tuple(x.shape[-len(sizes) :]) == tuple(sizes)
    return tuple(x.shape) if fits else None


def _attention(call: Call, query: Tensor, given: Given) -> Shape | None:
    """Its result is contiguous, whatever the inputs are."""
    key, value = _tensor(call, given, 1, "key"), _tensor(call, given, 2, "value")
    if key is None or value is None or query.ndim < 3 or call.argument(3, "attn_mask") is not None:
        return None
    fits = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.shape[-1] == key.shape[-1]
    return (*query.shape[:-1], value.shape[-1]) if fits and key.shape[-2] == value.shape[-2] else None


SHAPES: dict[Operator, ShapeOf] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    F.linear: _linear,
    **dict.fromkeys((torch.add, torch.sub, torch.mul), _elementwise),
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
}
