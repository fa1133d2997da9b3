"""What a target is: it builds a file of a network, loads it, runs it, times it, and describes its machine."""

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
"""What a target loads: a file, or its content."""


class TargetError(BnasError, ValueError):
    """A target cannot build, load or run a network: says which, and what the target said."""


@dataclass(frozen=True)
class Network:
    """What a target builds its file of."""

    name: str
    """As errors call it."""
    onnx: File
    """The ONNX model."""
    graph: ModelProto
    """The same without its weights where these stand in a file."""
    module: nn.Module | None = None
    """The same as a module, in any mode; None where there is only a file."""
    example: tuple[Tensor, ...] = ()
    """Inputs of the module, in order, of the sizes that it is measured with."""


@runtime_checkable
class Target(Protocol):
    """A place where networks run. A class of your own needs no base class; `InProcess` has `time`, if it runs here."""

    @property
    def clock(self) -> Literal["cpu", "wall"]:
        """The time that counts: "cpu" is the CPU time of this process."""

    @property
    def in_turns(self) -> bool:
        """Timings are taken in rounds, with the other networks; otherwise `time` is called once for each."""

    def build(self, network: Network, folder: Path) -> File:
        """Write the file of a network into an empty folder, and return its path; or return its content.

        Raises:
            TargetError: The target cannot express it.
        """

    def load(self, file: File, feed: Feed, threads: int) -> Any:
        """What `run` and `time` take, ready for inputs of these shapes.

        Raises:
            TargetError: The file cannot be loaded.
        """

    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """The outputs, in the order of the model.

        Raises:
            TargetError: It fails, or the target only tells times.
        """

    def time(self, loaded: Any, feed: Feed, repeats: int) -> tuple[float, float]:
        """CPU and wall milliseconds of one run, as the mean of so many in a row.

        Raises:
            TargetError: It fails.
        """

    def describe(self) -> dict[str, Any]:
        """The target and its machine as JSON values: what two latencies must have in common to be compared."""


class InProcess(ABC):
    """A target that runs in this process: `time` is that of `run`."""

    clock: ClassVar[Literal["cpu", "wall"]] = "cpu"
    in_turns: ClassVar[bool] = True
    from_module: ClassVar[bool] = False
    """It builds its files of modules, and has no use for an ONNX file alone."""

    @abstractmethod
    def run(self, loaded: Any, feed: Feed) -> Sequence[Array]:
        """As `Target.run`."""

    def time(self, loaded: Any, feed: Feed, repeats: int) -> tuple[float, float]:
        """As `Target.time`."""
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for _ in range(repeats):
            self.run(loaded, feed)
        cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
        return cpu / 1e6 / repeats, wall / 1e6 / repeats


def takes_onnx(target: Target | None) -> bool:
    """Whether a target runs ONNX files; None stands for ONNX Runtime."""
    return not getattr(target, "from_module", False)


def written(file: File, folder: Path) -> Path:
    """The path of a file, whose content is written into `folder` where there is no more than that."""
    if isinstance(file, Path):
        return file
    path = folder / "model.onnx"
    path.write_bytes(file)
    return path


# The targets that have a name, and how settings give one.

KNOWN = {
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "openvino": ("openvino", "OpenVINO"),
    "executorch": ("executorch", "ExecuTorch"),
    "litert": ("litert", "LiteRT"),
    "command": ("command", "Command"),
}
"""Module and class by `kind`."""


def target_of(given: Any) -> Target | None:
    """A target as settings give it: a target, its name, or a mapping with `kind` and its settings; None stays None.

    Raises:
        TargetError: There is no such target, or a setting is wrong.
    """
    if given is None or isinstance(given, Target):
        return given
    told = {"kind": given} if isinstance(given, str) else dict(given) if isinstance(given, dict) else None
    if told is None or told.get("kind") not in KNOWN:
        kind = told.get("kind") if told else given
        raise TargetError(f"target {kind!r}: there is {', '.join(KNOWN)}, or an object with the methods of bnas.Target")
    module, name = KNOWN[told["kind"]]
    made: Target = getattr(import_module(f"bnas.runtime.targets.{module}"), name)(**told)
    return made
