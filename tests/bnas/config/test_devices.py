"""What a run computes on: names of devices, and a whole run on another device than the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from bnas.config.file import load_config
from bnas.config.section import ConfigurationError
from bnas.config.settings import DeviceError, device_named

SECOND = Path(__file__).parents[2] / "support" / "second_device.py"
NET = """
import torch
from torch import nn
import bnas

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16)
        self.body, self.wide = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 3)
    def forward(self, input):
        x = torch.relu(self.norm(self.stem(input)))
        x = self.body(x) + x
        return self.head(torch.relu(self.wide(torch.cat([x, x], 1))).mean((2, 3)))

class Mixed(Net):
    def forward(self, input):
        return super().forward(input) + torch.tensor([0.0, 1.0, 2.0])

def data():
    generator = torch.Generator().manual_seed(0)
    def batches(count):
        made = range(count)
        return [(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 3) for _ in made]
    return bnas.Splits(batches(3), batches(1), batches(1))
"""
TRAINING = {
    "rule": "sandwich",
    "subnets_per_step": 3,
    "ema_decay": 0.5,
    "clip_norm": 1.0,
    "compression": {"algorithm": "knowledge_distillation", "type": "softmax", "teacher": "original"},
    "schedule": {"list_stage_descriptions": [{"reorg_weights": True, "bn_adapt": True}]},
    "elasticity": {"width": {"min_width": 4, "divisor": 4}},
    "batchnorm_adaptation": {"num_bn_adaptation_samples": 32},
}
SEARCH = {
    "num_evals": 6,
    "population": 4,
    "objectives": [{"name": "accuracy", "direction": "max"}, {"name": "latency", "direction": "min"}],
    "batchnorm_adaptation": {"num_bn_adaptation_samples": 32},
}
CONFIG = {
    "model": "net.py:Net",
    "data": "net.py:data",
    "input_info": {"sample_size": [1, 1, 8, 8]},
    "optimizer": {"type": "AdamW", "base_lr": 0.01, "no_decay_keys": "norm#bias"},
    "latency": {"runs": 3, "subnets": 6},
    "export": {"int8": True, "calibration_samples": 16},
    "bootstrapNAS": {"training": TRAINING, "search": SEARCH},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def bnas(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SECOND), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


needs_a_second_device = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no devices that are written in Python",
)


@needs_a_second_device
def test_a_run_is_on_its_device_throughout_and_finds_there_what_it_finds_on_the_cpu(folder: Path) -> None:
    front = {}
    for device in ("cpu", "second"):
        done = bnas(folder, "run", "config.json", "-o", device, "--set", f"device={device}")
        assert done.returncode == 0, done.stderr
        lines = (folder / device / "evaluations.jsonl").read_text().splitlines()[1:]
        front[device] = {json.dumps(one["subnet"]): one["values"]["accuracy"] for one in map(json.loads, lines)}
        rows = json.loads((folder / device / "report.json").read_text())["rows"]
        assert all(row["int8"]["latency"]["median_ms"] > 0 for row in rows)
    common = front["cpu"].keys() & front["second"].keys()  # measured latencies differ, and with them what is tried
    assert len(common) >= 4
    assert {one: front["cpu"][one] for one in common} == {one: front["second"][one] for one in common}
    done = bnas(folder, "export", "second", "--onnx", "a.onnx", "--set", "device=cpu")
    assert "test accuracy on ONNX Runtime" in done.stdout, done.stderr


@needs_a_second_device
def test_a_model_that_mixes_devices_fails_there(folder: Path) -> None:
    done = bnas(folder, "train", "config.json", "-o", "o", "--set", "device=second", "--set", "model=net.py:Mixed")
    assert done.returncode == 1
    assert "tensors are on second and on the CPU" in done.stderr


def test_the_cpu_is_always_there() -> None:
    assert device_named("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "'gpu' is not a compute device; use cpu"),
        ("meta", "'meta' is not a compute device; use cpu"),
        ("cpu:7", "device 'cpu:7': there are 1 cpu devices, numbered from cpu:0"),
        pytest.param(
            "cuda",
            "device 'cuda': PyTorch .* finds no cuda here; use cpu.*, or install a PyTorch that is built for it",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_devices_that_are_not_there_are_told(name: str, message: str, folder: Path) -> None:
    with pytest.raises(DeviceError, match=message):
        device_named(name)
    with pytest.raises(ConfigurationError, match=f"device: {message}"):
        load_config(folder / "config.json", [f"device={name}"])


@pytest.mark.parametrize(("name", "count", "allowed"), [("cuda:1", 2, True), ("cuda:2", 2, False), ("cuda", 1, True)])
def test_devices_are_counted(name: str, count: int, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if allowed:
        assert device_named(name) == torch.device(name)
    else:
        with pytest.raises(DeviceError, match="there are 2 cuda devices, numbered from cuda:0"):
            device_named(name)
