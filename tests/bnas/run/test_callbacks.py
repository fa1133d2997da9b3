"""Callbacks of a whole run: every phase tells them, and an error of theirs leaves a run that can be resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_cases import job
from typer.testing import CliRunner

from bnas import Callback
from bnas.cli.app import app
from bnas.run import Report, run_job
from bnas.runtime import FineTune, Progress, Training, TrainingError
from bnas.search import Search, SearchRecord


class Noted(Callback):
    def __init__(self, fail_in: str = "") -> None:
        self.told: list[str] = []
        self.fail_in = fail_in

    def note(self, event: str) -> None:
        self.told.append(event)
        if event == self.fail_in:
            raise ConnectionError("the server is gone")

    def on_train_start(self, training: Training) -> None:
        self.note(f"training {training.name}".rstrip())

    def on_step_end(self, progress: Progress) -> None:
        self.note(f"step {progress.step}")

    def on_search_start(self, search: Search) -> None:
        self.note("search")

    def on_evaluation_end(self, record: SearchRecord) -> None:
        self.note(f"evaluation {record.evaluation.index}")

    def on_exception(self, error: BaseException) -> None:
        self.told.append(str(error))


def tuned(**changes: Any) -> Any:
    given = job(targets={"half": "macs <= 50 %"}, fine_tune=FineTune(epochs=1), **changes)
    return replace(given, search=replace(given.search, num_evals=6))


def numbers(report: Report) -> list[Any]:
    """What a run found, without what it measured by a clock."""
    return [(row.name, row.subnet, row.accuracy, row.before) for row in report.rows]


def test_every_phase_tells_the_callbacks_of_a_job(tmp_path: Path) -> None:
    noted = Noted()
    report = run_job(tuned(callbacks=[noted]), tmp_path / "with")
    assert noted.told == [
        "training",
        *(f"step {number}" for number in range(8)),
        "search",
        *(f"evaluation {number}" for number in range(6)),
        "training half",
        *(f"step {number}" for number in range(4)),
    ]
    assert numbers(run_job(tuned(), tmp_path / "without")) == numbers(report)


@pytest.mark.parametrize("place", ["step 5", "evaluation 3", "training half"])
def test_an_error_of_a_callback_leaves_a_run_that_can_be_resumed(place: str, tmp_path: Path) -> None:
    whole = run_job(tuned(), tmp_path / "whole")
    noted = Noted(place)
    with pytest.raises(ConnectionError, match="the server is gone"):
        run_job(tuned(callbacks=[noted]), tmp_path / "cut")
    assert noted.told[-2:] == [place, "the server is gone"]
    assert numbers(run_job(tuned(), tmp_path / "cut", resume=True)) == numbers(whole)


def test_callbacks_of_the_training_alone_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"training: 'callbacks' is a setting of the job; give Job\(callbacks="):
        job(training={"callbacks": [Noted()]})
    with pytest.raises(TrainingError, match=r"callbacks: .* is not a list; write callbacks=\[...\]"):
        job(callbacks=Noted())


def test_the_command_writes_the_search_of_a_run_into_a_study(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    run_job(job(), tmp_path / "run")
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    for _ in range(2):
        done = CliRunner().invoke(app, ["optuna", str(tmp_path / "run"), "--storage", storage])
        assert done.exit_code == 0, done.output
        assert f"6 trials are in the study 'run'; optuna-dashboard {storage}" in done.output
    (study,) = optuna.get_all_study_summaries(storage)
    assert study.study_name == "run"
