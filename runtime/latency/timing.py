"""How long a model takes on a target: loaded, run until it is warm, then timed in turns with others."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, load_model_from_string
from torch.fx import GraphModule

from bnas.passes import Subnet
from bnas.passes.onnx.lower import SIZES
from bnas.runtime.example import one_sample
from bnas.runtime.nested import on_cpu, tensors_in
from bnas.runtime.onnx.export import to_onnx
from bnas.runtime.onnx.file import content
from bnas.runtime.onnx.session import Array, Source
from bnas.runtime.onnx.trial import eval_mode
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.targets.target import Network, Target, TargetError

from .machine import machine
from .settings import CPU, LatencyError, LatencySettings

# How long a model takes, as a value, and when it counts as stable.

TRUSTED_RUNS = 50
"""Fewer runs than that never count as stable."""

TRUSTED_SPREAD = 0.1
"""A wider spread than that never counts as stable."""


@dataclass(frozen=True)
class Latency:
    """How long one run of a model takes, in milliseconds, over all timed runs."""

    median_ms: float
    """Median of the time that counts, the number to compare: of a target that runs in this process on the CPU the CPU
    time of the process, since others on the machine do not disturb it, and otherwise the wall clock; see `clock`."""
    quartiles_ms: tuple[float, float]
    """First and third quartile of the same."""
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
    """Median, over the rounds, of this time divided by the reference's in the same round."""
    unstable: str | None = None
    """Why the number is not stable: too few runs, too wide a spread, not warm; ``None`` if it is."""
    provider: str = CPU
    """The execution provider of ONNX Runtime, or the target where that is another one."""
    clock: Literal["cpu", "wall"] = "cpu"
    """The time that counts, of a target."""
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


# What is timed: a candidate loaded by ONNX Runtime, and the arrays that it is run on.

Candidate: TypeAlias = Source | Network | GraphModule | Subnet
"""An ONNX model (the path of its file, or its serialised content), also with its module, or what is lowered to one."""
Inputs: TypeAlias = Mapping[str, Array] | Array | Sequence[int] | None
"""Arrays by input name; or the array, or its shape, for models with one input; or what the model declares."""

DTYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.INT16: np.int16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT8: np.uint8,
    TensorProto.BOOL: np.bool_,
}
"""Number types of inputs that can be filled."""


def network_of(
    name: str, candidate: Candidate, supernet: SuperNetwork | None, folder: Path, settings: LatencySettings
) -> Network:
    """What a target builds its file of.

    Args:
        name: As errors call it.
        candidate: A sub-network or a module is lowered first.
        supernet: Where it comes from.
        folder: An empty one for a model that is too large to stay in memory.
        settings: Say the batch and the sizes of dynamic axes.

    Raises:
        LatencyError: It is no ONNX model, or a sub-network has no super-network.
    """
    if isinstance(candidate, Network):
        return candidate
    if isinstance(candidate, str | bytes | os.PathLike):
        return _read(name, candidate if isinstance(candidate, bytes) else Path(candidate))
    if supernet is None:
        raise LatencyError(f"{name}: a {type(candidate).__name__} needs the super-network it is from (supernet=...)")
    module = on_cpu(supernet.extract(candidate) if isinstance(candidate, Subnet) else candidate)
    example = [one.cpu() for one in supernet.example()]
    with eval_mode(module):
        graph = to_onnx(module, example, {})[0]
    sized = tensors_in(one_sample(supernet, settings.sizes, settings.batch))
    return Network(name, content(graph, folder), graph, module, tuple(one.cpu() for one in sized))


def _read(name: str, source: bytes | Path) -> Network:
    """A file that is there, or its content; without the weights beside it."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise LatencyError(f"{name}: ONNX Runtime cannot load it: {error}") from error
    try:
        graph = load_model_from_string(data)
    except Exception as error:  # of protocol buffers, which has several implementations
        raise LatencyError(f"{name}: is no ONNX model: {type(error).__name__}: {error}") from error
    return Network(name, source, graph)


@dataclass(frozen=True)
class Input:
    """An input that a model declares."""

    name: str
    shape: tuple[int | str | None, ...]
    """An open axis is a name, or None."""
    kind: int
    """An element type of ONNX."""


def inputs_of(graph: ModelProto) -> dict[str, Input]:
    """What a model declares, by name, without its weights."""
    weights = {one.name for one in graph.graph.initializer}
    found = [one for one in graph.graph.input if one.name not in weights]
    return {one.name: Input(one.name, _axes(one), one.type.tensor_type.elem_type) for one in found}


def _axes(declared: ValueInfoProto) -> tuple[int | str | None, ...]:
    axes = declared.type.tensor_type.shape.dim
    return tuple(one.dim_value if one.HasField("dim_value") else one.dim_param or None for one in axes)


def feed_of(name: str, graph: ModelProto, inputs: Inputs, settings: LatencySettings) -> dict[str, Array]:
    """The arrays that a model is run on, by input name.

    Dynamic axes have the sizes that `sizes` names, else those of the example inputs that the file was made with.

    Raises:
        LatencyError: `inputs` are not those of the model, or cannot be made up.
    """
    batch, seed, sizes = settings.batch, settings.seed, settings.sizes
    declared = inputs_of(graph)
    known = next((one.value for one in graph.metadata_props if one.key == SIZES), "{}")
    open_axes = {**json.loads(known), **(sizes or {}), "batch": batch}
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    elif inputs is None:
        _check_titles(name, declared.values(), sizes or {})
        given = {
            key: _filled(name, _shape(name, one, batch, open_axes), one.kind, seed) for key, one in declared.items()
        }
    else:
        first = next(iter(declared.values()))
        array = inputs if isinstance(inputs, np.ndarray) else _filled(name, inputs, first.kind, seed)
        given = {first.name: array}
    if set(given) != set(declared):
        raise LatencyError(f"{name}: takes the inputs {sorted(declared)} but was given {sorted(given)}")
    return {key: given[key] for key in declared}


def _check_titles(name: str, declared: Iterable[Input], sizes: Mapping[str, int]) -> None:
    """Raise unless each of `sizes` is that of a dynamic axis."""
    titles = {axis: None for one in declared for axis in one.shape if isinstance(axis, str)}
    for title in sizes:
        if title not in titles:
            raise LatencyError(f"{name}: there is no dynamic axis {title!r}; there are {', '.join(titles) or 'none'}")


def _shape(name: str, declared: Input, batch: int, sizes: Mapping[str, int]) -> list[int]:
    """The shape of an input, with known sizes for its dynamic axes and `batch` for an open first one."""
    first, *rest = declared.shape or [batch]
    missing = [axis for axis in rest if not isinstance(axis, int) and axis not in sizes]
    if missing:
        raise LatencyError(
            f"{name}: input {declared.name!r} leaves {missing[0]!r} open; give inputs, their shape or "
            f"sizes={{{missing[0]!r}: ...}}"
        )
    if not declared.shape:
        return []
    if isinstance(first, int) and first != batch:
        raise LatencyError(f"{name}: input {declared.name!r} is made for a batch of {first}, not {batch}")
    return [size if isinstance(size, int) else sizes.get(size or "", batch) for size in declared.shape]


def _filled(name: str, shape: Sequence[int], kind: int, seed: int) -> Array:
    if kind not in DTYPES:
        told = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else "no tensor"
        raise LatencyError(f"{name}: an input of {told} cannot be made up; give arrays by input name")
    generator = np.random.default_rng(seed)
    if not np.issubdtype(DTYPES[kind], np.floating):  # indices: a table of any size has the first two entries
        return generator.integers(0, 2, tuple(shape)).astype(DTYPES[kind])
    return generator.standard_normal(tuple(shape)).astype(DTYPES[kind])


# Loaded models are run until they are warm, then timed in turns.

QUICK_MS = 0.2
"""Where all models are quicker than that, each is run several times within one timing."""

TIMING_MS = 1.0
"""How long such a timing is to be: a thousand times what reading the clock costs."""

SETTLED = 0.05
"""A model is warm once the median of some runs is within this share of the one of the runs before."""

WINDOWS = 10
"""The warm-up is given up after so many times its least number of runs."""


@dataclass(frozen=True)
class Runner:
    """A loaded model with its inputs."""

    target: Target
    loaded: Any
    feed: Mapping[str, Array]
    repeats: int = 1
    warm: bool = True
    quickest_ms: float = 0.0
    """The quickest run of the warm-up, on the wall clock."""

    def time(self) -> tuple[float, float]:
        """CPU and wall milliseconds of one run."""
        return self.target.time(self.loaded, self.feed, self.repeats)


def loaded(network: Network, target: Target, inputs: Inputs, settings: LatencySettings, folder: Path) -> Runner:
    """A network on a target, with the inputs that it is timed on.

    Raises:
        LatencyError: the target cannot build or load it, or the inputs are not those of the model.
    """
    feed = feed_of(network.name, network.graph, inputs, settings)
    try:
        return Runner(target, target.load(target.build(network, folder), feed, settings.threads), feed)
    except TargetError as error:
        raise LatencyError(f"{network.name}: {error}") from error


def warmed(name: str, runner: Runner, warmup: int) -> Runner:
    """The runner once its times have settled.

    Raises:
        LatencyError: the target cannot run it.
    """
    try:
        windows = [[runner.time() for _ in range(warmup)]]
        while not (warm := _settled(windows)) and len(windows) < WINDOWS:
            windows.append([runner.time() for _ in range(warmup)])
    except TargetError as error:
        raise LatencyError(f"{name}: {error}") from error
    quickest = min(wall for window in windows for _, wall in window)
    return replace(runner, warm=warm, quickest_ms=quickest)


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


def rounds(runners: Mapping[str, Runner], runs: int, generator: np.random.Generator) -> dict[str, Array]:
    """For each name an array of rounds x (CPU, wall) milliseconds."""
    names = list(runners)
    times = {name: np.empty((runs, 2)) for name in names}
    for turn in range(runs):
        for place in generator.permutation(len(names)):
            times[names[place]][turn] = runners[names[place]].time()
    return times
