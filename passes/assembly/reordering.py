"""Importance reordering: the most important entries of every symbol come first, consistently everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnas.passes.axes.selection import Indices, arrange
from bnas.passes.axes.terms import Sym, symbols

from .importance import importance
from .skeleton import Skeleton


def reorder(
    skeleton: Skeleton,
    measure: str = "L2",
    scores: Mapping[str, Tensor] | None = None,
    alike: Iterable[Mapping[str, Tensor]] = (),
) -> dict[Sym, Indices]:
    """Permute every tensor of the model in place so that important entries come first; return the permutations.

    Arguments are those of `importance`. The maximal sub-network computes the same, up to rounding. Tensors in `alike`,
    by parameter name, are permuted like their parameter (optimizer state, averages). Symbols of `unsaved` keep their
    order.
    """
    found, kept = importance(skeleton, measure, scores), unsaved(skeleton)
    order = {
        symbol: np.arange(symbol.n) if symbol in kept else np.argsort(-score, kind="stable")
        for symbol, score in found.items()
    }
    _permute(skeleton, order, list(alike))
    return order


def unsaved(skeleton: Skeleton) -> set[Sym]:
    """Return the symbols with entries that differ in a tensor which no checkpoint has: a constant or such a buffer.

    In another order, the saved tensors would not fit this tensor of a model that is made anew.
    """
    found = set[Sym]()
    for name, axes in skeleton.types.tensors.items():
        tensor = None if skeleton.ir.is_saved(name) else skeleton.ir.tensor(name)
        for axis, term in enumerate(axes if tensor is not None else ()):
            if tensor is not None and bool((tensor != tensor.narrow(axis, 0, 1)).any()):
                found.update(symbols(term))
    return found


def _permute(skeleton: Skeleton, order: Mapping[Sym, Indices], alike: Sequence[Mapping[str, Tensor]]) -> None:
    def choose(symbol: Sym) -> Any:
        return order.get(symbol, np.arange(symbol.n))

    with torch.no_grad():
        for name, axes in skeleton.types.tensors.items():
            tensors = [skeleton.ir.tensor(name), *(others[name] for others in alike if name in others)]
            for axis, term in enumerate(axes):
                if any(symbol in order for symbol in symbols(term)):
                    entries = torch.from_numpy(arrange(term, choose))
                    for tensor in tensors:
                        tensor.copy_(tensor.index_select(axis, entries.to(tensor.device)))
