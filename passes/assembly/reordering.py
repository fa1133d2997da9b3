"""Importance reordering: the most important entries of every symbol come first, consistently everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnas.passes.axes.selection import Indices, arrange, members
from bnas.passes.axes.terms import Sym, symbols
from bnas.passes.errors import ElasticityError
from bnas.passes.frontend.ir import IR
from bnas.passes.space.elasticity import IMPORTANCES, Elasticity
from bnas.passes.space.scopes import module_path, nearest

from .skeleton import Skeleton


def _distances(rows: Tensor) -> Tensor:
    """How far each row is from all others: one near the geometric median is replaceable (FPGM, He et al. 2019)."""
    return torch.cdist(rows, rows).sum(1)


MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "L1": lambda rows: rows.norm(p=1, dim=1),
    "L2": lambda rows: rows.norm(p=2, dim=1),
    "geometric_median": _distances,
}
"""Importance measures by name: from a weight with an entry's numbers in a row to a number for each row."""


def importance(
    skeleton: Skeleton, measure: str = "L2", scores: Mapping[str, Tensor] | None = None
) -> dict[Sym, NDArray[np.float64]]:
    """The importance of each entry of each elastic symbol, from the weights that make it.

    Summed over the producing layers. Each layer's measures are divided by their mean first, so that a layer of large
    weights does not drown the others of a residual stream (BootstrapNAS sums them plainly). Scores from elsewhere
    ("external") are summed as they are, also over the other axes of the weight.

    Args:
        skeleton: the typed graph and its symbols.
        measure: one of `IMPORTANCES`.
        scores: for "external": see `read_scores`.

    Raises:
        ElasticityError: there is no such measure; or scores of a layer are missing or of another shape.
    """
    if measure not in IMPORTANCES:
        raise ElasticityError(f"importance {measure!r} is not one of {', '.join(IMPORTANCES)}")
    if (measure == "external") != (scores is not None):
        raise ElasticityError("the importance 'external' and scores from elsewhere need each other")
    given = None if scores is None else _by_parameter(skeleton.ir, scores)
    found = {symbol: np.zeros(symbol.n) for symbol in skeleton.choices.symbols.values()}
    for name, axis in skeleton.types.producers.items():
        term = skeleton.types.tensors[name][axis]
        elastic = found.keys() & set(symbols(term))
        if not elastic:
            continue
        weight = skeleton.ir.tensor(name).detach()
        entries = _measured(weight, axis, measure) if given is None else _given(given, name, weight, axis)
        for symbol in elastic:
            owner = members(term, symbol)
            np.add.at(found[symbol], owner[owner >= 0], entries[owner >= 0])
    return found


def _measured(weight: Tensor, axis: int, measure: str) -> NDArray[np.float64]:
    entries = MEASURES[measure](weight.cpu().double().movedim(axis, 0).flatten(1)).numpy()
    return np.asarray(entries / max(entries.mean(), np.finfo(np.float64).tiny))


def _given(scores: Mapping[str, Tensor], name: str, weight: Tensor, axis: int) -> NDArray[np.float64]:
    if name not in scores:
        raise ElasticityError(f"external importance: there are no scores for {name}, which makes an elastic width")
    given = scores[name].cpu().double()
    if given.shape not in (weight.shape, weight.shape[axis : axis + 1]):
        raise ElasticityError(
            f"external importance: {name} has scores of shape {tuple(given.shape)}; "
            f"allowed are {tuple(weight.shape)} and {(weight.shape[axis],)}"
        )
    entries = given if given.ndim == 1 else given.movedim(axis, 0).flatten(1).sum(1)
    return entries.numpy()


UNREADABLE = (
    ValueError, TypeError, AttributeError, OSError, OverflowError, RuntimeError, safetensors.SafetensorError
)  # fmt: skip
"""What the readers of files of tensors raise."""


def read_scores(path: Path) -> dict[str, Tensor]:
    """Scores from a file of tensors by name (safetensors), or of nested lists of numbers by name (``.json``).

    A name is that of a parameter, of its module, or of its module as BootstrapNAS spells it. A tensor has the shape
    of the weight, as in BootstrapNAS, or one score for each channel. Pickles are not read: they can run code.

    Raises:
        ElasticityError: the file is missing or of another format, or a score is not finite.
    """
    try:
        scores = _read_json(path) if path.suffix == ".json" else safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ElasticityError(f"external importance: there is no file {path}") from None
    except UNREADABLE as error:
        raise ElasticityError(
            f"external importance: {path} is neither safetensors nor JSON (name: numbers): {error}; "
            "write a pickle's tensors with safetensors.torch.save_file"
        ) from error
    for name, tensor in scores.items():
        if not tensor.isfinite().all():
            raise ElasticityError(f"external importance: {path} has scores of {name} that are not finite numbers")
    return scores


def _read_json(path: Path) -> dict[str, Tensor]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in data.items()}


def _by_parameter(ir: IR, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by the first name of the parameter that they are for."""
    found = {}
    for given, tensor in scores.items():
        spellings = (given, f"{module_path(ir.root, given)}.weight")
        name = next((ir.aliases[one] for one in spellings if one in ir.aliases), None)
        if name is None:
            raise nearest("external importance", given, list(ir.aliases), "parameter")
        found[name] = tensor
    return found


def reorder(
    skeleton: Skeleton,
    measure: str = "L2",
    scores: Mapping[str, Tensor] | None = None,
    alike: Iterable[Mapping[str, Tensor]] = (),
) -> dict[Sym, Indices]:
    """Permute every tensor of the model in place so that important entries come first; arguments as `importance`.

    The maximal sub-network computes what it did, to rounding. Tensors of `alike`, by parameter name, are permuted as
    the parameters are: the state of an optimizer, averages. Returns the permutations.
    """
    found = importance(skeleton, measure, scores)
    order = {symbol: np.argsort(-score, kind="stable") for symbol, score in found.items()}
    _permute(skeleton, order, list(alike))
    return order


def reorder_as_set(skeleton: Skeleton, elasticity: Elasticity, alike: Iterable[Mapping[str, Tensor]] = ()) -> None:
    """Reorder by the importance that the settings name."""
    path = elasticity.external_importance_path
    reorder(skeleton, elasticity.filter_importance, None if path is None else read_scores(Path(path)), alike)


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
