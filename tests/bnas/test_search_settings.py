"""The search section of a configuration: BootstrapNAS's keys mean what they mean there."""

from __future__ import annotations

from typing import Any

import pytest

from bnas.configuration_file import parse_configuration
from bnas.section import ConfigurationError
from bnas.settings import searching


def section(**search: Any) -> dict[str, Any]:
    data = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}, "bootstrapNAS": {"search": search}}
    return searching(parse_configuration(data, "file").bootstrapNAS.search)


def test_defaults_are_those_of_plain_nsga2() -> None:
    settings = section()
    assert settings["algorithm"] == "NSGA2"
    assert "aspiration_points" not in settings
    assert settings["predictor"] is False


def test_aspiration_points_are_in_the_peers_units() -> None:
    settings = section(algorithm="RNSGA2", aspiration_points=[[60, -93.5]], weights=[0.2, 0.8], epsilon=0.01)
    assert settings["aspiration_points"] == [[0.935, 6e7]]  # accuracy as a fraction, MACs
    assert settings["weights"] == (0.8, 0.2)
    assert settings["epsilon"] == 0.01


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        ({"algorithm": "RNSGA2"}, "aspiration_points belong to the algorithm 'RNSGA2', which needs them"),
        ({"aspiration_points": [[0, 0]]}, "aspiration_points belong"),
        ({"algorithm": "NSGA3"}, "algorithm is 'NSGA3'"),
        ({"aspiration_point": [[0, 0]]}, "did you mean 'aspiration_points'"),
        ({"algorithm": "RNSGA2", "aspiration_points": [0, 0]}, "aspiration_points"),
    ],
)
def test_wrong_keys_and_values_are_named(search: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        section(**search)
