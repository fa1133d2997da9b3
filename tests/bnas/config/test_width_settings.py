"""The width keys of a configuration file: those of BootstrapNAS and ours."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from bnas.config.file import parse_configuration
from bnas.config.section import ConfigurationError, ConfigurationWarning
from bnas.config.settings import elasticity_of
from bnas.passes import Elasticity


def read(width: dict[str, Any], elasticity: dict[str, Any] | None = None, **top: Any) -> Elasticity:
    section = {"width": width, **(elasticity or {})}
    base = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}}
    data = {**base, **top, "bootstrapNAS": {"training": {"elasticity": section}}}
    return elasticity_of(parse_configuration(data, "file"), Path("folder"))


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        ({}, {}),
        ({"max_num_widths": -1}, {"max_num_widths": None}),
        ({"width_step": 32, "min_width": 32}, {"width_step": 32, "min_width": 32}),
        ({"width_multiplier": [1, 0.8]}, {"width_multipliers": (1.0, 0.8)}),
        ({"width_multipliers": [1, 0.8]}, {"width_multipliers": (1.0, 0.8)}),
        ({"filter_importance": "geometric mean"}, {"filter_importance": "geometric_median"}),
        ({"overwrite_groups": [["a"]]}, {"overwrite_groups": (("a",),)}),
        ({"widths": {"a": [8, 4]}}, {"widths": {"a": (8, 4)}}),
        (
            {"filter_importance": "external", "external_importance_path": "scores.json"},
            {"filter_importance": "external", "external_importance_path": str(Path("folder/scores.json"))},
        ),
    ],
)
def test_keys_are_settings(width: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(width) == Elasticity(**expected)


def test_scopes_of_both_levels_count() -> None:
    found = read({}, {"ignored_scopes": ["b"], "pin": "c"}, ignored_scopes="a", target_scopes=["d"])
    assert (found.ignored_scopes, found.target_scopes, found.pin) == (("a", "b"), ("d",), ("c",))


def test_what_bootstrapnas_ignored_is_read_with_a_warning() -> None:
    with pytest.warns(ConfigurationWarning, match=r"min_out_channels is read as min_width"):
        assert read({"min_out_channels": 32}).min_width == 32
    with pytest.warns(ConfigurationWarning, match="add_dynamic_inputs has no effect"):
        assert read({"add_dynamic_inputs": ["a"]}) == Elasticity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read({"width_multiplier": [1], "add_dynamic_inputs": None})


@pytest.mark.parametrize(
    ("width", "reason"),
    [
        ({"width_multiplier": [1], "width_multipliers": [1]}, "width_multiplier is another name of width_multipliers"),
        ({"width_multipliers": [1.5]}, r"width_multipliers\[0\] is 1.5: must be less than or equal to 1"),
        ({"width_stp": 8}, r"width_stp is not a key of bnas; did you mean 'width_step'\?"),
        ({"max_num_widths": 0}, "max_num_widths is 0"),
    ],
)
def test_mistakes_are_named(width: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        read(width)
