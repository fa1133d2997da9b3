"""Many sub-networks evaluated together: bitwise the numbers that each gets alone, for less work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from bnas.passes.frames import TABLES
from bnas.passes.ir import as_program_call
from bnas.passes.slot import Copies, Slot

from .trie import Trie

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
    known = outputs_together(modules, batches)
    return [Replay(module, one).eval() for module, one in zip(modules, known, strict=True)]


def outputs_together(modules: Sequence[GraphModule], batches: Sequence[tuple[Any, Any]]) -> list[list[tuple[Any, Any]]]:
    """For each module the pairs of inputs and outputs on all batches."""
    trie = Trie(modules, lambda number, path: modules[number].get_submodule(path))
    known: list[list[tuple[Any, Any]]] = [[] for _ in modules]
    with torch.inference_mode():
        for inputs, _ in batches:
            tensors, named = as_program_call(inputs)
            for place, outputs in enumerate(trie(*tensors, **named)):
                known[place].append(((tensors, named), outputs))
    return known
