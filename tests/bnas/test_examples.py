"""The examples on real data, where it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = os.environ.get("BNAS_CIFAR10", "")


def cifar(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "cifar10_resnet.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_cifar_example_says_what_it_misses(tmp_path: Path) -> None:
    done = cifar("--data", str(tmp_path), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "resnet20_cifar10.pt: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="BNAS_CIFAR10 does not name a folder with the images and weights of the example")
def test_cifar_example_runs(tmp_path: Path) -> None:
    done = cifar("--data", DATA, "--output", str(tmp_path / "out"), "--epochs", "1", "--tune-epochs", "1")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert rows[0]["test_accuracy"] > 0.87
    assert rows[-1]["test_accuracy"] > 0.8
    assert rows[-1]["macs"] < rows[0]["macs"] / 1.37
