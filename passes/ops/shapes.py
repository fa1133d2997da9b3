"""Shape rules: the results of common operators on the meta device, without running them.

PyTorch computes many shapes in Python: a layer norm on meta tensors takes 2 ms, which was most of the time of a
lowering. A record names the rule of its operator. Rules handle plain cases only; everything else, including wrong
arguments, is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .record import Operator

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def quick(record: Operator, args: Args, kwargs: Kwargs) -> Tensor | None:
    """Return the result of a call of an operator that does not write in place; None if PyTorch must compute it."""
    if record.shape is None or kwargs.get("inplace") or kwargs.get("out") is not None:
        return None
    first = argument(args, kwargs, 0, "input")
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    return record.shape(args, kwargs)


def argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    """The argument at `position`, or called `name`, or `default`."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def like(args: Args, kwargs: Kwargs) -> Tensor:
    """A result with shape, strides and dtype of the input."""
    return torch.empty_like(argument(args, kwargs, 0, "input"), device="meta")


def plain(args: Args, kwargs: Kwargs) -> Tensor | None:
    """A result with shape and dtype of the input, in plain memory order."""
    x = argument(args, kwargs, 0, "input")
    return _empty(x.shape, x) if _one_type(args, kwargs) else None


def over_last(args: Args, kwargs: Kwargs) -> Tensor | None:
    """Like `plain`, for a norm over the last axes, whose sizes are given."""
    x, sizes = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "normalized_shape")
    fits = isinstance(sizes, list | tuple) and tuple(x.shape[-len(sizes) :]) == tuple(sizes)
    return plain(args, kwargs) if fits else None


def convolved(args: Args, kwargs: Kwargs) -> Tensor | None:
    """The result of a convolution of tensors in plain memory order."""
    x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    if not _one_type(args, kwargs) or x.ndim != weight.ndim:
        return None
    if x.shape[1] != weight.shape[1] * argument(args, kwargs, 6, "groups", 1):
        return None
    wanted = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    stride, padding, dilation = (_spread(argument(args, kwargs, *one), x.ndim - 2) for one in wanted)
    if stride is None or padding is None or dilation is None or not (x.is_contiguous() and weight.is_contiguous()):
        return None
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    made = [(size + 2 * pad - step * (kernel - 1) - 1) // by + 1 for size, kernel, by, pad, step in sizes]
    return _empty((x.shape[0], weight.shape[0], *made), x) if min(made, default=1) > 0 else None


def projected(args: Args, kwargs: Kwargs) -> Tensor | None:
    """The result of a linear layer."""
    x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    fits = _one_type(args, kwargs) and weight.ndim == 2 and x.ndim > 1 and x.shape[-1] == weight.shape[1]
    return _empty((*x.shape[:-1], weight.shape[0]), x) if fits and x.is_contiguous() else None


def elementwise(args: Args, kwargs: Kwargs) -> Tensor | None:
    """Of two tensors of one shape: with others, sizes and dtypes may be those of the other."""
    x, other = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other")
    if not isinstance(other, Tensor) or not _one_type(args, kwargs) or other.shape != x.shape:
        return None
    return _empty(x.shape, x) if x.is_contiguous() and other.is_contiguous() else None


def attended(args: Args, kwargs: Kwargs) -> Tensor | None:
    """The result of attention without a mask; it is contiguous for all inputs."""
    query, key, value = (argument(args, kwargs, n, name) for n, name in enumerate(("query", "key", "value")))
    if not _one_type(args, kwargs) or query.ndim < 3 or argument(args, kwargs, 3, "attn_mask") is not None:
        return None
    fits = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.shape[-1] == key.shape[-1]
    return _empty((*query.shape[:-1], value.shape[-1]), query) if fits and key.shape[-2] == value.shape[-2] else None


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")


def _one_type(args: Args, kwargs: Kwargs) -> bool:
    """Whether all tensors among the arguments have one floating-point dtype."""
    dtypes = {one.dtype for one in (*args, *kwargs.values()) if isinstance(one, Tensor)}
    return len(dtypes) == 1 and dtypes.pop().is_floating_point


def _spread(setting: Any, axes: int) -> Sequence[int] | None:
    """A setting of a convolution for each axis; None for words."""
    if isinstance(setting, int):
        return [setting] * axes
    return setting if isinstance(setting, list | tuple) and len(setting) == axes else None
