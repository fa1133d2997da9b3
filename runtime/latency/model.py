"""Latency as a function of cost expressions, fitted on a handful of sub-networks that were really measured.

Cai et al. 2019 (ProxylessNAS) and the libraries after it sum a table with an entry for each operator. A least squares
fit on a few costs of the whole network ranks as well as measuring twice does, and needs 15 measurements.
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
MULTIPLES = (1, 8, 16, 32)
"""Kernels compute so many channels at a time: vectors of 32 bytes and of 64, and pairs of these."""


@dataclass(frozen=True)
class LatencyModel:
    """Predicts the latency of sub-networks of one super-network on the machine that it was fitted on.

    Calling it with a sub-network gives CPU milliseconds for one run; see `fit` and `load`. Measure what a search gives
    back all the same: `error` says how far a prediction is off.
    """

    supernet: SuperNetwork = field(repr=False)
    coefficients: tuple[float, ...]
    """Milliseconds for each unit of each of `FEATURES`, and the constant."""
    measured: Mapping[Subnet, float] = field(repr=False)
    """The sub-networks that it was fitted on, with their milliseconds."""
    tau: float
    """Kendall's rank correlation of measured latencies and of predictions by models that did not see them."""
    error: float
    """Mean relative error of these predictions."""
    settings: LatencySettings = field(repr=False)
    """How it was measured."""
    level: float | None = None
    """Milliseconds of the maximal sub-network while the others were measured."""
    multiple: int = 1
    """Widths count as if they were rounded up to multiples of this: of those in `MULTIPLES` the one that fits best."""
    machine: Mapping[str, Any] = field(default_factory=machine, repr=False)

    @classmethod
    def fit(cls, supernet: SuperNetwork, settings: LatencySettings | None = None, **changes: Any) -> LatencyModel:
        """Measure `settings.subnets` sub-networks that are spread over the space, and fit a model to them.

        Each is measured `settings.turns` times. For another device than the CPU the wall clock counts.

        Args:
            supernet: Where they come from.
            settings: How to measure; 15 to 20 sub-networks are enough. Fewer if the space has no more.
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
        """The model that fits milliseconds which were measured on this machine, or where `described` says.

        Raises:
            LatencyError: they are too few, or one of them is no time.
        """
        needed = len(FEATURES) + 2
        if len(measured) < needed:
            raise LatencyError(f"{len(measured)} sub-networks are too few to fit a model to; {needed} are needed")
        if bad := [ms for ms in measured.values() if not (math.isfinite(ms) and ms > 0)]:
            raise LatencyError(f"a latency of {bad[0]} ms is not one")
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
        """Predicted milliseconds of many sub-networks at once: to the bit those that each gets by itself.

        What was measured is not predicted.
        """
        some = list(subnets)
        found = _predicted(np.array(self.coefficients), _features(self.supernet, some, self.multiple))
        return np.array([self.measured.get(one, ms) for one, ms in zip(some, found.tolist(), strict=True)])

    def extended(self, measured: Mapping[Subnet, float]) -> LatencyModel:
        """The model that is fitted to more sub-networks, measured as `measure` does."""
        known = {**self.measured, **measured}
        return LatencyModel.of(self.supernet, known, self.settings, self.level, self.machine)

    def measure(self, subnets: Sequence[Subnet], **changes: Any) -> list[float]:
        """Milliseconds of sub-networks, measured as those were that the model was fitted on.

        They are related to the maximal sub-network, whose time is taken to be what it was then: so they can be held
        against predictions, also where the whole machine has become slower since. `bnas.measure_latency` tells what
        a sub-network takes now. `changes` are single settings by name, such as ``runs=20``.
        """
        now = ratios(self.supernet, subnets, LatencySettings.of(self.settings, changes))
        return [(self.level or now.level_ms) * now.found[one] for one in subnets]

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file, atomically, with the machine that it holds for."""
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
        """The model that `save` wrote; `target` is the one that it was fitted on, where that is of a class of yours.

        Raises:
            LatencyError: the file is missing or damaged, is of another machine or of another search space.
        """
        data = _read(Path(path))
        again = "fit one here with bnas.LatencyModel.fit(supernet)"
        given = data["settings"] if target is None else {**data["settings"], "target": target}
        settings = LatencySettings(**given)
        here = target_for(settings).describe()
        if found := differences(here, data["machine"]):
            raise LatencyError(f"{path}: was fitted on another machine ({'; '.join(found)}); {again}")
        if data["space"] != json.loads(json.dumps(described_space(supernet.space))):
            raise LatencyError(f"{path}: is of another search space; {again}")
        measured = {Subnet.from_json(one["subnet"]): float(one["ms"]) for one in data["measured"]}
        return cls.of(supernet, measured, settings, data.get("level"), here)


def _plain(settings: LatencySettings) -> dict[str, Any]:
    """Settings as JSON values; a target of a class of the user's has to be given again."""
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
        raise LatencyError(f"{path}: is no latency model: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LatencyError(f"{path}: has another format than {FORMAT}, the one that this version of bnas reads")
    missing = [key for key in ("machine", "settings", "space", "measured") if key not in data]
    if missing:
        raise LatencyError(f"{path}: is damaged: {missing[0]!r} is missing")
    return data


# The fit.


@dataclass(frozen=True)
class _Fit:
    """Coefficients, and how well models that did not see a measurement predict it."""

    multiple: int
    coefficients: tuple[float, ...]
    tau: float
    error: float

    @classmethod
    def to(cls, features: Array, times: Array, multiple: int) -> _Fit:
        """The fit to all measurements; each is left out once."""
        places = range(len(times))
        left_out = np.array([_predicted(_fitted(*_without(features, times, one)), features[one]) for one in places])
        error = float(np.mean(np.abs(left_out - times) / times))
        coefficients = tuple(float(one) for one in _fitted(features, times))
        return cls(multiple, coefficients, kendall_tau(left_out, times), error)


def _features(supernet: SuperNetwork, subnets: Iterable[Subnet], multiple: int) -> Array:
    """A row for each sub-network: its costs, with rounded widths, and a one."""
    costs = supernet.cost_model.many(subnets, FEATURES, multiple)
    columns = [costs[name].astype(np.float64) for name in FEATURES]
    return np.stack([*columns, np.ones_like(columns[0])], axis=1)


def _fitted(features: Array, times: Array) -> Array:
    """Coefficients of the least relative squared error, none of which is negative: no cost makes a network quicker."""
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
    """Column by column: a product of matrices rounds differently with the number of rows."""
    found = np.zeros(features.shape[:-1])
    for place, coefficient in enumerate(coefficients):
        found = found + coefficient * features[..., place]
    return found


def _without(features: Array, times: Array, row: int) -> tuple[Array, Array]:
    return np.delete(features, row, axis=0), np.delete(times, row)


def kendall_tau(first: Array, second: Array) -> float:
    """Kendall's tau-a of two rankings: 1 if they are the same, -1 if reversed; a tie counts as neither."""
    one, two = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(first), np.asarray(second)))
    pairs = len(one) * (len(one) - 1)
    return float((one * two).sum() / pairs) if pairs else 1.0
