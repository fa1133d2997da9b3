"""Folders with names that people seldom give: a run finds its files again, and messages stay in one line each."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from broken import TINY
from command_line import bnas, write_files
from configurations import prepared
from rich.console import Console
from run_cases import stamp

from bnas.cli.files import latency_table
from bnas.cli.progress import watching
from bnas.config.file import load_config
from bnas.page import write_comparison, write_page
from bnas.passes import Subnet
from bnas.run.files.lock import kept
from bnas.run.files.mark import OutputError
from bnas.run.files.output import Output, note_environment
from bnas.run.folder import RunFolder
from bnas.run.runner import begin
from bnas.search import Evaluation

NAMES = ["a ", " a", "a\n", "a\r", "a\r\n", "[red]a[b]", "{a}", "%s", "名 é", "a'b", 'a"b', "-o", "a=b"]


def configured(folder: Path) -> Path:
    """A configuration, with its files, in a folder."""
    (prepared(folder) / "c.json").write_text(json.dumps(TINY))
    return folder / "c.json"


@pytest.mark.parametrize("name", NAMES)
def test_a_run_finds_the_files_of_its_configuration_again(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.mkdir()
    steps = begin(load_config(configured(source)), source, source / "run")
    opened = RunFolder.open(source / "run")
    assert opened.source == source
    assert type(opened.job.model).__name__ == type(steps.job.model).__name__ == "Net"


def test_only_the_folder_of_the_run_must_be_utf_8(tmp_path: Path) -> None:
    source = tmp_path / "\udce9"
    source.mkdir()
    steps = begin(load_config(configured(source)), source, tmp_path / "run")
    opened = RunFolder.open(tmp_path / "run")
    assert opened.source == source
    assert type(opened.job.model).__name__ == type(steps.job.model).__name__ == "Net"


def test_a_folder_that_no_file_of_a_model_can_be_in_is_refused_before_the_training(tmp_path: Path) -> None:
    run = tmp_path / "\udce9" / "run"
    with pytest.raises(OutputError, match=r"udce9/run cannot be .*: .* not UTF-8.*choose another") as told:
        begin(load_config(configured(tmp_path)), tmp_path, run)
    assert str(told.value).isascii()
    assert not run.parent.exists()


def test_a_run_that_was_moved_to_such_a_folder_has_a_report(tmp_path: Path) -> None:
    begin(load_config(configured(tmp_path)), tmp_path, tmp_path / "run")
    moved = (tmp_path / "run").rename(tmp_path / "\udce9")
    assert write_page(moved).is_file()
    other = shutil.copytree(moved, tmp_path / "other")
    assert write_comparison(moved, other, tmp_path / "both").is_file()


@pytest.mark.parametrize("name", ["a ", "a\n", "[red]a[b]", "名"])
def test_a_mistake_in_such_a_folder_is_told_in_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    write_files(tmp_path / name, model="net.py:Nett")
    assert bnas(monkeypatch, "run", str(tmp_path / name / "config.json"), "-o", str(tmp_path / "run")) == 1
    told = capfd.readouterr().err
    assert told == "bnas: net.py has no factory 'Nett'; did you mean 'Net'?\n"
    (tmp_path / name / "config.json").write_text("{,}")
    assert bnas(monkeypatch, "run", str(tmp_path / name / "config.json"), "-o", str(tmp_path / "run")) == 1
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert name.replace("\n", "\\n") in told


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_what_is_told_are_no_markup(terminal: bool) -> None:
    file = io.StringIO()
    with watching(Console(file=file, force_terminal=terminal, width=200)) as watch:
        watch.on_evaluation(Evaluation(19, Subnet(), {}, 0.1, failure="layer [/red] is [1, 3]"), 20)
    assert "layer [/red] is [1, 3]" in file.getvalue()


def test_brackets_in_the_name_of_a_file_are_shown_in_the_table_of_latencies() -> None:
    file = io.StringIO()
    one = SimpleNamespace(
        batch=1,
        threads=1,
        provider="CPU",
        clock="cpu",
        machine={"cpu": "x", "onnxruntime": "1"},
        quartiles_ms=(1.0, 2.0),
        median_ms=1.5,
        wall_median_ms=1.5,
        ratio=1.0,
        unstable=None,
    )
    Console(file=file, width=200).print(latency_table({"[red]a.onnx": one}, "[red]a.onnx"))  # type: ignore[dict-item]
    assert file.getvalue().count("[red]a.onnx") == 2


@pytest.mark.parametrize("text", ["", "{", "3", "{}", "null", "[" * 50_000, "\x00"])
def test_a_damaged_note_of_the_environment_is_told_by_name(text: str, tmp_path: Path) -> None:
    path, output = tmp_path / "environment.json", Output(tmp_path, resumed=True)
    with kept(tmp_path):
        note_environment(output)
        note_environment(output)
    assert len(json.loads(path.read_text())) == 2
    path.write_text(text)
    with kept(tmp_path), pytest.raises(OutputError, match=r"environment\.json is damaged, or was changed"):
        note_environment(output)
    stamp(tmp_path)
    with kept(tmp_path), pytest.raises(OutputError, match=r"environment\.json is "):
        note_environment(output)
    assert path.read_text() == text
