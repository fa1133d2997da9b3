"""Latency on ONNX Runtime, measured so that candidates can be compared: interleaved, warm, with fixed threads."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, overload

import numpy as np
from onnx import ModelProto
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.errors import BnasError

from .layout import on_cpu
from .machine import machine
from .onnx_fallback import to_onnx
from .onnx_file import loadable
from .onnx_session import CPU, Array, SessionError, Source, open_session
from .onnx_trial import eval_mode
from .supernetwork import SuperNetwork

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

Candidate: TypeAlias = "Source | GraphModule | Subnet"
"""An ONNX model (the path of its file, or its serialised content), or what is lowered to one in memory first."""
Inputs: TypeAlias = "Mapping[str, Array] | Array | Sequence[int] | None"
"""Arrays by input name; or the array, or its shape, for models with one input; or what the model declares."""

TRUSTED_RUNS = 50
"""Fewer runs than that never count as stable."""

TRUSTED_SPREAD = 0.1
"""A wider spread than that never counts as stable."""

QUICK_MS = 0.2
"""Where all models are quicker than that, each is run several times within one timing."""

TIMING_MS = 1.0
"""How long such a timing is to be: a thousand times what reading the clock costs."""

SETTLED = 0.05
"""A model is warm once the median of some runs is within this share of the one of the runs before."""

WINDOWS = 10
"""The warm-up is given up after so many times its least number of runs."""

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
"""Number types of inputs that can be filled."""


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
    """Median time on the wall clock; with several threads or another device, what a user waits."""
    wall_quartiles_ms: tuple[float, float]
    """First and third quartile of the time on the wall clock."""
    runs: int
    """How many timings were taken."""
    repeats: int
    """How many runs of the model each timing covers and is divided by: more than 1 where all models are very quick."""
    threads: int
    batch: int
    ratio: float | None
    """Median, over the rounds, of this CPU time divided by the reference's in the same round."""
    unstable: str | None = None
    """Why the number is not stable: too few runs, too wide a spread, not warm; ``None`` if it is."""
    provider: str = CPU
    """The execution provider of ONNX Runtime."""
    machine: Mapping[str, Any] = field(default_factory=machine, repr=False)
    """What it was measured on, see `bnas.runtime.machine`."""

    @property
    def stable(self) -> bool:
        """Whether there were at least `TRUSTED_RUNS` timings of a warm model with a spread of `TRUSTED_SPREAD`."""
        return self.unstable is None

    def to_json(self) -> dict[str, Any]:
        """All fields, by name, as JSON values, and whether it is stable."""
        pairs = {name: list(getattr(self, name)) for name in ("quartiles_ms", "wall_quartiles_ms")}
        return {**asdict(self), **pairs, "stable": self.stable}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Latency:
        """The latency that `to_json` wrote."""
        pairs = {name: tuple(data[name]) for name in ("quartiles_ms", "wall_quartiles_ms")}
        return cls(**{name: value for name, value in {**data, **pairs}.items() if name != "stable"})


@dataclass(frozen=True)
class _Runner:
    """A loaded model with its inputs."""

    session: Any
    feed: Mapping[str, Array]
    repeats: int = 1
    warm: bool = True
    quickest_ms: float = 0.0
    """The quickest run of the warm-up, on the wall clock."""

    def time(self) -> tuple[float, float]:
        """CPU and wall milliseconds of one run."""
        run, feed, repeats = self.session.run, self.feed, range(self.repeats)
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in repeats:
            run(None, feed)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        return cpu / 1e6 / self.repeats, wall / 1e6 / self.repeats


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
        seed: Fixes the numbers of the inputs and the order within rounds.

    Raises:
        LatencyError: if there is no candidate, a number is out of range, the inputs or the reference do not fit, a
            model cannot be loaded, or the provider is not installed.
    """
    named = candidates if isinstance(candidates, Mapping) else {"model": candidates}
    numbers = {"batch": batch, "runs": runs, "warmup": warmup, "threads": threads, "inter_threads": inter_threads}
    _check(named, reference, {**numbers, "repeats": 1 if repeats is None else repeats})
    settings = {"threads": threads, "inter_threads": inter_threads, "provider": provider}
    generator, runners = np.random.default_rng(seed), dict[str, _Runner]()
    for name, candidate in named.items():
        session = _session(name, candidate, supernet, settings)
        runners[name] = _warm(name, _Runner(session, _feed(name, session, inputs, batch, seed)), warmup)
    repeats = repeats or repeats_for(max(runner.quickest_ms for runner in runners.values()))
    runners = {name: replace(runner, repeats=repeats) for name, runner in runners.items()}
    times = _rounds(runners, runs, generator)
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


def _session(name: str, candidate: Candidate, supernet: SuperNetwork | None, settings: Mapping[str, Any]) -> Any:
    try:
        if isinstance(candidate, str | bytes | os.PathLike):
            return open_session(candidate, **settings)
        with loadable(_lowered(name, candidate, supernet)) as source:
            return open_session(source, **settings)
    except SessionError as error:
        raise LatencyError(f"{name}: {error}") from error


def _lowered(name: str, candidate: GraphModule | Subnet, supernet: SuperNetwork | None) -> ModelProto:
    """A sub-network or a module as an ONNX model in memory."""
    if supernet is None:
        raise LatencyError(f"{name}: a {type(candidate).__name__} needs the super-network it is from (supernet=...)")
    module = on_cpu(supernet.extract(candidate) if isinstance(candidate, Subnet) else candidate)
    with eval_mode(module):
        return to_onnx(module, [one.cpu() for one in supernet.example()], {})[0]


def _feed(name: str, session: Any, inputs: Inputs, batch: int, seed: int) -> dict[str, Array]:
    declared = {one.name: one for one in session.get_inputs()}
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif inputs is None:
        given = {key: _filled(name, _shape(name, one, batch), one.type, seed) for key, one in declared.items()}
    else:
        first = next(iter(declared.values()))
        array = inputs if isinstance(inputs, np.ndarray) else _filled(name, inputs, first.type, seed)
        given = {first.name: array}
    if set(given) != set(declared):
        raise LatencyError(f"{name}: takes the inputs {sorted(declared)} but was given {sorted(given)}")
    return given


def _shape(name: str, declared: Any, batch: int) -> list[int]:
    """The shape of an input, with `batch` for an open first axis."""
    first, *rest = declared.shape or [batch]
    open_axes = [axis for axis in rest if not isinstance(axis, int)]
    if open_axes:
        raise LatencyError(f"{name}: input {declared.name!r} leaves {open_axes[0]!r} open; give inputs or their shape")
    if not declared.shape:
        return []
    if isinstance(first, int) and first != batch:
        raise LatencyError(f"{name}: input {declared.name!r} is made for a batch of {first}, not {batch}")
    return [batch, *rest]


def _filled(name: str, shape: Sequence[int], kind: str, seed: int) -> Array:
    if kind not in DTYPES:
        raise LatencyError(f"{name}: an input of {kind} cannot be made up; give arrays by input name")
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(DTYPES[kind])


def _warm(name: str, runner: _Runner, warmup: int) -> _Runner:
    """The runner once its times have settled."""
    try:
        windows = [[runner.time() for _ in range(warmup)]]
        while not (warm := _settled(windows)) and len(windows) < WINDOWS:
            windows.append([runner.time() for _ in range(warmup)])
    except Exception as error:
        raise LatencyError(f"{name}: ONNX Runtime cannot run it: {type(error).__name__}: {error}") from error
    quickest = min(wall for window in windows for _, wall in window)
    return _Runner(runner.session, runner.feed, warm=warm, quickest_ms=quickest)


def _settled(windows: Sequence[Sequence[tuple[float, float]]]) -> bool:
    """Whether the CPU time of the last runs is about that of the runs before."""
    if len(windows) < 2:
        return False
    before, now = (float(np.median([cpu for cpu, _ in window])) for window in windows[-2:])
    return abs(now - before) <= SETTLED * before


def repeats_for(milliseconds: float) -> int:
    """How often each model is run within one timing, where the slowest takes that long."""
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
