"""Norms and means over the kept entries only, which the zeroed original model cannot do by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from bnas.passes.alone import unfused
from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.axes.terms import Sym, Term, symbols
from bnas.passes.axes.types import AxisTypes
from bnas.passes.ops.aten import in_python
from bnas.passes.ops.calls import TensorRef, with_numbers
from bnas.passes.ops.record import Operator, Trait
from bnas.passes.ops.registry import OPERATORS
from bnas.passes.ops.statistics import taken_apart
from bnas.passes.ops.zeros import zeros_of
from bnas.passes.space.subnet import Subnet

from .oracle import kept_mask


class Measure:
    """The entries of statistics without a weight, in the order of the calls; by default all entries."""

    def __init__(self, masks: Masks | None = None) -> None:
        self.masks, self.place = masks or [], -1

    def mask(self, entries: Tensor) -> Tensor:
        """Return a mask over the entries of the next call, whose values are (rows, *entries)."""
        self.place += 1
        if self.place < len(self.masks):
            return self.masks[self.place]
        return torch.ones(entries.shape[1:], dtype=torch.bool, device=entries.device)

    def behind(self, input: Tensor) -> Tensor:
        """Return the values of the input of a statistic, whose entries `mask` gets."""
        return input

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean that the forward gets, for the entries of the latest `mask` call."""
        return value

    def activated(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the result that the forward gets from an activation that is constant on some range."""
        return func(input, *args, **kwargs)  # type: ignore[no-any-return]


STATISTICS = ("mean", "var", "std")
"""Statistics over axes that have no weight."""


def record_of(func: Any) -> Operator:
    """The record of a function or method as PyTorch hands it to a mode."""
    name = getattr(func, "__name__", "")
    return OPERATORS.of(name if name and getattr(Tensor, name, None) is func else func)


class OverKept(TorchFunctionMode):
    """Inside, all norms, means and variances use the kept entries only (that is how sub-networks are defined).

    For a norm with a parameter as weight, the weight shows which entries are kept; for all others, `measure` does.
    """

    def __init__(self, model: nn.Module, skeleton: Skeleton, subnet: Subnet, measure: Measure) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.tensors, self.assignment, self.measure = skeleton.types.tensors, skeleton.assignment(subnet), measure

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        func, args, kwargs = in_python(func, args, kwargs or {})
        if (apart := taken_apart(func, args, kwargs)) is not None:
            with self:
                return apart(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attention(*args, **kwargs)
        record = record_of(func)
        if record.kept in STATISTICS:
            return self._statistic(record.kept, func, *args, **kwargs)
        if record.kept:
            return getattr(self, record.kept)(*args, **_without(kwargs, "cudnn_enable", "cudnn_enabled"))
        if record.has(Trait.FLAT):
            return self.measure.activated(func, *args, **kwargs)
        return func(*args, **kwargs)

    def mask_of(self, weight: Any, entries: Tensor) -> Tensor:
        """Return the mask of the kept entries of a norm."""
        if id(weight) not in self.names:
            return self.measure.mask(entries)
        return kept_mask(weight, self.tensors.get(self.names[id(weight)], ()), self.assignment)

    def _open(self, weight: Any, mask: Tensor) -> Tensor:
        """Return a mask for a norm's output: all ones if its weight is zero at dropped entries anyway."""
        return mask if id(weight) not in self.names else torch.ones_like(mask)

    def layer_norm(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        """As in torch."""
        axes = tuple(range(-len(normalized_shape), 0))
        mask = self.mask_of(weight, input.flatten(0, -len(normalized_shape) - 1))
        count = mask.sum().clamp(min=1)
        mean = input.mul(mask).sum(axes, keepdim=True) / count
        var = (input - mean).square().mul(mask).sum(axes, keepdim=True) / count
        return _affine((input - mean) * (var + eps).rsqrt() * self._open(weight, mask), weight, bias)

    def rms_norm(
        self, input: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
    ) -> Tensor:
        """As in torch."""
        mask = self.mask_of(weight, input.flatten(0, -len(normalized_shape) - 1))
        count = mask.sum().clamp(min=1)
        square = input.square().mul(mask).sum(tuple(range(-len(normalized_shape), 0)), keepdim=True) / count
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        return _affine(input * (square + eps).rsqrt() * self._open(weight, mask), weight, None)

    def group_norm(
        self, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
    ) -> Tensor:
        """As in torch."""
        mask = self.mask_of(weight, input.transpose(0, 1).flatten(1).t())
        mask = mask.view(num_groups, -1, 1)
        rows = input.reshape(len(input), num_groups, mask.shape[1], -1)
        count = mask.sum(1, keepdim=True).clamp(min=1) * rows.shape[-1]
        mean = rows.mul(mask).sum((2, 3), keepdim=True) / count
        var = (rows - mean).square().mul(mask).sum((2, 3), keepdim=True) / count
        out = ((rows - mean) * (var + eps).rsqrt() * self._open(weight, mask)).view(input.shape)
        shape = [-1, *[1] * (input.ndim - 2)]
        return _affine(out, None if weight is None else weight.view(shape), None if bias is None else bias.view(shape))

    def weight_norm(self, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
        """As in torch, except that a row of zeros, which is a dropped one, stays zero."""
        axes = tuple(axis for axis in range(v.ndim) if axis != dim)
        length = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
        return v * (g / torch.where(length == 0, 1, length))

    def _attention(self, *args: Any, average_attn_weights: bool = True, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return what PyTorch's function returns, with the mean of its weights over the kept heads."""
        kwargs["average_attn_weights"] = False
        out, weights = F.multi_head_attention_forward(*args, **kwargs)
        if weights is not None and average_attn_weights:
            weights = self._statistic("mean", torch.mean, weights, -3)
        return out, weights

    def _statistic(self, name: str, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return a mean or variance of the kept entries; if all are kept, torch computes it."""
        dims, correction = _reduced(name, input, *args, **kwargs)
        rest = [axis for axis in range(input.ndim) if axis not in dims]
        entries, behind = (one.permute(*rest, *dims) for one in (input, self.measure.behind(input)))
        mask = self.measure.mask(behind.reshape(-1, *behind.shape[len(rest) :]))
        value: Tensor = func(input, *args, **kwargs)
        if not mask.all():
            found = _statistic(name, entries.flatten(len(rest))[..., mask.flatten()], correction)
            value = found.to(value.dtype).reshape(value.shape)
        return self.measure.mean(value)


def _statistic(name: str, entries: Tensor, correction: float) -> Tensor:
    """Compute a statistic over the last axis, without the function under test."""
    count = entries.shape[-1]
    mean = entries.sum(-1, keepdim=True) / max(count, 1)
    if name == "mean":
        return mean.squeeze(-1)
    # If nothing is kept, as in a skipped block, the result is not a number, but nothing reads it.
    var = (entries - mean).square().sum(-1) / (max(count - correction, 0) if count else 1)
    return var.sqrt() if name == "std" else var


def _reduced(
    name: str, input: Tensor, dim: Any = None, unbiased: Any = True, keepdim: bool = False, **kwargs: Any
) -> tuple[list[int], float]:
    """Return the reduced axes, ascending, and the correction of a variance."""
    dim = kwargs.get("axis", dim)
    if name != "mean" and isinstance(dim, bool):
        dim, unbiased = None, dim
    dims = range(input.ndim) if dim is None or dim == () else [dim] if isinstance(dim, int) else dim
    correction = kwargs.get("correction", 1 if unbiased else 0)
    return sorted(d % max(input.ndim, 1) for d in dims), 1 if correction is None else correction


def _without(kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


@contextmanager
def over_kept(model: nn.Module, skeleton: Skeleton, subnet: Subnet, measure: Measure) -> Iterator[None]:
    """Inside, statistics use kept entries only (see `OverKept`), and fused encoder layers are off."""
    with unfused(), OverKept(model, skeleton, subnet, measure):
        yield


Masks = list[Tensor]
"""For each statistic without a parameter as weight: the entries that are reduced."""


def all_known(skeleton: Skeleton) -> bool:
    """Whether the weights of norms determine the dropped entries of all statistics."""
    types = skeleton.types
    calls = [(OPERATORS.of(call.op), call) for call in skeleton.ir.calls.values()]
    norms = [call.argument(2, "weight") for record, call in calls if record.has(Trait.STREAM_NORM)]
    stored = all(isinstance(w, TensorRef) or (isinstance(w, Node) and w.op == "get_attr") for w in norms)
    return stored and not any(any(symbols(term)) for term, _ in _averaged(types))


def not_zero(skeleton: Skeleton) -> set[Sym]:
    """Return the symbols of statistics whose dropped entries are not zero, such as heads without a query."""
    return {symbol for term, zero in _averaged(skeleton.types) if not zero for symbol in symbols(term)}


def _averaged(types: AxisTypes) -> Iterator[tuple[Term, bool]]:
    """Yield the axes of means and variances, and whether their dropped entries are known to be zero."""
    for call in types.ir.calls.values():
        record = OPERATORS.of(call.op)
        if record.kept not in STATISTICS:
            continue
        given = with_numbers(call)
        source, *args = given.args or (given.kwargs["input"],)
        dims, _ = _reduced(record.kept, source.meta["value"], *args, **_without(given.kwargs, "input"))
        zeros = zeros_of(types, source)
        yield from ((types.type(source)[dim], dim < len(zeros) and zeros[dim]) for dim in dims)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
