"""``bnas tune``, targets in a file, and ``bnas run --budget``, on the folder of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import Called, bnas, write_files

from bnas.run.plan.probe import Probe

FINE_TUNE = ("--set", "fine_tune.epochs=2")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a user and a run that was searched, not to be changed."""
    folder = tmp_path_factory.mktemp("searched")
    write_files(folder, targets={"most": "macs <= 80 %", "few": "macs <= 10 %"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert bnas(patch, "train", "config.json", "-o", "run") == 0
        assert bnas(patch, "search", "run") == 0
    return folder


@pytest.fixture
def folder(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, to work in."""
    shutil.copytree(searched, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def called(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    return Called(monkeypatch, capsys, joined=True)


def rows(folder: Path) -> Any:
    return json.loads((folder / "run" / "report.json").read_text())["rows"]


def test_winners_are_tuned_exported_and_compared_with_before(folder: Path, called: Called) -> None:
    told = called("tune", "run", *FINE_TUNE)
    assert "accuracy on the validation data" in told
    assert "to export and measure these winners: `bnas export run`" in told
    assert json.loads((folder / "run" / "config.json").read_text())["fine_tune"]["epochs"] == 2
    shutil.copytree(folder / "run", folder / "tuned")
    told = called("export", "run")
    assert "from " in told
    assert [one["name"] for one in rows(folder)] == ["original", "most", "few"]
    assert [one["test_accuracy_before"] is None for one in rows(folder)] == [True, False, False]
    assert [one["target"] for one in rows(folder)][1] == {"bound": "macs <= 80 %", "missed": False}
    called("export", "run", "--onnx", "few.onnx", "--subnet", "few")
    alone = called("export", "tuned", "--onnx", "other.onnx", "--subnet", "few")
    assert (folder / "few.onnx").read_bytes() == (folder / "other.onnx").read_bytes(), "before the export, too"
    assert f"{rows(folder)[2]['test_accuracy'] * 100:.2f} %" in alone
    called("export", "run", "--onnx", "fourth.onnx", "--subnet", "4")
    assert (folder / "fourth.onnx").is_file()
    assert "give most, few, fastest, an evaluation number or a JSON file" in called(
        "export", "run", "--onnx", "a.onnx", "--subnet", "999", code=1
    )
    assert "give most, few, fastest, an evaluation number or a JSON file" in called(
        "export", "run", "--onnx", "a.onnx", "--subnet", "x", code=1
    )


def test_a_fine_tuning_is_gone_on_with_or_replaced_only_if_asked_to(folder: Path, called: Called) -> None:
    assert "give the number of epochs: --set fine_tune.epochs=8" in called("tune", "run", code=1)
    called("tune", "run", *FINE_TUNE)
    assert "holds a fine-tuning already; use --resume" in called("tune", "run", code=1)
    called("tune", "run", "--resume")
    told = called("tune", "run", "--resume", "--set", "fine_tune.epochs=3", code=1)
    assert "fine_tune.epochs was 2 and is now 3: the existing fine-tuning becomes invalid; use --overwrite" in told
    told = called("tune", "run", "--overwrite", "--set", "bootstrapNAS.search.num_evals=7", code=1)
    assert "a fine-tuning may change only its own settings" in told
    called("tune", "run", "--overwrite", "--set", "fine_tune.epochs=3")
    history = json.loads((folder / "run" / "tuning" / "most" / "history.json").read_text())
    assert len(history["epochs"]) == 3


def test_a_step_names_the_fine_tuning_that_it_needs(folder: Path, called: Called) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "fine_tune": {"epochs": 1}}))
    assert "exclude each other" in called("tune", "run", *FINE_TUNE, "--overwrite", "--resume", code=1)
    called("run", "config.json", "-o", "new")
    assert (folder / "new" / "tuning.json").is_file()
    called("search", "new", "--overwrite")
    assert not (folder / "new" / "tuning.json").exists(), "it was of other winners"
    assert "no finished fine-tuning of its winners; run it with `bnas tune new`" in called("export", "new", code=1)
    assert "to fine-tune these winners: `bnas tune new`" in called("search", "new", "--overwrite")
    called("tune", "new")
    assert "to fine-tune these winners: `bnas tune new --resume`" in called("search", "new", "--resume")
    called("tune", "new", "--resume")


def test_a_run_with_a_budget_prints_its_plan_first(
    folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "train_step", lambda _: 4.0)
    monkeypatch.setattr(Probe, "evaluation", lambda _: (1.0, 0.0))
    monkeypatch.setattr(Probe, "tune_step", lambda _, __, subnets, *___: [1.5] * len(subnets))
    monkeypatch.setattr(Probe, "tune_alone", lambda _, __, subnets, *___: ([3.0] * len(subnets), 0.0))
    monkeypatch.setattr(Probe, "delivery", lambda *_: 8.0)
    told = called("run", "config.json", "-o", "new", "--budget", "1m")
    assert 0 < told.index("the plan") < told.index("training, stage 1")
    assert told.count("the plan") == 3
    assert "budget 60s" in told
    assert "from " in told
    assert json.loads((folder / "new" / "config.json").read_text())["budget"] == "1m"
    told = called("run", "config.json", "-o", "new", "--resume", "--budget", "1m")
    assert "the plan" not in told
    told = called("run", "config.json", "-o", "small", "--budget", "5s", code=1)
    assert "a budget of 5s is too small: the run needs at least " in told
    assert "must be a time such as 30m" in called("run", "config.json", "-o", "other", "--budget", "soon", code=1)
