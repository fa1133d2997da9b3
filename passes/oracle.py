"""The zero-parameter oracle: what a sub-network must compute, by the original model's own forward.

Independent of tracing and rewriting: every parameter entry outside the kept index sets is set to zero, and the
original module runs. Zeros pass through convolutions, normalisation, activations and gates, so that a wrong tie or
order shows as a wrong number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from .axes import AxisTypes
from .blocks import Block
from .frontend.structure import map_leaves
from .kernels import Kernel
from .ops.aten import in_python
from .ops.calls import Call, TensorRef, with_numbers
from .ops.record import Operator, Trait
from .ops.registry import OPERATORS
from .selection import index
from .skeleton import Skeleton
from .space import Subnet
from .terms import Sym, Term, symbols


def zero_dropped(model: nn.Module, skeleton: Skeleton, subnet: Subnet) -> None:
    """Set to zero, in place, all entries of `model`'s parameters that `subnet` does not keep.

    A smaller kernel stands in the centre of a zero kernel of the full size, so that padding and settings stay. A
    skipped residual block gets zero parameters altogether, so that its branch adds nothing. Where zeroing makes no
    identity, `detour` skips the block.
    """
    assignment, parameters = skeleton.assignment(subnet), dict(model.named_parameters())
    for name, axes in skeleton.types.tensors.items():
        if name in parameters:
            parameters[name].data.mul_(_kept(parameters[name], axes, assignment))
    for kernel in (skeleton.choices.kernels.found[name] for name in subnet.kernels):
        shrink_in_place(parameters[kernel.weight], kernel, subnet.kernels[kernel.name], skeleton.matrices)
    for block in skipped_blocks(skeleton, subnet, zeroed=True):
        for name in _parameters_of(skeleton, block):
            if name in parameters:
                parameters[name].data.zero_()


def _kept(parameter: Tensor, axes: Sequence[Term], assignment: Mapping[Sym, int]) -> Tensor:
    """Which entries of a parameter are kept: true or false, of its shape."""
    mask = torch.ones(parameter.shape, dtype=torch.bool)
    for axis, term in enumerate(axes):
        keep = torch.zeros(term.size, dtype=torch.bool)
        keep[torch.from_numpy(index(term, assignment))] = True
        mask &= keep.view([-1 if a == axis else 1 for a in range(len(axes))])
    return mask.to(parameter.device)


def shrink_in_place(weight: torch.Tensor, kernel: Kernel, choice: int, matrices: nn.Module) -> None:
    """Replace `weight` by its small kernel amid zeros: entry by entry, to be independent of `Shrink`."""
    held = {name: matrix.detach().double().cpu().numpy() for name, matrix in matrices.named_parameters()}
    values, size = weight.detach().double().cpu().numpy(), kernel.choices[-1]
    channels: tuple[Any, ...] = (slice(None), slice(None))
    while size > choice:
        centre = itertools.product(*(_central(n, size - 2) for n in kernel.sizes))
        places = [channels + place for place in centre]
        matrix, smaller = held[f"{kernel.name}.{size}to{size - 2}"], np.zeros_like(values)
        for row, target in zip(matrix, places, strict=True):
            for factor, source in zip(row, places, strict=True):
                smaller[target] += factor * values[source]
        values, size = smaller, size - 2
    weight.data.copy_(torch.from_numpy(values))


def _central(entries: int, choice: int) -> range:
    """The positions of the central `choice` entries of an axis: all if it has no more."""
    margin = max(0, entries - choice) // 2
    return range(margin, entries - margin)


def skipped_blocks(skeleton: Skeleton, subnet: Subnet, *, zeroed: bool) -> list[Block]:
    """The blocks that `subnet` skips which zero parameters make an identity, or the others.

    Those are residual blocks whose parameters nobody else reads, and which read no number of a buffer by themselves:
    a frozen norm adds its mean to whatever the parameters make.
    """
    skipped = [block for name, block in skeleton.choices.blocks.items() if name in subnet.skipped]
    return [block for block in skipped if _by_zeroing(skeleton, block) is zeroed]


def _by_zeroing(skeleton: Skeleton, block: Block) -> bool:
    parameters = dict(skeleton.ir.root.named_parameters())
    users = [nodes for name, nodes in skeleton.types.users.items() if name in parameters and nodes & block.body]
    return block.residual and all(nodes <= block.body for nodes in users) and not _reads_buffers(skeleton, block)


def _reads_buffers(skeleton: Skeleton, block: Block) -> bool:
    buffers = dict(skeleton.ir.root.named_buffers())
    read = {str(node.target) for inner in block.body for node in inner.all_input_nodes if node.op == "get_attr"}
    return any(name in buffers and buffers[name].is_floating_point() for name in read)


def _parameters_of(skeleton: Skeleton, block: Block) -> set[str]:
    names = {name for name, users in skeleton.types.users.items() if users & block.body}
    opaque = [str(n.target) for n in block.body if n.op == "call_module" and n not in skeleton.ir.calls]
    return names | {f"{p}.{n}" for p in opaque for n, _ in skeleton.ir.module(p).named_parameters()}


class Measure:
    """Which entries statistics are taken over where no weight says so, in the order of the calls: all by default."""

    def __init__(self, masks: Masks | None = None) -> None:
        self.masks, self.place = masks or [], -1

    def mask(self, entries: Tensor) -> Tensor:
        """For the values (rows, *entries) of the next call: true or false for each entry."""
        self.place += 1
        if self.place < len(self.masks):
            return self.masks[self.place]
        return torch.ones(entries.shape[1:], dtype=torch.bool, device=entries.device)

    def mean(self, value: Tensor) -> Tensor:
        """What the forward gets as the mean, whose entries were asked for last."""
        return value

    def activated(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the forward gets from an activation that is flat somewhere."""
        return func(input, *args, **kwargs)  # type: ignore[no-any-return]


STATISTICS = ("mean", "var", "std")
"""What is taken over axes, without a weight."""


def record_of(func: Any) -> Operator:
    """The record of a function or method as PyTorch hands it to a mode."""
    name = getattr(func, "__name__", "")
    return OPERATORS.of(name if name and getattr(Tensor, name, None) is func else func)


class OverKept(TorchFunctionMode):
    """While it lasts, norms, means and variances are those of kept entries, by decision, however they are called.

    For a norm these follow from its weight, if that is a parameter; for all others `measure` says so.
    """

    def __init__(self, model: nn.Module, skeleton: Skeleton, subnet: Subnet, measure: Measure) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.tensors, self.assignment, self.measure = skeleton.types.tensors, skeleton.assignment(subnet), measure

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        func, args, kwargs = in_python(func, args, kwargs or {})
        record = record_of(func)
        if record.kept in STATISTICS:
            return self._statistic(record.kept, func, *args, **kwargs)
        if record.kept:
            return getattr(self, record.kept)(*args, **_without(kwargs, "cudnn_enable", "cudnn_enabled"))
        if record.has(Trait.FLAT):
            return self.measure.activated(func, *args, **kwargs)
        return func(*args, **kwargs)

    def mask_of(self, weight: Any, entries: Tensor) -> Tensor:
        """The kept entries of a norm."""
        if id(weight) not in self.names:
            return self.measure.mask(entries)
        return _kept(weight, self.tensors.get(self.names[id(weight)], ()), self.assignment)

    def _open(self, weight: Any, mask: Tensor) -> Tensor:
        """What a norm lets through: all where its weight decides, which is zero at dropped entries, or not yet."""
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
        """As in torch, but a row of zeros, which is one that is dropped, stays one."""
        axes = tuple(axis for axis in range(v.ndim) if axis != dim)
        length = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
        return v * (g / torch.where(length == 0, 1, length))

    def _statistic(self, name: str, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A mean or variance of the kept entries; where all are kept, what torch makes of them."""
        dims, correction = _reduced(name, input, *args, **kwargs)
        rest = [axis for axis in range(input.ndim) if axis not in dims]
        entries = input.permute(*rest, *dims)
        mask = self.measure.mask(entries.reshape(-1, *entries.shape[len(rest) :]))
        value: Tensor = func(input, *args, **kwargs)
        if not mask.all():
            found = _statistic(name, entries.flatten(len(rest))[..., mask.flatten()], correction)
            value = found.to(value.dtype).reshape(value.shape)
        return self.measure.mean(value)


def _statistic(name: str, entries: Tensor, correction: float) -> Tensor:
    """Of the last axis; by hand, to be independent."""
    count = entries.shape[-1]
    mean = entries.sum(-1, keepdim=True) / max(count, 1)
    if name == "mean":
        return mean.squeeze(-1)
    var = (entries - mean).square().sum(-1) / max(count - correction, 0)
    return var.sqrt() if name == "std" else var


def _reduced(
    name: str, input: Tensor, dim: Any = None, unbiased: Any = True, keepdim: bool = False, **kwargs: Any
) -> tuple[list[int], float]:
    """The axes that are reduced, ascending, and by how much the count of a variance is lessened."""
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
    """While it lasts, statistics are those of kept entries, see `OverKept`; no fused encoder layer hides a norm."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with OverKept(model, skeleton, subnet, measure):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class InDouble(TorchFunctionMode):
    """While it lasts, all numbers are in double precision, whatever a model asks for: rounding would hide errors."""

    def __enter__(self) -> InDouble:
        """Tensors that are made without a type are in double precision too."""
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()  # type: ignore[no-any-return,no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Put the type of new tensors back."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self.before)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        if func in LESS_PRECISE:
            return args[0].to(torch.float64, copy=True)
        if func in ONLY_SINGLE:
            args, kwargs = map_leaves((args, kwargs or {}), lambda _, leaf: _single(leaf))
            return func(*args, **kwargs).double()
        return func(*map(_double, args), **{name: _double(value) for name, value in (kwargs or {}).items()})


LESS_PRECISE = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})

ONLY_SINGLE = frozenset(
    getattr(owner, name) for owner in (torch, F) for name in ("_grouped_mm", "grouped_mm") if hasattr(owner, name)
)
"""Operators that PyTorch does not have in double precision."""


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _double(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


Masks = list[Tensor]
"""The entries of what is reduced, for each call that takes statistics without a weight that is a parameter."""


def kept_without_weight(model: nn.Module, skeleton: Skeleton, subnet: Subnet, run: Callable[[], object]) -> Measure:
    """For `over_kept`; zeroes `model` as `zero_dropped` does. ``run()`` calls it.

    An entry is dropped if it depends on the parameters of the model, but no more on those that are left: constant
    padding never does. A norm inside an opaque module, where nothing is dropped, goes over all.
    """
    if _all_known(skeleton):
        zero_dropped(model, skeleton, subnet)
        return Measure()
    whole = _Dependence(model, skeleton, subnet, run)
    parameters = _saved(model)
    before = whole.find([], frozenset())
    zero_dropped(model, skeleton, subnet)
    zeroed = _saved(model)
    kept, held = Masks(), frozenset[int]()
    for _ in range(ROUNDS):
        # Again with what is known: a dropped entry depends on others through a statistic that it is no part of.
        last, now = kept, whole.find(kept, held)
        kept = [left | ~then for then, left in zip(before, now, strict=True)]
        if last and all(map(torch.equal, kept, last)):
            break
        known = frozenset(place for place, mask in enumerate(kept) if not mask.all())
        if known != held:
            held = known
            _load(model, parameters)
            before = whole.find([], held)
            _load(model, zeroed)
    return Measure(kept)


ROUNDS = 32
"""More statistics do not stand one behind the other; else `verify` says that the numbers differ."""


def _saved(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _all_known(skeleton: Skeleton) -> bool:
    """Whether the weights of norms say all that is dropped before statistics are taken."""
    types = skeleton.types
    calls = [(OPERATORS.of(call.op), call) for call in skeleton.ir.calls.values()]
    norms = [call.argument(2, "weight") for record, call in calls if record.has(Trait.STREAM_NORM)]
    stored = all(isinstance(w, TensorRef) or (isinstance(w, Node) and w.op == "get_attr") for w in norms)
    means = (call for record, call in calls if record.kept in STATISTICS)
    return stored and not any(any(symbols(term)) for call in means for term in _averaged(types, call))


def _averaged(types: AxisTypes, call: Call) -> list[Term]:
    """The axes that a call takes the mean or variance of."""
    given = with_numbers(call)
    source, *args = given.args or (given.kwargs["input"],)
    value = source.meta["value"]
    dims, _ = _reduced(OPERATORS.of(call.op).kept, value, *args, **_without(given.kwargs, "input"))
    return [types.type(source)[dim] for dim in dims]


def _load(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])


RUNS = 8
"""How many random parameters are tried to see what depends on them."""


class _Noting(Measure):
    """Notes the entries of each call; the means of the calls in `held` are those of the first run."""

    def __init__(self, masks: Masks, held: frozenset[int], means: dict[int, Tensor]) -> None:
        super().__init__(masks)
        self.held, self.means, self.found = held, means, list[Tensor]()

    def mask(self, entries: Tensor) -> Tensor:
        """As above."""
        self.found.append(entries.clone())
        return super().mask(entries)

    def mean(self, value: Tensor) -> Tensor:
        """As above."""
        return self.means.setdefault(self.place, value.clone()) if self.place in self.held else value

    def activated(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As above, and a little of the input: what an activation cuts off is not dropped."""
        if not input.is_floating_point():
            return super().activated(func, input, *args, **kwargs)
        before = input.clone()
        return func(input, *args, **kwargs).add_(before, alpha=0.01)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Dependence:
    """What the entries that statistics are taken of depend on."""

    model: nn.Module
    skeleton: Skeleton
    subnet: Subnet
    run: Callable[[], object]

    def find(self, kept: Masks, held: frozenset[int]) -> Masks:
        """The entries that change with the parameters, which stay, where statistics go over those `kept`.

        The means of the calls in `held` do not change: through them each entry would depend on all.

        An operator that chooses, such as a maximum, may hide an entry that is not dropped: seldom where all parameters
        are positive, as in every second run, and seldom in all runs.
        """
        means: dict[int, Tensor] = {}
        first = self._values(_Noting(kept, held, means), 0)
        found = [torch.zeros(values.shape[1:], dtype=torch.bool, device=values.device) for values in first]
        for seed in range(1, RUNS):
            others = self._values(_Noting(kept, held, means), seed)
            for changed, one, other in zip(found, first, others, strict=True):
                changed |= (one != other).any(0)
        return found

    def _values(self, noting: _Noting, seed: int) -> list[Tensor]:
        """What stands before each call, with parameters that follow from `seed`."""
        model, generator = self.model, torch.Generator().manual_seed(seed)
        values = _saved(model)
        with torch.no_grad(), over_kept(model, self.skeleton, self.subnet, noting):
            for parameter in model.parameters():
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
                sign = torch.where(torch.rand(noise.shape, generator=generator) < 0.5 * (seed % 2), -1.0, 1.0)
                parameter.abs_().mul_((noise * sign).to(parameter.device))
            self.run()
        _load(model, values)
        return noting.found


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def randomise(model: nn.Module, run: Callable[[], object], generator: torch.Generator) -> None:
    """Give statistics, biases and scales random values, in place: at their initial ones many mistakes are hidden.

    Batch statistics are first set to those of ``run()``, which calls the model on some batch, and then disturbed:
    wholly random ones let the signal die out in a deep network, so that its outputs would be those of the biases.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            tensor.data.copy_(noise + 0.5 if name.endswith("weight") else 0.4 * noise - 0.2)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        assert norm.running_mean is not None
        assert norm.running_var is not None
        shift, factor = torch.rand(2, norm.num_features, generator=generator, dtype=torch.float64).to(norm.running_mean)
        norm.running_mean += 0.1 * shift
        norm.running_var.clamp_(min=1e-2).mul_(0.75 + factor / 2)
