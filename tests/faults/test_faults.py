"""A small part of `make faults`: what is disturbed is told of and gone on with; and a spoilt bnas is found out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The problems of all samples and twins, from one process of its own: it forks."""
    result = tmp_path_factory.mktemp("faults") / "found.json"
    subprocess.run([sys.executable, HERE / "sample.py", result], check=True, cwd=HERE)
    return json.loads(result.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("harness", ["inject", "kills", "damage", "pairs"])
def test_what_is_disturbed_is_told_of_and_gone_on_with(found: dict[str, Any], harness: str) -> None:
    assert found[harness] == []


@pytest.mark.parametrize(
    ("twin", "what"),
    [
        ("forgives", "exit code 0, and pareto.json is missing"),
        ("writes in place", "pareto.json is half"),
        ("begins otherwise", "training.json differs"),
        ("believes", "uses it silently"),
        ("holds nothing", ""),
    ],
)
def test_a_spoilt_bnas_is_found_out(found: dict[str, Any], twin: str, what: str) -> None:
    assert any(what in one["what"] for one in found[twin])
