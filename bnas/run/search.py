"""The search of a job in its run folder: objectives, constraints, latency models, first sub-networks and winners."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import nn

from bnas.passes import SearchSpace, Subnet
from bnas.passes.errors import add_note
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.ir import as_call
from bnas.runtime import (
    EvaluationError,
    Evaluator,
    Int8,
    LatencyError,
    LatencyModel,
    LatencySettings,
    SuperNetwork,
    TrainingError,
)
from bnas.runtime.evaluate.evaluation import Batch
from bnas.runtime.evaluate.evaluator import ChannelsLast
from bnas.runtime.latency.machine import place_of
from bnas.runtime.latency.measurement import target_for
from bnas.runtime.nested import as_batch, described, device_of, inputs_of, placed
from bnas.runtime.storage.files import there
from bnas.runtime.train import random_state
from bnas.runtime.train.batches import Batches
from bnas.search import Constraint, Evaluation, InfeasibleError, RandomSearch, Searcher, SearchResult
from bnas.search.beginning import Paths
from bnas.search.source import by_name

from .files.names import WINNERS
from .files.output import Output, note_search
from .job import Job, Watch, evaluator_of
from .latencies import file_of
from .quantised import InInt8, measured_in_int8
from .winners.stopwatch import Stopwatch
from .winners.winners import Winners, read_winners

Latencies: TypeAlias = Mapping[str, Callable[[Subnet], float]]
"""Functions that predict latencies, such as `bnas.LatencyModel`, by the names of their values."""

FIRST = 512
"""Number of training samples for the importance at the start of the search."""


@dataclass(frozen=True)
class SearchPlan:
    """The search of `job` on its super-network, in the run folder."""

    job: Job
    output: Output
    watch: Watch
    supernet: SuperNetwork
    in_int8: InInt8 | None = None
    """Measures int8 accuracy, if the search uses it."""

    def searcher(self, evaluator: Evaluator, latencies: Latencies, **told: Any) -> Searcher:
        """Return the searcher, which gets its values from `evaluator` and the needed latency models.

        Raises:
            BnasError: As `bnas.Searcher`.
        """
        job = self.job
        given: dict[str, Callable[[Subnet], float]] = {**latencies, **by_name(job.search.latency)}
        settings = replace(job.search, space=self.space, latency=given, constraints=(*self.constraints, *self.loosest))
        return Searcher(self.supernet, evaluator, measured_in_int8(job.sought, self.in_int8), settings, **told)

    def check(self) -> None:
        """Check the settings of the search, and the user's metric and loss, before anything is trained."""
        check_task(self.job)
        expected: Any = {name: lambda _: 0.0 for name in self.wanted}
        measured = replace(self, in_int8=InInt8(evaluator_of(self.job, self.supernet, None, ()), Int8()))
        measured.searcher(evaluator_of(self.job, self.supernet, None, ()), expected)

    def paths(self, samples: Sequence[Batch]) -> Paths:
        """Return the pruning paths of the super-network, by importance on training samples."""
        return Paths(self.supernet, samples, self.space, criterion=self.job.training.get("criterion"))

    @property
    def _begins_with_pruning(self) -> bool:
        settings = self.job.search
        return not settings.begin_with and not isinstance(settings.algorithm, RandomSearch)

    def informed(self, paths: Paths, latencies: Latencies) -> SearchPlan:
        """Return the search that begins with pruned sub-networks, unless the settings have `begin_with`."""
        job = self.job
        if not self._begins_with_pruning:
            return self
        bounds = self._bounds(latencies)
        count = job.search.population // (6 if bounds else 3)
        first = paths.sizes(bounds, latencies, count)
        return replace(self, job=replace(job, search=replace(job.search, begin_with=first)))

    def _bounds(self, latencies: Iterable[str]) -> list[Constraint]:
        """Return the upper bounds of the job on costs and on predictable latencies."""
        asked = [*self.job.targets.values(), *self.constraints]
        return [one for one in asked if one.sense == "<=" and self.foreseen(one, latencies)]

    def foreseen(self, bound: Constraint, latencies: Iterable[str]) -> bool:
        """Whether a bound is on a cost or on a predictable latency, which need no evaluation."""
        return bound.name in {*self.supernet.cost_model.expressions, *latencies}

    @property
    def space(self) -> SearchSpace:
        """The searched space: that of the last stage."""
        return self.job.stages[-1].space(self.supernet.space)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints of the search."""
        return tuple(map(Constraint.of, self.job.search.constraints))

    @property
    def loosest(self) -> tuple[Constraint, ...]:
        """The loosest target, if all targets are in one unit; larger sub-networks need no evaluation."""
        targets = list(self.job.targets.values())
        one_unit = len({(one.name, one.relative) for one in targets}) == 1
        return (max(targets, key=lambda one: one.bound),) if one_unit else ()

    def found(self, evaluator: Evaluator, latencies: Latencies, **told: Any) -> SearchResult:
        """Run the search and return its result, even if not even the loosest target can be met.

        Raises:
            BnasError: As `bnas.Searcher`, or if no sub-network meets the constraints of the settings.
        """
        try:
            result = self.searcher(evaluator, latencies, **told).run()
        except InfeasibleError as error:
            result = error.result
        asked = result.constraints[: len(self.constraints)]
        result = replace(result, constraints=asked)
        if message := result.infeasible():
            raise InfeasibleError(message, result)
        return result

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the search."""
        return min(self.job.search.num_evals, self.space.size)

    @property
    def wanted(self) -> dict[str, LatencySettings]:
        """The settings of the latencies that are used somewhere and that no other function returns."""
        asked = {
            *(one.name for one in self.job.sought if one.measure is None),
            *(bound.name for bound in self.constraints),
        }
        given = by_name(self.job.search.latency)
        return {name: one for name, one in self.job.clocks.items() if name in asked and name not in given}

    def latencies(self, paths: Paths) -> dict[str, LatencyModel]:
        """Return the needed latency models: those in the folder (whose predictions are in the log), or new ones.

        New models are fitted to sub-networks of all sizes, and to pruned sub-networks near the bounds of latencies.

        Raises:
            LatencyError: as `bnas.LatencyModel.load` and `bnas.LatencyModel.fit`.
        """
        return {name: self._latency(name, one, paths) for name, one in self.wanted.items()}

    @property
    def fitted(self) -> Latencies:
        """The functions that predict latencies after a search: models in the folder, and those that the user gave."""
        found = {name: self._fitted_before(name, settings) for name, settings in self.wanted.items()}
        return {**found, **by_name(self.job.search.latency)}

    def _latency(self, name: str, settings: LatencySettings, paths: Paths) -> LatencyModel:
        path = self.output.path(file_of(name))
        if there(path):
            return self._fitted_before(name, settings)
        model = LatencyModel.fit(self.supernet, settings)
        if self._begins_with_pruning:
            model = self._fitted_near(name, model, paths)
        model.save(path)
        return model

    def _fitted_before(self, name: str, settings: LatencySettings) -> LatencyModel:
        """Load the latency model in the folder, if there is one."""
        try:
            model = LatencyModel.load(self.output.ledger.check(file_of(name)), self.supernet, settings.target)
            if told := model.settings.difference(settings):
                raise LatencyError(f"{self.output.folder / file_of(name)}: was fitted under other conditions ({told})")
        except LatencyError as error:
            add_note(error, f"to fit a new one here and search again: `bnas search {self.output.folder} --overwrite`")
            raise
        return model

    def _fitted_near(self, name: str, model: LatencyModel, paths: Paths) -> LatencyModel:
        """Return the model, fitted also to sub-networks near the bounds of this latency."""
        for bound in self._bounds([name]):
            if bound.name == name:
                limit = bound.resolved({name: model(self.supernet.space.maximal())}).bound
                model = model.extended(paths.measured(limit, model, partial(_measured, model)))
        return model

    def note(self, reference: float, samples: int) -> None:
        """Write ``search.json``; `samples` is the number of validation samples of an evaluation."""
        job = self.job
        note_search(
            self.output,
            job.sought,
            self.constraints,
            self.supernet.costs(self.space.maximal()),
            job.targets,
            latencies={name: place_of(target_for(one).describe()) for name, one in self.wanted.items()},
            reference=reference,
            reference_of=job.reference if isinstance(job.reference, str) else None,
            acc_delta=job.acc_delta,
            evaluations=self.evaluations,
            samples=samples,
            metric=job.quality.to_json(),
        )

    def front(self, result: SearchResult) -> list[dict[str, Any]]:
        """The Pareto front as plain data for a JSON file."""
        return [{"values": dict(one.values), "subnet": one.subnet.to_json()} for one in result.pareto()]

    def winners(self, result: SearchResult, latencies: Latencies, reference: float) -> Winners:
        """Choose the winners: the most accurate sub-network within each target, or "best" and "smallest"."""
        job, by = self.job, self.job.chosen_by
        if job.targets:
            known = self.maximal(result.evaluations, latencies), self.stopwatches()
            tuned = job.tuning is not None
            found = Winners.within(result, job.targets, *known, reference, job.acc_delta, tuned=tuned, by=by)
        else:
            found = Winners.of(result, reference, job.acc_delta, by)
        whole_space, maximal = len(result.evaluations) >= self.space.size, result.evaluations[0].values.get(by)
        return replace(found, whole_space=whole_space, maximal=maximal)

    def maximal(self, evaluations: Sequence[Evaluation], latencies: Latencies) -> Mapping[str, float]:
        """Return the known values of the maximal sub-network, also if its evaluation, the first one, failed."""
        maximal = self.supernet.space.maximal()
        predicted = {name: model(maximal) for name, model in latencies.items()}
        evaluated = evaluations[0].values if evaluations else {}
        return {**self.supernet.costs(maximal), **predicted, **evaluated}

    def stopwatches(self) -> dict[str, Stopwatch]:
        """Return a stopwatch for each predicted latency, with the measurements that were made for earlier winners."""
        watches = {name: Stopwatch(self.supernet, one) for name, one in self.wanted.items()}
        if there(self.output.folder / WINNERS):
            before = read_winners(self.output).measured
            for name in before.keys() & watches.keys():
                watches[name].recall(before[name])
        return watches


def check_task(job: Job) -> None:
    """Try the user's metric on a validation batch and the loss on a training batch, before the training.

    A metric that fails on one batch is measured on all. (The area under a curve, for example, needs both classes.) The
    loss sees training targets only: those of validation may have another form, such as the marks of anomalies where an
    autoencoder learns to return its inputs.

    Raises:
        EvaluationError: The metric fails on all validation data.
        TrainingError: The criterion fails on that batch.
    """
    criterion = job.training.get("criterion")
    if job.quality.metric is None and criterion is None:
        return
    with random_state.undisturbed(job.data.validation):
        first = list(islice(ChannelsLast(job.data.validation, inputs_of(job.model), "the validation data"), 1))
    model = deep_copy(job.model).eval()
    try:
        job.quality.measure(model, first)
    except EvaluationError:
        with random_state.undisturbed(job.data.validation):
            job.quality.measure(model, job.data.validation)
    if criterion is not None:
        _check_criterion(criterion, model, Batches(job.data.train).first())


def _check_criterion(criterion: Callable[[Any, Any], Any], model: nn.Module, batch: Batch) -> None:
    inputs, targets = placed(as_batch(batch, inputs_of(model)), device_of(model))
    tensors, named = as_call(inputs)
    try:
        with torch.no_grad():
            criterion(model(*tensors, **named), targets)
    except Exception as error:
        told = f"on outputs of the model and targets {described(targets)}: {type(error).__name__}: {error}"
        raise TrainingError(f"the criterion fails {told}; it is called as criterion(outputs, targets)") from error


def _measured(model: LatencyModel, subnet: Subnet) -> float:
    """Return the measured milliseconds of a sub-network; measure only if the model has no measurement."""
    known = model.measured.get(subnet)
    return model.measure([subnet])[0] if known is None else known
