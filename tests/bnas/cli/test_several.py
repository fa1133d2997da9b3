"""``bnas`` with the processes of torchrun: it finds what one process finds, and an end of one is the end of all."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command_line import bnas
from several import CONFIG, apart, evaluations, torchrun, write_files

from bnas.run.files.output import Output
from bnas.run.winners.tuned import Tuned, read_record

IMAGE = 50
"""In the second epoch of one process, and in the third one of two."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process does, in ``one``; and a training that it was stopped in, in ``stopped``."""
    path = tmp_path_factory.mktemp("several")
    write_files(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert bnas(patch, "run", "config.json", "-o", "one") == 0
        patch.setenv("DISTURBED", f"0 stop {IMAGE} stopped")
        assert bnas(patch, "train", "config.json", "-o", "stopped") == 130
    return path


def steps_taken(run: Path) -> tuple[int, int]:
    """The processes of a training, and its steps so far."""
    state = json.loads((run / "training/last/training.json").read_text())["state"]
    return len(state["data"]), state["schedule"]["taken"]


def winners_of(run: Path) -> tuple[Tuned, ...]:
    """The winners that were fine-tuned."""
    record = read_record(Output(run))
    assert record is not None
    return record.winners


def test_two_processes_resume_what_one_began_and_end_as_one_would_have(folder: Path) -> None:
    assert steps_taken(folder / "stopped") == (1, 5), "in the middle of the second epoch"
    done = torchrun(folder, "run", "config.json", "-o", "stopped", "--resume")
    assert done.returncode == 0, done.stderr[-4000:]
    assert steps_taken(folder / "stopped") == (2, 12)
    assert apart(folder / "one", folder / "stopped", "supernet/*.safetensors") < 1e-6
    assert apart(folder / "one", folder / "stopped", "training/best/*.safetensors") < 1e-6
    assert done.stdout.count("exporting and measuring") == 1, "only one process speaks"
    alone, together = ([one.chosen for one in winners_of(folder / run)] for run in ("one", "stopped"))
    assert [one is None for one in together] == [True, False], "the smaller winner was chosen again"
    assert [one and one.evaluation.subnet for one in alone] == [one and one.evaluation.subnet for one in together]
    assert apart(folder / "one", folder / "stopped", "tuning/few.safetensors") < 1e-5
    assert {one.name for one in (folder / "stopped").iterdir()} == {one.name for one in (folder / "one").iterdir()}


def test_one_process_resumes_what_was_killed_with_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = torchrun(folder, "train", "config.json", "-o", "killed", disturbed=f"1 kill {IMAGE} killed")
    assert done.returncode != 0
    processes, steps = steps_taken(folder / "killed")
    assert processes == 2
    assert 8 <= steps < 12
    monkeypatch.chdir(folder)
    assert bnas(monkeypatch, "train", "config.json", "-o", "killed", "--resume") == 0
    assert apart(folder / "one", folder / "killed", "supernet/*.safetensors") < 1e-6


def test_equal_weights_give_the_same_search_and_winners(folder: Path) -> None:
    shutil.copytree(folder / "one", folder / "frozen")
    done = torchrun(folder, "search", "frozen", "--overwrite")
    assert done.returncode == 0, done.stderr[-4000:]
    assert evaluations(folder / "frozen") == evaluations(folder / "one")
    assert len({one["accuracy"] for one in evaluations(folder / "one")}) > 2
    fronts = [json.loads((folder / run / "pareto.json").read_text()) for run in ("one", "frozen")]
    assert fronts[0] == fronts[1]


def test_what_fails_in_another_process_is_told_by_the_first(folder: Path) -> None:
    done = torchrun(folder, "train", "config.json", "-o", "torn", disturbed="1 raise 20 torn")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("bnas: ")]
    assert len(told) == 1
    assert told[0].startswith("bnas: process 1 failed: batch ")
    assert "ValueError: this image is torn" in told[0]


def test_command_with_work_for_one_process_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    assert bnas(monkeypatch, "export", "one") == 1
    assert "PYTEST_CURRENT_TEST" in os.environ
    assert sys.argv[1] == "export"


def test_a_budget_is_kept_by_all_processes_together(tmp_path: Path) -> None:
    """Process 0 says how long a winner is trained: another one that took other numbers of steps would wait for ever."""
    write_files(tmp_path)
    usual = {key: value for key, value in CONFIG.items() if key != "checkpoint_every"}
    timed = {**usual, "targets": {"most": "macs <= 90 %", "few": "macs <= 50 %"}, "budget": "15s"}
    (tmp_path / "timed.json").write_text(json.dumps(timed))
    done = torchrun(tmp_path, "run", "timed.json", "-o", "timed")
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (one["pace"] for one in json.loads((tmp_path / "timed/plan/tune.json").read_text())["paces"])
    assert first == 1.0
    assert second != 1.0, "else this test says nothing"
