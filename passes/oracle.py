"""The zero-parameter oracle: what a sub-network must compute, by the original model's own forward.

Independent of tracing and rewriting: every parameter entry outside the kept index sets is set to zero, and the
original module runs. Zeros pass through convolutions, normalisation, activations and gates, so that a wrong tie or
order shows as a wrong number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Block
from .kernels import Kernel
from .selection import index
from .skeleton import Skeleton
from .space import Subnet
from .terms import Sym, Term


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

    Those are residual blocks whose parameters nobody else reads.
    """
    skipped = [block for name, block in skeleton.choices.blocks.items() if name in subnet.skipped]
    return [block for block in skipped if _by_zeroing(skeleton, block) is zeroed]


def _by_zeroing(skeleton: Skeleton, block: Block) -> bool:
    parameters = dict(skeleton.ir.root.named_parameters())
    users = [nodes for name, nodes in skeleton.types.users.items() if name in parameters and nodes & block.body]
    return block.residual and all(nodes <= block.body for nodes in users)


def _parameters_of(skeleton: Skeleton, block: Block) -> set[str]:
    names = {name for name, users in skeleton.types.users.items() if users & block.body}
    opaque = [str(n.target) for n in block.body if n.op == "call_module" and n not in skeleton.ir.calls]
    return names | {f"{p}.{n}" for p in opaque for n, _ in skeleton.ir.module(p).named_parameters()}


Measure = Callable[[Tensor], Tensor]
"""Which entries the statistics of a normalisation without weight are taken over, for its values (rows, *entries)."""


@contextmanager
def over_kept(model: nn.Module, skeleton: Skeleton, subnet: Subnet, unweighted: Measure) -> Iterator[None]:
    """While it lasts, layer_norm, rms_norm and group_norm take their statistics over kept entries, by decision.

    Which those are follows from the weight; without one, `unweighted` says so, in the order of the calls.
    """
    assignment, names = skeleton.assignment(subnet), {id(p): name for name, p in model.named_parameters()}

    def mask_of(weight: Any, entries: Tensor) -> Tensor:
        if id(weight) not in names:
            return unweighted(entries)
        return _kept(weight, skeleton.types.tensors.get(names[id(weight)], ()), assignment)

    def layer_norm(x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        axes = tuple(range(-len(shape), 0))
        mask = mask_of(weight, x.flatten(0, -len(shape) - 1))
        count = mask.sum().clamp(min=1)
        mean = x.mul(mask).sum(axes, keepdim=True) / count
        var = (x - mean).square().mul(mask).sum(axes, keepdim=True) / count
        return _affine((x - mean) * (var + eps).rsqrt() * mask, weight, bias)

    def rms_norm(x: Tensor, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
        mask = mask_of(weight, x.flatten(0, -len(shape) - 1))
        count = mask.sum().clamp(min=1)
        square = x.square().mul(mask).sum(tuple(range(-len(shape), 0)), keepdim=True) / count
        return _affine(x * (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt(), weight, None)

    def group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        mask = mask_of(weight, x.transpose(0, 1).flatten(1).t())
        mask = mask.view(groups, -1, 1)
        rows = x.view(len(x), groups, mask.shape[1], -1)
        count = mask.sum(1, keepdim=True).clamp(min=1) * rows.shape[-1]
        mean = rows.mul(mask).sum((2, 3), keepdim=True) / count
        var = (rows - mean).square().mul(mask).sum((2, 3), keepdim=True) / count
        out = ((rows - mean) * (var + eps).rsqrt() * mask).view(x.shape)
        shape = [-1, *[1] * (x.ndim - 2)]
        return _affine(out, None if weight is None else weight.view(shape), None if bias is None else bias.view(shape))

    with ExitStack() as stack:
        for function in (layer_norm, rms_norm, group_norm):
            stack.enter_context(mock.patch.object(F, function.__name__, function))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        yield


NORMS = frozenset({F.layer_norm, F.rms_norm, F.group_norm})
Masks = list[Tensor]
"""For each call of a normalisation without weight, in their order: entries of what it goes over."""


def kept_without_weight(model: nn.Module, skeleton: Skeleton, subnet: Subnet, run: Callable[[], object]) -> Measure:
    """For `over_kept`; zeroes `model` as `zero_dropped` does. ``run()`` calls it.

    An entry is dropped if it depends on the parameters of the model, but no more on those that are left: constant
    padding never does. A norm inside an opaque module, where nothing is dropped, goes over all.
    """
    norms = [call for call in skeleton.ir.calls.values() if call.op in NORMS]
    known = all(call.argument(2, "weight") is not None for call in norms)
    before: Masks = [] if known else _dependent(model, skeleton, subnet, run, [])
    zero_dropped(model, skeleton, subnet)
    kept, last = Masks(), None
    while before and (last is None or not all(map(torch.equal, kept, last))):
        # Again with what is known: a dropped entry depends on others through a norm that does not leave it out yet.
        now = _dependent(model, skeleton, subnet, run, kept)
        kept, last = [left | ~then for then, left in zip(before, now, strict=True)], kept or None
    return _in_turn(kept)


def _in_turn(masks: Masks) -> Measure:
    """One mask for each call, and everything after the last."""
    rest = iter(masks)
    return lambda values: next(rest, torch.ones(values.shape[1:], dtype=torch.bool, device=values.device))


RUNS = 8
"""How many random parameters are tried to see what depends on them."""


def _dependent(model: nn.Module, skeleton: Skeleton, subnet: Subnet, run: Callable[[], object], kept: Masks) -> Masks:
    """The entries that change with the parameters of `model`, which stay, where norms go over those `kept`.

    An activation may let an entry die that is not dropped: seldom where all parameters are positive, as in every
    second run, and seldom in all runs.
    """
    first = _values(model, skeleton, subnet, run, kept, 0)
    found = [torch.zeros(values.shape[1:], dtype=torch.bool, device=values.device) for values in first]
    for seed in range(1, RUNS):
        for changed, one, other in zip(found, first, _values(model, skeleton, subnet, run, kept, seed), strict=True):
            changed |= (one != other).any(0)
    return found


def _values(
    model: nn.Module, skeleton: Skeleton, subnet: Subnet, run: Callable[[], object], kept: Masks, seed: int
) -> list[Tensor]:
    """What stands before each normalisation without weight, with parameters that follow from `seed`."""
    generator, found, measure = torch.Generator().manual_seed(seed), list[Tensor](), _in_turn(kept)
    values = [parameter.detach().clone() for parameter in model.parameters()]

    def note(entries: Tensor) -> Tensor:
        found.append(entries.clone())
        return measure(entries)

    with torch.no_grad(), over_kept(model, skeleton, subnet, note):
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
            sign = torch.where(torch.rand(noise.shape, generator=generator) < 0.5 * (seed % 2), -1.0, 1.0)
            parameter.abs_().mul_((noise * sign).to(parameter.device))
        run()
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
    return found


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
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
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
        norm.running_mean += 0.1 * torch.rand(norm.num_features, generator=generator, dtype=torch.float64)
        norm.running_var.clamp_(min=1e-2).mul_(0.75 + torch.rand(norm.num_features, generator=generator) / 2)
