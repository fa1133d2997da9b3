"""Latency as a function of cost expressions, fitted on a handful of sub-networks that were really measured.

Cai et al. 2019 (ProxylessNAS) and the libraries after it sum a table with an entry for each operator. A least squares
fit on a few costs of the whole network ranks as well as measuring twice does, and needs 15 measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnas.passes import Subnet

from .checkpoint import described_space
from .files import write_json
from .latency import Latency, LatencyError, measure_latency
from .machine import differences, machine
from .onnx_session import CPU, Array
from .supernetwork import SuperNetwork

FORMAT = 1
FEATURES = ("macs", "parameters", "activations")
"""Costs that a latency is a sum of, with a constant for what every run takes."""

CANDIDATES = 256
"""Random sub-networks that those to measure are chosen from."""

GROUP = 5
"""So many sub-networks are measured together, with the maximal one as the reference: all may be in memory at once."""


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
    settings: Mapping[str, Any] = field(repr=False)
    """How it was measured: threads, batch, provider."""
    machine: Mapping[str, Any] = field(default_factory=machine, repr=False)

    @classmethod
    def fit(
        cls,
        supernet: SuperNetwork,
        count: int = 16,
        *,
        batch: int = 1,
        threads: int = 1,
        provider: str = CPU,
        runs: int = 50,
        seed: int = 0,
    ) -> LatencyModel:
        """Measure `count` sub-networks that are spread over the space, and fit a model to them.

        Args:
            supernet: Where they come from.
            count: How many; 15 to 20 are enough. Fewer if the space has no more.
            batch: Samples in a run.
            threads: Threads within an operator.
            provider: ONNX Runtime's execution provider; for another device than the CPU the wall clock counts.
            runs: Rounds of each measurement.
            seed: Fixes which are chosen.

        Raises:
            LatencyError: there are fewer sub-networks than coefficients, or a measurement cannot be made.
        """
        settings = {"batch": batch, "threads": threads, "provider": provider}
        chosen = spread(supernet, count, np.random.default_rng(seed))
        return cls.of(supernet, measured_ms(supernet, chosen, runs=runs, **settings), settings)

    @classmethod
    def of(
        cls, supernet: SuperNetwork, measured: Mapping[Subnet, float], settings: Mapping[str, Any] | None = None
    ) -> LatencyModel:
        """The model that fits milliseconds which were measured on this machine."""
        needed = len(FEATURES) + 2
        if len(measured) < needed:
            raise LatencyError(f"{len(measured)} sub-networks are too few to fit a model to; {needed} are needed")
        if bad := [ms for ms in measured.values() if not (math.isfinite(ms) and ms > 0)]:
            raise LatencyError(f"a latency of {bad[0]} ms is not one")
        features, times = _features(supernet, measured), np.array(list(measured.values()))
        left_out = np.array(
            [_predicted(_fitted(*_without(features, times, i)), features[i]) for i in range(len(times))]
        )
        error = float(np.mean(np.abs(left_out - times) / times))
        coefficients = tuple(float(one) for one in _fitted(features, times))
        return cls(supernet, coefficients, dict(measured), kendall_tau(left_out, times), error, dict(settings or {}))

    def __call__(self, subnet: Subnet) -> float:
        """Predicted milliseconds.

        Raises:
            SubnetError: the sub-network is not of this space.
        """
        return float(self.many([subnet])[0])

    def many(self, subnets: Iterable[Subnet]) -> Array:
        """Predicted milliseconds of many sub-networks at once."""
        return _predicted(np.array(self.coefficients), _features(self.supernet, subnets))

    def measure(self, subnets: Sequence[Subnet], runs: int = 50) -> list[float]:
        """Milliseconds of sub-networks, measured as those were that the model was fitted on."""
        return list(measured_ms(self.supernet, subnets, runs=runs, **self.settings).values())

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file, atomically, with the machine that it holds for."""
        measured = [{"subnet": subnet.to_json(), "ms": ms} for subnet, ms in self.measured.items()]
        data = {
            "format": FORMAT,
            "features": list(FEATURES),
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "space": described_space(self.supernet.space),
            "measured": measured,
        }
        write_json(Path(path), data)

    @classmethod
    def load(cls, path: str | Path, supernet: SuperNetwork) -> LatencyModel:
        """The model that `save` wrote.

        Raises:
            LatencyError: the file is missing or damaged, is of another machine or of another search space.
        """
        data = _read(Path(path))
        again = "fit one here with bnas.LatencyModel.fit(supernet)"
        if found := differences(machine(), data["machine"]):
            raise LatencyError(f"{path}: was fitted on another machine ({'; '.join(found)}); {again}")
        if data["space"] != json.loads(json.dumps(described_space(supernet.space))):
            raise LatencyError(f"{path}: is of another search space; {again}")
        measured = {Subnet.from_json(one["subnet"]): float(one["ms"]) for one in data["measured"]}
        return cls.of(supernet, measured, data["settings"])


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LatencyError(f"{path}: is no latency model: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise LatencyError(f"{path}: has another format than {FORMAT}, the one that this version of bnas reads")
    missing = [key for key in ("machine", "settings", "space", "measured") if key not in data]
    if missing:
        raise LatencyError(f"{path}: is damaged: {missing[0]!r} is missing")
    return data


def _features(supernet: SuperNetwork, subnets: Iterable[Subnet]) -> Array:
    """A row for each sub-network: its costs and a one."""
    costs = supernet.cost_model.many(subnets)
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
    return np.asarray(features @ coefficients)


def _without(features: Array, times: Array, row: int) -> tuple[Array, Array]:
    return np.delete(features, row, axis=0), np.delete(times, row)


def kendall_tau(first: Array, second: Array) -> float:
    """Kendall's tau-a of two rankings: 1 if they are the same, -1 if reversed; a tie counts as neither."""
    one, two = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(first), np.asarray(second)))
    pairs = len(one) * (len(one) - 1)
    return float((one * two).sum() / pairs) if pairs else 1.0


def spread(supernet: SuperNetwork, count: int, generator: np.random.Generator) -> list[Subnet]:
    """Different sub-networks that lie as far apart as can be in their costs, the maximal and the minimal among them."""
    space = supernet.space
    drawn = [space.maximal(), space.minimal(), *_between(supernet, generator)]
    pool = list(dict.fromkeys(space.canonical(subnet) for subnet in drawn))
    costs = supernet.cost_model.many(pool)
    logs = np.log(np.stack([costs[name] for name in FEATURES], axis=1).astype(np.float64) + 1)
    points = (logs - logs.min(axis=0)) / np.maximum(np.ptp(logs, axis=0), 1e-9)
    chosen = list(range(min(2, len(pool))))
    distance = np.min([np.linalg.norm(points - points[one], axis=1) for one in chosen], axis=0)
    while len(chosen) < min(count, len(pool)):
        distance[chosen] = -1  # where costs are equal too, a sub-network is chosen once
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return [pool[one] for one in chosen]


def _between(supernet: SuperNetwork, generator: np.random.Generator) -> Iterable[Subnet]:
    """Random sub-networks, half of them uniform; the others tend to be large or small as a whole."""
    space, variables = supernet.space, supernet.space.variables()
    for turn in range(CANDIDATES):
        if turn % 2:
            yield space.sample(generator)
            continue
        lean = generator.beta(1, 1)
        yield space.repair(space.decode([int(generator.binomial(len(v.choices) - 1, lean)) for v in variables]))


def measured_ms(
    supernet: SuperNetwork, subnets: Sequence[Subnet], *, runs: int = 50, **settings: Any
) -> dict[Subnet, float]:
    """Milliseconds of each sub-network, comparable with one another though few are measured at a time.

    Each group is measured with the maximal sub-network: what changed on the machine between two groups cancels out.
    """
    maximal, found, references = supernet.space.maximal(), dict[Subnet, float](), list[float]()
    for start in range(0, len(subnets), GROUP):
        group = subnets[start : start + GROUP]
        named: dict[str, Any] = {"reference": maximal, **{str(place): one for place, one in enumerate(group)}}
        latencies = measure_latency(named, supernet=supernet, reference="reference", runs=runs, **settings)
        references.append(_milliseconds(latencies["reference"]))
        ratios = (_ratio(latencies[str(place)], latencies["reference"]) for place in range(len(group)))
        found.update(zip(group, ratios, strict=True))
    base = float(np.median(references)) if references else 0.0
    return {subnet: base * ratio for subnet, ratio in found.items()}


def _milliseconds(latency: Latency) -> float:
    return latency.median_ms if latency.provider == CPU else latency.wall_median_ms


def _ratio(latency: Latency, reference: Latency) -> float:
    if latency.provider == CPU and latency.ratio is not None:
        return latency.ratio
    return _milliseconds(latency) / _milliseconds(reference)
