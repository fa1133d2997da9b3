"""Importance of entries, from weights, gradients or a file of scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnas.passes.axes.selection import members
from bnas.passes.axes.terms import Sym, symbols
from bnas.passes.errors import ElasticityError
from bnas.passes.frontend.ir import IR
from bnas.passes.space.elasticity import IMPORTANCES
from bnas.passes.space.scopes import module_path, nearest

from .skeleton import Skeleton

Scores = dict[Sym, NDArray[np.float64]]
"""A number for each entry of each elastic symbol."""

# Importance from weights.


def _distances(rows: Tensor) -> Tensor:
    """Return each row's distance to all others: rows near the geometric median are redundant (FPGM, He et al. 2019)."""
    return torch.cdist(rows, rows).sum(1)


MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "L1": lambda rows: rows.norm(p=1, dim=1),
    "L2": lambda rows: rows.norm(p=2, dim=1),
    "geometric_median": _distances,
}
"""Importance measures of weights by name: from a matrix with one row per entry to one number per row."""


def importance(skeleton: Skeleton, measure: str = "L2", scores: Mapping[str, Tensor] | None = None) -> Scores:
    """Return the importance of each entry of each elastic symbol.

    Importance from weights is summed over the layers that produce the entry. Each layer's values are first divided by
    their mean, so that a layer with large weights does not dominate a residual stream (BootstrapNAS does not do this).
    External scores are summed without normalisation, also over the other axes of the weight.

    Args:
        skeleton: The typed graph and its symbols.
        measure: One of `IMPORTANCES`.
        scores: For "external" by parameter name, see `read_scores`; for "taylor" by the name of the width, as
            `bnas.runtime.taylor` returns them.

    Raises:
        ElasticityError: There is no such measure, or scores are missing or have another shape.
    """
    if measure not in IMPORTANCES:
        raise ElasticityError(f"importance {measure!r} is not one of {', '.join(IMPORTANCES)}")
    if (measure == "external") != (scores is not None) and measure != "taylor":
        raise ElasticityError(
            "the importance 'external' needs scores, and scores need the importance 'external': give both or neither"
        )
    if measure == "taylor":
        return _of_widths(skeleton, scores)
    given = None if scores is None else _by_parameter(skeleton.ir, scores)
    found = no_scores(skeleton)
    for name, axis in skeleton.types.producers.items():
        term = skeleton.types.tensors[name][axis]
        if not found.keys() & set(symbols(term)):
            continue
        weight = skeleton.ir.tensor(name).detach()
        entries = _measured(weight, axis, measure) if given is None else _given(given, name, weight, axis)
        for symbol in found.keys() & set(symbols(term)):
            owner = members(term, symbol)
            np.add.at(found[symbol], owner[owner >= 0], entries[owner >= 0])
    return found


def no_scores(skeleton: Skeleton) -> Scores:
    """Return zero for each entry of each elastic symbol."""
    return {symbol: np.zeros(symbol.n) for symbol in skeleton.choices.symbols.values()}


def _measured(weight: Tensor, axis: int, measure: str) -> NDArray[np.float64]:
    entries = MEASURES[measure](weight.cpu().double().movedim(axis, 0).flatten(1)).numpy()
    return np.asarray(entries / max(entries.mean(), np.finfo(np.float64).tiny))


def _of_widths(skeleton: Skeleton, scores: Mapping[str, Tensor] | None) -> Scores:
    """Turn scores by the name of the width into scores by symbol."""
    if scores is None:
        raise ElasticityError(
            "importance 'taylor' needs data, as in supernet.reorder('taylor', data=batches), or scores"
        )
    found = {}
    for name, symbol in skeleton.choices.symbols.items():
        if name not in scores or scores[name].shape != (symbol.n,):
            given = "got none" if name not in scores else f"got the shape {tuple(scores[name].shape)}"
            raise ElasticityError(f"importance 'taylor': {name} needs {symbol.n} scores; {given}")
        found[symbol] = scores[name].cpu().double().numpy()
    return found


# Importance from gradients.


def effects(skeleton: Skeleton, gradients: Mapping[str, Tensor]) -> Scores:
    """Return, to first order and with sign, how much the loss falls if the parameters of an entry become zero.

    It is the sum of gradient times weight over all parameters that have the symbol on an axis: weights that produce or
    read the entry, biases, and gains of normalisations.

    Args:
        skeleton: The typed graph and its symbols.
        gradients: The gradients of the loss by parameter name; a missing gradient counts as 0.
    """
    found = no_scores(skeleton)
    for name, axis, symbol, owner in _places(skeleton):
        if name in gradients:
            product = (skeleton.ir.tensor(name).detach() * gradients[name]).cpu().double()
            entries = product.movedim(axis, 0).reshape(product.shape[axis], -1).sum(1).numpy()
            np.add.at(found[symbol], owner[owner >= 0], entries[owner >= 0])
    return found


def _places(skeleton: Skeleton) -> Iterator[tuple[str, int, Sym, NDArray[np.int64]]]:
    """Yield each parameter axis with an elastic symbol, and for each of its entries the entry of the symbol."""
    elastic = set(skeleton.choices.symbols.values())
    for name, axes in skeleton.types.tensors.items():
        for axis, term in enumerate(axes):
            for symbol in elastic & set(symbols(term)):
                yield name, axis, symbol, members(term, symbol)


# Importance from a file.


def _given(scores: Mapping[str, Tensor], name: str, weight: Tensor, axis: int) -> NDArray[np.float64]:
    if name not in scores:
        raise ElasticityError(f"external importance: scores are missing for {name}, which produces an elastic width")
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
"""Errors of the libraries that read files of tensors."""


def read_scores(path: Path) -> dict[str, Tensor]:
    """Read scores by name from a safetensors file, or from a ``.json`` file with nested lists of numbers.

    A name refers to a parameter or a module, also in BootstrapNAS's spelling. The scores have the shape of the weight
    (as in BootstrapNAS), or one number for each channel. Pickles are refused, since they can run code.

    Raises:
        ElasticityError: The file is missing or has another format, or a score is not finite.
    """
    try:
        scores = _read_json(path) if path.suffix == ".json" else safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ElasticityError(f"external importance: there is no file {path}") from None
    except UNREADABLE as error:
        raise ElasticityError(
            f"external importance: {path} is neither safetensors nor JSON (name: numbers): {error}; "
            "save the tensors of a pickle with safetensors.torch.save_file"
        ) from error
    for name, tensor in scores.items():
        if not tensor.isfinite().all():
            raise ElasticityError(f"external importance: {path} has scores of {name} that are not finite numbers")
    return scores


def _read_json(path: Path) -> dict[str, Tensor]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in data.items()}


def _by_parameter(ir: IR, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores by the first name of their parameter."""
    found = {}
    for given, tensor in scores.items():
        spellings = (given, f"{module_path(ir.root, given)}.weight")
        name = next((ir.aliases[one] for one in spellings if one in ir.aliases), None)
        if name is None:
            raise nearest("external importance", given, list(ir.aliases), "parameter")
        found[name] = tensor
    return found
