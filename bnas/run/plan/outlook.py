"""The plan of a run without a budget: the job determines the work, and its duration is measured once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bnas.passes.errors import BnasError
from bnas.run.files.names import HISTORY
from bnas.run.files.output import Output
from bnas.run.job import Job, Watch
from bnas.run.search import FIRST, SearchPlan
from bnas.run.winners.choice import Effort
from bnas.run.winners.tuning import as_planned
from bnas.run.winners.winners import Again
from bnas.runtime import FineTune, SuperNetwork
from bnas.runtime.evaluate.evaluation import Loader
from bnas.runtime.feed import in_memory
from bnas.runtime.storage.files import there
from bnas.runtime.train import random_state
from bnas.runtime.train.batches import Batches

from .budget import Plan, Planned
from .forecast import Forecast, adapting, disk_free, expected_winners
from .probe import Probe, Times

PHASES = ("train", "search", "tune")
"""The phases in order, all keys of `bnas.run.plan.budget.SHARES`."""


@dataclass
class Outlook:
    """Plans a job without a budget: every phase is as the job says.

    The plan is reported once, before the first phase of this process. It is only made if `Watch.on_plan` is set,
    because measuring the steps takes time.
    """

    job: Job
    output: Output
    watch: Watch
    _told: bool = field(default=False, init=False)
    pace = staticmethod(as_planned)

    def train(self, supernet: SuperNetwork) -> Job:
        """Return the job."""
        self._tell(supernet, PHASES)
        return self.job

    def search(self, supernet: SuperNetwork) -> tuple[Job, int]:
        """Return the job, and the number of training samples for the importance at the start of the search."""
        self._tell(supernet, PHASES[1:])
        return self.job, FIRST

    def validation(self) -> Loader:
        """Return all validation data."""
        data: Loader = in_memory(self.job.data.validation)
        return data

    def tune(self, supernet: SuperNetwork, *_: Any) -> tuple[FineTune, Effort]:
        """Return the job's settings of fine-tuning; smaller winners are chosen again as thoroughly as possible."""
        self._tell(supernet, PHASES[2:])
        assert self.job.fine_tune is not None
        return self.job.fine_tune, Effort()

    def timed(self, again: Again | None) -> Again | None:
        """Return the choice of smaller winners as it is."""
        return again

    def ended(self, _: str) -> None:
        """Do nothing: no later phase depends on how long this one took."""

    def _tell(self, supernet: SuperNetwork, phases: Sequence[str]) -> None:
        told, self._told = self._told, True
        if self.watch.on_plan is None or told:
            return
        try:
            with random_state.undisturbed(self.job.data.train):
                plan = self.plan(supernet, phases)
        except BnasError:
            return  # no plan: the failed sub-network may not matter, and a phase that fails reports it itself
        self.watch.on_plan(plan)

    def plan(self, supernet: SuperNetwork, phases: Sequence[str] = PHASES) -> Plan:
        """Return the remaining work of these phases and of the export, with measured times."""
        times = self._measured(supernet, phases)
        forecast = Forecast(self.job, supernet, times, expected_winners(self.job))
        made = {"train": self._training, "search": self._searching, "tune": self._tuning}
        planned = tuple(made[name](forecast) for name in phases if name != "tune" or self.job.fine_tune is not None)
        fixed = forecast.after_training if "search" in phases else forecast.after_search
        free = disk_free(self.output.folder)
        return Plan(None, 0.0, tuple(one for one in planned if one.count), fixed, forecast.disk, free)

    def _measured(self, supernet: SuperNetwork, phases: Sequence[str]) -> Times:
        wanted = SearchPlan(self.job, self.output, self.watch, supernet).wanted if "search" in phases else {}
        return Probe(self.job, supernet).times(self.job.fine_tune, wanted.values(), training="train" in phases)

    # The remaining work of each phase, without what an interrupted process has done already.

    def _training(self, forecast: Forecast) -> Planned:
        recipe, history = self.job.recipe, self._history()
        steps = Batches(self.job.data.train, recipe.accumulate, recipe.train_steps).steps
        epochs = max(0, sum(one.epochs for one in self.job.stages) - history)
        seconds = epochs * (steps * forecast.times.step + forecast.watching) + adapting(self.job, forecast.times)
        return Planned("train", epochs * steps, seconds)

    def _history(self) -> int:
        """Return how many epochs an interrupted training has finished."""
        if not (self.output.resumed and there(self.output.folder / HISTORY)):
            return 0
        found = self.output.ledger.json(HISTORY)
        return len(found["epochs"]) if isinstance(found, dict) and isinstance(found.get("epochs"), list) else 0

    def _searching(self, forecast: Forecast) -> Planned:
        whole = SearchPlan(self.job, self.output, self.watch, forecast.supernet).evaluations
        done = len(self.output.ledger.evaluations()) if self.output.resumed else 0
        count = max(0, whole - done)
        return Planned("search", count, count * forecast.evaluation / forecast.at_once)

    def _tuning(self, forecast: Forecast) -> Planned:
        settings = self.job.fine_tune
        assert settings is not None
        recipe = settings.recipe(self.job.recipe)
        steps = settings.epochs * Batches(self.job.data.train, recipe.accumulate, recipe.train_steps).steps
        return Planned("tune", steps, steps * forecast.winners * forecast.times.tune)
