"""For norms without weights: which entries are kept, found by which entries change with the kept parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnas.passes.assembly.skeleton import Skeleton
from bnas.passes.axes.terms import Sym, symbols
from bnas.passes.space.blocks import Block
from bnas.passes.space.subnet import Subnet

from .norms import Masks, Measure, all_known, not_zero, over_kept
from .oracle import load, saved, zero_dropped


def kept_without_weight(
    model: nn.Module, skeleton: Skeleton, subnet: Subnet, vanishing: Sequence[Block], run: Callable[[], object]
) -> Measure:
    """Return the measure for `over_kept`, and zero `model` as `zero_dropped` does; ``run()`` calls the model.

    An entry counts as dropped if it depends on parameters of the model, but not on the kept ones. (Constant padding
    depends on none, so it is never dropped.) If dropped entries are not zero, only parameters with the axis of the
    statistic matter: an attention head without query and key still depends on a value that all heads share. A norm
    inside an opaque module, where nothing is dropped, uses all entries.
    """
    if all_known(skeleton):
        zero_dropped(model, skeleton, subnet, vanishing)
        return Measure()
    parameters = saved(model)
    zero_dropped(model, skeleton, subnet, vanishing)
    zeroed = saved(model)
    whole = _Dependence(model, skeleton, subnet, run, _groups(skeleton, zeroed))
    before = whole.find(parameters, [], frozenset())
    kept, held = Masks(), frozenset[int]()
    for _ in range(ROUNDS):
        # Repeat with the known masks: a dropped entry may depend on others through a statistic without it.
        last, now = kept, whole.find(zeroed, kept, held)
        kept = [_left(then, left) for then, left in zip(before, now, strict=True)]
        if last and all(map(torch.equal, kept, last)):
            break
        known = frozenset(place for place, mask in enumerate(kept) if not mask.all())
        if known != held:
            held = known
            before = whole.find(parameters, [], held)
    load(model, zeroed)
    return Measure(kept)


def _groups(skeleton: Skeleton, zeroed: Mapping[str, Tensor]) -> list[frozenset[str]]:
    """Return all parameters, and those with the axis of a statistic, without groups of which nothing is left.

    Nothing is left of a group inside a skipped block. Values behind the block depended on it, but are not dropped.
    """
    alone = (_with(skeleton, symbol) & zeroed.keys() for symbol in not_zero(skeleton))
    return [frozenset(zeroed), *(group for group in alone if any(zeroed[name].any() for name in group))]


def _with(skeleton: Skeleton, symbol: Sym) -> frozenset[str]:
    """Return the tensors of a model that have an axis with `symbol`."""
    tensors = skeleton.types.tensors.items()
    return frozenset(name for name, axes in tensors if any(symbol in symbols(axis) for axis in axes))


def _left(before: Tensor, now: Tensor) -> Tensor:
    """Return the kept entries: for each group of parameters on which they depended, they still depend on kept ones."""
    return (now | ~before).all(0)


ROUNDS = 32
"""Largest number of statistics in a row. With more, `verify` would report differing numbers."""


RUNS = 8
"""Number of random parameter values that are tried to find dependent entries."""


class _Noting(Measure):
    """Records the entries of each call. For the calls in `held`, the mean of the first run is used again."""

    def __init__(self, masks: Masks, held: frozenset[int], means: dict[int, Tensor]) -> None:
        super().__init__(masks)
        self.held, self.means, self.found = held, means, list[Tensor]()
        self.computed: list[tuple[Tensor, Tensor]] = []
        """The means that were used again, each with the mean of this run."""

    def mask(self, entries: Tensor) -> Tensor:
        """As above."""
        self.found.append(entries.clone())
        return super().mask(entries)

    def behind(self, input: Tensor) -> Tensor:
        """Return the means of this run for those used again: a mean of means depends on parameters through them."""
        return next((value for used, value in self.computed if used is input), input)

    def mean(self, value: Tensor) -> Tensor:
        """As above."""
        if self.place not in self.held:
            return value
        used = self.means.setdefault(self.place, value).clone()
        self.computed.append((used, value))
        return used

    def activated(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the activation plus a small part of its input, because entries that it cuts off are not dropped."""
        if not input.is_floating_point():
            return super().activated(func, input, *args, **kwargs)
        before = input.clone()
        return func(input, *args, **kwargs).add_(before, alpha=0.01)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Dependence:
    """Finds the parameters on which the entries of statistics depend."""

    model: nn.Module
    skeleton: Skeleton
    subnet: Subnet
    run: Callable[[], object]
    groups: Sequence[Set[str]]
    """Names of parameters that change together."""

    def find(self, parameters: Mapping[str, Tensor], kept: Masks, held: frozenset[int]) -> Masks:
        """Return, for each statistic, a mask (groups, *entries): what changes with each group of `parameters`."""
        load(self.model, parameters)
        found = (self._changing(kept, held, group) for group in self.groups)
        return [torch.stack(masks) for masks in zip(*found, strict=True)]

    def _changing(self, kept: Masks, held: frozenset[int], group: Set[str]) -> Masks:
        """Return the entries that change with a group of parameters, if statistics use the entries `kept`.

        The means of the calls in `held` are fixed, because through them each entry would depend on all others.

        A selecting operator, such as a maximum, may hide an entry that is not dropped. That is unlikely if all
        parameters are positive, as in every second run, and very unlikely in all runs.
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
        """Return the entries before each call, with random parameters of a group from `seed`."""
        model, generator = self.model, torch.Generator().manual_seed(seed)
        values = saved(model)
        with torch.no_grad(), over_kept(model, self.skeleton, self.subnet, noting):
            for parameter in (one for name, one in model.named_parameters() if name in group):
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
                sign = torch.where(torch.rand(noise.shape, generator=generator) < 0.5 * (seed % 2), -1.0, 1.0)
                parameter.abs_().mul_((noise * sign).to(parameter.device))
            self.run()
        load(model, values)
        return noting.found
