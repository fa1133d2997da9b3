"""Latency on ONNX Runtime, measured so that candidates can be compared: interleaved, warm, with fixed threads."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from bnas.passes.errors import BnasError

Array: TypeAlias = "np.ndarray[Any, Any]"
Candidate: TypeAlias = "str | os.PathLike[str] | bytes"
"""An ONNX model: the path of its file, or its serialised content."""

TRUSTED_RUNS = 50
"""Fewer runs than that never count as stable."""

TRUSTED_SPREAD = 0.1
"""A wider spread than that never counts as stable."""

QUICK_MS = 0.2
"""A model that is quicker than that is run several times within one timing."""

TIMING_MS = 1.0
"""How long such a timing is to be: a thousand times what reading the clock costs."""

CPU_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "asimddp",
    "sve",
)
"""Instruction sets that decide how quick a network is."""


class LatencyError(BnasError, ValueError):
    """A measurement was asked for that cannot be made."""


@dataclass(frozen=True)
class Latency:
    """How long one run of a model takes, in milliseconds, over all timed runs."""

    median_ms: float
    """Median CPU time of the process: the number to compare, since others on the machine do not disturb it."""
    quartiles_ms: tuple[float, float]
    """First and third quartile of the CPU time."""
    spread: float
    """The distance between the quartiles, divided by the median."""
    wall_median_ms: float
    """Median time on the wall clock; with several threads, what a user waits."""
    runs: int
    """How many timings were taken."""
    repeats: int
    """How many runs of the model each timing covers and is divided by: more than 1 for very quick models."""
    threads: int
    batch: int
    stable: bool
    """Whether there were at least `TRUSTED_RUNS` timings and the spread is at most `TRUSTED_SPREAD`."""
    ratio: float | None
    """Median, over the rounds, of this CPU time divided by the reference's in the same round."""

    def to_json(self) -> dict[str, Any]:
        """All fields, by name, as JSON values."""
        return {**asdict(self), "quartiles_ms": list(self.quartiles_ms)}


@dataclass(frozen=True)
class _Runner:
    """A loaded model with its inputs."""

    session: Any
    feed: Mapping[str, Array]
    repeats: int = 1

    def time(self) -> tuple[float, float]:
        """CPU and wall milliseconds of one run."""
        run, feed, repeats = self.session.run, self.feed, range(self.repeats)
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in repeats:
            run(None, feed)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        return cpu / 1e6 / self.repeats, wall / 1e6 / self.repeats


def measure_latency(
    candidates: Mapping[str, Candidate],
    inputs: Mapping[str, Array] | Array | Sequence[int],
    *,
    reference: str | None = None,
    runs: int = 50,
    warmup: int = 10,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, Latency]:
    """The latency of every candidate, under the same conditions.

    Every model is loaded with all graph optimisations and `threads` threads that do not spin while they wait (they
    would burn the CPU time of the next model), and run `warmup` times. Then come `runs` rounds; in each, every
    candidate is timed once, in an order that `seed` shuffles, so that a disturbance hits all alike. A model that takes
    less than `QUICK_MS` is run as often within one timing as makes it last `TIMING_MS`.

    Args:
        candidates: Models by name; the reference is one of them.
        inputs: Arrays by input name; or the array, or its shape, for models with one input. A shape is filled with
            normally distributed numbers from `seed`.
        reference: The name of the candidate that ratios are taken to.
        runs: Rounds; with fewer than `TRUSTED_RUNS` nothing is called stable.
        warmup: Runs before the first round.
        threads: Threads within an operator.
        seed: Fixes the numbers of the inputs and the order within rounds.

    Raises:
        LatencyError: if there is no candidate, a number is out of range, or the inputs or the reference do not fit.
    """
    _check(candidates, reference, {"runs": (runs, 1), "warmup": (warmup, 1), "threads": (threads, 1)})
    generator = np.random.default_rng(seed)
    runners = {}
    for name, candidate in candidates.items():
        session = _session(name, candidate, threads)
        runners[name] = _warm(name, _Runner(session, _feed(name, session, inputs, seed)), warmup)
    times = _rounds(runners, runs, generator)
    base = None if reference is None else times[reference][:, 0]
    return {name: _summary(times[name], base, runner, threads) for name, runner in runners.items()}


def _check(candidates: Mapping[str, Candidate], reference: str | None, limits: Mapping[str, tuple[int, int]]) -> None:
    if not candidates:
        raise LatencyError("candidates: there must be at least one")
    if reference is not None and reference not in candidates:
        raise LatencyError(f"reference: {reference!r} is not one of the candidates {', '.join(candidates)}")
    for name, (given, least) in limits.items():
        if given < least:
            raise LatencyError(f"{name}: {given} is not allowed; it must be at least {least}")


def _session(name: str, candidate: Candidate, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised: nothing needs to be printed as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = candidate if isinstance(candidate, bytes) else os.fspath(candidate)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise LatencyError(f"{name}: ONNX Runtime cannot load it: {type(error).__name__}: {error}") from error


def _feed(name: str, session: Any, inputs: Mapping[str, Array] | Array | Sequence[int], seed: int) -> dict[str, Array]:
    declared = {one.name: one.type for one in session.get_inputs()}
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        array = inputs if isinstance(inputs, np.ndarray) else _filled(inputs, list(declared.values())[:1], seed)
        given = dict.fromkeys(list(declared)[:1], array)
    if set(given) != set(declared):
        raise LatencyError(f"{name}: takes the inputs {sorted(declared)} but was given {sorted(given)}")
    return given


def _filled(shape: Sequence[int], types: Sequence[str], seed: int) -> Array:
    dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(types[0] if types else "", np.float32)
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(dtype)


def _warm(name: str, runner: _Runner, warmup: int) -> _Runner:
    """The runner after `warmup` runs, with as many repeats as their quickest one calls for."""
    try:
        quickest = min(runner.time()[1] for _ in range(warmup))
    except Exception as error:
        raise LatencyError(f"{name}: ONNX Runtime cannot run it: {type(error).__name__}: {error}") from error
    return _Runner(runner.session, runner.feed, repeats_for(quickest))


def repeats_for(milliseconds: float) -> int:
    """How often a model that takes that long is run within one timing."""
    if milliseconds >= QUICK_MS:
        return 1
    return math.ceil(TIMING_MS / max(milliseconds, 1e-4))


def _rounds(runners: Mapping[str, _Runner], runs: int, generator: np.random.Generator) -> dict[str, Array]:
    """For each name an array of rounds x (CPU, wall) milliseconds."""
    names = list(runners)
    times = {name: np.empty((runs, 2)) for name in names}
    for turn in range(runs):
        for place in generator.permutation(len(names)):
            times[names[place]][turn] = runners[names[place]].time()
    return times


def _summary(times: Array, base: Array | None, runner: _Runner, threads: int) -> Latency:
    first, median, third = (float(one) for one in np.quantile(times[:, 0], [0.25, 0.5, 0.75]))
    spread = (third - first) / max(median, 1e-9)
    batch = next((len(array) for array in runner.feed.values() if array.ndim), 1)
    return Latency(
        median_ms=median,
        quartiles_ms=(first, third),
        spread=spread,
        wall_median_ms=float(np.median(times[:, 1])),
        runs=len(times),
        repeats=runner.repeats,
        threads=threads,
        batch=batch,
        stable=len(times) >= TRUSTED_RUNS and spread <= TRUSTED_SPREAD,
        ratio=None if base is None else float(np.median(times[:, 0] / np.maximum(base, 1e-9))),
    )


def machine() -> dict[str, Any]:
    """What a latency was measured on, as JSON values: the CPU, its flags among `CPU_FLAGS`, cores and versions."""
    described = _cpu_description()
    flags = set((described.get("flags") or described.get("Features") or "").split())
    return {
        "cpu": described.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


def _cpu_description() -> dict[str, str]:
    """The first of each field in Linux' description of the CPUs; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = [line.partition(":") for line in reversed(lines) if ":" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}
