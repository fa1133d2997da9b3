"""How latency is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from bnas.passes.errors import BnasError
from bnas.passes.settings import LARGEST, NUMBER, Count, Seed, settings

CPU = "CPUExecutionProvider"


class LatencyError(BnasError, ValueError):
    """A measurement was asked for that cannot be made."""


TargetName: TypeAlias = Literal["onnxruntime", "openvino", "executorch", "litert"]
"""Those that need no settings."""


def _target(given: Any) -> Any:
    from bnas.runtime.targets.target import target_of  # these settings come first

    return target_of(given)


TargetChoice: TypeAlias = Annotated[
    Any, BeforeValidator(_target, json_schema_input_type=TargetName | dict[str, Any] | None)
]
"""A target, by its name, or as a dict with its settings; None: the default one."""


def _int8(given: Any) -> Any:
    from bnas.runtime.onnx.int8 import Int8

    if given is None or given is False:
        return None
    return given if isinstance(given, Int8) else Int8(**({} if given is True else given))


@settings(LatencyError, kw_only=True)
class LatencySettings:
    """How the latency of models is measured; `bnas.measure_latency` and `bnas.LatencyModel.fit` take it.

    Raises:
        LatencyError: names every setting that is out of its bounds.
    """

    batch: Count = 1
    """Samples in a run."""
    threads: Count = 1
    """Threads within an operator."""
    inter_threads: Count = 1
    """Operators that may run at the same time."""
    runs: Count = 50
    """Timings of each model; with fewer than 50 nothing is called stable."""
    warmup: Count = 10
    """Least runs before the first timing; as many again until the median settles, at most ten times."""
    turns: Count = 3
    """So often a sub-network is measured where sub-networks are compared, loaded anew each time: where a model lies in
    memory changes its time by a few percent."""
    repeats: Count | None = None
    """Runs of a model within one timing; by default more than one where all models are very quick."""
    provider: str = CPU
    """Execution provider of ONNX Runtime, among those that are installed."""
    target: TargetChoice = None
    """Where networks run: "openvino", "command" or another name, such a name with settings,
    ``{"kind": "openvino", "precision": "f16"}``, or in Python any `bnas.Target`; by default ONNX Runtime."""
    int8: Annotated[Any, BeforeValidator(_int8, json_schema_input_type=bool | dict[str, Any] | None)] = None
    """Measure networks in int8: true, or the settings of `bnas.Int8`. Ranges are found on the made-up inputs: a time
    does not depend on them."""
    subnets: Annotated[int, Field(ge=6, le=LARGEST), NUMBER] = 16
    """So many sub-networks are measured to fit a latency model, where an objective or a constraint is latency."""
    sizes: dict[str, Count] | None = None
    """Sizes of dynamic axes by name, such as {"length": 128}; by default those of the example inputs."""
    seed: Seed = 0
    """Fixes made-up inputs, the order of timings and the sub-networks that a latency model is fitted on."""

    def difference(self, other: LatencySettings) -> str | None:
        """The first setting that decides what is measured, rather than how thoroughly, and is another in `other`."""
        names = ("target", "provider", "batch", "threads", "inter_threads", "sizes", "int8")
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)

    @classmethod
    def of(cls, given: LatencySettings | None, changes: dict[str, Any]) -> LatencySettings:
        """Return `given`, by default the defaults, with `changes` by name."""
        return replace(given or cls(), **changes)
