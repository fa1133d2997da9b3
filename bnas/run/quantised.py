"""The int8 accuracy of sub-networks, as an objective of a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import onnx
from torch import Tensor

from bnas.passes import Subnet
from bnas.runtime import Evaluator, Int8, OnnxRuntime, accuracy, export_onnx
from bnas.runtime.evaluate.evaluation import Batch
from bnas.runtime.example import one_sample
from bnas.runtime.latency.candidates import inputs_of
from bnas.runtime.onnx.session import Array, OnnxCallable, SessionError, as_array
from bnas.runtime.targets.target import Network, Target, TargetError, takes_onnx
from bnas.search import Objective, Remote

from .job import Job
from .latencies import INT8_ACCURACY


class TargetModule(OnnxCallable):
    """An ONNX file that runs on a target, as a module. It is loaded again for inputs of other shapes.

    It returns the same structure as `bnas.runtime.OnnxModule` for this file.
    """

    def __init__(self, network: Network, target: Target, folder: Path, threads: int = 1) -> None:
        """Build the file in an empty folder; it is loaded when it is first called."""
        graph = network.graph.graph
        properties = {one.key: one.value for one in network.graph.metadata_props}
        super().__init__(network.name, inputs_of(network.graph), [one.name for one in graph.output], properties)
        self._file, self._target, self._threads = target.build(network, folder), target, threads
        self._loaded: dict[tuple[tuple[int, ...], ...], Any] = {}

    def _run(self, tensors: list[Tensor]) -> Sequence[Array]:
        feed = {name: as_array(name, one) for name, one in zip(self.input_names, tensors, strict=False)}
        shapes = tuple(array.shape for array in feed.values())
        try:
            if shapes not in self._loaded:
                self._loaded = {shapes: self._target.load(self._file, feed, self._threads)}
            return self._target.run(self._loaded[shapes], feed)
        except TargetError as error:
            raise SessionError(str(error)) from error


@dataclass
class InInt8:
    """Measures the accuracy of a sub-network's int8 file, as the run would export it, on the validation data.

    Sub-networks lose different amounts of accuracy in int8, so the ranking by float accuracy may be wrong.
    """

    evaluator: Evaluator
    settings: Int8
    """The int8 settings with their calibration samples."""
    target: Target | None = None
    """The target that runs the file; ONNX Runtime if the configured target only reports times."""
    elsewhere: Remote | None = None
    """Recreates this object in another process, when it is pickled."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each measurement in this process."""

    @classmethod
    def of(cls, job: Job, evaluator: Evaluator, samples: Callable[[int], list[Batch]]) -> InInt8 | None:
        """Return the measure for the int8 accuracy of a job, on the target of its int8 latency if it has one.

        `samples` is a function that returns training samples, given their number.
        """
        if job.chosen_by != INT8_ACCURACY or job.int8 is None:
            return None
        clocks = [one for one in job.clocks.values() if one.int8 is not None]
        target = clocks[0].target if clocks else job.latency.target
        return cls(evaluator, calibrated(job.int8, samples(job.int8.samples)), target)

    def __reduce__(self) -> Any:
        """Pickle only the recipe that recreates this object, if there is one."""
        if self.elsewhere is None:
            return super().__reduce__()
        return Remote, (self.elsewhere.make, *self.elsewhere.arguments)

    def __call__(self, subnet: Subnet) -> float:
        """Return the accuracy, as a fraction.

        Raises:
            BnasError: The sub-network cannot be exported or quantised, or the target cannot run the file.
        """
        start = time.perf_counter()
        module, example = self.evaluator.prepare(subnet), one_sample(self.evaluator.supernet)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(module, path, example, self.settings)
            network = Network("the int8 file", path, onnx.load(str(path), load_external_data=False))
            found = accuracy(TargetModule(network, self._runs, Path(mkdtemp(dir=folder))), self.evaluator.validation)
        self.seconds.append(time.perf_counter() - start)
        return found

    @property
    def _runs(self) -> Target:
        target = self.target
        return target if target is not None and target.in_turns and takes_onnx(target) else OnnxRuntime()

    def told(self) -> str:
        """Return the measuring time in words."""
        count = len(self.seconds)
        if not count:
            return "the int8 files of sub-networks were measured by other processes, or earlier"
        return f"the int8 files of {count} sub-networks took {sum(self.seconds) / count:.2f} s each"


def measured_in_int8(objectives: Iterable[Objective], measure: Any) -> Sequence[Objective]:
    """Return the objectives; `INT8_ACCURACY` gets `measure`, unless it has its own."""
    return [
        replace(one, measure=measure) if one.name == INT8_ACCURACY and one.measure is None else one
        for one in objectives
    ]


def calibrated(settings: Int8, samples: Sequence[Batch]) -> Int8:
    """Return the settings with these calibration samples, unless they have their own."""
    return settings if settings.calibration is not None else replace(settings, calibration=samples)
