"""Importance reordering: the most important entries of every symbol come first, consistently everywhere."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .selection import Indices, arrange, members
from .skeleton import Skeleton
from .terms import Sym, symbols

NORMS: Mapping[str, int] = {"L1": 1, "L2": 2}
"""Names of the importance measures, and the order of the vector norm each stands for."""


def importance(skeleton: Skeleton, norm: str = "L2") -> dict[Sym, NDArray[np.float64]]:
    """The importance of each entry of each elastic symbol: the norm of the weights that make it.

    Summed over the producing layers, each divided by its mean, so that a layer of large weights does not drown the
    others of a residual stream (BootstrapNAS sums the plain norms).

    Raises:
        ValueError: `norm` is not one of `NORMS`.
    """
    if norm not in NORMS:
        raise ValueError(f"importance {norm!r} is not one of {', '.join(NORMS)}")
    elastic = set(skeleton.choices.symbols.values())
    scores = {symbol: np.zeros(symbol.n) for symbol in skeleton.choices.symbols.values()}
    for name, axis in skeleton.types.producers.items():
        term = skeleton.types.tensors[name][axis]
        weight = skeleton.ir.tensor(name).detach().double().cpu()
        entries = weight.movedim(axis, 0).flatten(1).norm(p=NORMS[norm], dim=1).numpy()
        entries = entries / max(entries.mean(), np.finfo(np.float64).tiny)
        for symbol in elastic & set(symbols(term)):
            owner = members(term, symbol)
            np.add.at(scores[symbol], owner[owner >= 0], entries[owner >= 0])
    return scores


def reorder(skeleton: Skeleton, norm: str = "L2") -> dict[Sym, Indices]:
    """Permute every tensor of the model in place so that important entries come first.

    The maximal sub-network computes what it did, to rounding. Returns the permutations; the state of an optimizer is
    not permuted, so make a new one.
    """
    order = {symbol: np.argsort(-score, kind="stable") for symbol, score in importance(skeleton, norm).items()}
    _permute(skeleton, skeleton.ir.root, order)
    return order


def _permute(skeleton: Skeleton, model: nn.Module, order: Mapping[Sym, Indices]) -> None:
    with torch.no_grad():
        for name, axes in skeleton.types.tensors.items():
            tensor = skeleton.ir.tensor(name)
            for axis, term in enumerate(axes):
                if any(symbol in order for symbol in symbols(term)):
                    entries = arrange(term, lambda s: order.get(s, np.arange(s.n)))
                    tensor.copy_(tensor.index_select(axis, torch.from_numpy(entries).to(tensor.device)))
