"""Latency on ONNX Runtime, measured so that candidates can be compared: interleaved, warm, with fixed threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, overload

import numpy as np

from .latency import TRUSTED_RUNS, TRUSTED_SPREAD, Latency
from .latency_session import Candidate, Inputs, feed_of, session_of
from .latency_settings import LatencyError, LatencySettings
from .latency_timing import Runner, repeats_for, rounds, warmed
from .machine import machine
from .onnx_session import Array
from .supernetwork import SuperNetwork


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
    """The latency of every candidate, under the same conditions; of a single one if only one is given.

    Every model is loaded with all graph optimisations and threads that do not spin while they wait (they would burn
    the CPU time of the next model), and run until its times settle. Then come the rounds; in each, every candidate is
    timed once, in a shuffled order, so that a disturbance hits all alike. Where even the slowest takes less than
    `QUICK_MS`, each is run as often within one timing as makes that one last `TIMING_MS`: as often as all others,
    since the second run in a row finds its weights in the caches and may take half of the first. On another device
    than the CPU, compare the wall clock.

    Args:
        candidates: Models by name, or one model: ONNX files or their content, modules, or sub-networks of `supernet`.
        inputs: Arrays by input name; or the array, or its shape, for models with one input. By default what a model
            declares, with `settings.batch` for the batch. A shape is filled with normally distributed numbers.
        settings: How to measure.
        supernet: Where a candidate that is a `Subnet` comes from.
        reference: The name of the candidate that ratios are taken to.
        changes: Single settings by name, such as ``runs=20``.

    Raises:
        LatencyError: if there is no candidate, a setting is out of range, the inputs or the reference do not fit, a
            model cannot be loaded, or the provider is not installed.
    """
    named = candidates if isinstance(candidates, Mapping) else {"model": candidates}
    _check(named, reference)
    settings = LatencySettings.of(settings, changes)
    generator, runners = np.random.default_rng(settings.seed), dict[str, Runner]()
    for name, candidate in named.items():
        session = session_of(name, candidate, supernet, settings)
        runners[name] = warmed(name, Runner(session, feed_of(name, session, inputs, settings)), settings.warmup)
    repeats = settings.repeats or repeats_for(max(runner.quickest_ms for runner in runners.values()))
    runners = {name: replace(runner, repeats=repeats) for name, runner in runners.items()}
    times = rounds(runners, settings.runs, generator)
    base = None if reference is None else times[reference][:, 0]
    found = {name: _summary(times[name], base, runner, settings.threads) for name, runner in runners.items()}
    here = machine()
    found = {name: replace(one, provider=settings.provider, machine=here) for name, one in found.items()}
    return found if isinstance(candidates, Mapping) else found["model"]


def _check(candidates: Mapping[str, Candidate], reference: str | None) -> None:
    if not candidates:
        raise LatencyError("candidates: there must be at least one")
    if reference is not None and reference not in candidates:
        raise LatencyError(f"reference: {reference!r} is not one of the candidates {', '.join(candidates)}")


def _summary(times: Array, base: Array | None, runner: Runner, threads: int) -> Latency:
    (first, median, third), wall = np.quantile(times, [0.25, 0.5, 0.75], axis=0).T.tolist()
    spread = (third - first) / max(median, 1e-9)
    batch = next((len(array) for array in runner.feed.values() if array.ndim), 1)
    return Latency(
        median_ms=median,
        quartiles_ms=(first, third),
        spread=spread,
        wall_median_ms=wall[1],
        wall_quartiles_ms=(wall[0], wall[2]),
        runs=len(times),
        repeats=runner.repeats,
        threads=threads,
        batch=batch,
        ratio=None if base is None else float(np.median(times[:, 0] / np.maximum(base, 1e-9))),
        unstable=_unstable(len(times), spread, runner.warm),
    )


def _unstable(runs: int, spread: float, warm: bool) -> str | None:
    reasons = {
        f"{runs} runs, {TRUSTED_RUNS} are needed": runs < TRUSTED_RUNS,
        f"a spread of {spread:.0%}, {TRUSTED_SPREAD:.0%} is allowed": not spread <= TRUSTED_SPREAD,
        "its times did not settle in the warm-up": not warm,
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds) or None
