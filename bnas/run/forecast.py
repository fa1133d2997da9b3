"""What a run will need beside the steps and evaluations of its phases, from what was probed."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bnas.runtime import LatencySettings, SuperNetwork
from bnas.runtime.latency.measurement import GROUP
from bnas.search.beginning import TRIES

from . import budget, team
from .budget import INFORMED, MEASURED, QUICKER
from .job import Job
from .latencies import quickened
from .probe import Probe, Times, samples_in
from .search import FIRST
from .winners import FEW

WATCHED = 3
"""Random sub-networks that a training validates, beside the maximal and the minimal: the default of `bnas.Trainer`."""
OPTIMIZER = {"sgd": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""Numbers that an optimizer keeps for each weight."""
PART = 0.5
"""Of the weights of the original: what a winner has, in the mean."""
REPORT = 2_000_000
"""Bytes of the report page with its pictures and tables."""
LEAST_SAMPLES = 64
"""Fewer say little of importance."""
LEAST_VALIDATION = 128
"""Fewer tell no good sub-network from a bad one: at 128, an accuracy of 90 % has a standard error of 2.7 points."""
LEAST_EVALUATIONS, FOR_A_TARGET = 4, 4
"""A search with fewer, and so many more for each target, does not get to all that it begins with."""
FEWEST = 4
"""Of `SearchSettings.num_evals`."""


def adapting(job: Job, times: Times) -> float:
    """Seconds to recalibrate the trained super-network, for both copies that are written."""
    return 2 * times.sample * job.recipe.num_bn_adaptation_samples


@dataclass(frozen=True)
class Forecast:
    """Seconds, and what follows from them."""

    job: Job
    supernet: SuperNetwork
    times: Times
    winners: int
    """How many there will be."""

    @cached_property
    def evaluation(self) -> float:
        """Of one evaluation of the search."""
        samples = self.job.num_bn_adaptation_samples + self.validated
        return self.times.evaluation + self.times.sample * samples

    @cached_property
    def validated(self) -> int:
        """Return how many validation samples an evaluation has.

        All of them, unless even the fewest evaluations would take more than the share of a search in the budget.
        """
        if math.isinf(self._budget):
            return self._validation
        each = budget.SHARES["search"] * self._budget * self.at_once / self.fewest - self.times.evaluation
        affordable = int(each / max(self.times.sample, 1e-9)) - self.job.num_bn_adaptation_samples
        return min(self._validation, max(affordable, LEAST_VALIDATION))

    @cached_property
    def _validation(self) -> int:
        return samples_in(self.job.data.validation)

    @property
    def part(self) -> int | None:
        """`validated`, where that is not all there is."""
        return self.validated if self.validated < self._validation else None

    @property
    def most(self) -> int:
        """Return how many evaluations a search makes at most."""
        space = self.job.stages[-1].space(self.supernet.space)
        return max(FEWEST, min(self.job.search.num_evals, space.size))

    @property
    def fewest(self) -> int:
        """Return how many evaluations a search makes at least."""
        return min(LEAST_EVALUATIONS + FOR_A_TARGET * self.winners, self.most)

    @property
    def at_once(self) -> int:
        """Sub-networks that are evaluated at the same time; of the workers of a cluster nobody knows."""
        executor = self.job.search.executor
        return (executor.processes or 1) if executor is not None else team.size()

    @property
    def after_training(self) -> float:
        """Beside the evaluations of the search and the steps of the winners, all that comes after the training."""
        probing = self.winners * self.times.probing
        return (
            self.delivered(self.winners)
            + probing
            + self.samples * self._informing
            + self._measured(self.measured_quicker.latency)
        )

    def delivered(self, winners: int) -> float:
        """For the export, and for the accuracies before and after a fine-tuning."""
        return Probe(self.job, self.supernet).delivery(winners, self.times) + winners * self.evaluation

    # Importance from data.

    @property
    def samples(self) -> int:
        """So many training samples tell what the search begins with."""
        affordable = INFORMED * self._budget / max(self._informing, 1e-9)
        return int(min(max(affordable, LEAST_SAMPLES), FIRST))

    @property
    def _informing(self) -> float:
        """For the importance from one sample: a training step of the whole network, and a loss without each block.

        Before a loss come the statistics. The whole network takes twice as long as what stands in for the winners.
        """
        passes = 2 if self.job.num_bn_adaptation_samples else 1
        return 2 * self.times.sample * (3 + passes * (len(self.supernet.space.blocks) + 1))

    # Latencies, before and after a search.

    @property
    def measured_quicker(self) -> Job:
        """The job, whose latencies are measured in the most thorough way that there is time for."""
        ways = [quickened(self.job, way) for way in QUICKER]
        return next((one for one in ways if self._measured(one.latency) <= MEASURED * self._budget), ways[-1])

    def _measured(self, settings: LatencySettings) -> float:
        """For latency models, for what lies near each target that is on a latency, and for its candidates.

        Other latencies count as if they were measured as thoroughly as the first one.
        """
        near = TRIES * (2 if self.supernet.space.blocks else 1)
        candidates = (near + FEW) * sum(one.name in self.job.clocks for one in self.job.targets.values())
        loaded = settings.turns * (settings.subnets + candidates) * (1 + 1 / GROUP)
        return loaded * (self.times.loading + self.times.run * (3 * settings.warmup + settings.runs))

    @property
    def _budget(self) -> float:
        return math.inf if self.job.budget is None else self.job.budget

    # Without a budget the super-network is validated after each epoch.

    @property
    def watching(self) -> float:
        """Of the validation after an epoch of the training: some sub-networks, each recalibrated."""
        count: int = min(self.job.training.get("watch", WATCHED) + 2, self.supernet.space.size)
        samples = self.job.recipe.num_bn_adaptation_samples + self._validation
        return count * (self.times.evaluation + self.times.sample * samples)

    # Space on the disk.

    @property
    def disk(self) -> int:
        """Bytes of all files that the run leaves.

        Two copies of the weights for the original and the super-network, two checkpoints of the training with what the
        optimizer keeps, and for each network one set of weights as a module, one as ONNX and a quarter of one in int8;
        with fine-tuning one set more, and the checkpoints of the winner.
        """
        whole = sum(one.numel() * one.element_size() for one in self.supernet.model.state_dict().values())
        kept = whole * OPTIMIZER.get(self.job.recipe.optimizer, 1)
        network = whole * (2 + (self.job.int8 is not None) / 4)
        part = PART * self.winners
        tuned = 0 if self.job.tuning is None else self.winners * (2 * whole + kept) + part * whole
        return int(REPORT + 2 * whole + 2 * whole + kept + network * (1 + part) + tuned)


def disk_free(folder: Path) -> int | None:
    """Return the bytes that are free where `folder` is, or will be; None where nobody can tell."""
    place = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None
