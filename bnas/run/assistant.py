"""The work of the other processes of a run: the parts that process 0 orders, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch

from bnas.passes import Subnet
from bnas.runtime import Bar, FineTune, Recipe, Stage, SuperNetwork
from bnas.runtime.train import parallel, random_state
from bnas.search import Measures, Objective

from .job import Watch
from .quantised import measured_in_int8
from .spread import share_evaluated
from .steps import Steps
from .winners.tuned import Record
from .winners.tuning import Tuning


class Assistant:
    """Does one process's part of the steps of a run. It reads the run folder and writes nothing.

    Its methods are the orders that `bnas.run.team.ask` sends.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    def prepare(self) -> None:
        """Create the super-network, at the same time as process 0."""
        _ = self._untrained

    @cached_property
    def _untrained(self) -> SuperNetwork:
        random_state.begin_at(self.steps.job.search.seed)
        return self.steps.untrained()

    def exchange(self, sizes: Sequence[int], device: torch.device, steps: int) -> None:
        """Send gradients to and fro, while process 0 measures how long that takes."""
        parallel.exchange(sizes, device, steps)

    def train(self, stages: Sequence[Stage], recipe: Recipe, resume: bool) -> None:
        """Train the super-network together with the others."""
        self.steps.fit(self._untrained, replace(self.steps.job, stages=stages, recipe=recipe), resume)

    def evaluate(
        self, own: tuple[Objective, ...], bars: Mapping[Subnet, Bar] | None, subnets: Sequence[Subnet]
    ) -> None:
        """Evaluate a share of a generation."""
        measured = tuple(measured_in_int8(own, self.steps.in_int8))
        share_evaluated(Measures(self.steps.evaluator, measured, bars), subnets)

    def tune(self, settings: FineTune, record: Record) -> None:
        """Fine-tune the winners together with the others."""
        steps = self.steps
        told = (steps.job, settings, steps.output, Watch(), steps.supernet, steps.original, steps.evaluator)
        Tuning(*told).trained(record)
