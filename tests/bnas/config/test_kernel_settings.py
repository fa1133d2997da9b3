"""The kernel keys of a configuration file: those of BootstrapNAS and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import bnas
from bnas.config.file import parse_configuration
from bnas.config.section import ConfigurationError
from bnas.run import runner
from bnas.run.job import Job


def read(monkeypatch: pytest.MonkeyPatch, training: dict[str, Any]) -> Job:
    """The job that a configuration file with this training section stands for."""
    monkeypatch.setattr(runner, "load_model", lambda *_, **__: nn.Identity())
    monkeypatch.setattr(runner, "load_data", lambda *_, **__: bnas.Splits([], [], []))
    base = {"model": "m", "data": "d", "input_info": {"sample_size": [1, 3]}}
    configuration = parse_configuration({**base, "bootstrapNAS": {"training": training}}, "file")
    return runner.job_of(configuration, Path())


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ({}, (3, None)),
        ({"max_num_kernels": -1}, (3, None)),
        ({"max_num_kernels": 2}, (3, 2)),
        ({"min_kernel": 1}, (1, None)),
    ],
)
def test_kernel_keys_are_settings(
    monkeypatch: pytest.MonkeyPatch, kernel: dict[str, int], expected: tuple[int, int | None]
) -> None:
    elasticity = read(monkeypatch, {"elasticity": {"kernel": kernel}}).elasticity
    assert (elasticity.min_kernel, elasticity.max_num_kernels) == expected
    assert "kernel" in elasticity.dimensions


def test_kernel_is_a_dimension_of_elasticity_and_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [{"train_dims": ["kernel"]}, {}]
    elasticity = {"available_elasticity_dims": ["depth", "width"]}
    job = read(monkeypatch, {"schedule": {"list_stage_descriptions": stages}, "elasticity": elasticity})
    assert "kernel" not in job.elasticity.dimensions
    assert [stage.train_dims for stage in job.stages] == [("kernel",), None]  # None: all that are elastic
    assert [stage.train_dims for stage in read(monkeypatch, {}).stages] == [("depth", "kernel"), None]
    assert [stage.train_dims for stage in read(monkeypatch, {}).stages] == [stage.train_dims for stage in Job.stages]


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ({"max_num_kernels": 0}, "kernel.max_num_kernels is 0"),
        ({"max_num_kernels": -2}, "kernel.max_num_kernels is -2"),
        ({"max_num_kernel": 2}, "did you mean 'max_num_kernels'"),
        ({"min_kernel": 0}, "kernel.min_kernel is 0"),
    ],
)
def test_wrong_kernel_keys_are_told(monkeypatch: pytest.MonkeyPatch, kernel: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        read(monkeypatch, {"elasticity": {"kernel": kernel}})
