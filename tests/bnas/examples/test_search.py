"""The examples that let other libraries search a super-network run, and are short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("name", ["pymoo", "optuna"])
def test_example_prints_a_front_and_is_short(name: str) -> None:
    path = EXAMPLES / f"search_with_{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40
    command = [sys.executable, str(path), "--evals", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [re.fullmatch(r"(\d+\.\d+) M MACs, accuracy (\d\.\d+)", line) for line in done.stdout.splitlines()]
    assert 1 <= len(rows) <= 4
    assert all(rows)
    points = [(float(row[1]), float(row[2])) for row in rows if row]
    assert points == sorted(points)  # on a front, what costs more is more accurate
