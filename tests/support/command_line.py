"""The command line, called in the process of a test, on a small model and data in files of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

NET = """
import os
import torch
from torch import nn
import bnas

class Net(nn.Module):
    def __init__(self, num_classes=3, width=16):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.body, self.last = nn.Conv2d(width, 12, 3, padding=1), nn.Conv2d(12, width, 3, padding=1)
        self.head = nn.Linear(width, num_classes)
    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.last(torch.relu(self.body(x))) + x).mean((2, 3)))

class Batches(list):
    drawn = 0
    def __iter__(self):
        for batch in super().__iter__():
            Batches.drawn += 1
            if Batches.drawn == int(os.environ.get("STOP_AT", 0)):
                raise KeyboardInterrupt
            yield batch

def data(classes=3, batch_size=12):
    generator = torch.Generator().manual_seed(0)
    def batches(count):
        labels = torch.arange(batch_size) % classes
        images = labels.view(-1, 1, 1, 1) + torch.randn(batch_size, 1, 6, 6, generator=generator)
        return Batches([(images, labels) for _ in range(count)])
    Batches.drawn = 0
    return bnas.Splits(batches(4), batches(1), batches(1))
"""
TRAINING = {
    "memory_format": "contiguous",
    "elasticity": {"width": {"min_width": 4, "divisor": 4}},
    "schedule": {"list_stage_descriptions": [{"epochs": 2}]},
    "batchnorm_adaptation": {"num_bn_adaptation_samples": 12},
}
SEARCH = {"num_evals": 6, "population": 4, "batchnorm_adaptation": {"num_bn_adaptation_samples": 12}}
CONFIG = {
    "model": "net.py:Net",
    "weights": "net.pt",
    "data": "net.py:data",
    "input_info": {"sample_size": [1, 1, 6, 6]},
    "latency": {"runs": 2},
    "bootstrapNAS": {"training": TRAINING, "search": SEARCH},
}


def write_files(folder: Path, **changes: Any) -> None:
    """A model, its weights, data and a configuration."""
    import torch

    from bnas.data.sources import load_model

    (folder / "net.py").write_text(NET)
    torch.manual_seed(0)
    torch.save(load_model("net.py:Net", None, folder).state_dict(), folder / "net.pt")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def bnas(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``bnas`` with these arguments."""
    from bnas.cli.app import main

    monkeypatch.setattr(sys, "argv", ["bnas", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


class Called:
    """Calls ``bnas``, which is to end with `code`: its output; of one that is to fail, the error.

    With `joined` the words are in one line, however the terminal broke them.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], joined: bool = False
    ) -> None:
        self.monkeypatch, self.capsys, self.joined = monkeypatch, capsys, joined

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self.capsys.readouterr()
        found = bnas(self.monkeypatch, *arguments)
        out, err = self.capsys.readouterr()
        assert found == code, err
        said = err if code else out
        return " ".join(said.split()) if self.joined else said


def told_by(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code of ``bnas`` with these arguments, and what it says on the error stream: never a stack trace."""
    capfd.readouterr()
    code = bnas(monkeypatch, *arguments)
    text = capfd.readouterr().err
    assert "Traceback" not in text
    return code, text


def found(run: Path) -> list[Any]:
    """What the evaluations of a run are, without the time that they took."""
    lines = (run / "evaluations.jsonl").read_text().splitlines()[1:]
    return [(one["subnet"], one["values"]) for one in map(json.loads, lines)]
