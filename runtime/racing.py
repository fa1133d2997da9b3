"""Racing: a sub-network that cannot come near enough any more is not measured to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_unflatten

from bnas.passes import BnasError

from .nested import batch_size
from .together import Replay, outputs_together

PARTS = 8
"""The first look is after one part of so many; the next ones after twice as many images each."""


class RacingError(BnasError):
    """A metric or data that cannot be judged by a part."""


@dataclass(frozen=True)
class Bar:
    """The quality that a sub-network has to reach, else its measurement may stop early."""

    quality: float
    error: float = 1e-3
    """The probability, at each look, that one that reaches it is stopped."""

    def is_out_of_reach(self, quality: float, samples: int) -> bool:
        """Whether `quality`, the mean over `samples` samples drawn at random, is too far below.

        By the bound of Hoeffding (1963, theorem 1; section 6 for samples that are drawn without replacement), which
        holds for every mean of values from 0 to 1: ``samples * KL(quality || bar) > log(1 / error)``.
        """
        return quality < self.quality and samples * divergence(quality, self.quality) > math.log(1 / self.error)


def divergence(p: float, q: float) -> float:
    """Kullback and Leibler's, of two coins with the probabilities `p` and `q`."""
    return sum(a * math.log(a / b) if b else math.inf for a, b in ((p, q), (1 - p, 1 - q)) if a)


@dataclass(frozen=True)
class Raced:
    """What was measured of a sub-network."""

    quality: float
    part: float
    """The share of the samples that it is the quality on; 1 where it was measured to the end."""


def race(
    modules: Sequence[GraphModule],
    batches: Sequence[tuple[Any, Any]],
    metric: Callable[[nn.Module, Iterable[Any]], float],
    bars: Mapping[int, Bar],
) -> list[Raced | Exception]:
    """Measure modules together, part after part; drop those whose bar, by place, is out of reach.

    Args:
        modules: prepared and folded.
        batches: in random order; see `shuffled`.
        metric: a mean over the samples of values from 0 to 1.
        bars: for those that may be dropped.

    Returns:
        For each module its measurement, or what its metric raised.
    """
    found: dict[int, Raced | Exception] = {}
    known = [Replay(module, ()).eval() for module in modules]
    total = sum(map(batch_size, batches))
    for seen, new in _looks(batches):
        running = [place for place in range(len(modules)) if place not in found]
        outputs = outputs_together([modules[place] for place in running], new)
        samples = sum(map(batch_size, batches[:seen]))
        for place, one in zip(running, outputs, strict=True):
            known[place].learn(one)
            try:
                quality = _checked(metric(known[place], batches[:seen]))
            except Exception as error:
                found[place] = error
                continue
            if samples == total or (place in bars and bars[place].is_out_of_reach(quality, samples)):
                found[place] = Raced(quality, samples / total)
    return [found[place] for place in range(len(modules))]


def _looks(batches: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    """How many batches were seen at each look, and those that are new."""
    seen, share = 0, 1 / PARTS
    while seen < len(batches):
        count = min(len(batches), max(seen + 1, round(share * len(batches))))
        yield count, batches[seen:count]
        seen, share = count, 2 * share


def _checked(quality: float) -> float:
    if not 0 <= quality <= 1:
        raise RacingError(f"racing needs a metric from 0 to 1, the mean of one value for each sample; it is {quality}")
    return quality


def shuffled(batches: Sequence[tuple[Any, Any]], seed: int = 0) -> list[tuple[Any, Any]]:
    """The same samples, drawn at random into batches of the same sizes: data are often sorted by class.

    Raises:
        RacingError: inputs or targets are not tensors of one row for each sample.
    """
    flat = [tree_flatten(batch) for batch in batches]
    sizes = [len(leaves[0]) for leaves, _ in flat if isinstance(leaves[0], Tensor)]
    rows = [[len(one) if isinstance(one, Tensor) and one.ndim else -1 for one in leaves] for leaves, _ in flat]
    if len(sizes) != len(flat) or any(set(row) != {size} for row, size in zip(rows, sizes, strict=True)):
        raise RacingError("racing needs inputs and targets that are tensors of one row for each sample")
    shapes = {tuple(one.shape[1:] for one in leaves) for leaves, _ in flat}
    if len(shapes) > 1:
        raise RacingError(
            "racing draws samples from all batches, which must have inputs of one shape; batches have different "
            "lengths: pad all of them to one length, or search without racing"
        )
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    columns = [torch.cat(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    drawn = [torch.split(column[order.to(column.device)], sizes) for column in columns]
    return [tree_unflatten(list(leaves), flat[0][1]) for leaves in zip(*drawn, strict=True)]
