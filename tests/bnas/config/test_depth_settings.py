"""The keys of ``elasticity.depth`` and of stages, as BootstrapNAS's configurations spell them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bnas.config.configuration import Configuration
from bnas.config.file import parse_configuration
from bnas.config.section import ConfigurationError, ConfigurationWarning
from bnas.config.settings import elasticity_of, job_settings

PAIR = ["ResNet/Sequential[layer1]/Bottleneck[1]/ReLU[relu]/relu__2", "layer1.2"]


def read(depth: Any, **stage: Any) -> Configuration:
    training = {"elasticity": {"depth": depth}, "schedule": {"list_stage_descriptions": [stage]}}
    data = {
        "model": "m",
        "data": "d",
        "input_info": {"sample_size": [1, 3, 8, 8]},
        "bootstrapNAS": {"training": training},
    }
    return parse_configuration(data, "a test")


def test_all_keys_arrive() -> None:
    depth = {"min_block_size": 6, "max_block_size": 20, "hw_fused_ops": False, "skipped_blocks": [PAIR, "layer2.1"]}
    found = elasticity_of(read(depth), Path())
    assert (found.min_block_size, found.max_block_size, found.hw_fused_ops) == (6, 20, False)
    assert found.skipped_blocks == (tuple(PAIR), "layer2.1")


def test_nothing_is_listed_or_bounded_by_default() -> None:
    found = elasticity_of(read({}), Path())
    assert (found.min_block_size, found.max_block_size, found.hw_fused_ops, found.skipped_blocks) == (
        None,
        None,
        True,
        None,
    )


def test_a_stage_has_its_depth_indicator() -> None:
    assert [stage.depth_indicator for stage in job_settings(read({}, depth_indicator=2), Path())["stages"]] == [2]
    with pytest.raises(ConfigurationError, match=r"depth_indicator is 0: must be greater than or equal to 1"):
        read({}, depth_indicator=0)


def test_the_mode_of_a_published_configuration_says_nothing() -> None:
    with pytest.warns(ConfigurationWarning, match=r"depth\.mode has no effect"):
        assert elasticity_of(read({"mode": "manual", "skipped_blocks": [PAIR]}), Path()).skipped_blocks == (
            tuple(PAIR),
        )


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigurationError, match="skipped_block is not a key of bnas; did you mean 'skipped_blocks'"):
        read({"skipped_block": [PAIR]})
    with pytest.raises(ConfigurationError, match="skipped_blocks"):
        read({"skipped_blocks": [["a", "b", "c"]]})
    with pytest.raises(ConfigurationError, match="max_block_size is 8: must not be smaller than min_block_size 9"):
        read({"min_block_size": 9, "max_block_size": 8})
