"""Searches as studies of Optuna: the same front, found by Optuna, from a search that ended or that goes on."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from logger_cases import OBJECTIVES, SPACE, Stop, search

from bnas.loggers import LoggerError, Optuna, to_optuna
from bnas.passes import Subnet
from bnas.search import EvaluationLog, Objective, SearchResult

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def journal(path: Path) -> Any:
    """A storage in a file, read anew: what another process finds."""
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def check_equal(study: Any, result: SearchResult) -> None:
    """The study has the evaluations, and Optuna finds the same front."""
    assert [one.user_attrs["evaluation"] for one in study.trials] == [one.index for one in result.evaluations]
    for trial, one in zip(study.trials, result.evaluations, strict=True):
        assert Subnet.from_json(json.loads(trial.user_attrs["subnet"])) == one.subnet
        assert (trial.state.name == "FAIL") == (one.failure is not None)
        assert trial.values == (None if one.failure else [one.values["accuracy"], one.values["macs"]])
    front = {one.user_attrs["evaluation"] for one in study.best_trials}
    assert front == {one.index for one in result.pareto()}
    assert 1 < len(front) < len(result.evaluations) - 1


def test_optuna_reads_the_same_front_from_a_file(tmp_path: Path) -> None:
    result, _ = search()
    to_optuna(result, journal(tmp_path / "journal.log"), "mine", space=SPACE)
    study = optuna.load_study(study_name="mine", storage=journal(tmp_path / "journal.log"))
    check_equal(study, result)
    assert [one.name for one in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in some versions of Optuna the names are experimental
        assert study.metric_names == ["accuracy", "macs"]


def test_without_its_constraint_the_front_is_another_one() -> None:
    result, _ = search()
    free = SearchResult(result.objectives, result.evaluations)
    study = to_optuna(free, optuna.storages.InMemoryStorage())
    front = {one.user_attrs["evaluation"] for one in study.best_trials}
    assert front == {one.index for one in free.pareto()} != {one.index for one in result.pareto()}


def test_a_sqlite_file_holds_the_study(tmp_path: Path) -> None:
    result, _ = search()
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    few = SearchResult(result.objectives, result.evaluations[:5], result.constraints)
    to_optuna(few, storage)
    study = optuna.load_study(study_name="bnas", storage=storage)
    assert {one.user_attrs["evaluation"] for one in study.best_trials} == {one.index for one in few.pareto()}


def test_parameters_are_the_choices_of_the_space() -> None:
    result, _ = search()
    study = to_optuna(result, optuna.storages.InMemoryStorage(), space=SPACE)
    trial = study.trials[0]
    assert trial.params == {"depth block": True, "width body": 12, "width stem": 24}
    assert trial.distributions["width stem"] == optuna.distributions.IntDistribution(8, 24, step=8)
    assert trial.distributions["width body"] == optuna.distributions.IntDistribution(4, 12, step=2)
    assert trial.distributions["depth block"] == optuna.distributions.CategoricalDistribution([False, True])
    seen = to_optuna(result, optuna.storages.InMemoryStorage())
    assert [one.params for one in seen.trials] == [one.params for one in study.trials]
    assert seen.trials[0].distributions == trial.distributions
    assert {"accuracy", "macs", "subnet", "evaluation"} == set(trial.user_attrs)


def test_a_search_is_there_while_it_goes_on_and_is_gone_on_with() -> None:
    storage, log = optuna.storages.InMemoryStorage(), EvaluationLog()
    with pytest.raises(KeyboardInterrupt):
        search(Optuna(storage), Stop(evaluations=6), log=log)
    assert len(optuna.load_study(study_name="bnas", storage=storage).trials) == 6
    result, _ = search(Optuna(storage), log=log)
    check_equal(optuna.load_study(study_name="bnas", storage=storage), result)
    to_optuna(result, storage)
    check_equal(optuna.load_study(study_name="bnas", storage=storage), result)


def test_the_study_of_another_search_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    result, _ = search()
    to_optuna(result, storage)
    accuracy = OBJECTIVES[0]
    for objectives in ((accuracy,), (accuracy, Objective("macs", "max")), (Objective("macs", "max"), accuracy)):
        told = r"study 'bnas' is of another search \(its objectives are not .*\); give another study_name"
        with pytest.raises(LoggerError, match=told):
            to_optuna(SearchResult(objectives, result.evaluations), storage)
    swapped = tuple(replace(one, subnet=Subnet({"stem": 1})) for one in result.evaluations)
    with pytest.raises(LoggerError, match="evaluation 0 is of another sub-network"):
        to_optuna(SearchResult(OBJECTIVES, swapped), storage)
    check_equal(to_optuna(result, storage), result)


def test_missing_optuna_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for made in (lambda: Optuna("sqlite://"), lambda: to_optuna(search()[0], "sqlite://")):
        with pytest.raises(LoggerError, match=r"optuna cannot be imported \(.*\): pip install 'bnas\[optuna\]'"):
            made()
