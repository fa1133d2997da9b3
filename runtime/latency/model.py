"""Latency models: least squares fits of latency to a few costs, from some 15 measured sub-networks.

ProxylessNAS (Cai et al. 2019) and its successors sum a table with an entry for each operator. A fit on a few costs of
the whole network needs only 15 measurements, and ranks sub-networks as well as a second measurement would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from bnas.passes import Subnet
from bnas.runtime.onnx.session import Array
from bnas.runtime.storage.checkpoint import described_space
from bnas.runtime.storage.files import write_json
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.targets.target import Target

from .machine import differences, machine
from .measurement import FEATURES, ratios, spread, target_for
from .settings import LatencyError, LatencySettings

FORMAT = 1
AGAIN = "fit a new one here with bnas.LatencyModel.fit(supernet)"
"""The remedy for a saved model that cannot be used."""
MULTIPLES = (1, 8, 16, 32)
"""Numbers of channels that kernels compute at a time: vectors of 32 or 64 bytes, and pairs of these."""


@dataclass(frozen=True)
class LatencyModel:
    """A model that predicts latencies of sub-networks on the machine where it was fitted.

    Call it with a sub-network to get the CPU milliseconds of one run; make one with `fit` or `load`. Still measure the
    results of a search: predictions have a mean relative error of `error`.
    """

    supernet: SuperNetwork = field(repr=False)
    coefficients: tuple[float, ...]
    """Milliseconds per unit of each of `FEATURES`, then the constant."""
    measured: Mapping[Subnet, float] = field(repr=False)
    """Measured sub-networks, with their milliseconds."""
    tau: float
    """Kendall's rank correlation between measured latencies and cross-validated predictions."""
    error: float
    """Mean relative error of the cross-validated predictions."""
    settings: LatencySettings = field(repr=False)
    """Settings of the measurement."""
    level: float | None = None
    """Milliseconds of the maximal sub-network in the same measurement."""
    multiple: int = 1
    """For the costs, widths are rounded up to multiples of this: the value in `MULTIPLES` that fits best."""
    machine: Mapping[str, Any] = field(default_factory=machine, repr=False)

    @classmethod
    def fit(cls, supernet: SuperNetwork, settings: LatencySettings | None = None, **changes: Any) -> LatencyModel:
        """Measure `settings.subnets` sub-networks spread over the space, and fit a model to them.

        Each sub-network is measured `settings.turns` times. On devices other than the CPU, wall-clock time counts.

        Args:
            supernet: The super-network.
            settings: Settings of the measurement; 15 to 20 sub-networks are enough, fewer if the space is smaller.
            changes: Single settings by name, such as ``subnets=20``.

        Raises:
            LatencyError: there are fewer sub-networks than coefficients, or a measurement cannot be made.
        """
        settings = LatencySettings.of(settings, changes)
        chosen = spread(supernet, settings.subnets, np.random.default_rng(settings.seed))
        all_of = ratios(supernet, chosen, settings)
        times = {one: all_of.level_ms * ratio for one, ratio in all_of.found.items()}
        repeats = replace(settings, repeats=all_of.repeats)
        return cls.of(supernet, times, repeats, all_of.level_ms, target_for(settings).describe())

    @classmethod
    def of(
        cls,
        supernet: SuperNetwork,
        measured: Mapping[Subnet, float],
        settings: LatencySettings | None = None,
        level: float | None = None,
        described: Mapping[str, Any] | None = None,
    ) -> LatencyModel:
        """Return a model fitted to milliseconds measured on this machine, or on the machine `described`.

        Raises:
            LatencyError: there are too few measurements, or one is not positive and finite.
        """
        needed = len(FEATURES) + 2
        if len(measured) < needed:
            raise LatencyError(
                f"{len(measured)} sub-networks are too few to fit a latency model; at least {needed} are needed"
            )
        if bad := [ms for ms in measured.values() if not (math.isfinite(ms) and ms > 0)]:
            raise LatencyError(f"latency must be positive and finite, got {bad[0]} ms")
        times = np.array(list(measured.values()))
        fits = [_Fit.to(_features(supernet, measured, one), times, one) for one in MULTIPLES]
        best = min(fits, key=lambda one: one.error)
        where = machine() if described is None else described
        known = dict(measured), best.tau, best.error, settings or LatencySettings(), level, best.multiple, where
        return cls(supernet, best.coefficients, *known)

    def __call__(self, subnet: Subnet) -> float:
        """Predicted milliseconds.

        Raises:
            SubnetError: the sub-network is not of this space.
        """
        return float(self.many([subnet])[0])

    def many(self, subnets: Iterable[Subnet]) -> Array:
        """Return predicted milliseconds of many sub-networks, bitwise equal to the single predictions.

        For measured sub-networks it returns the measured value.
        """
        some = list(subnets)
        found = _predicted(np.array(self.coefficients), _features(self.supernet, some, self.multiple))
        return np.array([self.measured.get(one, ms) for one, ms in zip(some, found.tolist(), strict=True)])

    def extended(self, measured: Mapping[Subnet, float]) -> LatencyModel:
        """Return a model fitted to additional sub-networks, measured by `measure`."""
        known = {**self.measured, **measured}
        return LatencyModel.of(self.supernet, known, self.settings, self.level, self.machine)

    def measure(self, subnets: Sequence[Subnet], **changes: Any) -> list[float]:
        """Measure sub-networks in the same way as those that the model was fitted to; return milliseconds.

        Times are scaled so that the maximal sub-network takes the time of the fit. They are therefore comparable with
        predictions even if the machine has become slower since. `bnas.measure_latency` measures the present time.
        `changes` are single settings by name, such as ``runs=20``.
        """
        now = ratios(self.supernet, subnets, LatencySettings.of(self.settings, changes))
        return [(self.level or now.level_ms) * now.found[one] for one in subnets]

    def save(self, path: str | Path) -> None:
        """Write the model and a description of the machine to a JSON file, atomically."""
        measured = [{"subnet": subnet.to_json(), "ms": ms} for subnet, ms in self.measured.items()]
        data = {
            "format": FORMAT,
            "features": list(FEATURES),
            "machine": dict(self.machine),
            "settings": _plain(self.settings),
            "space": described_space(self.supernet.space),
            "measured": measured,
            "level": self.level,
        }
        write_json(Path(path), data)

    @classmethod
    def load(cls, path: str | Path, supernet: SuperNetwork, target: Target | None = None) -> LatencyModel:
        """Return the model that `save` wrote. If it was fitted on a target of your own class, give that `target`.

        Raises:
            LatencyError: The file is missing or damaged, or belongs to another machine or search space.
        """
        data = _read(Path(path))
        given = data["settings"] if target is None else {**data["settings"], "target": target}
        settings = LatencySettings(**given)
        here = target_for(settings).describe()
        if found := differences(here, data["machine"]):
            raise LatencyError(f"{path}: was fitted on another machine ({'; '.join(found)}); {AGAIN}")
        if data["space"] != json.loads(json.dumps(described_space(supernet.space))):
            raise LatencyError(f"{path}: belongs to another search space; {AGAIN}")
        measured = {Subnet.from_json(one["subnet"]): float(one["ms"]) for one in data["measured"]}
        return cls.of(supernet, measured, settings, data.get("level"), here)


def _plain(settings: LatencySettings) -> dict[str, Any]:
    """Return settings as JSON values. A target of the user's own class is not saved: give it again to `load`."""
    target, int8 = settings.target, settings.int8
    return {
        **asdict(replace(settings, target=None, int8=None)),
        "target": asdict(target) if hasattr(target, "kind") else None,
        "int8": None if int8 is None else TypeAdapter(type(int8)).dump_python(int8, mode="json"),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LatencyError(f"{path}: is not a latency model: {error}; {AGAIN}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LatencyError(f"{path}: has an unknown format; this version of bnas reads format {FORMAT}; {AGAIN}")
    missing = [key for key in ("machine", "settings", "space", "measured") if key not in data]
    if missing:
        raise LatencyError(f"{path}: is damaged: {missing[0]!r} is missing; {AGAIN}")
    return data


# The fit.


@dataclass(frozen=True)
class _Fit:
    """The coefficients of a fit, and its leave-one-out predictions, from which error and rank correlation follow."""

    multiple: int
    coefficients: tuple[float, ...]
    tau: float
    error: float

    @classmethod
    def to(cls, features: Array, times: Array, multiple: int) -> _Fit:
        """Fit all measurements, and once without each of them."""
        places = range(len(times))
        left_out = np.array([_predicted(_fitted(*_without(features, times, one)), features[one]) for one in places])
        error = float(np.mean(np.abs(left_out - times) / times))
        coefficients = tuple(float(one) for one in _fitted(features, times))
        return cls(multiple, coefficients, kendall_tau(left_out, times), error)


def _features(supernet: SuperNetwork, subnets: Iterable[Subnet], multiple: int) -> Array:
    """Return a row for each sub-network: its costs with rounded widths, and a 1 for the constant."""
    costs = supernet.cost_model.many(subnets, FEATURES, multiple)
    columns = [costs[name].astype(np.float64) for name in FEATURES]
    return np.stack([*columns, np.ones_like(columns[0])], axis=1)


def _fitted(features: Array, times: Array) -> Array:
    """Return the non-negative coefficients with the least relative squared error: no cost makes a network faster."""
    scale = features.max(axis=0)
    rows, used = features / scale / times[:, None], list(range(features.shape[1]))
    found = np.zeros(features.shape[1])
    while used:
        solution = np.linalg.lstsq(rows[:, used], np.ones(len(times)), rcond=None)[0]
        if solution.min() >= 0:
            found[used] = solution
            break
        used.pop(int(solution.argmin()))
    return np.asarray(found / scale)


def _predicted(coefficients: Array, features: Array) -> Array:
    """Predict column by column, since a matrix product rounds differently for other numbers of rows."""
    found = np.zeros(features.shape[:-1])
    for place, coefficient in enumerate(coefficients):
        found = found + coefficient * features[..., place]
    return found


def _without(features: Array, times: Array, row: int) -> tuple[Array, Array]:
    return np.delete(features, row, axis=0), np.delete(times, row)


def kendall_tau(first: Array, second: Array) -> float:
    """Return Kendall's tau-a of two rankings: 1 if equal, -1 if reversed. Tied pairs count as 0."""
    one, two = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(first), np.asarray(second)))
    pairs = len(one) * (len(one) - 1)
    return float((one * two).sum() / pairs) if pairs else 1.0
