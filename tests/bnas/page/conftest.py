"""The super-network of the recorded runs whose pages are tested, and such a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_cases import small, write_run

from bnas.runtime import SuperNetwork


@pytest.fixture(scope="module")
def supernet() -> SuperNetwork:
    return small()


@pytest.fixture
def run(supernet: SuperNetwork, tmp_path: Path) -> Path:
    """The folder of a finished run, to be changed."""
    write_run(tmp_path / "run", supernet, profiled=True)
    return tmp_path / "run"
