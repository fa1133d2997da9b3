"""Which sub-networks of a super-network are measured for a latency model, and how they are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnas.passes import Subnet

from .latency import Latency
from .latency_measurement import measure_latency
from .latency_settings import CPU, LatencySettings
from .supernetwork import SuperNetwork

FEATURES = ("macs", "parameters", "activations", "layers")
"""Costs that a latency is a sum of, with a constant for what every run takes; "layers" are those with "macs"."""

CANDIDATES = 256
"""Random sub-networks that those to measure are chosen from."""

GROUP = 5
"""So many sub-networks are measured together, with the maximal one as the reference: all may be in memory at once."""

TURNS = 3
"""So often each is measured: where a model lies in memory changes its time by a few percent until it is loaded anew."""


def spread(supernet: SuperNetwork, count: int, generator: np.random.Generator) -> list[Subnet]:
    """Different sub-networks that lie as far apart as can be in their costs, the maximal and the minimal among them."""
    space = supernet.space
    drawn = [space.maximal(), space.minimal(), *_between(supernet, generator)]
    pool = list(dict.fromkeys(space.canonical(subnet) for subnet in drawn))
    costs = supernet.cost_model.many(pool, FEATURES)
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


@dataclass(frozen=True)
class Ratios:
    """How long sub-networks take, divided by the time of the maximal one in the same rounds.

    What changes on the machine between two groups that are measured so cancels out.
    """

    found: Mapping[Subnet, float]
    level_ms: float
    """Milliseconds of the maximal one: the median over the groups."""
    repeats: int
    """Runs within one timing."""


def ratios(supernet: SuperNetwork, subnets: Sequence[Subnet], settings: LatencySettings) -> Ratios:
    """Measure sub-networks, each group together with the maximal one.

    Each is measured `TURNS` times, loaded anew and in the company of others; the median counts.
    """
    maximal, references = supernet.space.maximal(), list[Latency]()
    compared: dict[Subnet, list[float]] = {one: [] for one in subnets}
    for group in _groups(list(compared)):
        named: dict[str, Any] = {"reference": maximal, **{str(place): one for place, one in enumerate(group)}}
        latencies = measure_latency(named, None, settings, supernet=supernet, reference="reference")
        references.append(latencies["reference"])
        # Also where another group would be just above the bound for one.
        settings = replace(settings, repeats=references[0].repeats)
        for place, one in enumerate(group):
            compared[one].append(_ratio(latencies[str(place)], latencies["reference"]))
    level = float(np.median([_milliseconds(one) for one in references])) if references else 0.0
    found = {one: float(np.median(each)) for one, each in compared.items()}
    return Ratios(found, level, references[0].repeats if references else 1)


def _groups(subnets: Sequence[Subnet]) -> Iterator[list[Subnet]]:
    """All sub-networks in groups, `TURNS` times, in another order each time."""
    generator = np.random.default_rng(0)
    for _ in range(TURNS):
        order = [subnets[place] for place in generator.permutation(len(subnets))]
        yield from (order[start : start + GROUP] for start in range(0, len(order), GROUP))


def _milliseconds(latency: Latency) -> float:
    return latency.median_ms if latency.provider == CPU else latency.wall_median_ms


def _ratio(latency: Latency, reference: Latency) -> float:
    if latency.provider == CPU and latency.ratio is not None:
        return latency.ratio
    return _milliseconds(latency) / _milliseconds(reference)
