"""The command line and configuration files: formats, --set, -v, schema and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bnas.cli.app import main

NET = """
import torch
from torch import nn
import bnas

class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, num_classes)
    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + x)
        return self.head(torch.relu(torch.exp(x)).mean((2, 3)))

def data(batch_size):
    torch.manual_seed(0)
    def batches():
        return [(torch.randn(batch_size, 1, 6, 6), torch.randint(3, (batch_size,))) for _ in range(2)]
    return bnas.Splits(batches(), batches(), batches())
"""

CONFIG = """
model: net.py:Net
num_classes: 3  # of the factory
data: net.py:data
batch_size: 6
log_dir: out
input_info: {sample_size: [2, 1, 6, 6]}
bootstrapNAS:
  training:
    elasticity: {width: {min_out_channels: 4, divisor: 4}}
    schedule: {list_stage_descriptions: [{epochs: 3}]}
  search:
    population: 4
    objectives: [{name: accuracy, direction: max}, {name: parameters, direction: min}]
"""


def called(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``bnas`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["bnas", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


STAGE = "bootstrapNAS.training.schedule.list_stage_descriptions[0]"


@pytest.mark.filterwarnings("ignore:width.min_out_channels")
def test_run_with_keys_from_the_command_line_and_what_passes_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("--set", "bootstrapNAS.search.num_evals=4", "--set", f"{STAGE}.epochs=1")
    assert called(monkeypatch, "run", "config.yaml", *changes, "-v") == 0
    told = capsys.readouterr().out
    assert "pass type-axes: " in told
    assert "pass find-blocks: nothing left unchanged" in told
    assert "1 blocks, 1 widths, 0 kernels" in told
    kept = json.loads((folder / "out" / "config.json").read_text())
    assert kept["bootstrapNAS"]["search"]["num_evals"] == 4
    assert kept["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]["epochs"] == 1
    assert kept["bootstrapNAS"]["training"]["elasticity"]["width"]["min_width"] == 4
    assert len((folder / "out" / "evaluations.jsonl").read_text().splitlines()) >= 4
    front = json.loads((folder / "out" / "pareto.json").read_text())
    assert all({"accuracy", "parameters"} <= set(one["values"]) for one in front)


def test_a_users_mistake_is_1_and_a_wrong_command_line_is_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.json5").write_text("{model: 'm', bootstrapNAS: {search: {sed: 1, population: 1}},}")
    assert called(monkeypatch, "run", "bad.json5", "-o", "out") == 1
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "bnas: bad.json5: 4 faults",
        "  data is missing; A folder of a data set, of images or of .npz files; a .npz file; a factory of bnas.Splits",
        "  input_info is missing; The inputs of the model: one, or a list of several in the order of its forward",
        "  bootstrapNAS.search.population is 1: must be greater than or equal to 4",
        "  bootstrapNAS.search.sed is not a key of bnas; did you mean 'seed'?",
    ]
    assert not (folder / "out").exists()
    (folder / "short.yaml").write_text("model: m\ndata: d\ninput_info: {sample_size: [1, 3]}\n")
    assert called(monkeypatch, "run", "short.yaml") == 1
    assert "short.yaml has no log_dir; use --output DIR" in capsys.readouterr().err
    assert called(monkeypatch, "run", "short.yaml", "--sett", "a=1") == 2


def test_schema_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["model", "input_info"]
    assert schema["$defs"]["Width"]["properties"]["min_out_channels"]["deprecated"]
