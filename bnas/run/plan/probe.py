"""Measure how long the parts of a run take on this machine: try each for a few seconds on the real data and undo it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import islice
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from bnas.passes import Subnet
from bnas.run import team
from bnas.run.job import Job, evaluator_of
from bnas.run.latencies import INT8_ACCURACY
from bnas.run.quantised import InInt8, calibrated
from bnas.runtime import Evaluator, FineTune, LatencySettings, Stage, SuperNetwork, Trainer, step_seconds
from bnas.runtime.evaluate.evaluation import Loader, counted_samples, first_samples
from bnas.runtime.feed import drawn, length_of
from bnas.runtime.latency.layers import RUNS as PROFILED
from bnas.runtime.latency.measurement import runners_of
from bnas.runtime.nested import batch_size, device_of
from bnas.runtime.train import parallel, random_state
from bnas.runtime.train.share import shared_out
from bnas.runtime.train.timing import Clock
from bnas.runtime.train.tuning import alone, shared_lengths

SECONDS = 5.0
"""Longest time, in seconds, to try each kind of step."""
SHARE = 0.01
"""Longest time to try each kind of step, as a share of the budget."""
BRIEFLY = 1.0
"""Seconds to try each kind of step without a budget; the result is only shown."""
EXPORT, INT8 = 0.6, 1.0
"""Assumed seconds to write, check and load the file of one network, and its int8 file, on a machine of 2026."""
NODE = 0.01
"""Assumed additional seconds for each node of the graph, in either file."""
WARM = 30
"""Runs of a file before it is timed."""
TRIED = 5
"""Runs on ONNX Runtime that are timed."""
EXCHANGES = 6
"""Steps whose losses and gradients are sent between the processes to time that."""
CANDIDATES = 64
"""Number of random sub-networks from which the one that stands in for the winners is chosen."""


@dataclass(frozen=True)
class Times:
    """Measured durations in seconds."""

    step: float = 0.0
    """A training step of the super-network."""
    evaluation: float = 0.0
    """An evaluation, without the time that depends on the number of samples."""
    sample: float = 0.0
    """One sample of an evaluation."""
    tune: float = 0.0
    """A fine-tuning step of one winner."""
    probing: float = 0.0
    """The measurement of `tune` itself."""
    loading: float = 0.0
    """Exporting a network and loading it for latency measurements, on all targets together."""
    run: float = 0.0
    """A run of a network in latency measurements, on all targets together."""
    delivered: float = 0.0
    """A run of an exported file in the measurement of the winners."""

    def scaled(self, factor: float) -> Times:
        """Return all durations multiplied by a factor."""
        return Times(*(factor * one for one in astuple(self)))


@dataclass(frozen=True)
class Probe:
    """Times the parts of a job on its super-network."""

    job: Job
    supernet: SuperNetwork
    clock: Clock = time.perf_counter

    @property
    def seconds(self) -> float:
        """Seconds to try each kind of step."""
        return BRIEFLY if self.job.budget is None else min(SECONDS, SHARE * self.job.budget)

    def times(
        self, settings: FineTune | None, clocks: Iterable[LatencySettings] = (), *, training: bool = True
    ) -> Times:
        """Measure all durations before the winners are known; latencies are measured on all `clocks` together.

        Without `settings` there is no fine-tuning; without `training` the super-network is trained already.
        """
        (evaluation, sample), step = self.evaluation(), self.train_step() if training else 0.0
        start = self.clock()
        tune = 0.0 if settings is None else sum(self.tune_step(settings, [self.stand_in()]))
        probing = self.clock() - start
        each = [(one, *self.latency(one)) for one in clocks]
        loading, run = sum(one[1] for one in each), sum(one[2] for one in each)
        known = [ran for one, _, ran in each if one == self.job.latency]
        return Times(
            step, evaluation + self.int8(), sample, tune, probing, loading, run, self._delivered(sample, known)
        )

    def _delivered(self, sample: float, known: Sequence[float]) -> float:
        """Return the seconds of a run of an exported file: twice the time of an evaluation on the CPU, else measured.

        `known` has earlier measurements of it.
        """
        if device_of(self.supernet).type == "cpu":
            return 2 * sample * self.job.latency.batch
        return known[0] if known else self.latency(self.job.latency)[1]

    def latency(self, settings: LatencySettings) -> tuple[float, float]:
        """Return the seconds to export and load a network for latency measurements, and the seconds of a run.

        Both are means over the maximal sub-network and the stand-in. For a target that times each network once (a
        command), the first number includes the run.
        """
        start, networks = self.clock(), {"maximal": self.supernet.space.maximal(), "half": self.stand_in()}
        with TemporaryDirectory() as folder:
            runners = runners_of(networks, settings, folder, supernet=self.supernet)
            for one in runners.values():
                one.time()
            before = (self.clock() - start) / len(runners)
            if not one.target.in_turns:
                return before, 0.0
            start = self.clock()
            for _ in range(TRIED):
                for one in runners.values():
                    one.time()
        return before, (self.clock() - start) / (len(runners) * TRIED)

    def train_step(self) -> float:
        """Return the seconds of a training step: the mean over the stages, weighted by their lengths."""
        stages, total = self.job.stages, sum(one.epochs for one in self.job.stages)
        return sum(self._stage(one, self.seconds / len(stages)) * one.epochs / total for one in stages)

    @property
    def _train(self) -> Loader:
        """The training data of one process of the run."""
        return shared_out(self.job.data.train, team.size())

    def _stage(self, stage: Stage, seconds: float) -> float:
        recipe = replace(self.job.recipe, lr_schedule=None, num_bn_adaptation_samples=0)
        bare = replace(stage, reorg_weights=False, bn_adapt=False)
        own = {key: value for key, value in self.job.training.items() if key in ("criterion", "teacher")}
        alone = step_seconds(Trainer(self.supernet, [bare], recipe, **own), self._train, seconds, self.clock)
        return alone + self.exchange

    def tune_step(
        self, settings: FineTune, subnets: Sequence[Subnet], original: nn.Module | None = None
    ) -> list[float]:
        """Return, for fine-tuning in shared weights, the seconds that each sub-network takes per step of the largest.

        `original` is the teacher; by default the current model.
        """
        each, parts = self.seconds / len(subnets), shared_lengths(self.supernet, subnets)
        return [parts[one] * self._tuning(self.supernet, settings, original, each, subnet=one) for one in subnets]

    def tune_alone(
        self, settings: FineTune, subnets: Sequence[Subnet], original: nn.Module, evaluator: Evaluator
    ) -> tuple[list[float], float]:
        """Return the same for standalone sub-networks, including the seconds to make them."""
        start, each = self.clock(), self.seconds / len(subnets)
        singles = [alone(evaluator.prepare(one), self.supernet.example_inputs) for one in subnets]
        made = self.clock() - start
        return [self._tuning(one, settings, original, each) for one in singles], made

    def _tuning(
        self, supernet: SuperNetwork, settings: FineTune, original: nn.Module | None, seconds: float, **more: Any
    ) -> float:
        recipe = replace(settings.recipe(self.job.recipe), num_bn_adaptation_samples=0)
        own = {key: value for key, value in self.job.training.items() if key == "criterion"}
        trainer = Trainer(supernet, [Stage()], recipe, teacher=original, **own, **more)
        return step_seconds(trainer, self._train, seconds, self.clock) + self.exchange

    @cached_property
    def exchange(self) -> float:
        """Seconds of a step in which losses and gradients travel between the processes of the run."""
        if team.size() == 1:
            return 0.0
        sizes, device = [one.numel() for one in self.supernet.parameters()], torch.device(device_of(self.supernet).type)
        with team.joint("exchange", sizes=sizes, device=device, steps=EXCHANGES):
            parallel.exchange(sizes, device, 1)  # the first one also waits for the other processes
            start = self.clock()
            parallel.exchange(sizes, device, EXCHANGES - 1)
            return (self.clock() - start) / (EXCHANGES - 1)

    def evaluation(self) -> tuple[float, float]:
        """Return the seconds of an evaluation without its samples, and the seconds per sample."""
        data = self.job.data
        with random_state.undisturbed(data.train), random_state.undisturbed(data.validation):
            calibration = list(islice(drawn(data.train), 2)) if self.job.num_bn_adaptation_samples else []
            validation = list(islice(drawn(data.validation), 4))
        subnet, evaluator = self.stand_in(), evaluator_of(self.job, self.supernet, calibration or None, validation)
        samples = sum(map(batch_size, [*calibration, *validation]))
        _, *tries = [self._evaluated(evaluator, subnet) for _ in range(3)]  # warm-up: the first evaluation fills caches
        made, on_data = (fmean(some) for some in zip(*tries, strict=True))
        return made, on_data / samples

    def int8(self) -> float:
        """Return the seconds to make and measure the int8 file of a sub-network, if the search does that."""
        if self.job.chosen_by != INT8_ACCURACY or self.job.int8 is None:
            return 0.0
        data = self.job.data
        with random_state.undisturbed(data.train), random_state.undisturbed(data.validation):
            settings = calibrated(self.job.int8, first_samples(data.train, self.job.int8.samples))
            evaluator = evaluator_of(self.job, self.supernet, None, list(islice(drawn(data.validation), 4)))
        start = self.clock()
        InInt8(evaluator, settings)(self.stand_in())
        return self.clock() - start

    def _evaluated(self, evaluator: Evaluator, subnet: Subnet) -> tuple[float, float]:
        """Return the seconds to make a sub-network, and to run it on all data."""
        start = self.clock()
        module = self.supernet.extract(subnet)
        made = self.clock()
        evaluator.measure(evaluator.recalibrated(module))
        return made - start, self.clock() - made

    def stand_in(self) -> Subnet:
        """Return a sub-network with about half of the MACs, which stands in for the unknown winners."""
        space = self.job.stages[-1].space(self.supernet.space)
        some = [space.maximal(), space.minimal(), *(space.sample(seed) for seed in range(CANDIDATES))]
        costs = self.supernet.cost_model.many(some)["macs"]
        return min(zip(some, costs, strict=True), key=lambda one: abs(one[1] / costs[0] - 0.5))[0]

    def delivery(self, winners: int, times: Times) -> float:
        """Return the seconds of export and measurement."""
        networks, int8, nodes = winners + 1, self.job.int8, NODE * len(self.supernet.ir.graph.nodes)
        sample, run = times.sample, times.delivered
        alone = run / (2 * self.job.latency.batch)
        timing, profile = run * (self.job.latency.runs + WARM), run * (PROFILED + self.job.latency.warmup)
        files, quantised = networks * (EXPORT + nodes + timing + profile), 0.0
        if int8 is not None:
            quantised = networks * (INT8 + nodes + timing + 3 * alone * int8.samples)
        tested = (networks + winners) * sample + (networks * alone if quantised else 0)
        return files + quantised + tested * samples_in(self.job.data.test)


def samples_in(loader: Loader) -> int:
    """Return the approximate number of samples; if the loader has a length, without drawing all of them."""
    samples, batches = length_of(getattr(loader, "dataset", None)), length_of(loader)
    if samples is not None:
        return samples
    with random_state.undisturbed(loader):
        if batches is None:
            return counted_samples(loader)
        return batches * batch_size(next(iter(drawn(loader))))
