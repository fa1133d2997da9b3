"""The plan of a run with a budget, made before the first phase and updated before each later one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from bnas.passes import Subnet
from bnas.run.files.mark import OutputError
from bnas.run.files.output import Output
from bnas.run.job import Job, Watch
from bnas.run.search import SearchPlan
from bnas.run.winners.choice import Effort
from bnas.run.winners.tuned import in_order
from bnas.run.winners.winners import Again, Chosen, Winners
from bnas.runtime import Epochs, Evaluator, FineTune, SuperNetwork
from bnas.runtime.evaluate.evaluation import Loader, spread_samples
from bnas.runtime.feed import in_memory
from bnas.runtime.storage.files import there, write_json
from bnas.runtime.train import random_state
from bnas.runtime.train.timing import Clock

from .budget import USEFUL_STEPS, Phase, Plan, divide, latest, least_seconds, pace_of
from .forecast import Forecast, adapting, disk_free, expected_winners
from .probe import Probe, Times

MOST_DRIFT = 2.0
"""A training that took longer than planned by more than this factor was disturbed; later phases need not be."""


def file_of(phase: str) -> str:
    """Return the file name, in the run folder, of the plan of a phase."""
    return f"plan/{phase}.json"


@dataclass
class Planner:
    """Divides the budget of a job, and saves the plan of each phase, so that a resumed run has the same numbers."""

    job: Job
    output: Output
    watch: Watch
    began: float
    """Start time of this process, by `clock`."""
    clock: Clock = time.perf_counter
    carried: float = field(init=False)
    """Seconds used by earlier processes."""

    def __post_init__(self) -> None:
        self.carried, self.times = self._recorded("train", "search", "tune"), Times()
        self._here: set[str] = set()
        self._each: list[float] = []
        self._choosing = 0.0
        self._winners: list[Any] = []

    @property
    def budget(self) -> float:
        """Seconds of the whole run."""
        assert self.job.budget is not None
        return self.job.budget

    @property
    def spent(self) -> float:
        """Seconds used so far."""
        return self.carried + self.clock() - self.began

    # Each phase is planned when it begins.

    def train(self, supernet: SuperNetwork) -> Job:
        """Return the job with as many epochs and samples per epoch as the budget allows.

        Raises:
            BudgetError: The budget is too small; the message has the smallest possible budget.
        """
        known = self._planned("train", lambda: self.first(supernet))["epochs"]
        epochs = Epochs(tuple(known["stages"]), known["steps"], known["train_steps"])
        counted = zip(self.job.stages, epochs.stages, strict=True)
        stages = [replace(stage, epochs=count, epochs_lr=None) for stage, count in counted]
        return replace(self.job, stages=stages, recipe=epochs.shortened(self.job.recipe))

    def search(self, supernet: SuperNetwork) -> tuple[Job, int]:
        """Return the job with as many evaluations, and as thorough latency measurements, as there is time for.

        The second result is the number of training samples for the importance at the start of the search.
        """
        found = self._planned("search", lambda: self._before_search(supernet))
        count, self.times = found["count"], Times(**found["times"])
        algorithm = self.job.search.algorithm
        if algorithm.population is not None and algorithm.population > count:
            algorithm = replace(algorithm, population=count)
        search = replace(self.job.search, algorithm=algorithm, num_evals=count)
        forecast = self._forecast(supernet)
        return replace(forecast.measured_quicker, search=search), forecast.samples

    def validation(self) -> Loader:
        """Return the validation data of the search; if fewer samples were planned, these are spread evenly over all."""
        found, data = self._read("search") or {}, in_memory(self.job.data.validation)
        count = found.get("samples")
        return data if count is None else spread_samples(data, count)

    def tune(
        self, supernet: SuperNetwork, evaluator: Evaluator, original: nn.Module, winners: Winners
    ) -> tuple[FineTune, Effort | None]:
        """Return the settings of the fine-tuning that there is time for, and how smaller winners are chosen again."""
        self._forget_others(list(in_order(winners, supernet)))
        planned = self._planned("tune", lambda: self._before_tuning(supernet, evaluator, original, winners))
        steps, self.times = planned["epochs"], Times(**planned["times"])
        settings = replace(self._settings, epochs=steps["stages"][0], train_steps=steps["train_steps"])
        return settings, self._forecast(supernet).effort

    def _forget_others(self, subnets: Sequence[Subnet]) -> None:
        """Remove the plan of a fine-tuning of other winners; these get the time that the others had."""
        found, self._winners = self._read("tune"), [one.to_json() for one in subnets]
        if found is not None and found.get("winners", len(found["each"])) not in (self._winners, len(subnets)):
            self.output.ledger.remove(self.output.ledger.removable([file_of("tune")]))
            self.carried = self._recorded("train", "search") + self.began - self.clock()

    def pace(self, place: int) -> float:
        """Return the factor for the training length of the winner at this place; a resumed winner keeps its factor."""
        found = self._read("tune")
        if place == len(found["paces"]):
            steps = sum(found["epochs"]["stages"]) * found["epochs"]["steps"]
            planned, known = [steps * one for one in found["each"]], [one["pace"] for one in found["paces"]]
            choices = found.get("choices", [])
            saved = len(choices) * found.get("choosing", 0.0) - sum(choices)
            taken = self.spent - found["spent"] - sum(choices)
            pace = pace_of(planned, known, taken, found["seconds"] + saved)
            found["paces"].append({"pace": pace, "spent": self.spent})
            write_json(self.output.path(file_of("tune")), found)
        return float(found["paces"][place]["pace"])

    def timed(self, again: Again | None) -> Again | None:
        """Return the choice of smaller winners; the time that it takes less than planned goes to their training."""
        if again is None:
            return None

        def measured(*given: Any) -> Chosen | None:
            start = self.spent
            chosen = again(*given)
            found = self._read("tune")
            choices = [*found.get("choices", ()), self.spent - start]
            write_json(self.output.path(file_of("tune")), {**found, "choices": choices})
            return chosen

        return measured

    def ended(self, phase: str) -> None:
        """Note the end of a phase. If an earlier process did a part of it, at least the planned time is counted."""
        found = self._read(phase)
        if found is None or found["ended"] is not None:
            return
        spent = self.spent if phase in self._here else max(self.spent, found["spent"] + found["seconds"])
        self.carried += spent - self.spent
        write_json(self.output.path(file_of(phase)), {**found, "ended": spent})

    # The plans.

    def first(self, supernet: SuperNetwork) -> Plan:
        """Return the plan of the whole run, before anything is trained."""
        self.times = times = self._probed(supernet)
        train = Phase("train", times.step, least=len(self.job.stages), useful=USEFUL_STEPS)
        forecast = self._forecast(supernet)
        needed = forecast.after_training + adapting(self.job, times)
        plan = self._divided([train, *self._others(forecast)], needed, strict=True)
        return replace(plan, disk=forecast.disk, free=disk_free(self.output.folder))

    def _before_search(self, supernet: SuperNetwork) -> Plan:
        """Plan with the first measurements; if the training took longer than planned, all times are scaled up."""
        self.times = self._known("train", supernet).scaled(self._drift)
        forecast = self._forecast(supernet)
        return self._divided(self._others(forecast), forecast.after_training)

    def _before_tuning(
        self, supernet: SuperNetwork, evaluator: Evaluator, original: nn.Module, winners: Winners
    ) -> Plan:
        """Plan with measured steps of the winners themselves."""
        probe, self.times = Probe(self.job, supernet, self.clock), self._known("search", supernet)
        subnets = list(in_order(winners, supernet))
        if self._settings.order == "shared":
            self._each, made = probe.tune_step(self._settings, subnets, original), 0.0
        else:
            self._each, made = probe.tune_alone(self._settings, subnets, original, evaluator)
        forecast = Forecast(self.job, supernet, self.times, len(subnets))
        self._choosing = forecast.choosing
        return self._divided([Phase("tune", sum(self._each))], forecast.after_search + made)

    def _others(self, forecast: Forecast) -> list[Phase]:
        """Return the phases after the training."""
        each = forecast.evaluation / forecast.at_once
        search = Phase("search", each, forecast.fewest, forecast.most, forecast.part)
        return [search, Phase("tune", expected_winners(self.job) * self.times.tune)]

    def _forecast(self, supernet: SuperNetwork) -> Forecast:
        return Forecast(self.job, supernet, self.times, expected_winners(self.job))

    def _probed(self, supernet: SuperNetwork) -> Times:
        wanted = SearchPlan(self.job, self.output, self.watch, supernet).wanted
        return Probe(self.job, supernet, self.clock).times(self._settings, wanted.values())

    def _known(self, phase: str, supernet: SuperNetwork) -> Times:
        """Return the times that were measured when a phase was planned."""
        found = self._read(phase)
        if found is None:
            return self._probed(supernet)
        return Times(**found["times"])

    @property
    def _drift(self) -> float:
        """Return by which factor the training took longer than planned, if this process did all of it."""
        found = self._read("train")
        if found is None or found["ended"] is None or "train" not in self._here:
            return 1.0
        planned = found["seconds"] + adapting(self.job, Times(**found["times"]))
        taken: float = (found["ended"] - found["spent"]) / planned
        return min(max(taken, 1 / MOST_DRIFT), MOST_DRIFT)

    def _divided(self, phases: Sequence[Phase], fixed: float, *, strict: bool = False) -> Plan:
        """Divide the time that is left; if it is too short in the middle of a run, every phase gets its least."""
        spent = self.spent
        left = self.budget - spent
        if not strict:
            left = max(left, math.nextafter(least_seconds(phases) + fixed, math.inf))
        elif left < least_seconds(phases) + fixed:
            divide(self.budget, phases, fixed + spent)  # raises an error with the smallest budget of the whole run
        return Plan(self.budget, spent, divide(left, phases, fixed), fixed)

    @property
    def _settings(self) -> FineTune:
        settings = self.job.tuning
        assert settings is not None
        return settings

    # Saved plans.

    def _recorded(self, *phases: str) -> float:
        """Return the latest time in the plans of phases, in seconds since the start of the run."""
        return max((latest(found) for name in phases if (found := self._read(name)) is not None), default=0.0)

    def _planned(self, phase: str, make: Callable[[], Plan]) -> dict[str, Any]:
        """Return the plan of a phase, made by an earlier process or now."""
        found: dict[str, Any] | None = self._read(phase)
        if found is not None:
            return found
        with random_state.undisturbed(self.job.data.train):
            plan = make()
        if self.watch.on_plan is not None:
            self.watch.on_plan(plan)
        own = next(one for one in plan.phases if one.name == phase)
        made = {
            **plan.to_json(),
            "times": asdict(self.times),
            "count": own.count,
            "samples": own.samples,
            "seconds": own.seconds,
            "ended": None,
        }
        if phase != "search":
            made["epochs"] = asdict(self._epochs(phase, own.count))
        if phase == "tune":
            made |= {"winners": self._winners, "each": self._each, "choosing": self._choosing, "paces": []}
        write_json(self.output.path(file_of(phase)), made)
        self._here.add(phase)
        return made

    def _epochs(self, phase: str, steps: int) -> Epochs:
        stages = [one.epochs for one in self.job.stages] if phase == "train" else [1]
        return Epochs.of(steps, self.job.data.train, stages, self.job.recipe.accumulate)

    def _read(self, phase: str) -> Any:
        """Read the saved plan of a phase; None if there is none."""
        name = file_of(phase)
        if not there(self.output.folder / name):
            return None
        data = self.output.ledger.json(name)
        own = {"each", "paces"} if phase == "tune" else set()
        if not (isinstance(data, dict) and {"spent", "ended", "count", "seconds", "times", *own} <= data.keys()):
            raise OutputError(
                f"{self.output.folder / name} is damaged: it has no plan; move it away to make a new plan"
            )
        return data
