"""The accuracy of sub-networks in int8, where that is something to search for."""

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
    """An ONNX file that runs on a target; it is loaded anew for inputs of other shapes.

    It returns what `bnas.runtime.OnnxModule` returns of the same file.
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
    """Measures the int8 file of a sub-network on the validation data, as the run would export it.

    The order of sub-networks in float is not theirs in int8: what quantisation costs differs between them.
    """

    evaluator: Evaluator
    settings: Int8
    """With the samples that the ranges of activations are found on."""
    target: Target | None = None
    """Where the file runs; on ONNX Runtime where the target only tells times."""
    elsewhere: Remote | None = None
    """Makes the same in another process, where it is sent to one."""
    seconds: list[float] = field(default_factory=list)
    """Of each sub-network that was measured in this process."""

    @classmethod
    def of(cls, job: Job, evaluator: Evaluator, samples: Callable[[int], list[Batch]]) -> InInt8 | None:
        """What measures the accuracies that a job asks for in int8, where its int8 latency is measured, if one is.

        `samples` gives so many training samples.
        """
        if job.chosen_by != INT8_ACCURACY or job.int8 is None:
            return None
        clocks = [one for one in job.clocks.values() if one.int8 is not None]
        target = clocks[0].target if clocks else job.latency.target
        return cls(evaluator, calibrated(job.int8, samples(job.int8.samples)), target)

    def __reduce__(self) -> Any:
        """Only what makes it travels, where that is known."""
        return (
            super().__reduce__()
            if self.elsewhere is None
            else (Remote, (self.elsewhere.make, *self.elsewhere.arguments))
        )

    def __call__(self, subnet: Subnet) -> float:
        """The accuracy, as a fraction.

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
        """What it took, in words."""
        count = len(self.seconds)
        if not count:
            return "the int8 files of sub-networks were measured by other processes, or earlier"
        return f"the int8 files of {count} sub-networks took {sum(self.seconds) / max(count, 1):.2f} s each"


def measured_in_int8(objectives: Iterable[Objective], measure: Any) -> Sequence[Objective]:
    """The objectives, of which `INT8_ACCURACY` is measured so, unless it has a measure of its own."""
    return [
        replace(one, measure=measure) if one.name == INT8_ACCURACY and one.measure is None else one
        for one in objectives
    ]


def calibrated(settings: Int8, samples: Sequence[Batch]) -> Int8:
    """The settings with these samples, where they have none of their own."""
    return settings if settings.calibration is not None else replace(settings, calibration=samples)
