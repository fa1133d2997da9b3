"""Many sub-networks evaluated together, for less work; those that cannot win any more are not measured to the end."""

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

# Many sub-networks evaluated together: bitwise the numbers that each gets alone, for less work.

HELD = TABLES | {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
"""What a layer holds that is no setting."""


class Layers:
    """Binds copies; sub-networks that keep the same of a layer have one copy of it, unless it keeps statistics."""

    def __init__(self) -> None:
        self._made: dict[Hashable, nn.Module] = {}
        self._known: dict[nn.Module, Hashable] = {}

    def __call__(self, shell: nn.Module, slots: Mapping[str, Slot]) -> nn.Module:
        """Fill `shell` with copies of what its slots keep, or return the layer that was filled so before."""
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
        """The same for layers that were filled alike; None if nothing is known of it."""
        return self._known.get(layer)


def _layer_key(shell: nn.Module, slots: Mapping[str, Slot]) -> Hashable:
    """What says all about a layer: its class, settings, and what is kept of which tensors; None if that is not all."""
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
    """Let modules have the layers in common that they call on the same values; returns the trie that found them."""
    trie = Trie(modules, lambda number, path: layers.key(modules[number].get_submodule(path)))
    for (first, *others), paths in trie.shared:
        for path in paths:
            layer = modules[first].get_submodule(path)
            for other in others:
                modules[other].set_submodule(path, layer)
    return trie


class Folds:
    """Remembers what a layer and a normalisation are folded into, so that modules that share them go on sharing."""

    def __init__(self, fuse: Callable[[nn.Module, nn.Module], nn.Module | None]) -> None:
        self._fuse = fuse
        self._made: dict[tuple[nn.Module, nn.Module], nn.Module | None] = {}

    def __call__(self, layer: nn.Module, norm: nn.Module) -> nn.Module | None:
        """The folded layer, or None where the two cannot be folded."""
        if (layer, norm) not in self._made:
            self._made[layer, norm] = self._fuse(layer, norm)
        return self._made[layer, norm]


class Replay(nn.Module):
    """Stands for a module whose outputs on some inputs are known: it runs only on others."""

    _outputs: dict[Hashable, tuple[Any, Any]]

    def __init__(self, module: nn.Module, known: Iterable[tuple[Any, Any]]) -> None:
        super().__init__()
        self.module = module
        self.__dict__["_outputs"] = {}
        self.learn(known)

    def learn(self, known: Iterable[tuple[Any, Any]]) -> None:
        """Take further pairs of inputs and outputs."""
        self._outputs.update({_same(inputs): (inputs, outputs) for inputs, outputs in known})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs that are known for these very tensors, or what the module computes."""
        found = self._outputs.get(_same((args, kwargs)))
        return self.module(*args, **kwargs) if found is None else found[1]


def _same(inputs: Any) -> Hashable:
    """The same for the same tensors in the same places; those that are kept keep their identity."""
    return tuple(id(value) for value in tree_leaves(inputs))


def replays(modules: Sequence[GraphModule], batches: Sequence[tuple[Any, Any]]) -> list[nn.Module]:
    """The modules, with their outputs on the inputs of all batches computed together."""
    return _replaying(modules, outputs_together(_by_layers(modules), batches))


def accuracies(modules: Sequence[GraphModule], batches: Iterable[tuple[Any, Any]]) -> list[float]:
    """The top-1 accuracies of modules, bitwise, in one pass over batches of which no outputs are kept: a stream's."""
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
    """For each module of `trie` the pairs of inputs and outputs on all batches."""
    known: list[list[tuple[Any, Any]]] = [[] for _ in range(len(trie))]
    with torch.inference_mode():
        for inputs, _ in batches:
            tensors, named = as_program_call(inputs)
            for place, outputs in enumerate(trie(*tensors, **named)):
                known[place].append(((tensors, named), outputs))
    return known


# Racing: a sub-network that cannot come near enough any more is not measured to the end.

PARTS = 8
"""The first look is after one part of so many; the next ones after twice as many images each."""


class RacingError(BnasError):
    """Racing is impossible with this metric or these data."""


@dataclass(frozen=True)
class Bar:
    """The quality that a sub-network must reach; else its measurement may stop early."""

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
    """How many batches were seen at each look, and those that are new."""
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
    """The same samples, drawn at random into batches of the same sizes: data are often sorted by class.

    Raises:
        RacingError: inputs or targets are not tensors of one row for each sample.
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
