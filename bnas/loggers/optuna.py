"""Searches as studies of Optuna, for its dashboard and its plots: `pip install 'bnas[optuna]'`."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bnas.search import Callback
from bnas.search.objectives import violation

from .logger import LoggerError, library

if TYPE_CHECKING:
    from bnas.passes import SearchSpace, Subnet
    from bnas.search import Constraint, Evaluation, Objective, Search, SearchRecord, SearchResult


def to_optuna(result: SearchResult, storage: Any, study_name: str = "bnas", *, space: SearchSpace | None = None) -> Any:
    """Write the evaluations of a search into a study of Optuna, and return the study.

    Each evaluation becomes a trial, in the same order. Its parameters are ``width NAME`` and ``kernel NAME`` (sizes)
    and ``depth NAME`` (whether the block is kept), its values those of the objectives. Constraints are Optuna's, so
    that ``study.best_trials`` is ``result.pareto()``. User attributes are ``subnet`` (as JSON, for
    `bnas.Subnet.from_json`), ``evaluation`` (its index), and the other values. A failed evaluation is a failed trial.
    Evaluations that the study already has are left out: call the function again while a search goes on.

    Args:
        result: the result of a search; for a running search,
            ``SearchResult.checked(objectives, EvaluationLog.read(path))``.
        storage: what ``optuna.create_study`` takes, such as "sqlite:///search.db".
        study_name: name of the study; it is made if there is none.
        space: what was searched, for the ranges of the parameters; by default they span the evaluated sub-networks.

    Raises:
        LoggerError: Optuna is not installed, or the study is of another search.
    """
    choices = _seen([one.subnet for one in result.evaluations]) if space is None else _of(space)
    study = _Study(storage, study_name, result.objectives, choices)
    for one in result.evaluations:
        study.add(one, result.constraints)
    return study.study


class Optuna(Callback):
    """Writes the evaluations of a search into a study of Optuna as they are made: as `to_optuna` does in the end.

    ``optuna-dashboard STORAGE`` shows them. A resumed search goes on with the study that it has.

    Args:
        storage: what ``optuna.create_study`` takes, such as "sqlite:///search.db".
        study_name: name of the study; it is made if there is none.

    Raises:
        LoggerError: Optuna is not installed, or, from the methods, the study is of another search.
    """

    def __init__(self, storage: Any, study_name: str = "bnas") -> None:
        library("optuna", "optuna")
        self.storage, self.study_name = storage, study_name
        self._study: _Study | None = None

    def on_search_start(self, search: Search) -> None:
        """Make the study, or load it."""
        self._study = _Study(self.storage, self.study_name, search.objectives, _of(search.space))

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Add a trial, unless the study has it."""
        assert self._study is not None
        self._study.add(record.evaluation, record.result.constraints)


Choices = Mapping[tuple[str, str], tuple[int, ...]]
"""The possible values of each variable, by its kind and name; a block has 0 and 1."""


def _of(space: SearchSpace) -> Choices:
    return {(one.kind, one.name): one.choices for one in space.variables()}


def _seen(subnets: Sequence[Subnet]) -> Choices:
    """Return the values that sub-networks have chosen; a block that none of them skips is unknown."""
    found: dict[tuple[str, str], set[int]] = {}
    for one in subnets:
        for kind, sizes in (("width", one.widths), ("kernel", one.kernels)):
            for name, size in sizes.items():
                found.setdefault((kind, name), set()).add(size)
        for name in one.skipped:
            found[("depth", name)] = {0, 1}
    return {key: tuple(sorted(sizes)) for key, sizes in sorted(found.items())}


class _Study:
    """A study with evaluations as its trials."""

    def __init__(self, storage: Any, name: str, objectives: Iterable[Objective], choices: Choices) -> None:
        self._optuna, self._objectives, self._choices = library("optuna", "optuna"), tuple(objectives), choices
        self._name = name
        directions = ["minimize" if one.direction == "min" else "maximize" for one in self._objectives]
        names = [one.name for one in self._objectives]
        self.study = self._optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            if [one.name.lower() for one in self.study.directions] != directions or (
                self.study.trials and self.study.metric_names != names
            ):
                raise self._of_another(f"its objectives are not {', '.join(names)}")
            self.study.set_metric_names(names)
        self._there = {one.user_attrs.get("evaluation"): one.user_attrs.get("subnet") for one in self.study.trials}

    def _of_another(self, reason: str) -> LoggerError:
        return LoggerError(f"the study {self._name!r} is of another search ({reason}); give another study_name")

    def add(self, evaluation: Evaluation, constraints: Sequence[Constraint]) -> None:
        """Add the trial of an evaluation, unless the study has it."""
        subnet = json.dumps(evaluation.subnet.to_json())
        if evaluation.index in self._there:
            if self._there[evaluation.index] != subnet:
                raise self._of_another(f"evaluation {evaluation.index} is of another sub-network")
            return
        attributes = {"evaluation": evaluation.index, "subnet": subnet}
        told: dict[str, Any] = {"state": self._optuna.trial.TrialState.FAIL}
        if evaluation.failure is None:
            values = evaluation.values
            told = {"values": [values[one.name] for one in self._objectives]}
            told["system_attrs"] = {"constraints": [violation([one], values) for one in constraints]}
            attributes |= {name: value for name, value in values.items()}
        else:
            attributes["failure"] = evaluation.failure
        trial = self._optuna.trial.create_trial(**told, **self._parameters(evaluation.subnet), user_attrs=attributes)
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=evaluation.seconds)
        self.study.add_trial(trial)

    def _parameters(self, subnet: Subnet) -> dict[str, Any]:
        """Return the choices of the sub-network, and their distributions."""
        sizes = {"width": subnet.widths, "kernel": subnet.kernels}
        params: dict[str, Any] = {}
        distributions: dict[str, Any] = {}
        for (kind, name), choices in self._choices.items():
            key = f"{kind} {name}"
            if kind == "depth":
                params[key] = name not in subnet.skipped
                distributions[key] = self._optuna.distributions.CategoricalDistribution([False, True])
                continue
            step = math.gcd(*(after - before for before, after in pairwise(choices))) or 1
            params[key] = sizes[kind].get(name, choices[-1])
            distributions[key] = self._optuna.distributions.IntDistribution(choices[0], choices[-1], step=step)
        return {"params": params, "distributions": distributions}
