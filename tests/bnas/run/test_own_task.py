"""A whole run of a regression from a configuration file: its own loss, and a metric of which less is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bnas.config.file import load_config
from bnas.page import write_page
from bnas.page.recorded import read_run
from bnas.run.files.trust import code_in
from bnas.run.quality import Quality
from bnas.run.runner import begin

CODE = """
import torch
from torch import nn
import bnas

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

def splits():
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    batches = [(one, one[:, :1] * 2 + one[:, 1:2]) for one in x.split(16)]
    return bnas.Splits(batches[:4], batches[4:5], batches[5:])

class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(1))
    def forward(self, outputs, targets):
        return (self.factor * (outputs - targets) ** 2).mean()

def mae(module, batches):
    with torch.inference_mode():
        return float(torch.cat([(module(x) - y).abs() for x, y in batches]).mean())
"""
FILE: dict[str, Any] = {
    "model": "task.py:Net",
    "data": "task.py:splits",
    "input_info": {"sample_size": [1, 6]},
    "criterion": "task.py:Loss",
    "metric": {"function": "task.py:mae", "direction": "min"},
    "stages": [{"epochs": 2}],
    "search": {"num_evals": 8, "algorithm": {"name": "NSGA2", "population": 4}},
    "fine_tune": {"epochs": 8},
    "targets": {"half": "macs <= 50 %"},
    "latency": {"runs": 5},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(CODE)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(FILE))
    return path


def test_a_regression_is_trained_searched_and_reported_by_its_own_metric(config: Path, tmp_path: Path) -> None:
    report = begin(load_config(config), tmp_path, tmp_path / "run").all()
    original, half = report.rows
    assert report.quality == Quality("mae", "min")
    assert half.accuracy < original.accuracy, "the original has random weights, and the winner was fine-tuned"
    assert half.int8 is not None
    assert half.int8.accuracy == pytest.approx(half.accuracy, rel=0.2)
    run = read_run(tmp_path / "run")
    assert run.search is not None
    values = [one.values for one in run.search.feasible if one.values["macs"] <= original.costs["macs"] / 2]
    assert "accuracy" not in values[0]
    history = json.loads((tmp_path / "run/training/history.json").read_text())
    assert history["metric"] == "mae"
    page = write_page(tmp_path / "run").read_text()
    assert "<th>test mae</th>" in page
    assert "<th>test accuracy</th>" not in page


def test_the_best_checkpoint_is_that_of_the_lowest_error(tmp_path: Path) -> None:
    """Of three epochs whose errors are 1, 3 and 2 the first one is kept, and by a metric to be large the second."""
    import torch

    import bnas

    kept = {}
    for direction in ("min", "max"):
        errors = iter((1.0, 3.0, 2.0))
        net = torch.nn.Linear(4, 2)
        supernet = bnas.SuperNetwork.from_model(net, torch.zeros(1, 4))
        batches = [(torch.randn(4, 4), torch.randint(2, (4,)))]
        folder = tmp_path / direction
        trainer = bnas.Trainer(
            supernet,
            [bnas.Stage(epochs=3)],
            metric=lambda *_, errors=errors: next(errors),
            direction=direction,
            directory=folder,
        )
        states: list[Any] = []
        trainer.on_epoch = lambda record, net=net, states=states: states.append(net.weight.detach().clone())
        trainer.fit(batches, batches)
        best = bnas.SuperNetwork.load(folder / "best", torch.nn.Linear(4, 2)).model.weight
        kept[direction] = [bool(torch.equal(best, one)) for one in states].index(True)
    assert kept == {"min": 0, "max": 1}


def test_loss_and_metric_are_code_that_a_folder_may_not_bring_along(tmp_path: Path) -> None:
    found = code_in(FILE, tmp_path)
    assert {role: code.name for role, code in found.items() if role in ("criterion", "metric")} == {
        "criterion": f"{tmp_path / 'task.py'}:Loss",
        "metric": f"{tmp_path / 'task.py'}:mae",
    }
    assert "metric" not in code_in({**FILE, "metric": None}, tmp_path)
