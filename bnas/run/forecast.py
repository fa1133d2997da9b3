"""What a run will need beside the steps and evaluations of its phases, from what was probed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bnas.runtime import LatencySettings, SuperNetwork
from bnas.runtime.latency.measurement import GROUP
from bnas.search.beginning import TRIES

from .budget import INFORMED, MEASURED, QUICKER
from .job import Job
from .latencies import quickened
from .probe import Probe, Times, samples_in
from .search import FIRST
from .winners import FEW

LEAST_SAMPLES = 64
"""Fewer say little of importance."""


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
        samples = self.job.num_bn_adaptation_samples + samples_in(self.job.data.validation)
        return self.times.evaluation + self.times.sample * samples

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
        return Probe(self.job, self.supernet).delivery(winners, self.times.sample) + winners * self.evaluation

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
        assert self.job.budget is not None
        return self.job.budget
