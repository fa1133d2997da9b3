"""Forecast the time and disk space that a run needs besides the steps and evaluations of its phases."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bnas.run import team
from bnas.run.job import Job
from bnas.run.latencies import quickened
from bnas.run.search import FIRST
from bnas.run.winners.choice import Effort
from bnas.run.winners.winners import FEW
from bnas.runtime import LatencySettings, SuperNetwork
from bnas.runtime.latency.measurement import GROUP
from bnas.search.beginning import TRIES

from . import budget
from .budget import CHOSEN, INFORMED, MEASURED, QUICKER
from .probe import Probe, Times, samples_in

WATCHED = 3
"""Number of random sub-networks in a validation (default of `bnas.Trainer`), besides the maximal and the minimal."""
OPTIMIZER = {"sgd": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""How many numbers each optimizer keeps per weight."""
PART = 0.5
"""Assumed share of the original's weights that a winner has on average."""
REPORT = 2_000_000
"""Assumed bytes of the report with its pictures and tables."""
LEAST_SAMPLES = 64
"""Least number of training samples to measure importance on."""
LEAST_VALIDATION = 128
"""Least number of validation samples: with 128, an accuracy of 90 % has a standard error of 2.7 points."""
LEAST_EVALUATIONS, FOR_A_TARGET = 4, 4
"""Least number of evaluations, and additional ones per target: with fewer, a search skips some of its first ones."""
LEAST_CANDIDATES = 3
"""With time for fewer candidates, winners are not chosen again."""
FEWEST = 4
"""Smallest value of `SearchSettings.num_evals`."""


def adapting(job: Job, times: Times) -> float:
    """Return the seconds to recalibrate the trained super-network, twice (two copies are written)."""
    return 2 * times.sample * job.recipe.num_bn_adaptation_samples


def expected_winners(job: Job) -> int:
    """Return the expected number of winners: one for each target; without targets "best" and "smallest"."""
    return len(job.targets) or 2


@dataclass(frozen=True)
class Forecast:
    """Predicted durations in seconds, and the numbers that follow from them."""

    job: Job
    supernet: SuperNetwork
    times: Times
    winners: int
    """Expected number of winners."""

    @cached_property
    def evaluation(self) -> float:
        """Seconds of one evaluation in the search."""
        samples = self.job.num_bn_adaptation_samples + self.validated
        return self.times.evaluation + self.times.sample * samples

    @cached_property
    def validated(self) -> int:
        """Number of validation samples of an evaluation.

        Normally all; fewer if even the least number of evaluations would exceed the search's share of the budget.
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
        """`validated`, or None if these are all validation samples."""
        return self.validated if self.validated < self._validation else None

    @property
    def most(self) -> int:
        """Largest number of evaluations in the search."""
        space = self.job.stages[-1].space(self.supernet.space)
        return max(FEWEST, min(self.job.search.num_evals, space.size))

    @property
    def fewest(self) -> int:
        """Least number of evaluations in the search."""
        return min(LEAST_EVALUATIONS + FOR_A_TARGET * self.winners, self.most)

    @property
    def at_once(self) -> int:
        """Number of sub-networks that are evaluated at the same time; 1 for a cluster, whose size is unknown."""
        executor = self.job.search.executor
        return (executor.processes or 1) if executor is not None else team.size()

    @property
    def after_training(self) -> float:
        """Seconds of everything after the training, except evaluations of the search and steps of the fine-tuning."""
        probing = self.winners * self.times.probing
        informing, measuring = self.samples * self._informing, self._measured(self.measured_quicker.latency)
        return self.after_search + probing + informing + measuring

    @property
    def after_search(self) -> float:
        """Return the seconds of everything after the search, except steps of the fine-tuning."""
        return self.delivered(self.winners) + (self.winners - 1) * self.choosing

    def delivered(self, winners: int) -> float:
        """Return the seconds for the export, and for measuring accuracies before and after a fine-tuning."""
        return Probe(self.job, self.supernet).delivery(winners, self.times) + winners * self.evaluation

    # Importance from data.

    @property
    def samples(self) -> int:
        """Number of training samples for the importance that determines the first sub-networks of the search."""
        return self._affordable(INFORMED * self._budget)

    def _affordable(self, seconds: float) -> int:
        """Return the number of samples for one measurement of importance in this time."""
        return int(min(max(seconds / max(self._informing, 1e-9), LEAST_SAMPLES), FIRST))

    @property
    def _informing(self) -> float:
        """Seconds to measure importance on one sample: a training step of the whole network, and a loss per block.

        Before each loss, BatchNorm is recalibrated. The whole network is assumed to take twice the time of the
        sub-network that stands in for the winners.
        """
        passes = 2 if self.job.num_bn_adaptation_samples else 1
        return 2 * self.times.sample * (3 + passes * (len(self.supernet.space.blocks) + 1))

    # The choice of smaller winners during the fine-tuning.

    @cached_property
    def effort(self) -> Effort | None:
        """How thoroughly each smaller winner is chosen again; None if not at all, for example for lack of time."""
        shared = self.job.tuning is not None and self.job.tuning.order == "shared"
        if not (shared and self.job.targets) or self.winners < 2:
            return None
        one, all_together = CHOSEN
        half, most = self._budget * min(one, all_together / (self.winners - 1)) / 2, Effort().candidates
        affordable = most if math.isinf(half) else int(half / max(self.evaluation, 1e-9))
        if affordable < LEAST_CANDIDATES:
            return None
        return Effort(self._affordable(half), min(affordable, most, self.most))

    @property
    def choosing(self) -> float:
        """Seconds of one of these choices, except latency measurements; the choice is evaluated once more."""
        if self.effort is None:
            return 0.0
        return self.effort.samples * self._informing + (self.effort.candidates + 1) * self.evaluation

    # Latencies, before and after a search.

    @property
    def measured_quicker(self) -> Job:
        """The job with the most thorough latency settings that there is time for."""
        ways = [quickened(self.job, way) for way in QUICKER]
        return next((one for one in ways if self._measured(one.latency) <= MEASURED * self._budget), ways[-1])

    def _measured(self, settings: LatencySettings) -> float:
        """Return the seconds of all latency measurements: for models, near each latency target, and of its candidates.

        All latencies are assumed to be measured as thoroughly as the first one.
        """
        near = TRIES * (2 if self.supernet.space.blocks else 1)
        candidates = (near + FEW) * sum(one.name in self.job.clocks for one in self.job.targets.values())
        loaded = settings.turns * (settings.subnets + candidates) * (1 + 1 / GROUP)
        return loaded * (self.times.loading + self.times.run * (3 * settings.warmup + settings.runs))

    @property
    def _budget(self) -> float:
        return math.inf if self.job.budget is None else self.job.budget

    # Without a budget, the super-network is validated after each epoch.

    @property
    def watching(self) -> float:
        """Seconds of the validation after a training epoch: some sub-networks, each with recalibrated BatchNorm."""
        count: int = min(self.job.training.get("watch", WATCHED) + 2, self.supernet.space.size)
        samples = self.job.recipe.num_bn_adaptation_samples + self._validation
        return count * (self.times.evaluation + self.times.sample * samples)

    # Space on the disk.

    @property
    def disk(self) -> int:
        """Bytes of all files of the run.

        These are: the weights of the original and of the super-network, two checkpoints of the training with the state
        of the optimizer, and for each network the weights as a module, as ONNX and (a quarter) in int8. Fine-tuning
        adds one more set of weights and checkpoints for each winner.
        """
        whole = sum(one.numel() * one.element_size() for one in self.supernet.model.state_dict().values())
        kept = whole * OPTIMIZER.get(self.job.recipe.optimizer, 1)
        network = whole * (2 + (self.job.int8 is not None) / 4)
        part = PART * self.winners
        tuned = 0 if self.job.tuning is None else self.winners * (2 * whole + kept) + part * whole
        return int(REPORT + 2 * whole + 2 * whole + kept + network * (1 + part) + tuned)


def disk_free(folder: Path) -> int | None:
    """Return the free bytes on the disk of `folder`, which need not exist yet; None if unknown."""
    place = next((one for one in (folder, *folder.absolute().parents) if one.is_dir()), None)
    try:
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None
