"""Latency on ONNX Runtime, measured so that candidates can be compared: interleaved, warm, with fixed threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict, overload

import numpy as np

from .latency import TRUSTED_RUNS, TRUSTED_SPREAD, Latency, LatencyError
from .latency_session import Candidate, Inputs, feed_of, session_of
from .latency_timing import Runner, repeats_for, rounds, warmed
from .machine import machine
from .onnx_session import CPU, Array
from .supernetwork import SuperNetwork

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on


class Settings(TypedDict, total=False):
    """The settings of `measure_latency`, where it is told them by name."""

    supernet: SuperNetwork | None
    reference: str | None
    batch: int
    runs: int
    warmup: int
    repeats: int | None
    threads: int
    inter_threads: int
    provider: str
    seed: int
    sizes: Mapping[str, int] | None


@overload
def measure_latency(
    candidates: Mapping[str, Candidate], inputs: Inputs = None, **settings: Unpack[Settings]
) -> dict[str, Latency]: ...


@overload
def measure_latency(candidates: Candidate, inputs: Inputs = None, **settings: Unpack[Settings]) -> Latency: ...


def measure_latency(
    candidates: Mapping[str, Candidate] | Candidate,
    inputs: Inputs = None,
    *,
    supernet: SuperNetwork | None = None,
    reference: str | None = None,
    batch: int = 1,
    runs: int = 50,
    warmup: int = 10,
    repeats: int | None = None,
    threads: int = 1,
    inter_threads: int = 1,
    provider: str = CPU,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Latency] | Latency:
    """The latency of every candidate, under the same conditions; of a single one if only one is given.

    Every model is loaded with all graph optimisations and `threads` threads that do not spin while they wait (they
    would burn the CPU time of the next model), and run until its times settle. Then come `runs` rounds; in each, every
    candidate is timed once, in an order that `seed` shuffles, so that a disturbance hits all alike. Where even the
    slowest takes less than `QUICK_MS`, each is run as often within one timing as makes that one last `TIMING_MS`: as
    often as all others, since the second run in a row finds its weights in the caches and may take half of the first.

    Args:
        candidates: Models by name, or one model: ONNX files or their content, modules, or sub-networks of `supernet`.
        inputs: Arrays by input name; or the array, or its shape, for models with one input. By default what a model
            declares, with `batch` for the batch. A shape is filled with normally distributed numbers from `seed`.
        supernet: Where a candidate that is a `Subnet` comes from.
        reference: The name of the candidate that ratios are taken to.
        batch: Samples in a run, where `inputs` does not say.
        runs: Rounds; with fewer than `TRUSTED_RUNS` nothing is called stable.
        warmup: Least runs before the first round; as many again until the median settles, at most `WINDOWS` times.
        repeats: Runs of a model within one timing, if that is not to be found out.
        threads: Threads within an operator.
        inter_threads: Operators that may run at the same time.
        provider: ONNX Runtime's execution provider. On another device than the CPU, compare the wall clock.
        sizes: Of dynamic axes by name, such as ``{"length": 128}``; by default those of the example inputs.
        seed: Fixes the numbers of the inputs and the order within rounds.

    Raises:
        LatencyError: if there is no candidate, a number is out of range, the inputs or the reference do not fit, a
            model cannot be loaded, or the provider is not installed.
    """
    named = candidates if isinstance(candidates, Mapping) else {"model": candidates}
    numbers = {"batch": batch, "runs": runs, "warmup": warmup, "threads": threads, "inter_threads": inter_threads}
    _check(named, reference, {**numbers, "repeats": 1 if repeats is None else repeats})
    settings = {"threads": threads, "inter_threads": inter_threads, "provider": provider}
    generator, runners = np.random.default_rng(seed), dict[str, Runner]()
    for name, candidate in named.items():
        session = session_of(name, candidate, supernet, settings)
        runners[name] = warmed(name, Runner(session, feed_of(name, session, inputs, batch, seed, sizes)), warmup)
    repeats = repeats or repeats_for(max(runner.quickest_ms for runner in runners.values()))
    runners = {name: replace(runner, repeats=repeats) for name, runner in runners.items()}
    times = rounds(runners, runs, generator)
    base = None if reference is None else times[reference][:, 0]
    found = {name: _summary(times[name], base, runner, threads) for name, runner in runners.items()}
    here = machine()
    found = {name: replace(one, provider=provider, machine=here) for name, one in found.items()}
    return found if isinstance(candidates, Mapping) else found["model"]


def _check(candidates: Mapping[str, Candidate], reference: str | None, numbers: Mapping[str, int]) -> None:
    if not candidates:
        raise LatencyError("candidates: there must be at least one")
    if reference is not None and reference not in candidates:
        raise LatencyError(f"reference: {reference!r} is not one of the candidates {', '.join(candidates)}")
    for name, given in numbers.items():
        if given < 1:
            raise LatencyError(f"{name}: {given} is not allowed; it must be at least 1")


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
