"""Evaluate many sub-networks together with less work, and stop early for those that cannot win any more (racing)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bnas.passes import BnasError
from bnas.passes.assembly.frames import TABLES
from bnas.passes.assembly.slot import Copies, Slot
from bnas.passes.frontend.ir import as_program_call
from bnas.runtime.nested import batch_size

from .evaluation import accuracy
from .trie import Trie

# Evaluating many sub-networks together gives bitwise the same numbers as evaluating each alone.

HELD = TABLES | {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
"""Attributes of a layer that are not settings."""


class Layers:
    """Binds copies of tensors. Sub-networks with the same part of a layer share one copy, unless it has statistics."""

    def __init__(self) -> None:
        self._made: dict[Hashable, nn.Module] = {}
        self._known: dict[nn.Module, Hashable] = {}

    def __call__(self, shell: nn.Module, slots: Mapping[str, Slot]) -> nn.Module:
        """Fill `shell` with copies of the kept entries, or return an earlier layer that was filled in the same way."""
        key = _layer_key(shell, slots)
        if key is None or not all(slot.is_parameter for slot in slots.values()):
            layer = Copies()(shell, slots)
        elif key in self._made:
            layer = self._made[key]
        else:
            layer = self._made[key] = Copies()(shell, slots)
        if key is not None:
            self._known[layer] = key
        return layer

    def key(self, layer: nn.Module) -> Hashable:
        """Return a key that is equal for layers that were filled in the same way; None for an unknown layer."""
        return self._known.get(layer)


def _layer_key(shell: nn.Module, slots: Mapping[str, Slot]) -> Hashable:
    """Describe a layer completely: class, settings and kept entries of its tensors; None if that is not everything."""
    state = vars(shell)
    if shell._modules or any(state.get(name) for name in TABLES):  # layers inside, or hooks
        return None
    settings = tuple((name, value) for name, value in state.items() if name not in HELD)
    kept = tuple((name, id(slot.shared), _kept(slot), slot.shrink) for name, slot in slots.items())
    key = type(shell), settings, kept
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _kept(slot: Slot) -> Hashable:
    return tuple(k.tobytes() if isinstance(k, np.ndarray) else k for k in slot.kept)


def share_layers(modules: Sequence[GraphModule], layers: Layers) -> Trie:
    """Make modules share the layers that they call on the same values; return the trie that finds these layers."""
    trie = Trie(modules, lambda number, path: layers.key(modules[number].get_submodule(path)))
    for (first, *others), paths in trie.shared:
        for path in paths:
            layer = modules[first].get_submodule(path)
            for other in others:
                modules[other].set_submodule(path, layer)
    return trie


class Folds:
    """Caches folded layers, so that modules that share a layer and its normalisation also share the folded layer."""

    def __init__(self, fuse: Callable[[nn.Module, nn.Module], nn.Module | None]) -> None:
        self._fuse = fuse
        self._made: dict[tuple[nn.Module, nn.Module], nn.Module | None] = {}

    def __call__(self, layer: nn.Module, norm: nn.Module) -> nn.Module | None:
        """The folded layer, or None where the two cannot be folded."""
        if (layer, norm) not in self._made:
            self._made[layer, norm] = self._fuse(layer, norm)
        return self._made[layer, norm]


class Replay(nn.Module):
    """Stands in for a module whose outputs on some inputs are known; runs the module on other inputs only."""

    _outputs: dict[Hashable, tuple[Any, Any]]

    def __init__(self, module: nn.Module, known: Iterable[tuple[Any, Any]]) -> None:
        super().__init__()
        self.module = module
        self.__dict__["_outputs"] = {}
        self.learn(known)

    def learn(self, known: Iterable[tuple[Any, Any]]) -> None:
        """Add pairs of inputs and known outputs."""
        self._outputs.update({_same(inputs): (inputs, outputs) for inputs, outputs in known})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the known outputs for these tensors (by identity), else run the module."""
        found = self._outputs.get(_same((args, kwargs)))
        return self.module(*args, **kwargs) if found is None else found[1]


def _same(inputs: Any) -> Hashable:
    """Return a key of the inputs: the identities of their tensors, and where they stand."""
    return tuple(id(value) for value in tree_leaves(inputs))


def replays(modules: Sequence[GraphModule], batches: Sequence[tuple[Any, Any]]) -> list[nn.Module]:
    """Compute the outputs of all modules on all batches together; return each module as a `Replay`."""
    return _replaying(modules, outputs_together(_by_layers(modules), batches))


def accuracies(modules: Sequence[GraphModule], batches: Iterable[tuple[Any, Any]]) -> list[float]:
    """Return the top-1 accuracies of modules from one pass over a stream, without keeping outputs."""
    trie, right, total = _by_layers(modules), [0] * len(modules), 0
    for inputs, targets in batches:
        batch = [(inputs, targets)]
        for place, known in enumerate(_replaying(modules, outputs_together(trie, batch))):
            right[place] += round(len(targets) * accuracy(known, batch))
        total += len(targets)
    return [one / total for one in right]


def _by_layers(modules: Sequence[GraphModule]) -> Trie:
    return Trie(modules, lambda number, path: modules[number].get_submodule(path))


def _replaying(modules: Sequence[nn.Module], known: Sequence[Any]) -> list[nn.Module]:
    return [Replay(module, one).eval() for module, one in zip(modules, known, strict=True)]


def outputs_together(trie: Trie, batches: Sequence[tuple[Any, Any]]) -> list[list[tuple[Any, Any]]]:
    """Return, for each module of `trie`, the pairs of inputs and outputs on all batches."""
    known: list[list[tuple[Any, Any]]] = [[] for _ in range(len(trie))]
    with torch.inference_mode():
        for inputs, _ in batches:
            tensors, named = as_program_call(inputs)
            for place, outputs in enumerate(trie(*tensors, **named)):
                known[place].append(((tensors, named), outputs))
    return known


# Racing: stop measuring a sub-network that cannot reach the required quality any more.

PARTS = 8
"""The first look comes after this fraction (1/n) of the images; each next look after twice as many images."""


class RacingError(BnasError):
    """Racing is impossible with this metric or these data."""


@dataclass(frozen=True)
class Bar:
    """The quality that a sub-network must reach; its measurement stops early if it cannot."""

    quality: float
    error: float = 1e-3
    """Probability, at each look, of stopping a sub-network that would reach the quality."""

    def is_out_of_reach(self, quality: float, samples: int) -> bool:
        """Whether `quality`, the mean over randomly drawn samples, is too far below the bar.

        The test is Hoeffding's bound (1963, theorem 1; section 6 for sampling without replacement), which holds for
        every mean of values from 0 to 1: ``samples * KL(quality || bar) > log(1 / error)``.
        """
        return quality < self.quality and samples * divergence(quality, self.quality) > math.log(1 / self.error)


def divergence(p: float, q: float) -> float:
    """Return the Kullback-Leibler divergence of two Bernoulli distributions with probabilities `p` and `q`."""
    return sum(a * math.log(a / b) if b else math.inf for a, b in ((p, q), (1 - p, 1 - q)) if a)


@dataclass(frozen=True)
class Raced:
    """The measurement of a sub-network in a race."""

    quality: float
    part: float
    """Share of the samples that were used; 1 if the measurement is complete."""


def race(
    modules: Sequence[GraphModule],
    batches: Sequence[tuple[Any, Any]],
    metric: Callable[[nn.Module, Iterable[Any]], float],
    bars: Mapping[int, Bar],
) -> list[Raced | Exception]:
    """Measure modules together, part by part, and stop measuring those that cannot reach their bar.

    Args:
        modules: Modules that are prepared and folded.
        batches: Batches in random order; see `shuffled`.
        metric: A metric that is a mean over the samples of values from 0 to 1.
        bars: The bars, by the position of the module; a module without a bar is measured completely.

    Returns:
        The measurement of each module, or the error that its metric raised.
    """
    found: dict[int, Raced | Exception] = {}
    known = [Replay(module, ()).eval() for module in modules]
    total = sum(map(batch_size, batches))
    for seen, new in _looks(batches):
        running = [place for place in range(len(modules)) if place not in found]
        outputs = outputs_together(_by_layers([modules[place] for place in running]), new)
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
    """Yield, for each look, the number of batches seen so far and the new ones."""
    seen, share = 0, 1 / PARTS
    while seen < len(batches):
        count = min(len(batches), max(seen + 1, round(share * len(batches))))
        yield count, batches[seen:count]
        seen, share = count, 2 * share


def _checked(quality: float) -> float:
    if not 0 <= quality <= 1:
        raise RacingError(f"racing needs a metric that is a mean over samples and lies between 0 and 1; got {quality}")
    return quality


def shuffled(batches: Sequence[tuple[Any, Any]], seed: int = 0) -> list[tuple[Any, Any]]:
    """Shuffle the samples into batches of the same sizes, since data are often sorted by class.

    Raises:
        RacingError: Inputs or targets are not tensors with one row for each sample.
    """
    flat = [tree_flatten(batch) for batch in batches]
    sizes = [len(leaves[0]) for leaves, _ in flat if isinstance(leaves[0], Tensor)]
    rows = [[len(one) if isinstance(one, Tensor) and one.ndim else -1 for one in leaves] for leaves, _ in flat]
    if len(sizes) != len(flat) or any(set(row) != {size} for row, size in zip(rows, sizes, strict=True)):
        raise RacingError("racing needs inputs and targets that are tensors with one row for each sample")
    shapes = {tuple(one.shape[1:] for one in leaves) for leaves, _ in flat}
    if len(shapes) > 1:
        raise RacingError(
            "racing draws samples from all batches, so all inputs must have the same shape, but batches have different "
            "lengths: pad all of them to one length, or search without racing"
        )
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    columns = [torch.cat(column) for column in zip(*(leaves for leaves, _ in flat), strict=True)]
    drawn = [torch.split(column[order.to(column.device)], sizes) for column in columns]
    return [tree_unflatten(list(leaves), flat[0][1]) for leaves in zip(*drawn, strict=True)]
