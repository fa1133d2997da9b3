"""Norms whose weights do not say which entries are kept: those that change with the parameters that are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.axes.terms import Sym, symbols
from bnas.passes.space.subnet import Subnet

from .norms import Masks, Measure, all_known, not_zero, over_kept
from .oracle import zero_dropped


def kept_without_weight(model: nn.Module, skeleton: Skeleton, subnet: Subnet, run: Callable[[], object]) -> Measure:
    """For `over_kept`; zeroes `model` as `zero_dropped` does. ``run()`` calls it.

    An entry is dropped if it depends on the parameters of the model, but no more on those that are left: constant
    padding never does. Where dropped entries are not zero, it is enough that this holds for the parameters with the
    axis that the statistic goes over: a head of attention whose query and key are gone still depends on a value that
    all heads share. A norm inside an opaque module, where nothing is dropped, goes over all.
    """
    if all_known(skeleton):
        zero_dropped(model, skeleton, subnet)
        return Measure()
    named = dict(model.named_parameters())
    groups = [frozenset(named), *(_with(skeleton, symbol) & named.keys() for symbol in not_zero(skeleton))]
    whole = _Dependence(model, skeleton, subnet, run, groups)
    parameters = _saved(model)
    before = whole.find([], frozenset())
    zero_dropped(model, skeleton, subnet)
    zeroed = _saved(model)
    kept, held = Masks(), frozenset[int]()
    for _ in range(ROUNDS):
        # Again with what is known: a dropped entry depends on others through a statistic that it is no part of.
        last, now = kept, whole.find(kept, held)
        kept = [_left(then, left) for then, left in zip(before, now, strict=True)]
        if last and all(map(torch.equal, kept, last)):
            break
        known = frozenset(place for place, mask in enumerate(kept) if not mask.all())
        if known != held:
            held = known
            _load(model, parameters)
            before = whole.find([], held)
            _load(model, zeroed)
    return Measure(kept)


def _with(skeleton: Skeleton, symbol: Sym) -> frozenset[str]:
    """The tensors of a model that have an axis with `symbol`."""
    tensors = skeleton.types.tensors.items()
    return frozenset(name for name, axes in tensors if any(symbol in symbols(axis) for axis in axes))


def _left(before: Tensor, now: Tensor) -> Tensor:
    """The entries that are kept: of each group of parameters they depend on what is left, if they ever did."""
    return (now | ~before).all(0)


ROUNDS = 32
"""More statistics do not stand one behind the other; else `verify` says that the numbers differ."""


def _saved(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


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
    groups: Sequence[Set[str]]
    """Names of parameters that change together."""

    def find(self, kept: Masks, held: frozenset[int]) -> Masks:
        """For each statistic (groups, *entries), what changes with the parameters of each group."""
        found = (self._changing(kept, held, group) for group in self.groups)
        return [torch.stack(masks) for masks in zip(*found, strict=True)]

    def _changing(self, kept: Masks, held: frozenset[int], group: Set[str]) -> Masks:
        """The entries that change with the parameters, which stay, where statistics go over those `kept`.

        The means of the calls in `held` do not change: through them each entry would depend on all.

        An operator that chooses, such as a maximum, may hide an entry that is not dropped: seldom where all parameters
        are positive, as in every second run, and seldom in all runs.
        """
        means: dict[int, Tensor] = {}
        first = self._values(_Noting(kept, held, means), 0, group)
        found = [torch.zeros(values.shape[1:], dtype=torch.bool, device=values.device) for values in first]
        for seed in range(1, RUNS):
            others = self._values(_Noting(kept, held, means), seed, group)
            for changed, one, other in zip(found, first, others, strict=True):
                changed |= (one != other).any(0)
        return found

    def _values(self, noting: _Noting, seed: int, group: Set[str]) -> list[Tensor]:
        """What stands before each call, where the parameters of a group follow from `seed`."""
        model, generator = self.model, torch.Generator().manual_seed(seed)
        values = _saved(model)
        with torch.no_grad(), over_kept(model, self.skeleton, self.subnet, noting):
            for parameter in (one for name, one in model.named_parameters() if name in group):
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
                sign = torch.where(torch.rand(noise.shape, generator=generator) < 0.5 * (seed % 2), -1.0, 1.0)
                parameter.abs_().mul_((noise * sign).to(parameter.device))
            self.run()
        _load(model, values)
        return noting.found
