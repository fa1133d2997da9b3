"""Importance reordering: the most important entries of every symbol come first, consistently everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnas.passes.axes.selection import Indices, arrange
from bnas.passes.axes.terms import Sym, symbols

from .importance import Scores, importance
from .skeleton import Skeleton


def reorder(
    skeleton: Skeleton,
    measure: str = "L2",
    scores: Mapping[str, Tensor] | None = None,
    alike: Iterable[Mapping[str, Tensor]] = (),
) -> dict[Sym, Indices]:
    """Permute every tensor of the model in place so that important entries come first; return the permutations.

    Arguments are those of `importance`. The maximal sub-network computes the same, up to rounding. Tensors in `alike`,
    by parameter name, are permuted like their parameter (optimizer state, averages). Symbols of `fixed_order` keep
    theirs.
    """
    return reorder_by(skeleton, importance(skeleton, measure, scores), alike)


def reorder_by(skeleton: Skeleton, found: Scores, alike: Iterable[Mapping[str, Tensor]] = ()) -> dict[Sym, Indices]:
    """As `reorder`, by an importance that is known already."""
    kept = fixed_order(skeleton)
    order = {
        symbol: np.arange(symbol.n) if symbol in kept else np.argsort(-score, kind="stable")
        for symbol, score in found.items()
    }
    _permute(skeleton, order, list(alike))
    return order


def fixed_order(skeleton: Skeleton) -> set[Sym]:
    """Return the symbols whose entries must stay where they are.

    These are symbols of a tensor that no checkpoint has (a constant, or a buffer that is not persistent) and whose
    entries differ: in another order, the saved tensors would not fit this tensor of a model that is made anew. And
    those of tensors that share memory, which would be permuted together.
    """
    found, shared = set[Sym](), _sharing_memory(skeleton)
    for name, axes in skeleton.types.tensors.items():
        tensor = skeleton.ir.tensor(name)
        for axis, term in enumerate(axes):
            if name in shared or (not skeleton.ir.is_saved(name) and _differ(tensor, axis)):
                found.update(symbols(term))
    return found


def _differ(tensor: Tensor, axis: int) -> bool:
    return bool((tensor != tensor.narrow(axis, 0, 1)).any())


def _sharing_memory(skeleton: Skeleton) -> set[str]:
    """Return the names of tensors that overlap in memory, such as two parameters made of one tensor."""
    found, last, end = set[str](), "", 0
    tensors = {name: skeleton.ir.tensor(name) for name in skeleton.types.tensors}
    for name, tensor in sorted(tensors.items(), key=lambda pair: pair[1].data_ptr()):
        if not tensor.numel():
            continue
        if tensor.data_ptr() < end:
            found |= {name, last}
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if (stop := tensor.data_ptr() + extent * tensor.element_size()) > end:
            last, end = name, stop
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
