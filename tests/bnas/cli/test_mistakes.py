"""Bad input as a new user would give it: each answer names the thing and the remedy, in a few lines."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import CONFIG, bnas, found, told_by, write_files

from bnas.run.files.lock import HOLDER

Told = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a user and a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert bnas(patch, "run", "config.json", "-o", "run") == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, to work in."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def told(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Told:
    """Call ``bnas`` in the folder: its exit code, and what it says on the error stream."""

    def call(*arguments: str) -> tuple[int, str]:
        code, text = told_by(monkeypatch, capfd, *arguments)
        assert len(text.splitlines()) <= 8
        return code, text

    return call


SAMPLES = "bootstrapNAS.search.batchnorm_adaptation.num_bn_adaptation_samples"


def run(*changes: str, output: str = "new") -> tuple[str, ...]:
    return ("run", "config.json", "-o", output, *(word for change in changes for word in ("--set", change)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "gone.json"), r"gone.json: there is no such configuration file \(`bnas init` writes one\)"),
        (("train", "empty", "-o", "new"), r"empty: is a folder; give a configuration file \(`bnas init` writes one\)"),
        (("run", "net.py"), "net.py: the ending '.py' is not one of .json"),
        (("train", "config.json"), "config.json has no log_dir; use --output DIR"),
        (run(output="config.json"), "config.json is a file; choose a folder"),
        (run(output="config.json/sub"), "config.json is a file; choose a folder"),
        (run(output="."), ". holds files that do not belong to a run of bnas; choose a new folder"),
        ((*run(output="."), "--overwrite"), ". holds files that do not belong to a run of bnas; choose a new folder"),
        (run(output="run"), "run holds a run already; use --resume to continue it or --overwrite to replace it"),
        (("search", "run"), "run holds a search already; use --resume to continue it or --overwrite"),
        (
            ("search", "gone"),
            "gone is not the folder of a run: config.json is missing; to begin a run: `bnas run CONFIG --output gone`",
        ),
        (
            ("search", "empty"),
            "empty is not the folder of a run: config.json is missing; to begin a run: `bnas run CONFIG --output ",
        ),
        (("export", "empty"), "empty is not the folder of a run"),
        (("export", "unlisted"), "unlisted is not the folder of a run: run.json is missing"),
        (("export", "gone", "--onnx", "a.onnx"), "gone is not the folder of a run"),
        (("export", "run", "--onnx", "gone/a.onnx"), "gone/a.onnx: the ONNX file cannot be written: .*create it first"),
        (
            ("export", "run", "--onnx", "a.onnx", "--subnet", "bset"),
            "bset: there is no such sub-network or file; give best, smallest",
        ),
        (("export", "run", "--onnx", "a.onnx", "--subnet", "net.py"), "net.py is not a JSON file"),
        (("export", "run", "--onnx", "a.onnx", "--subnet", "config.json"), "no 'bootstrapNAS'.*in config.json"),
        (run("model=gone.py:Net"), "there is no file gone.py"),
        (run("model=gone.nets:Net"), "there is no module 'gone.nets'; to name a file, write path/file.py:FACTORY"),
        (run("model=net.py:Nett"), "net.py has no factory 'Nett'; did you mean 'Net'"),
        (run("weights=gone.pt"), "weights gone.pt: there is no such file"),
        (run("weights=net.py"), "weights net.py cannot be read as tensors"),
        (run("weights=empty"), "weights empty: it is a folder; give a file"),
        (run("data=gone"), "data gone: there is no such folder or .npz file; known names are digits, cifar10"),
        (
            run("data=empty"),
            "data empty: Couldn't find any class folder in empty. It must hold one folder of images for each class",
        ),
        (run("data=null", "dataset=cifar10"), "CIFAR10 is not there; set the key 'data' to its folder"),
        (("bench", "gone.onnx"), "gone.onnx: ONNX Runtime cannot load it"),
        (
            ("inspect", "net.py"),
            "torchvision has no model 'net.py'; to name your own model, write path/file.py:FACTORY",
        ),
        (("inspect", "resnet51"), "torchvision has no model 'resnet51'; did you mean 'resnet50'"),
        (
            ("inspect", "net.py:Net", "--input", "1,3,6,6"),
            "for an input of 1,3,6,6: the first number of a shape is the batch size; to change .* use --input",
        ),
        (
            run("input_info.sample_size=[1, 3, 6, 6]"),
            "input_info.sample_size: the model does not accept images of shape",
        ),
    ],
)
def test_wrong_paths_and_empty_folders(arguments: tuple[str, ...], message: str, told: Told, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "unlisted").mkdir()
    shutil.copy(folder / "config.json", folder / "unlisted")
    code, text = told(*arguments)
    assert code == 1
    assert re.search(message, text, re.DOTALL), text
    assert not (folder / "new").exists()
    assert found(folder / "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name\n", "mine.py:1 cannot be imported: ModuleNotFoundError: .*nothing_of_that_name"),
        ("x = 1\ndef f(:\n", "mine.py cannot be imported: SyntaxError: .*line 2"),
        ("x = 1\n\nx.y\n", "mine.py:3 cannot be imported: AttributeError"),
        ("import net\nNet = net.Net()\n", "mine.py:Net is a module itself; name a class, or a function that returns"),
        ("def Made(): return 3\nimport json\n", "mine.py has no factory 'Net'; it has Made$"),
        ("def Net(): return 3\n", "mine.py:Net gives a int, not a torch.nn.Module"),
        (
            "def Net(depth): return 3\n",
            "mine.py:Net is called with .*missing a required argument: 'depth'",
        ),
    ],
)
def test_a_file_that_cannot_be_used(text: str, message: str, told: Told, folder: Path) -> None:
    (folder / "mine.py").write_text(text)
    code, answer = told(*run("model=mine.py:Net"))
    assert code == 1
    assert re.search(message, answer), answer


def test_a_file_may_import_those_beside_it(told: Told, folder: Path) -> None:
    (folder / "mine.py").write_text("from beside import WIDTH\nimport net\nMine = lambda: net.Net(width=WIDTH)\n")
    (folder / "beside.py").write_text("WIDTH = 16\n")
    before = list(sys.path)
    code, text = told("inspect", "mine.py:Mine", "--input", "1,1,6,6", "--json")
    assert (code, text) == (0, "")
    assert sys.path == before


def test_weights_of_another_model_are_told_in_a_few_names(told: Told) -> None:
    code, text = told(*run("model=resnet18", "weights=net.pt", "input_info.sample_size=[1, 3, 32, 32]"))
    assert code == 1
    assert "net.pt does not fit the model: missing: bn1.bias" in text
    assert "more; unexpected: body.bias, body.weight, head.bias, head.weight and" in text
    assert (
        "the model is resnet18: give the weights of this model, or name the model that these weights belong to" in text
    )
    assert len(text) < 700
    code, text = told(*run('model_options={"width": 32}'))
    assert code == 1
    assert "of another shape: stem.weight (16, 1, 3, 3) instead of (32, 1, 3, 3)" in text


def test_five_mistakes_at_once(told: Told, folder: Path) -> None:
    search = {"num_eval": 4, "population": 2, "algorithm": "NSGA3"}
    data = {**CONFIG, "modle": "x", "optimizer": {"type": "SDG"}, "bootstrapNAS": {"search": search}}
    (folder / "bad.json").write_text(json.dumps(data))
    code, text = told("run", "bad.json", "-o", "new")
    assert (code, text.splitlines()) == (
        1,
        [
            "bnas: bad.json: 5 faults",
            "  optimizer.type is 'sdg': must be 'sgd', 'adam', 'adamw' or 'rmsprop'; did you mean 'sgd'?",
            "  bootstrapNAS.search.algorithm is 'NSGA3': must be 'NSGA2', 'RNSGA2' or 'random'; did you mean 'NSGA2'?",
            "  bootstrapNAS.search.population is 2: must be greater than or equal to 4",
            "  bootstrapNAS.search.num_eval is not a key of bnas; did you mean 'num_evals'?",
            "  modle is not a key of bnas; did you mean 'model'?",
        ],
    )


def test_classes_that_do_not_match(told: Told, folder: Path) -> None:
    code, text = told(*run('data_options={"classes": 5}'))
    assert code == 1
    assert (
        "the model has 3 outputs, but the data have at least 5 classes; for a torchvision model set num_classes=5"
        in text
    )
    images = np.zeros((40, 6, 6), np.uint8)
    np.savez(folder / "mine.npz", images=images, labels=np.arange(40) % 4)
    code, text = told(*run("data=mine.npz"))
    assert code == 1
    assert "the model has 3 outputs, but the data have 4 classes; for a torchvision model set num_classes=4" in text
    for part, classes in (("train", "ab"), ("val", "ac")):
        for name in classes:
            (folder / "images" / part / name).mkdir(parents=True)
            shutil.copy(__file__, folder / "images" / part / name / "1.png")
    code, text = told(*run("data=images"))
    assert code == 1
    assert "only one of them has 'b'" in text


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        (
            "config.json",
            "{",
            ("search", "run", "--resume"),
            "run/config.json is damaged, or was changed",
        ),
        (
            "config.json",
            "{",
            (*run(output="run"), "--resume"),
            "run/config.json is damaged, or was changed",
        ),
        ("winners.json", "{", ("export", "run"), "run/winners.json is damaged, or was changed"),
        (
            "winners.json",
            None,
            ("export", "run"),
            "run holds no finished search; run it with `bnas search run --resume`",
        ),
        (
            "supernet/supernet.json",
            "{}",
            ("search", "run", "--resume"),
            "supernet.json is damaged, or was changed",
        ),
        ("supernet/supernet.json", None, ("search", "run", "--resume"), "`bnas train CONFIG --output run --resume`"),
        ("original/model.json", None, ("search", "run", "--resume"), "run/original holds no model"),
        ("evaluations.jsonl", "text\n", ("search", "run", "--resume"), "run/evaluations.jsonl:1: must be a file"),
    ],
)
def test_a_damaged_run_is_told(
    name: str, content: str | None, arguments: tuple[str, ...], message: str, told: Told, folder: Path
) -> None:
    path = folder / "run" / name
    path.unlink() if content is None else path.write_text(content)
    code, text = told(*arguments)
    assert code == 1
    assert message in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("search", "run", "--set", "optimizer.base_lr=1", "--resume"),
            "optimizer.base_lr was 0.01 and is now 1.0: the training used",
        ),
        (
            ("search", "run", "--set", "optimizer.base_lr=1", "--overwrite"),
            "the training used the former; train in another folder",
        ),
        (
            (
                "search",
                "run",
                "--set",
                f"{SAMPLES}=24",
                "--resume",
            ),
            "num_bn_adaptation_samples was 12 and is now 24: existing evaluations become invalid; use --overwrite",
        ),
        (("search", "run", "--resume", "--overwrite"), "resume and overwrite exclude each other"),
        (("export", "run", "--set", "bootstrapNAS.search.acc_delta=3"), "training or search used the former"),
        (
            (*run("optimizer.base_lr=1", output="run"), "--resume"),
            "base_lr was 0.01 and is now 1.0; resume with",
        ),
    ],
)
def test_what_is_settled_cannot_be_changed(arguments: tuple[str, ...], message: str, told: Told, folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    code, text = told(*arguments)
    assert code == 1
    assert message in text
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("drawn", [1, 3, 7, 10, 14])
def test_an_interrupted_run_goes_on_as_it_says(
    drawn: int, told: Told, folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOP_AT", str(drawn))
    code, text = told(*run())
    assert (code, text) == (130, "bnas: stopped; to continue: bnas run config.json -o new --resume\n")
    monkeypatch.delenv("STOP_AT")
    assert told("run", "config.json", "-o", "new", "--resume")[0] == 0
    assert found(folder / "new") == found(finished / "run")


def test_a_signal_stops_it_too(folder: Path, finished: Path) -> None:
    """As a person does: Ctrl-C in the middle of the training."""
    # A process that a script started in the background ignores the signal: not this one.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = f"{heard}from bnas.cli.app import main; main()"
    command = [sys.executable, "-c", code, *run(f"{STAGE}.epochs=500", output="new")]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic()
    while not (folder / "new" / "training" / "last" / "training.json").is_file():
        assert process.poll() is None
        assert time.monotonic() - waited < 300
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 130, told
    assert told.startswith("bnas: stopped; to continue: bnas run config.json -o new --set ")
    assert told.endswith(" --resume\n")


def test_a_run_whose_output_is_closed_says_how_to_continue(folder: Path, finished: Path) -> None:
    """As in ``bnas run ... | head -1``, and where the program that writes the log has ended."""
    command = [sys.executable, "-m", "bnas", *run(output="new")]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdout as out:
        out.readline()
        out.close()
        told = process.stderr.read()
    assert told.startswith("bnas: stopped, because its standard output was closed; to continue: bnas run config.json ")
    assert process.returncode == 1
    assert not (folder / "new" / HOLDER).exists()


STAGE = "bootstrapNAS.training.schedule.list_stage_descriptions[0]"
WRITTEN = (
    "config.json",
    "source.txt",
    "weights-",
    "model.json",
    "training-",
    "training.json",
    "supernet.json",
    "evaluations.jsonl",
    "evaluations.csv",
    "winners.json",
    "best.safetensors",
    "smallest.onnx",
    "report.json",
)


class HalfWritten:
    """A file on a disk that is full, or that may not be written: the first half of what is written is there."""

    def __init__(self, file: Any, number: int) -> None:
        self.file, self.number = file, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_loses_nothing(
    name: str, told: Told, folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it is that no longer fits: the run goes on when there is room again, to the same result."""
    opened = Path.open

    def full(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        file = opened(path, mode, *arguments, **named)
        writes = "r" not in mode and name in path.name and "new" in path.parts
        return HalfWritten(file, errno.ENOSPC) if writes else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        code, text = told(*run())
    assert code == 1
    assert "No space left on device; the disk is full: free some space" in text
    assert name in text
    assert not list((folder / "new").rglob("*.tmp"))
    assert told(*run(), "--resume")[0] == 0
    assert found(folder / "new") == found(finished / "run")
    assert (folder / "new" / "report.json").is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 kilobytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(told: Told, folder: Path, finished: Path, small_disk: Path) -> None:
    output = str(small_disk / "run")
    code, text = told(*run(output=output))
    assert code == 1
    assert "No space left on device; the disk is full: free some space" in text
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert told(*run(output=output), "--resume")[0] == 0
    assert found(small_disk / "run") == found(finished / "run")


@pytest.fixture
def as_nobody(folder: Path) -> Iterator[Callable[[], None]]:
    """Become one who may read everything in the folder and write nothing; the administrator may write everywhere."""
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    shutil.copytree(folder, place / "work")
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    own = os.geteuid()

    def become() -> None:
        os.chdir(place / "work")
        if own == 0:
            os.seteuid(65534)

    try:
        yield become
    finally:
        if own == 0:
            os.seteuid(0)
        os.chdir(folder)
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(place)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="there are no such users here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            run(),
            "new cannot be written to: no permission to write there: choose another folder, or change its permissions",
        ),
        (
            ("search", "run", "--from", ".", "--trust", "--overwrite"),
            "run cannot be written to: no permission to write there",
        ),
        (
            ("export", "run", "--from", ".", "--trust"),
            "run cannot be written to: no permission to write there",
        ),
        (
            ("export", "run", "--from", ".", "--trust", "--onnx", "a.onnx"),
            "a.onnx: the ONNX file cannot be written: Perm",
        ),
        ((*run(output="run"), "--resume"), "run cannot be written to: no permission to write there"),
        ((*run(output="run"), "--overwrite"), "run cannot be written to: no permission to write there"),
    ],
)
def test_no_permission_to_write(
    arguments: tuple[str, ...], message: str, told: Told, as_nobody: Callable[[], None]
) -> None:
    as_nobody()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    code, text = told(*arguments)
    assert code == 1
    assert message in text
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_memory_that_is_too_small_is_told(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

    monkeypatch.setattr("bnas.run.steps.Steps.train", small)
    code, text = told(*run())
    assert code == 1
    assert "CUDA out of memory: lower batch_size" in text
