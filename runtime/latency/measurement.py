"""Latency on ONNX Runtime, measured so that candidates can be compared: interleaved, warm, with fixed threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, overload

import numpy as np

from bnas.passes import Subnet
from bnas.runtime.onnx.session import Array
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.targets.onnxruntime import OnnxRuntime
from bnas.runtime.targets.target import Target, TargetError

from .candidates import Candidate, Inputs, network_of
from .settings import TRUSTED_RUNS, LatencyError, LatencySettings
from .timing import (
    TRUSTED_SPREAD,
    Latency,
    Runner,
    loaded,
    repeats_for,
    rounds,
    warmed,
)


@overload
def measure_latency(
    candidates: Mapping[str, Candidate],
    inputs: Inputs = None,
    settings: LatencySettings | None = None,
    *,
    supernet: SuperNetwork | None = None,
    reference: str | None = None,
    **changes: Any,
) -> dict[str, Latency]: ...


@overload
def measure_latency(
    candidates: Candidate,
    inputs: Inputs = None,
    settings: LatencySettings | None = None,
    *,
    supernet: SuperNetwork | None = None,
    reference: str | None = None,
    **changes: Any,
) -> Latency: ...


def measure_latency(
    candidates: Mapping[str, Candidate] | Candidate,
    inputs: Inputs = None,
    settings: LatencySettings | None = None,
    *,
    supernet: SuperNetwork | None = None,
    reference: str | None = None,
    **changes: Any,
) -> dict[str, Latency] | Latency:
    """Measure the latency of models under the same conditions; return a dict by name, or one result for one model.

    Every model is loaded with all graph optimisations, and with threads that do not spin while they wait (spinning
    would use the CPU time of the next model). It is run until its times settle. Then the rounds begin: in each round,
    every candidate is timed once, in a shuffled order, so that a disturbance affects all candidates equally. If even
    the slowest candidate takes less than `QUICK_MS`, one timing covers several runs, so many that the slowest takes
    `TIMING_MS`. All candidates get the same number of runs, since a second consecutive run finds its weights in the
    caches and may take half the time of the first. On a device other than the CPU, compare the wall clock.

    Args:
        candidates: Models by name, or one model: ONNX files or their content, modules, or sub-networks of `supernet`.
        inputs: Arrays by input name; or the array or its shape, for models with one input. By default, the shapes that
            a model declares, with `settings.batch` samples, filled with normally distributed numbers.
        settings: Settings of the measurement.
        supernet: The super-network of candidates that are a `Subnet`.
        reference: Name of the candidate to which the ratios are computed.
        changes: Single settings by name, such as ``runs=20``.

    Raises:
        LatencyError: if there is no candidate, a setting is out of range, the inputs or the reference do not fit, a
            model cannot be loaded, or the provider is not installed.
    """
    named = candidates if isinstance(candidates, Mapping) else {"model": candidates}
    _check(named, reference)
    settings = LatencySettings.of(settings, changes)
    target = target_for(settings)
    with TemporaryDirectory() as folder:
        runners = runners_of(named, settings, folder, supernet=supernet, inputs=inputs)
        if target.in_turns:
            times, runners = _in_turns(runners, settings)
        else:
            times = _once(runners, getattr(target, "parallel", 1))
    base = None if reference is None else times[reference]
    found = {name: _summary(times[name], base, runner, settings) for name, runner in runners.items()}
    described = target.describe()
    where = str(described.get("provider") or described.get("target") or type(target).__name__)
    found = {name: replace(one, provider=where, machine=described) for name, one in found.items()}
    return found if isinstance(candidates, Mapping) else found["model"]


def target_for(settings: LatencySettings) -> Target:
    """Return the target of the settings, by default ONNX Runtime."""
    if settings.target is not None:
        given: Target = settings.target
        return given
    return OnnxRuntime(provider=settings.provider, inter_threads=settings.inter_threads)


def runners_of(
    candidates: Mapping[str, Candidate],
    settings: LatencySettings,
    folder: str,
    *,
    supernet: SuperNetwork | None = None,
    inputs: Inputs = None,
) -> dict[str, Runner]:
    """Build and load the candidates on the target of the settings; their files are in `folder`.

    Raises:
        LatencyError: as `measure_latency`.
    """
    target, found = target_for(settings), dict[str, Runner]()
    for name, candidate in candidates.items():
        places = [Path(mkdtemp(dir=folder)) for _ in range(2)]
        network = network_of(name, candidate, supernet, places[0], settings)
        found[name] = loaded(network, target, inputs, settings, places[1])
    return found


def _in_turns(runners: Mapping[str, Runner], settings: LatencySettings) -> tuple[dict[str, Array], dict[str, Runner]]:
    """Warm up all runners and time them in rounds; return the times and the warm runners."""
    warm = {name: warmed(name, runner, settings.warmup) for name, runner in runners.items()}
    repeats = settings.repeats or repeats_for(max(runner.quickest_ms for runner in warm.values()))
    warm = {name: replace(runner, repeats=repeats) for name, runner in warm.items()}
    return rounds(warm, settings.runs, np.random.default_rng(settings.seed)), warm


def _once(runners: Mapping[str, Runner], parallel: int) -> dict[str, Array]:
    """Time each runner once, `parallel` of them at the same time."""
    with ThreadPoolExecutor(parallel) as pool:
        found = {name: pool.submit(runner.time) for name, runner in runners.items()}
        try:
            return {name: np.array([one.result()]) for name, one in found.items()}
        except TargetError as error:
            pool.shutdown(cancel_futures=True)
            name = next(name for name, one in found.items() if one.done() and not one.cancelled() and one.exception())
            raise LatencyError(f"{name}: {error}") from error


def _check(candidates: Mapping[str, Candidate], reference: str | None) -> None:
    if not candidates:
        raise LatencyError("candidates: give at least one")
    if reference is not None and reference not in candidates:
        raise LatencyError(f"reference: {reference!r} is not one of the candidates {', '.join(candidates)}")


CLOCKS = ("cpu", "wall")
"""Columns of the arrays of timings."""


def _summary(times: Array, base: Array | None, runner: Runner, settings: LatencySettings) -> Latency:
    clock = CLOCKS.index(runner.target.clock)
    cpu, wall = np.quantile(times, [0.25, 0.5, 0.75], axis=0).T.tolist()
    first, median, third = own = (cpu, wall)[clock]
    spread = (third - first) / max(median, 1e-9)
    batch = next((len(array) for array in runner.feed.values() if array.ndim), 1)
    return Latency(
        median_ms=own[1],
        quartiles_ms=(own[0], own[2]),
        spread=spread,
        wall_median_ms=wall[1],
        wall_quartiles_ms=(wall[0], wall[2]),
        runs=len(times),
        repeats=runner.repeats,
        threads=settings.threads,
        batch=batch,
        ratio=None if base is None else float(np.median(times[:, clock] / np.maximum(base[:, clock], 1e-9))),
        unstable=_unstable(len(times), spread, runner.warm) if runner.target.in_turns else None,
        clock=runner.target.clock,
    )


def _unstable(runs: int, spread: float, warm: bool) -> str | None:
    reasons = {
        f"only {runs} runs, at least {TRUSTED_RUNS} are needed": runs < TRUSTED_RUNS,
        f"noisy: quartiles {spread:.1%} of the median apart, limit {TRUSTED_SPREAD:.0%}": not spread <= TRUSTED_SPREAD,
        "times did not settle during the warm-up": not warm,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds) or None


# Choice and measurement of the sub-networks for a latency model.

FEATURES = ("macs", "parameters", "activations", "layers")
"""Costs of which a latency model is a linear function (plus a constant). "layers" is the number of layers with MACs."""

CANDIDATES = 256
"""Number of random sub-networks from which those to measure are chosen."""

GROUP = 5
"""Number of sub-networks that are measured, and in memory, together. The maximal one is the reference of each group."""


def spread(supernet: SuperNetwork, count: int, generator: np.random.Generator) -> list[Subnet]:
    """Choose sub-networks with costs as different as possible, including the maximal and the minimal one."""
    space = supernet.space
    drawn = [space.maximal(), space.minimal(), *_between(supernet, generator)]
    pool = list(dict.fromkeys(space.canonical(subnet) for subnet in drawn))
    costs = supernet.cost_model.many(pool, FEATURES)
    logs = np.log(np.stack([costs[name] for name in FEATURES], axis=1).astype(np.float64) + 1)
    points = (logs - logs.min(axis=0)) / np.maximum(np.ptp(logs, axis=0), 1e-9)
    chosen = list(range(min(2, len(pool))))
    distance = np.min([np.linalg.norm(points - points[one], axis=1) for one in chosen], axis=0)
    while len(chosen) < min(count, len(pool)):
        distance[chosen] = -1  # never again, even if all distances are 0
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return [pool[one] for one in chosen]


def _between(supernet: SuperNetwork, generator: np.random.Generator) -> Iterable[Subnet]:
    """Draw random sub-networks: half uniformly, half with all choices tending to be large or small together."""
    space, variables = supernet.space, supernet.space.variables()
    for turn in range(CANDIDATES):
        if turn % 2:
            yield space.sample(generator)
            continue
        lean = generator.beta(1, 1)
        yield space.repair(space.decode([int(generator.binomial(len(v.choices) - 1, lean)) for v in variables]))


@dataclass(frozen=True)
class Ratios:
    """Times of sub-networks, divided by the time of the maximal one in the same rounds.

    Changes of the machine's speed between groups therefore cancel out.
    """

    found: Mapping[Subnet, float]
    level_ms: float
    """Milliseconds of the maximal sub-network: median over the groups."""
    repeats: int
    """Runs within one timing."""


def ratios(supernet: SuperNetwork, subnets: Sequence[Subnet], settings: LatencySettings) -> Ratios:
    """Measure sub-networks in groups, each group together with the maximal sub-network.

    Each sub-network is measured `settings.turns` times, loaded again each time and in different groups. The result is
    the median.
    """
    maximal, references = supernet.space.maximal(), list[Latency]()
    compared: dict[Subnet, list[float]] = {one: [] for one in subnets}
    for group in _groups(list(compared), settings.turns):
        named: dict[str, Any] = {"reference": maximal, **{str(place): one for place, one in enumerate(group)}}
        latencies = measure_latency(named, None, settings, supernet=supernet, reference="reference")
        references.append(latencies["reference"])
        # The number of runs per timing is the same for all groups, even if a group is near the limit for repeated runs.
        settings = replace(settings, repeats=references[0].repeats)
        for place, one in enumerate(group):
            compared[one].append(latencies[str(place)].ratio or 1.0)
    level = float(np.median([one.median_ms for one in references])) if references else 0.0
    found = {one: float(np.median(each)) for one, each in compared.items()}
    return Ratios(found, level, references[0].repeats if references else 1)


def _groups(subnets: Sequence[Subnet], turns: int) -> Iterator[list[Subnet]]:
    """Yield all sub-networks in groups, `turns` times, in a different order each time."""
    generator = np.random.default_rng(0)
    for _ in range(turns):
        order = [subnets[place] for place in generator.permutation(len(subnets))]
        yield from (order[start : start + GROUP] for start in range(0, len(order), GROUP))
