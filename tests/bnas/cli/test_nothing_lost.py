"""Whatever a command is told, a user's files stay, and nothing is written outside the folder that it was given."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import pytest
import safetensors.torch
import torch
from command_line import CONFIG, bnas, told_by, write_files
from onnx import TensorProto, helper
from run_cases import stamp

Told = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, and with the files of the user in the folder of the run."""
    folder = tmp_path_factory.mktemp("finished")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert bnas(patch, "run", "config.json", "-o", "run") == 0
    (folder / "run" / "own").mkdir()
    write_files(folder / "run" / "own")
    (folder / "run" / "notes.txt").write_text("my notes")
    (folder / "run" / "subnets" / "mine.onnx").write_text("my file")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def told(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Told:
    """Call ``bnas`` in the folder: its exit code, and what it says on the error stream."""
    return partial(told_by, monkeypatch, capfd)


def mine(folder: Path) -> dict[str, bytes]:
    paths = [
        *(folder / "run" / "own").iterdir(),
        folder / "run" / "notes.txt",
        folder / "run" / "subnets" / "mine.onnx",
    ]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def test_overwriting_leaves_the_users_files(told: Told, folder: Path) -> None:
    before = mine(folder)
    old = (folder / "run" / "report.html").read_bytes()
    code, text = told("train", "run/own/config.json", "-o", "run", "--overwrite")
    assert (code, text) == (0, "")
    assert mine(folder) == before
    assert old
    assert not (folder / "run" / "report.html").exists()
    assert not (folder / "run" / "winners.json").exists()


def test_overwriting_refuses_to_remove_its_own_sources(told: Told, folder: Path) -> None:
    original = next((folder / "run" / "original").glob("weights-*.safetensors"))
    data = {**CONFIG, "weights": f"run/original/{original.name}"}
    (folder / "again.json").write_text(json.dumps(data))
    for name in ("net.py", "net.pt"):  # the names in run/config.json are relative to its folder
        shutil.copy(folder / name, folder / "run" / name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for config in ("run/config.json", "again.json"):
        code, text = told("run", config, "-o", "run", "--overwrite", "--trust")
        assert code == 1
        assert re.search(r"run/(config\.json|original/.*) belongs to the run that you want to overwrite", text), text
        assert {path: path.read_bytes() for path in before} == before


def model(path: Path) -> None:
    """An ONNX file that bnas did not write."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph), str(path))


def test_an_export_replaces_only_what_bnas_wrote(told: Told, folder: Path) -> None:
    before = (folder / "net.py").read_bytes()
    code, text = told("export", "run", "--onnx", "net.py")
    assert (code, (folder / "net.py").read_bytes()) == (1, before)
    assert "net.py exists and is not an ONNX file; choose another name" in text
    model(folder / "theirs.onnx")
    before = (folder / "theirs.onnx").read_bytes()
    code, text = told("export", "run", "--onnx", "theirs.onnx")
    assert (code, (folder / "theirs.onnx").read_bytes()) == (1, before)
    assert "theirs.onnx is an ONNX file that bnas did not write; choose another name, or use --overwrite" in text
    assert told("export", "run", "--onnx", "theirs.onnx", "--overwrite")[0] == 0
    assert told("export", "run", "--onnx", "theirs.onnx", "--subnet", "smallest")[0] == 0
    code, text = told("export", "run", "--onnx", "run/subnets/best.onnx")
    assert code == 1
    assert "best.onnx is a file of the run in " in text


@pytest.mark.parametrize("name", ["../../x", "/tmp/bnas-x", "", ".", "a\0b", "..", "a/b"])
def test_the_name_of_a_winner_stays_in_the_folder(name: str, told: Told, folder: Path) -> None:
    winners = json.loads((folder / "run" / "winners.json").read_text())
    winners["winners"] = {name: winners["winners"]["best"]}
    (folder / "run" / "winners.json").write_text(json.dumps(winners))
    before = {path for path in folder.parent.rglob("*")}
    code, text = told("export", "run")
    assert code == 1
    assert "winners.json is damaged, or was changed after the run wrote it" in text
    stamp(folder / "run")
    code, text = told("export", "run")
    assert code == 1
    assert "cannot be a file name" in text
    assert {path for path in folder.parent.rglob("*")} == before


def test_a_stopped_int8_export_is_no_success(told: Told, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", full)
    code, text = told("export", "run", "--set", "export.int8=true")
    assert code == 1
    assert "the int8 file cannot be written: No space left on device; the disk is full: free some space" in text


def test_modules_of_a_run_are_checked_before_they_are_used(told: Told, folder: Path) -> None:
    path = folder / "run" / "subnets" / "best.safetensors"
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: torch.zeros_like(one) for name, one in state.items()}, path)
    code, text = told("export", "run", "--onnx", "best.onnx")
    assert code == 1
    assert "best.safetensors is damaged, or was changed after the run wrote it" in text
    assert not (folder / "best.onnx").exists()


def test_the_command_to_go_on_with_overwrites_until_the_former_run_is_gone(
    told: Told, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*.json")}
    command = ("train", "config.json", "-o", "run", "--overwrite")
    monkeypatch.setenv("STOP_AT", "1")  # while the data are looked at
    code, text = told(*command)
    assert code == 130
    assert "to continue: bnas train config.json -o run --overwrite\n" in text
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.setenv("STOP_AT", "3")  # in the training
    code, text = told(*command)
    assert code == 130
    assert "to continue: bnas train config.json -o run --resume\n" in text
    assert not (folder / "run" / "winners.json").exists()


@pytest.mark.parametrize("part", ["supernet", "original"])
def test_a_part_of_another_run_is_refused(part: str, told: Told, folder: Path) -> None:
    assert told("train", "config.json", "-o", "other", "--set", "optimizer.base_lr=0.5")[0] == 0
    shutil.rmtree(folder / "run" / part)
    shutil.copytree(folder / "other" / part, folder / "run" / part)
    manifest = {"supernet": "supernet.json", "original": "model.json"}[part]
    (folder / "run" / part / manifest).write_text((folder / "run" / part / manifest).read_text() + "\n")
    code, text = told("export", "run")
    assert code == 1
    assert f"run/{part}/{manifest} is damaged, or was changed after the run wrote it" in text


def test_another_run_gets_neither_a_report_nor_a_file(told: Told, folder: Path) -> None:
    shutil.copytree(folder / "run", folder / "other")
    before = {path: path.read_bytes() for path in (folder / "other").rglob("*") if path.is_file()}
    code, text = told("report", "run", "-o", "other")
    assert code == 1
    assert "other is the folder of another run" in text
    code, text = told("export", "run", "--onnx", "other/subnets/best.onnx")
    assert code == 1
    assert "is a file of the run in " in text
    assert {path: path.read_bytes() for path in before} == before


def test_a_configuration_in_the_folder_of_its_run_may_be_overwritten(told: Told, folder: Path) -> None:
    for name in ("net.py", "net.pt", "config.json"):
        shutil.copy(folder / name, folder / "run" / f"my_{name}")
    data = {**CONFIG, "model": "my_net.py:Net", "weights": "my_net.pt", "data": "my_net.py:data"}
    (folder / "run" / "my_config.json").write_text(json.dumps(data))
    code, text = told("train", "run/my_config.json", "-o", "run", "--overwrite")
    assert (code, text) == (0, "")
    assert (folder / "run" / "my_net.py").exists()


def test_names_in_a_foreign_folder_do_not_steer_the_terminal(told: Told, folder: Path) -> None:
    config = json.loads((folder / "run" / "config.json").read_text())
    config["model"] = "net.py:Net\x1b[2K\r\x1b[1A\nbnas: all is well"
    (folder / "run" / "config.json").write_text(json.dumps(config))
    stamp(folder / "run")
    code, text = told("search", "run", "--resume")
    assert code == 1
    assert "\x1b[" not in text
    assert "\r" not in text
    assert not any(line.startswith("bnas: all is well") for line in text.splitlines())
