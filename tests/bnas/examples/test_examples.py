"""The examples on real data, where it is there."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[3] / "examples"
DATA = os.environ.get("BNAS_CIFAR10", "")


def cifar(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "cifar10_resnet.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_cifar_example_says_what_it_misses(tmp_path: Path) -> None:
    done = cifar("--data", str(tmp_path), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "resnet20_cifar10.pt: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr


def small_data(folder: Path) -> None:
    """One picture many times over, and an untrained model."""
    from cifar10 import HELD_OUT, ResNet

    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    picture = np.frombuffer(file.getvalue(), dtype=np.uint8)
    for split, count in (("train", HELD_OUT + 256), ("test", 100)):
        offsets, labels = len(picture) * np.arange(count + 1), np.arange(count) % 10
        np.savez(folder / f"cifar10_{split}.npz", jpeg=np.tile(picture, count), offsets=offsets, labels=labels)
    torch.save(ResNet(20).state_dict(), folder / "resnet20_cifar10.pt")


@pytest.mark.parametrize("recipe", ["short", pytest.param("front", marks=pytest.mark.slow)])
def test_cifar_example_runs_on_little(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    small_data(tmp_path)
    few = ["--epochs", "1", "--tune-epochs", "1", "--evals", "4"]
    done = cifar("--data", str(tmp_path), "--output", str(tmp_path / "out"), "--recipe", recipe, *few)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    if recipe == "short":
        named = ["original", "maximal, trained", "winner of the search", "winner, fine-tuned"]
        assert [row["name"] for row in rows] == named
        assert rows[-1]["macs"] < rows[0]["macs"] / 1.37
        assert (tmp_path / "out" / "winner.onnx").is_file()
    else:
        assert rows[-1]["name"] == "maximal"


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="BNAS_CIFAR10 does not name a folder with the images and weights of the example")
def test_cifar_example_runs(tmp_path: Path) -> None:
    done = cifar("--data", DATA, "--output", str(tmp_path / "out"), "--epochs", "1", "--tune-epochs", "1")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert rows[0]["test_accuracy"] > 0.87
    assert rows[-1]["test_accuracy"] > 0.8
    assert rows[-1]["macs"] < rows[0]["macs"] / 1.37


def test_two_targets_give_two_winners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small_data(tmp_path)
    few = ["--samples", "128", "--evals", "12", "--output", str(tmp_path / "out")]
    command = [sys.executable, str(EXAMPLES / "two_targets.py"), "--data", str(tmp_path), *few]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, server, phone = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert (server["name"], phone["name"]) == ("for_server", "for_phone")
    for row in (server, phone):
        for name in ("server", "phone"):
            assert row["latencies"][name]["median_ms"] < first["latencies"][name]["median_ms"]
    assert (tmp_path / "out" / "targets.png").stat().st_size > 5000
    assert list((tmp_path / "cache").rglob("*.json")), "what the program told is remembered"


def test_latency_example_measures_its_front(tmp_path: Path) -> None:
    script, out = str(EXAMPLES / "latency_search.py"), tmp_path / "out"
    small = ["--epochs", "1", "--evals", "5", "--fitted", "6"]
    done = subprocess.run(
        [sys.executable, script, "--output", str(out), *small], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "front.csv").read_text().splitlines()))
    assert rows
    assert all(float(row[key]) > 0 for row in rows for key in ("predicted_ms", "measured_ms"))
    picture = ElementTree.parse(out / "front.svg").getroot()
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 2 * len(rows)
    assert len(json.loads((out / "latency.json").read_text())["measured"]) == 6
    assert len(json.loads((out / "search.json").read_text())["evaluations"]) == 5
