"""The search section of a configuration: BootstrapNAS's keys mean what they mean there."""

from __future__ import annotations

from typing import Any

import pytest

from bnas.config.file import parse_configuration
from bnas.config.section import ConfigurationError
from bnas.config.settings import search_of
from bnas.search import NSGA2, RNSGA2, RandomSearch, SearchSettings

BASE = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}}


def section(**search: Any) -> SearchSettings:
    return search_of(parse_configuration({**BASE, "bootstrapNAS": {"search": search}}, "file"))


def own(**search: Any) -> SearchSettings:
    return search_of(parse_configuration({**BASE, "search": search}, "file"))


def test_defaults_are_those_of_the_layout() -> None:
    assert own() == search_of(parse_configuration(BASE, "file")) == SearchSettings()
    assert section() == SearchSettings(algorithm=NSGA2(population=40), num_evals=3000)


def test_aspiration_points_are_in_the_peers_units() -> None:
    settings = section(algorithm="RNSGA2", aspiration_points=[[60, -93.5]], weights=[0.2, 0.8], epsilon=0.01)
    expected = RNSGA2(  # accuracy as a fraction, MACs
        population=40, aspiration_points=[[0.935, 6e7]], weights=(0.8, 0.2), epsilon=0.01
    )
    assert settings.algorithm == expected
    points = {"name": "RNSGA2", "aspiration_points": [[0.935, 6e7]]}
    assert own(algorithm=points).algorithm == RNSGA2(aspiration_points=[[0.935, 6e7]])


def test_an_algorithm_has_a_name_and_settings() -> None:
    assert section(algorithm="random", num_evals=8) == SearchSettings(algorithm=RandomSearch(population=8), num_evals=8)
    assert own(algorithm="random") == SearchSettings(algorithm=RandomSearch())
    named = {"name": "NSGA2", "population": 8, "predictor": True}
    assert own(algorithm=named, num_evals=8) == SearchSettings(
        algorithm=NSGA2(population=8, predictor=True), num_evals=8
    )


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        ({"algorithm": {"name": "RNSGA2"}}, r"search\.algorithm\.aspiration_points is missing; Points near which"),
        ({"algorithm": {"name": "NSGA2", "aspiration_points": [[0, 0]]}}, "'aspiration_points' belongs to search.algo"),
        (
            {"algorithm": {"name": "random", "populaton": 8}},
            "populaton is not a key of bnas; did you mean 'popul",
        ),
        ({"algorithm": {"population": 8}}, "must have a name"),
        ({"algorithm": 5}, r"algorithm is 5: must be bnas.NSGA2\(...\), .* or a name: 'NSGA2', 'RNSGA2' or 'random'"),
        ({"algorithm": "NSGA3"}, "algorithm is 'NSGA3': must be 'NSGA2', 'RNSGA2' or 'random'; did you mean 'NSGA2'"),
        (
            {"num_evals": 8, "algorithm": {"name": "NSGA2", "population": 9}},
            "num_evals is 8: smaller than the population of 9",
        ),
        ({"algorithm": {"name": "NSGA2", "predictor": 3}}, r"algorithm\.predictor is 3: must be true or false"),
        ({"workers": 2}, "search.workers is not a key of bnas; there are algorithm, num_evals, seed, constraints, rac"),
    ],
)
def test_wrong_keys_of_our_own_layout_are_named(search: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        own(**search)


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        ({"algorithm": "RNSGA2"}, "aspiration_points and the algorithm 'RNSGA2' need each other"),
        ({"aspiration_points": [[0, 0]]}, "aspiration_points and the algorithm"),
        ({"algorithm": "NSGA3"}, "algorithm is 'NSGA3'"),
        ({"aspiration_point": [[0, 0]]}, "did you mean 'aspiration_points'"),
        ({"algorithm": "RNSGA2", "aspiration_points": [0, 0]}, "aspiration_points"),
        ({"algorithm": "random", "predictor": True}, "has no use with the algorithm 'random'"),
    ],
)
def test_wrong_keys_and_values_are_named(search: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        section(**search)
