"""Pruning: reduce a model to a bound by importance alone, without training a super-network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import GraphModule

from bnas.passes import Elasticity, Subnet
from bnas.passes.assembly.importance import importance as importance_of
from bnas.passes.assembly.importance import read_scores
from bnas.passes.assembly.reordering import reorder_by
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.exported.program import as_model
from bnas.passes.space.elasticity import IMPORTANCES
from bnas.runtime import LatencySettings, SuperNetwork, block_importance, first_samples, recalibrate, taylor
from bnas.runtime.feed import length_of
from bnas.runtime.latency.measurement import ratios
from bnas.runtime.train.batches import Batches

from .allocation import Allocation, Importance, Price, first_within, global_path, undo_steps, uniform_path
from .errors import SearchError
from .objectives import Constraint, nearest

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from bnas.runtime.evaluate.evaluation import Batch
    from bnas.runtime.train.learner import Criterion

SOURCE = "the training data"
PRICED: Mapping[str, str] = {"peak_memory": "activations", "latency": "macs"}
"""The cost by which steps are priced if the bounded value is not a sum over the parts of a network."""

SUMMED, MEASURED = 200, 4
"""Largest number of steps that `undo_steps` tries to undo: for a bound on a cost, and for a bound on latency."""


def quicker(settings: LatencySettings) -> LatencySettings:
    """Return quicker settings, for the latencies that pruning measures on the way."""
    return replace(settings, turns=1, runs=min(settings.runs, 20))


def widths_only(divisor: int = 8) -> Elasticity:
    """Return the default settings of `prune`: all widths, in steps of `divisor`."""
    return Elasticity(("width",), width_step=divisor, divisor=divisor, min_width=divisor)


@dataclass(frozen=True)
class Pruned:
    """Result of `bnas.prune`: a smaller model."""

    subnet: Subnet
    """The choice that remains."""
    supernet: SuperNetwork = field(repr=False)
    """A super-network of a copy of the model, with entries in the order of importance."""
    module: GraphModule = field(repr=False)
    """The sub-network with recalibrated BatchNorm statistics, in evaluation mode; train it with `bnas.fine_tune`."""
    original: Mapping[str, float]
    """Costs of the original, and its "latency" in milliseconds if the bound is a latency."""
    costs: Mapping[str, float]
    """Costs of the sub-network, likewise."""


def prune(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    data: Iterable[Batch] | Any,
    bound: Constraint | str,
    *,
    importance: str = "taylor",
    allocation: Allocation = "global",
    price: Price = "cost",
    rounds: int = 4,
    elasticity: Elasticity | Mapping[str, Any] | None = None,
    criterion: Criterion | None = None,
    samples: int = 2000,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    latency: LatencySettings | None = None,
) -> Pruned:
    """Remove the least important parts of a model until it meets a bound, without training.

    Args:
        model: The model; it is not changed.
        example_inputs: As `bnas.SuperNetwork.from_model` takes them.
        data: Batches of the training data, with the training transform; or a `bnas.Splits`, of which the training data
            are used. They give the importance and the BatchNorm statistics.
        bound: Upper bound for the result, such as "macs <= 50 %" (of the model), "parameters <= 1.2 M" or
            "latency <= 33 %": macs, parameters, activations, peak_memory, or latency measured on ONNX Runtime.
        importance: "taylor", "L1", "L2", "geometric_median", or "external" (with the file that `elasticity` names).
        allocation: Which entries are removed: "global": the least important ones of the whole network; "uniform": the
            same fraction of each layer.
        price: For "global": compare importance per unit of the saved cost ("cost"), or per entry ("entry").
        rounds: For "taylor" and "global": number of rounds; importance is measured again after each round of removal.
        elasticity: What may be removed; by default all widths in steps of 8. In a mapping of settings, the default of
            the dimensions is only "width". With the dimension "depth", blocks are removed too.
        criterion: The loss of outputs against targets; by default cross-entropy.
        samples: Number of samples of `data` to use, from the first.
        dynamic: As `bnas.SuperNetwork.from_model` takes it.
        latency: Settings of the latency measurement.

    Returns:
        The first sub-network in the last round that meets the bound. With "global", the entries removed last are
        restored as far as the bound allows, since a large last step leaves room.

    Raises:
        SearchError: The bound cannot be met, a setting is unknown, or two settings contradict each other.
        BnasError: As `bnas.SuperNetwork.from_model` and `bnas.runtime.taylor`.
    """
    bound = Constraint.of(bound)
    settings = _settings(elasticity, importance)
    _check(bound, importance, allocation, price, rounds, settings)
    batches = _drawn(getattr(data, "train", data), samples)
    whole, inputs = as_model(model, example_inputs)
    supernet = SuperNetwork.from_model(deep_copy(whole), inputs, settings, dynamic=dynamic).eval()
    if bound.name != "latency" and bound.name not in (known := supernet.cost_model.expressions):
        raise SearchError(
            f"bound {str(bound)!r}: {bound.name!r} is not a cost; {nearest(bound.name, [*known, 'latency'])}"
        )
    saved = partial(cost_of, supernet, PRICED.get(bound.name, bound.name))
    check, subnet = _BoundCheck(supernet, bound, latency or LatencySettings()), supernet.space.maximal()
    rounds = rounds if importance == "taylor" and allocation == "global" else 1
    for number in range(1, rounds + 1):
        worth = ordered(supernet, importance, batches, criterion, subnet)
        steps = global_path(supernet.space, worth, saved, price, subnet)
        path = list(steps if allocation == "global" else uniform_path(supernet.space, worth))
        part = first_within(path, partial(check.has_gone, part=number / rounds)) if number < rounds else None
        found = check.kept(path) if part is None else path[part]
        if found is None:
            raise check.missed(path[-1])
        subnet = found
    module = supernet.extract(subnet)
    recalibrate(module, batches, source=SOURCE)
    return Pruned(subnet, supernet, module, check.values(supernet.space.maximal()), check.values(subnet))


def _drawn(loader: Any, samples: int) -> list[Batch]:
    """Return the first samples of a loader, with its generators at seed 0; of a stream, the next samples."""
    if length_of(loader) is not None:
        return Batches(loader).calibration(samples, 0)
    return first_samples(loader, samples, SOURCE)


def _settings(given: Elasticity | Mapping[str, Any] | None, importance: str) -> Elasticity:
    """Return the settings of the search space, including the importance."""
    if importance not in IMPORTANCES:
        raise SearchError(f"importance {importance!r}: {nearest(importance, IMPORTANCES)}")
    settings = given if isinstance(given, Elasticity) else widths_only()
    if isinstance(given, Mapping):
        settings = Elasticity(**{"dimensions": ("width",), **given})
    external = settings.external_importance_path
    if importance == "external" and external is None:
        raise SearchError(
            "importance 'external' needs an elasticity with filter_importance and external_importance_path"
        )
    measure: Any = {"filter_importance": importance, "external_importance_path": None}
    return replace(settings, **(measure if importance != "external" else {"filter_importance": importance}))


def _check(bound: Constraint, importance: str, allocation: str, price: str, rounds: int, settings: Elasticity) -> None:
    """Raise `SearchError` for mistakes that are visible without the model."""
    if bound.sense != "<=":
        raise SearchError(f"bound {str(bound)!r}: pruning lowers a cost, so give an upper bound, with <=")
    if allocation not in ("global", "uniform"):
        raise SearchError(f"allocation {allocation!r}: {nearest(allocation, ('global', 'uniform'))}")
    if price not in ("cost", "entry"):
        raise SearchError(f"price {price!r}: {nearest(price, ('cost', 'entry'))}")
    if rounds < 1:
        raise SearchError(f"rounds: {rounds} is smaller than 1; the default is 4")
    if "kernel" in settings.dimensions:
        raise SearchError("elasticity.dimensions: pruning removes channels and blocks, not kernels: remove 'kernel'")
    if "depth" in settings.dimensions and allocation == "global" and importance != "taylor":
        raise SearchError(
            f"importance {importance!r} cannot be compared with that of blocks, which is a change of the loss: use "
            "'taylor', or the allocation 'uniform', or remove 'depth'"
        )


def ordered(
    supernet: SuperNetwork,
    measure: str,
    batches: list[Batch],
    criterion: Criterion | None = None,
    subnet: Subnet | None = None,
) -> Importance:
    """Reorder the super-network by the importance in `subnet`; returns the importance in the new order."""
    scores: Mapping[str, torch.Tensor] | None = None
    if measure == "taylor":
        scores = taylor(supernet, batches, criterion, subnet=subnet)
    elif supernet.elasticity.external_importance_path is not None:
        scores = read_scores(Path(supernet.elasticity.external_importance_path))
    found = importance_of(supernet.skeleton, measure, scores)
    order = reorder_by(supernet.skeleton, found)
    widths = {name: found[one][order[one]] for name, one in supernet.skeleton.choices.symbols.items()}
    return Importance(widths, importance_of_blocks(supernet, batches, criterion, subnet))


def importance_of_blocks(
    supernet: SuperNetwork, batches: Sequence[Batch], criterion: Criterion | None, subnet: Subnet | None = None
) -> dict[str, float]:
    """Return the importance of each block of `subnet`: the squared increase of the loss, as entries have it too."""
    if not supernet.space.blocks:
        return {}
    lost = block_importance(supernet, batches, criterion, lambda *_: 0.0, subnet)
    return {name: max(0.0, one.rise) ** 2 for name, one in lost.items()}


def cost_of(supernet: SuperNetwork, name: str, subnet: Subnet) -> float:
    """Return one cost of a sub-network."""
    return float(supernet.cost_model.many([subnet], [name])[name][0])


@dataclass
class _BoundCheck:
    """Decides whether sub-networks are within the bound; for a bound on latency by measuring them."""

    supernet: SuperNetwork
    bound: Constraint
    settings: LatencySettings
    measured: dict[Subnet, float] = field(default_factory=dict)
    """Latencies in milliseconds, each scaled by the maximal network's latency in the same rounds."""

    def holds(self, subnet: Subnet) -> bool:
        """Whether `subnet` is within the bound."""
        return self._value(subnet) <= self._limit

    def has_gone(self, subnet: Subnet, part: float) -> bool:
        """Whether `subnet` has gone `part` (0 to 1) of the way from the maximal network to the bound.

        The way is measured on a logarithmic scale: equal parts reduce the cost by equal ratios. For a latency the cost
        in `PRICED` stands in.
        """
        maximal = self.supernet.space.maximal()
        share, name = self._limit / self._value(maximal), PRICED.get(self.bound.name, self.bound.name)
        share = share**part if 0 < share < 1 else share
        return cost_of(self.supernet, name, subnet) <= share * cost_of(self.supernet, name, maximal)

    def kept(self, path: Sequence[Subnet]) -> Subnet | None:
        """Return the first sub-network of a path within the bound, after undoing the last steps that fit.

        Returns None if no sub-network is within the bound. Latencies on the way are measured quickly, and those of the
        result thoroughly.
        """
        latency = self.bound.name == "latency"
        if (place := first_within(path, self.holds)) is None:
            return None
        found = undo_steps(path[: place + 1], self.holds, MEASURED if latency else SUMMED)
        for one in dict.fromkeys((found, *path[place:])):
            if not latency or self._measured(one, self.settings) <= self._limit:
                return one
        return None

    @cached_property
    def _limit(self) -> float:
        whole = {self.bound.name: self._value(self.supernet.space.maximal())} if self.bound.relative else {}
        return self.bound.resolved(whole).bound

    def _value(self, subnet: Subnet) -> float:
        if self.bound.name != "latency":
            return cost_of(self.supernet, self.bound.name, subnet)
        return self.measured[subnet] if subnet in self.measured else self._measured(subnet, quicker(self.settings))

    def _measured(self, subnet: Subnet, settings: LatencySettings) -> float:
        maximal, now = self.supernet.space.maximal(), ratios(self.supernet, [subnet], settings)
        level = self.measured.setdefault(maximal, now.level_ms)
        self.measured[subnet] = level if subnet == maximal else level * now.found[subnet]
        return self.measured[subnet]

    def values(self, subnet: Subnet) -> dict[str, float]:
        """Return the costs of a sub-network, and its latency if the bound is on latency."""
        costs: dict[str, float] = {**self.supernet.costs(subnet)}
        return {**costs, "latency": self._value(subnet)} if self.bound.name == "latency" else costs

    def missed(self, smallest: Subnet) -> SearchError:
        """Return the error for a bound that not even the smallest sub-network meets."""
        value, whole = self._value(smallest), self._value(self.supernet.space.maximal())
        digits = ",.0f" if whole >= 1e4 else ".4g"
        return SearchError(
            f"bound {str(self.bound)!r} cannot be met: the smallest sub-network has {value:{digits}}, which is "
            f"{value / whole:.1%} of {whole:{digits}}; allow smaller widths (a smaller elasticity.min_width), or "
            "the removal of blocks (the dimension 'depth')"
        )
