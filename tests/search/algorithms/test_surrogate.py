"""A predictor saves evaluations where values can be predicted, and costs little where they cannot."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bnas.passes import SearchSpace, Subnet
from bnas.search import NSGA2, Objective, RandomSearch, Searcher, SearchError, SearchResult, SearchSettings
from bnas.search.algorithms.surrogate import GaussianProcess

SPACE = SearchSpace({f"w{i}": (2, 3, 4) for i in range(12)}, tuple(f"b{i}" for i in range(4)))
OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))
CORNER = {"accuracy": 0.0, "macs": 2.0}


def measured(subnet: Subnet) -> dict[str, float]:
    """Like a network: each width and block adds accuracy with a return that diminishes, at a cost of its own."""
    genes = np.array(SPACE.encode(subnet), dtype=float)
    worth, cost = np.sin(np.arange(16) * 7) ** 2 + 0.1, np.cos(np.arange(16) * 5) ** 2 + 0.2
    return {"accuracy": float(1 - np.exp(-(genes @ worth) / 5)), "macs": float(genes @ cost / (cost.sum() * 2))}


def search(count: int, algorithm: NSGA2 | RandomSearch, seed: int = 0) -> SearchResult:
    settings = SearchSettings(algorithm=algorithm, num_evals=count, seed=seed)
    return Searcher(SPACE, measured, OBJECTIVES, settings).run()


@pytest.mark.parametrize("seed", [0, 1])
def test_half_the_evaluations_reach_what_plain_search_reaches(seed: int) -> None:
    plain, predicted = search(160, NSGA2(), seed), search(80, NSGA2(predictor=True), seed)
    assert predicted.hypervolume(CORNER) >= plain.hypervolume(CORNER)
    half = SearchResult(plain.objectives, plain.evaluations[:80])
    assert half.hypervolume(CORNER) < plain.hypervolume(CORNER)


class Wrong:
    """Always predicts the same."""

    def fit(self, x: Any, y: Any) -> None:
        self.mean = float(np.mean(y))

    def predict(self, x: Any) -> Any:
        return np.full(len(x), self.mean)


def test_predictor_that_knows_nothing_still_finds_more_than_chance() -> None:
    informed, chance = search(120, NSGA2(predictor=Wrong())), search(120, RandomSearch())
    assert informed.hypervolume(CORNER) > chance.hypervolume(CORNER)


def test_process_predicts_a_trend_and_a_deviation() -> None:
    x = np.random.default_rng(0).random((60, 3))
    y = x @ [1.0, 2.0, -1.0] + 0.3 * np.sin(6 * x[:, 0])
    process = GaussianProcess()
    process.fit(x[:40], y[:40])
    error = np.abs(process.predict(x[40:]) - y[40:]).mean()
    assert error < 0.05 < np.abs(y[40:] - y[:40].mean()).mean()


def test_missing_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SearchError, match=r"pip install 'bnas\[surrogate\]'"):
        GaussianProcess()


def test_predictor_is_of_no_use_to_random_search() -> None:
    with pytest.raises(SearchError, match="predictor is not a setting of RandomSearch; there are name, population"):
        RandomSearch(predictor=True)  # type: ignore[call-arg]
