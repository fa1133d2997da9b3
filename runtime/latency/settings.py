"""How latency is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from bnas.passes.errors import BnasError
from bnas.passes.settings import LARGEST, NUMBER, Count, Seed, settings

CPU = "CPUExecutionProvider"

TRUSTED_RUNS = 50
"""Least number of timings for a stable result."""


class LatencyError(BnasError, ValueError):
    """A latency cannot be measured or predicted as requested."""


TargetName: TypeAlias = Literal["onnxruntime", "openvino", "executorch", "litert"]
"""Names of the targets that need no settings."""


def _target(given: Any) -> Any:
    from bnas.runtime.targets.target import target_of  # these settings come first

    return target_of(given)


TargetChoice: TypeAlias = Annotated[
    Any, BeforeValidator(_target, json_schema_input_type=TargetName | dict[str, Any] | None)
]
"""A target: an object, a name, or a dict with settings; None stands for ONNX Runtime."""


def _int8(given: Any) -> Any:
    from bnas.runtime.onnx.int8 import Int8

    if given is None or given is False:
        return None
    return given if isinstance(given, Int8) else Int8(**({} if given is True else given))


@settings(LatencyError, kw_only=True)
class LatencySettings:
    """Settings of a latency measurement, for `bnas.measure_latency` and `bnas.LatencyModel.fit`.

    Raises:
        LatencyError: names every setting that is out of its bounds.
    """

    batch: Count = 1
    """Number of samples per inference."""
    threads: Count = 1
    """Number of threads within an operator."""
    inter_threads: Count = 1
    """Number of operators that may run at the same time."""
    runs: Count = TRUSTED_RUNS
    """Number of timings of each model; with fewer than 50, every result is flagged as unstable."""
    warmup: Count = 10
    """Least number of untimed runs; repeated until the median settles, at most ten times."""
    turns: Count = 3
    """How often each sub-network is loaded and measured when sub-networks are compared: its place in memory changes
    the time by a few percent."""
    repeats: Count | None = None
    """Number of runs within one timing; by default more than one only if all models are very fast."""
    provider: str = CPU
    """Execution provider of ONNX Runtime; must be installed."""
    target: TargetChoice = None
    """Where networks run: "openvino", "command" or another name, such a name with settings,
    ``{"kind": "openvino", "precision": "f16"}``, or in Python any `bnas.Target`; by default ONNX Runtime."""
    int8: Annotated[Any, BeforeValidator(_int8, json_schema_input_type=bool | dict[str, Any] | None)] = None
    """Measure networks in int8: true, or the settings of `bnas.Int8`. The ranges are calibrated on random inputs, since
    they do not affect the time."""
    subnets: Annotated[int, Field(ge=6, le=LARGEST), NUMBER] = 16
    """Number of sub-networks to measure for a latency model, if latency is an objective or a constraint."""
    sizes: dict[str, Count] | None = None
    """Sizes of dynamic axes by name, such as {"length": 128}; by default those of the example inputs."""
    seed: Seed = 0
    """Seed of the random inputs, of the order of timings, and of the sub-networks for a latency model."""

    def difference(self, other: LatencySettings) -> str | None:
        """Return the first differing setting that changes what is measured (not only how precisely), or None."""
        names = ("target", "provider", "batch", "threads", "inter_threads", "sizes", "int8")
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)

    @classmethod
    def of(cls, given: LatencySettings | None, changes: dict[str, Any]) -> LatencySettings:
        """Return `given`, or the defaults, with `changes` applied by name."""
        return replace(given or cls(), **changes)
