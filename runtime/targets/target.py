"""The interface of targets: build a file from a network, load it, run it, time it, and describe the machine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from onnx import ModelProto
from torch import Tensor, nn

from bnas.passes.errors import BnasError

Array: TypeAlias = np.ndarray[Any, Any]
Feed: TypeAlias = Mapping[str, Array]
"""Arrays by the names of the inputs."""
File: TypeAlias = Path | bytes
"""A built network: the path of a file, or its content."""


class TargetError(BnasError, ValueError):
    """A target cannot build, load or run a network; the message has the name and the target's own error."""


@dataclass(frozen=True)
class Network:
    """A network in the forms from which a target builds its file."""

    name: str
    """Its name in error messages."""
    onnx: File
    """The ONNX model."""
    graph: ModelProto
    """The ONNX model, without external weights."""
    module: nn.Module | None = None
    """The network as a module, in any mode; None if there is only a file."""
    example: tuple[Tensor, ...] = ()
    """Inputs of the module, in order, in the sizes of the measurement."""


@runtime_checkable
class Target(Protocol):
    """Interface of a target, which runs networks. Your own class needs no base class; `InProcess` implements `time`."""

    @property
    def clock(self) -> Literal["cpu", "wall"]:
        """The clock that counts: "cpu" is the CPU time of this process, "wall" the wall clock."""

    @property
    def in_turns(self) -> bool:
        """Whether timings are taken in rounds, alternating with the other networks; else `time` is called once each."""

    def build(self, network: Network, folder: Path) -> File:
        """Write the file of a network into an empty folder and return its path, or return the content of the file.

        Raises:
            TargetError: The target cannot express the network.
        """

    def load(self, file: File, feed: Feed, threads: int) -> Any:
        """Load a file for inputs of these shapes; return the object that `run` and `time` take.

        Raises:
            TargetError: The file cannot be loaded.
        """

    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """Run the network once and return its outputs, in the order of the model.

        Raises:
            TargetError: The run fails, or the target reports only times.
        """

    def time(self, loaded: Any, feed: Feed, repeats: int) -> tuple[float, float]:
        """Return CPU and wall-clock milliseconds of one run, as the mean of `repeats` consecutive runs.

        Raises:
            TargetError: The run fails.
        """

    def describe(self) -> dict[str, Any]:
        """Return the target and its machine as JSON values; latencies are comparable only if these are equal."""


class InProcess(ABC):
    """Base class of targets that run in this process; `time` measures `run`."""

    clock: ClassVar[Literal["cpu", "wall"]] = "cpu"
    in_turns: ClassVar[bool] = True
    from_module: ClassVar[bool] = False
    """Whether the target builds its files from modules, so that it cannot use an ONNX file."""

    @abstractmethod
    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """See `Target.run`."""

    def time(self, loaded: Any, feed: Feed, repeats: int) -> tuple[float, float]:
        """See `Target.time`."""
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in range(repeats):
            self.run(loaded, feed)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        return cpu / 1e6 / repeats, wall / 1e6 / repeats


def takes_onnx(target: Target | None) -> bool:
    """Whether a target runs ONNX files; None stands for ONNX Runtime."""
    return not getattr(target, "from_module", False)


def written(file: File, folder: Path) -> Path:
    """Return the path of a file; if only its content is given, write that into `folder` first."""
    if isinstance(file, Path):
        return file
    path = folder / "model.onnx"
    path.write_bytes(file)
    return path


# The named targets, and how settings refer to them.

KNOWN = {
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "openvino": ("openvino", "OpenVINO"),
    "executorch": ("executorch", "ExecuTorch"),
    "litert": ("litert", "LiteRT"),
    "command": ("command", "Command"),
}
"""Module and class by `kind`."""


def target_of(given: Any) -> Target | None:
    """Make a target from a setting: a target, a name, or a mapping with `kind` and its settings; None stays None.

    Raises:
        TargetError: There is no such target, or a setting is wrong.
    """
    if given is None or isinstance(given, Target):
        return given
    told = {"kind": given} if isinstance(given, str) else dict(given) if isinstance(given, dict) else None
    if told is None or told.get("kind") not in KNOWN:
        kind = told.get("kind") if told else given
        raise TargetError(
            f"target {kind!r} is unknown; use {', '.join(KNOWN)}, or an object with the methods of bnas.Target"
        )
    module, name = KNOWN[told["kind"]]
    made: Target = getattr(import_module(f"bnas.runtime.targets.{module}"), name)(**told)
    return made
