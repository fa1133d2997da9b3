"""A run folder of a stranger runs nothing of his; the same folder runs what its user named before.

Each attack would leave a witness, a file, if its code ran; its healthy twin leaves one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CONFIG, NET, bnas
from run_cases import stamp
from torch import nn

from bnas.cli.app import main
from bnas.config.configuration import Configuration
from bnas.config.section import ConfigurationError
from bnas.data.factories import SourceError
from bnas.data.sources import WeightsError, load_data, load_model
from bnas.run import Job, TrustError
from bnas.run.files.trust import Code, code_in, remember, remembered
from bnas.run.folder import RunFolder
from bnas.runtime.storage.state import state_folder

SMALL: dict[str, Any] = {"input_info": {"sample_size": [1, 1, 6, 6]}}
Ran = Callable[[], bool]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder, and a home that is not touched."""
    monkeypatch.setenv("BNAS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Whether code that touches the file WITNESS ran since this was asked last."""
    path = tmp_path / "witness"
    monkeypatch.setenv("WITNESS", str(path))

    def ran() -> bool:
        found = path.exists()
        path.unlink(missing_ok=True)
        return found

    return ran


SPY = 'import os, pathlib\npathlib.Path(os.environ["WITNESS"]).touch()\n' + NET


def run_folder(folder: Path, source: Path | None = None, **keys: Any) -> Path:
    """The folder of a run that somebody else made."""
    folder.mkdir(exist_ok=True)
    written = Configuration(**{**SMALL, "model": "resnet18", "data": "digits", **keys}).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "source.txt").write_text(f"{source or folder}\n")
    stamp(folder)
    return folder


def told_by(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that fails says."""
    capsys.readouterr()
    assert bnas(monkeypatch, *arguments) == 1
    return capsys.readouterr().err


COMMANDS = [
    ("search", "RUN"),
    ("search", "RUN", "--overwrite"),
    ("export", "RUN"),
    ("export", "RUN", "--onnx", "x.onnx"),
    ("run", "RUN/config.json", "-o", "out"),
    ("train", "RUN/config.json", "-o", "out"),
]
OF_PYTHON = [
    {"model": "os:system", "model_options": {"command": 'touch "$WITNESS"'}},
    {"data": "subprocess:getoutput", "data_options": {"cmd": 'touch "$WITNESS"'}},
    {"data": None, "dataset": "subprocess:getoutput", "data_options": {"cmd": 'touch "$WITNESS"'}},
    {"model": "builtins:exec", "model_options": {}},
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "keys", OF_PYTHON, ids=lambda keys: str(keys.get("dataset") or keys.get("data") or keys["model"])
)
def test_a_function_of_python_is_not_called(
    command: tuple[str, ...],
    keys: dict[str, Any],
    witness: Ran,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_folder(Path("RUN"), **keys)
    told = told_by(monkeypatch, capsys, *command)
    assert "RUN/config.json: " in told
    assert re.search("which (you have not named before|is inside the run folder): bnas did not run it", told)
    assert "--trust" in told
    assert not witness()


@pytest.mark.parametrize("keys", OF_PYTHON[:3])
def test_a_function_of_python_is_not_called_though_it_is_trusted(
    keys: dict[str, Any], witness: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(Path("RUN"), **keys)
    told = told_by(monkeypatch, capsys, "run", "RUN/config.json", "-o", "out", "--trust")
    assert "is a standard module of Python, which has no models and no data" in told
    assert not witness()


@pytest.mark.parametrize("command", ["inspect", "run", "train"])
def test_a_command_without_from_names_another_remedy_for_a_missing_file(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(Path("RUN"), model="gone.py:Net")
    told = told_by(monkeypatch, capsys, command, "RUN/config.json")
    assert "RUN/gone.py, which RUN/config.json names as its model; its file names are relative to its folder" in told
    assert "give the configuration file that the run began with" in told
    assert "--from" not in told


def test_the_witness_of_these_attacks_is_left_where_they_run(witness: Ran) -> None:
    os.system('touch "$WITNESS"')
    assert witness()
    assert not witness()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", ["spy.py:Net", "spy:Net"])
def test_a_file_or_a_module_beside_a_run_is_not_imported(
    command: tuple[str, ...],
    name: str,
    witness: Ran,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (run_folder(Path("RUN"), model=name) / "spy.py").write_text(SPY)
    monkeypatch.syspath_prepend(str(tmp_path / "RUN"))
    monkeypatch.delitem(sys.modules, "spy", raising=False)
    told = told_by(monkeypatch, capsys, *command)
    assert re.search("which (you have not named before|is inside the run folder): bnas did not run it", told)
    assert not witness()
    told_by(monkeypatch, capsys, *command, "--trust")  # nothing was trained, or what was named gives no run
    assert witness()


def test_what_the_user_ran_may_be_searched_and_a_copy_of_his_folder_with_other_code_not(
    witness: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of a run, on the user's own model."""
    Path("net.py").write_text(SPY)
    torch.manual_seed(0)
    torch.save(load_model("net.py:Net").state_dict(), "net.pt")
    Path("my.json").write_text(json.dumps(CONFIG))
    assert witness()
    assert bnas(monkeypatch, "train", "my.json", "-o", "mine") == 0
    assert witness()
    assert bnas(monkeypatch, "search", "mine") == 0
    assert witness()
    shutil.copytree("mine", "theirs")
    Path("other").mkdir()
    Path("other", "net.py").write_text(SPY)
    Path("theirs", "source.txt").write_text(f"{Path('other').resolve()}\n")
    stamp(Path("theirs"))
    evaluations = Path("theirs", "evaluations.jsonl").read_bytes()
    told = told_by(monkeypatch, capsys, "search", "theirs", "--overwrite")
    assert f"model is the code {Path('other').resolve()}/net.py:Net, which you have not named before" in told
    assert Path("theirs", "evaluations.jsonl").read_bytes() == evaluations
    assert not witness()
    shutil.rmtree("state")
    assert "which you have not named before" in told_by(monkeypatch, capsys, "search", "mine", "--resume")
    assert not witness()
    assert bnas(monkeypatch, "search", "mine", "--resume", "--trust") == 0
    assert witness()
    assert "which you have not named before" in told_by(monkeypatch, capsys, "search", "mine", "--resume")


def test_other_arguments_for_code_of_the_user_are_refused(witness: Ran) -> None:
    """A factory that loads what its argument names is harmless in the user's hand only."""
    Path("mine.py").write_text(SPY)
    mine = {"model": "mine.py:Net", "model_options": {"width": 8}, "data": "digits", **SMALL}
    Path("my.json").write_text(json.dumps(mine))
    Job.from_config("my.json", ["num_classes=10"])
    assert witness()
    theirs = run_folder(Path("theirs"), Path().resolve(), **mine, num_classes=10)
    assert RunFolder.open(theirs).job.model
    assert witness()
    told = r"model is the code .*mine.py:Net with the arguments .*\"width\": 16.*, which you have not named before"
    run_folder(theirs, Path().resolve(), **{**mine, "model_options": {"width": 16}}, num_classes=10)
    with pytest.raises(TrustError, match=told):
        _ = RunFolder.open(theirs).job
    assert not witness()
    with pytest.raises(TrustError, match=told):  # the code is the user's word, its arguments are not
        _ = RunFolder.open(theirs, changes=("model=mine.py:Net",)).job
    assert not witness()
    changed = ("model_options.width=8",)
    assert RunFolder.open(theirs, changes=changed).job.model
    assert witness()
    assert RunFolder.open(theirs, trust=True).job.model
    assert witness()


def test_an_argument_of_the_command_line_is_the_users_word(witness: Ran) -> None:
    Path("mine.py").write_text(SPY)
    theirs = run_folder(Path("theirs"), Path().resolve())
    assert RunFolder.open(theirs, changes=("model=mine.py:Net", "num_classes=10")).job.model
    assert witness()


def test_the_configuration_in_the_folder_of_a_run_is_no_word_of_the_user(witness: Ran) -> None:
    (run_folder(Path("theirs"), model="spy.py:Net", num_classes=10) / "spy.py").write_text(SPY)
    with pytest.raises(TrustError):
        Job.from_config("theirs/config.json")
    assert not witness()
    assert Job.from_config("theirs/config.json", trust=True).model
    assert witness()
    with pytest.raises(TrustError, match="which is inside the run folder"):
        _ = RunFolder.open(Path("theirs")).job
    assert not witness()


def test_a_link_to_a_file_of_the_user_is_not_that_file(witness: Ran) -> None:
    """What his file imports would be looked for beside the link."""
    Path("mine").mkdir()
    Path("mine", "net.py").write_text(f"import near\n{NET}")
    Path("mine", "near.py").write_text("")
    Path("my.json").write_text(json.dumps({**SMALL, "model": "mine/net.py:Net", "data": "digits", "num_classes": 10}))
    assert Job.from_config("my.json").model
    sys.modules.pop("near")
    Path("bait").mkdir()
    Path("bait", "net.py").symlink_to(Path("mine", "net.py").resolve())
    Path("bait", "near.py").write_text(SPY)
    theirs = run_folder(Path("theirs"), Path("bait").resolve(), model="net.py:Net", num_classes=10)
    with pytest.raises(TrustError):
        _ = RunFolder.open(theirs).job
    assert not witness()


def test_an_exported_program_is_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(36, 10)).eval(), (torch.zeros(1, 1, 6, 6),))
    torch.export.save(program, "mine.pt2")
    loaded: list[Any] = []
    load = torch.export.load
    monkeypatch.setattr(torch.export, "load", lambda path: loaded.append(path) or load(path))
    theirs = run_folder(Path("theirs"), tmp_path, model="mine.pt2")
    with pytest.raises(TrustError, match=r"model is the code .*mine\.pt2, which you have not named before"):
        _ = RunFolder.open(theirs).configuration
    assert loaded == []
    Path("my.json").write_text(json.dumps({**SMALL, "model": "mine.pt2", "data": "digits"}))
    assert Job.from_config("my.json").model
    assert len(loaded) == 1
    assert RunFolder.open(theirs).configuration.model == "mine.pt2"
    shutil.copy("mine.pt2", theirs)
    run_folder(theirs, model="mine.pt2")
    with pytest.raises(TrustError, match="which is inside the run folder"):
        _ = RunFolder.open(theirs).configuration


def test_a_model_that_was_inspected_is_remembered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], witness: Ran, tmp_path: Path
) -> None:
    Path("mine.py").write_text(SPY)
    theirs = run_folder(Path("theirs"), tmp_path, model="mine.py:Net", data="mine.py:data")
    with pytest.raises(TrustError, match="model is"):
        _ = RunFolder.open(theirs).job
    monkeypatch.setattr(sys, "argv", ["bnas", "inspect", "mine.py:Net", "--input", "2,1,6,6", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert witness()
    with pytest.raises(TrustError, match="data is"):
        _ = RunFolder.open(theirs).job
    assert not witness()


def test_a_package_that_lies_elsewhere_is_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, witness: Ran
) -> None:
    for name in ("one", "two"):
        Path(name, "parcel").mkdir(parents=True)
        Path(name, "parcel", "__init__.py").write_text("")
        Path(name, "parcel", "nets.py").write_text(SPY)
    Path("my.json").write_text(json.dumps({**SMALL, "model": "parcel.nets:Net", "data": "digits", "num_classes": 10}))
    theirs = run_folder(Path("theirs"), tmp_path, model="parcel.nets:Net", num_classes=10)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "one"))
        assert Job.from_config("my.json").model
        assert RunFolder.open(theirs).job.model
    assert witness()
    for name in ("parcel", "parcel.nets"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "two"))
    with pytest.raises(TrustError):
        _ = RunFolder.open(theirs).job
    assert not witness()


@pytest.mark.parametrize("wrong", ["", "{", "[]", "[" * 5000, '{"name": "other"}'])
def test_a_damaged_memory_trusts_nothing(wrong: str) -> None:
    code = Code("a.b:C", "/a/__init__.py", {"x": 1})
    remember([code])
    assert remembered(code)
    (note,) = (state_folder() / "named").iterdir()
    note.write_text(wrong)
    assert not remembered(code)
    remember([code])
    assert remembered(code)
    assert not remembered(Code("a.b:C", "/b/__init__.py", {"x": 1}))


def test_a_memory_that_cannot_be_written_is_none(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write_text("a file")
    code = Code("a.b:C", "/a/__init__.py", {"x": float("nan"), "\udcff": 1})
    remember([code])
    assert not remembered(code)
    monkeypatch.setenv("BNAS_STATE", "\udcff/x")
    assert not remembered(code)


@pytest.mark.parametrize(
    "name", ["../..:x", "a\0.py:x", ":", "..:..", ".:x", "\ud800.py:F", "é:F", "__main__:F", "a:b:c"]
)
def test_no_name_of_code_ends_in_a_stack_trace(name: str) -> None:
    theirs = run_folder(Path("theirs"), model=name)
    with pytest.raises((TrustError, SourceError, ConfigurationError)):
        _ = RunFolder.open(theirs).configuration


def test_a_missing_file_is_told_to_be_missing() -> None:
    theirs = run_folder(Path("theirs"), model="gone.py:Net")
    with pytest.raises(SourceError, match=r"there is no file .*/theirs/gone\.py, which theirs/config\.json names"):
        _ = RunFolder.open(theirs).configuration


def test_a_program_that_measures_latencies_is_code(
    witness: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a stranger it is not started; the user's own words are, from the folder where he said them."""
    spy = [sys.executable, "-c", "import os, pathlib; pathlib.Path(os.environ['WITNESS']).touch()"]
    latency = {"target": {"kind": "command", "command": spy}}
    run = run_folder(tmp_path / "run", latency=latency)
    told = told_by(monkeypatch, capsys, "search", str(run))
    assert "latency.target is the code" in told
    assert "--trust" in told
    assert not witness()
    (code,) = [one for role, one in code_in({"latency": latency}, tmp_path).items() if role == "latency.target"]
    assert code.options["command"] == spy
    remember([code])
    assert remembered(code)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert not remembered(code_in({"latency": latency}, tmp_path)["latency.target"]), "relative names mean other files"
    for harmless in ({}, {"latency": {}}, {"latency": {"target": "openvino"}}, {"latency": None}, {"latency": 3}):
        assert not code_in(harmless, tmp_path)


def test_models_and_data_without_code_need_no_trust(tmp_path: Path) -> None:
    assert code_in({"model": "torchvision:resnet18", "data": "digits", "dataset": "cifar10"}, tmp_path) == {}
    theirs = run_folder(Path("theirs"))
    assert RunFolder.open(theirs).configuration.model == "resnet18"


# What a factory is, before it is called.

FACTORIES = """
import os, pathlib
from os import system
from subprocess import getoutput as net
from typing import Any, Optional
from torch import nn
import bnas
class Plain: pass
class Net(nn.Linear): pass
def touch(path="x"):
    pathlib.Path(os.environ["WITNESS"]).touch()
def says_nothing() -> None: touch()
def says_text() -> "str": touch()
def says_list() -> list[nn.Module]: touch()
def says_either() -> int | None: touch()
def says_data() -> bnas.Splits: touch()
def any_model() -> Any: return Net(1, 1)
def bare(): return Net(1, 1)
def unknown() -> "Missing": return Net(1, 1)
def maybe() -> Optional[nn.Module]: return Net(1, 1)
def narrow() -> nn.Linear: return Net(1, 1)
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("system", "belongs to Python's standard module 'posix'"),
        ("net", "belongs to Python's standard module 'subprocess'"),
        ("Plain", "is the class Plain; a Module is needed"),
        ("says_nothing", "says that it returns NoneType; a Module is needed"),
        ("says_text", "says that it returns str"),
        ("says_list", r"says that it returns list"),
        ("says_either", r"says that it returns int \| None"),
        ("says_data", "says that it returns Splits"),
    ],
)
def test_what_cannot_be_a_model_is_not_called(name: str, told: str, witness: Ran) -> None:
    Path("made.py").write_text(FACTORIES)
    with pytest.raises(SourceError, match=told):
        load_model(f"made.py:{name}")
    assert not witness()


@pytest.mark.parametrize("name", ["any_model", "bare", "unknown", "maybe", "narrow"])
def test_what_may_be_a_model_is_called(name: str) -> None:
    Path("made.py").write_text(FACTORIES)
    assert isinstance(load_model(f"made.py:{name}"), nn.Linear)


def test_a_model_is_no_factory_of_data(witness: Ran) -> None:
    Path("made.py").write_text(FACTORIES)
    with pytest.raises(SourceError, match="says that it returns Linear; a Splits is needed"):
        load_data("made.py:narrow")
    with pytest.raises(SourceError, match=r"gives a NoneType, not bnas\.Splits"):  # says nothing: known after the call
        load_data("made.py:touch")
    assert witness()


class Attack:
    """A pickle that touches the witness."""

    def __reduce__(self) -> Any:
        return os.system, ('touch "$WITNESS"',)


def test_a_pickle_as_weights_is_refused(witness: Ran) -> None:
    torch.save({"weight": Attack()}, "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt cannot be read as tensors"):
        load_model("resnet18", Path("evil.pt"))
    assert not witness()
    torch.load("evil.pt", weights_only=False)
    assert witness()
