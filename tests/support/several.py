"""Commands of bnas with several processes, on a small model and data in files of their own."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import safetensors.torch

NET = """
import os
import signal
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import bnas

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 3)
        self.body, self.last = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.last(torch.relu(self.body(x))) + x).mean((2, 3)))

class Images(TensorDataset):
    drawn = 0
    def __getitem__(self, place):
        rank, what, at, run = os.environ.get("DISTURBED", "- - 0 -").split()
        Images.drawn += os.path.exists(f"{run}/training/last/training.json")  # what is tried before does not count
        if rank == os.environ.get("RANK", "0") and Images.drawn == int(at):
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt if what == "stop" else ValueError("this image is torn")
        return super().__getitem__(place)

def data():
    Images.drawn = 0
    generator = torch.Generator().manual_seed(0)
    def part(kind, count):
        labels = torch.arange(count) % 3
        images = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1))[labels]
        return kind(images + torch.randn(count, 1, 6, 6, generator=generator), labels)
    train = DataLoader(part(Images, 45), 12, shuffle=True)  # the last batch has 9: 5 and 4
    return bnas.Splits(train, *(DataLoader(part(TensorDataset, 60), 20) for _ in range(2)))
"""
CONFIG = {
    "model": "net.py:Net",
    "data": "net.py:data",
    "input_info": {"sample_size": [1, 1, 6, 6]},
    "elasticity": {"min_width": 4, "divisor": 4},
    "stages": [{"epochs": 3, "init_lr": 0.2}],
    "recipe": {"memory_format": "contiguous", "num_bn_adaptation_samples": 0},
    "checkpoint_every": 1,
    "num_bn_adaptation_samples": 0,
    "search": {"num_evals": 12, "algorithm": {"name": "NSGA2", "population": 6}},
    "targets": {"most": "macs <= 80 %", "few": "macs <= 40 %"},
    "fine_tune": {"epochs": 1},
    "latency": {"runs": 2},
    "export": {"int8": False},
}


def write_files(folder: Path) -> None:
    """A model, its data and a configuration."""
    (folder / "net.py").write_text(NET)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def torchrun(folder: Path, *arguments: str, disturbed: str = "- - 0 -") -> subprocess.CompletedProcess[str]:
    """``bnas`` with these arguments, as two processes.

    `disturbed` says which of them is stopped or killed or gets an error, and at which image after the first step of the
    training in which folder.
    """
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "DISTURBED": disturbed}
    command = [*start, "--no-python", sys.executable, "-c", "from bnas.cli import main; main()", *arguments]
    with subprocess.Popen(command, cwd=folder, env=here, stdout=PIPE, stderr=PIPE, text=True) as started:
        try:
            out, error = started.communicate(timeout=480)
        except subprocess.TimeoutExpired:
            started.terminate()  # torchrun then ends its processes
            raise
    return subprocess.CompletedProcess(command, started.returncode, out, error)


def evaluations(run: Path) -> list[dict[str, str]]:
    """What the search of a run found, without the time that it took."""
    with (run / "evaluations.csv").open(encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def apart(first: Path, second: Path, name: str) -> float:
    """The largest difference between the weights of two runs; `name` is a pattern."""
    found: list[Any] = [safetensors.torch.load_file(next(run.glob(name))) for run in (first, second)]
    assert found[0].keys() == found[1].keys()
    return max(float((found[0][key] - found[1][key]).abs().max()) for key in found[0])
