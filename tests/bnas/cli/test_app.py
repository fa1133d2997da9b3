"""The command line as a person uses it, in this process, or in one of its own where the whole of it matters."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import Called
from torch import nn

from bnas.cli import app
from bnas.cli.app import _show_warning
from bnas.config.file import load_config
from bnas.data.factories import find_factory
from bnas.data.sources import load_model
from bnas.runtime import OnnxFallbackWarning

TINY = """
import torch
from torch import nn
import bnas

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)
    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.body(x) + x).mean((2, 3)))

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def data(samples=24):
    torch.manual_seed(0)
    def batches():
        return [(torch.randn(12, 1, 6, 6), torch.randint(3, (12,))) for _ in range(samples // 12)]
    return bnas.Splits(batches(), batches(), batches())
"""


def bnas(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from bnas.cli.app import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def configuration(**changes: Any) -> dict[str, Any]:
    search = {"num_evals": 4, "population": 4, "batchnorm_adaptation": {"num_bn_adaptation_samples": 12}}
    base = {"model": "net.py:Net", "data": "net.py:data", "input_info": {"sample_size": [2, 1, 6, 6]}}
    return {**base, "bootstrapNAS": {"search": search}, **changes}


@pytest.fixture
def called(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Calls ``bnas`` in the folder, in this process: it starts sooner."""
    monkeypatch.chdir(folder)
    return Called(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(TINY)
    (tmp_path / "config.json").write_text(json.dumps(configuration()))
    return tmp_path


def test_run_resume_overwrite_and_what_is_written(
    folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = bnas("run", "config.json", "-o", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "original" in done.stdout
    out = folder / "out"
    report = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["original", "best", "smallest"]
    assert all(row["latency"]["median_ms"] > 0 and row["latency"]["runs"] >= 50 for row in report["rows"])
    for name in ("original", "best", "smallest"):
        onnxruntime.InferenceSession(str(out / f"subnets/{name}.onnx"), providers=["CPUExecutionProvider"])
        assert json.loads((out / f"subnets/{name}.json").read_text())["costs"]["macs"] > 0
        onnxruntime.InferenceSession(str(out / f"subnets/{name}.int8.onnx"), providers=["CPUExecutionProvider"])
    for row in report["rows"]:
        assert row["int8"]["failure"] is None
        assert row["int8"]["latency"]["median_ms"] > 0
        assert 0 <= row["int8"]["test_accuracy"] <= 1
    assert f"The report is in {Path('out') / 'report.html'}" in done.stdout
    noted = {"environment.json", "architecture.json", "search.json", "training/history.json", "report.html"}
    assert noted <= {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert len((out / "evaluations.csv").read_text().splitlines()) == 5
    assert json.loads((out / "pareto.json").read_text())
    assert not list(out.rglob("*.tmp"))
    exported_and_timed(folder, called, monkeypatch)

    again = bnas("run", "config.json", "-o", "out", cwd=folder)
    assert again.returncode == 1
    assert "--resume" in again.stderr
    assert "Traceback" not in again.stderr
    before = (out / "evaluations.csv").read_bytes()
    weights = next(out.glob("supernet/weights-*")).read_bytes()
    assert bnas("run", "config.json", "-o", "out", "--resume", cwd=folder).returncode == 0
    assert len(json.loads((out / "environment.json").read_text())) == 2
    assert (out / "evaluations.csv").read_bytes() == before
    assert next(out.glob("supernet/weights-*")).read_bytes() == weights


def exported_and_timed(folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run left is exported by name and by file, in float and int8, and timed."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    told = called("export", "../out", "--subnet", "smallest", "--onnx", "a.onnx")
    assert "test accuracy on ONNX Runtime" in told
    properties = {one.key: one.value for one in onnx.load(elsewhere / "a.onnx").metadata_props}
    written = json.loads((folder / "out/subnets/smallest.json").read_text())
    assert json.loads(properties["bnas.costs"]) == written["costs"]
    assert properties["bnas.supernet"] == json.loads((folder / "out/supernet/supernet.json").read_text())["sha256"]
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (elsewhere / "a.onnx", folder / "out/subnets/smallest.onnx")
    ]
    feed = {"x": np.ones((3, 1, 6, 6), np.float32)}
    np.testing.assert_array_equal(*(session.run(None, feed)[0] for session in sessions))

    file = str(folder / "out/subnets/best.json")
    told = called("export", "../out", "--subnet", file, "--onnx", "b.onnx", "--int8", "--exclude", "head")
    assert ", in float" in told
    told = called("export", "../out", "--subnet", "fastest", "--onnx", "c.onnx", "--fixed")
    assert "test accuracy on ONNX Runtime" in told
    assert [one.dim_value for one in onnx.load("c.onnx").graph.input[0].type.tensor_type.shape.dim] == [1, 1, 6, 6]

    found = json.loads(called("bench", "a.onnx", "--against", "b.onnx", "--json", "--batch", "2", "--runs", "3"))
    assert found["b.onnx"]["ratio"] == 1
    assert found["a.onnx"]["batch"] == 2
    assert found["a.onnx"]["machine"]["onnxruntime"]
    twice = ("--target", "onnxruntime", "--target", '{"kind": "onnxruntime", "inter_threads": 2}')
    found = json.loads(called("bench", "a.onnx", "--runs", "3", "--json", *twice))
    assert [list(one) for one in found.values()] == [["a.onnx"], ["a.onnx"]]
    told = called("bench", "a.onnx", "--runs", "3")
    assert "a.onnx" in told
    assert "no: only" in told
    assert "by layer" not in told
    told = called("bench", "a.onnx", "--runs", "3", "--layers")
    for part in ("ms by layer of a.onnx", "stem", "head", "other operators", "all operators", "100.0%"):
        assert part in told
    found = json.loads(bnas("bench", "a.onnx", "--runs", "3", "--layers", "--json", cwd=elsewhere).stdout)
    assert "head" in found["a.onnx"]["layers"]["layers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("export", ".", "--onnx", "a.onnx"),
            ". is not the folder of a run: run.json is missing; to begin a run: `bnas run CONFIG --output .`",
        ),
        (
            ("export", ".", "--onnx", "a.onnx", "--exclude", "head"),
            "--exclude head: names a layer that int8 leaves in float; add --int8",
        ),
        (("export", ".", "--fixed"), "--fixed: fixes the sizes of one file; also give --onnx FILE"),
        (("bench", "gone.onnx"), "gone.onnx: ONNX Runtime cannot load it"),
        (("bench", "net.py"), "net.py is not an ONNX model"),
        (("bench", "gone.onnx", "--target", "GPU"), "target 'GPU' is unknown; use onnxruntime"),
        (("bench", "gone.onnx", "--layers", "--target", "openvino"), "target OpenVINO: times by layer are the profile"),
        (("bench", "gone.onnx", "--target", "{"), "it begins with a brace but is not valid JSON"),
    ],
)
def test_what_cannot_be_exported_or_timed_is_told_in_a_line(
    arguments: tuple[str, ...], message: str, called: Called
) -> None:
    told = called(*arguments, code=1)
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, "modle is not a key of bnas; did you mean 'model'?"),
        ({"model": "net.py:Nett"}, "net.py has no factory 'Nett'; did you mean 'Net'?"),
        ({"model": "torchvision:resnet5"}, "torchvision has no model 'resnet5'"),
        ({"model": "net.py:Branching"}, "net.py:17"),
        ({"weights": "none.pt"}, "there is no such file"),
        ({"bootstrapNAS": {"search": {"population": 2}}}, "bootstrapNAS.search.population is 2"),
    ],
)
def test_mistakes_are_told_in_a_line(folder: Path, called: Called, changes: dict[str, Any], message: str) -> None:
    (folder / "config.json").write_text(json.dumps(configuration(**changes)))
    told = called("run", "config.json", "-o", "out", code=1)
    assert message in told
    assert "Traceback" not in told


def test_weights_that_do_not_fit_name_the_keys(folder: Path) -> None:
    script = "import torch, net; s = net.Net().state_dict(); s['extra'] = s.pop('head.bias'); torch.save(s, 'w.pt')"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    (folder / "config.json").write_text(json.dumps(configuration(weights="w.pt")))
    done = bnas("run", "config.json", "-o", "out", cwd=folder)
    assert "missing: head.bias; unexpected: extra" in done.stderr


def test_inspect_of_a_configuration_has_its_settings(called: Called) -> None:
    free, pinned = (
        json.loads(called("inspect", "config.json", "--json", *changes))
        for changes in ((), ("--set", 'ignored_scopes=["{re}.*stem.*"]'))
    )
    assert free["inputs"][0]["shape"] == [2, 1, 6, 6]
    assert "stem" in free["width"]
    assert set(pinned["width"]) < set(free["width"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("config.json", "--input", "1,1,6,6"), 2, "use --set instead of"),
        (("net.py:Net", "--set", "seed=1"), 2, "--set changes a configuration"),
        (("absent.yaml",), 1, "absent.yaml"),
        (("net.py:Net", "--input", "1x6"), 1, "is not a shape"),
    ],
)
def test_inspect_takes_a_model_with_inputs_or_a_configuration(
    called: Called, arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert message in called("inspect", *arguments, code=code)


def test_inspect_gives_data(called: Called) -> None:
    found = json.loads(called("inspect", "net.py:Net", "--input", "1,1,6,6", "--json"))
    assert found["blocks"] == ["block"] or len(found["blocks"]) == 1
    assert found["width"]["stem"]["choices"] == [8, 16]
    assert "body.weight" in found["width"]["stem"]["members"]
    assert found["macs"]["minimal"] < found["macs"]["maximal"]
    assert 0 <= found["rigid_share"]["total"] < 1
    graph = called("inspect", "net.py:Net", "--input", "1,1,6,6", "--graph")
    assert "stem = conv2d(x, stem.*) : [B, stem:16, 6, 6]" in graph
    told = called("inspect", "net.py:Net", "--input", "1,1,6,6")
    assert max(map(len, told.splitlines())) <= 80
    assert "1 elastic widths" in told


def test_help_does_not_load_torch(tmp_path: Path) -> None:
    script = "import sys\nfrom bnas.cli.app import app\nimport bnas\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False).returncode == 0


def test_the_demo_names_a_model_and_data_that_there_are() -> None:
    configuration = load_config(Path(app.__file__).with_name("demo.json"))
    assert isinstance(load_model(configuration.model), nn.Module)
    assert callable(find_factory(str(configuration.data)))


def test_a_warning_of_bnas_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Each exported network of a run gives the same warning; warnings of others are left as they are."""
    others: list[str] = []
    show = partial(_show_warning, lambda message, *_: others.append(str(message)), set())
    for text in ("no rule for stft", "no rule for fft", "no rule for stft"):
        show(OnnxFallbackWarning(text), OnnxFallbackWarning, "export.py", 1)
        show(UserWarning(text), UserWarning, "user.py", 1)
    assert capsys.readouterr().err == "bnas: no rule for stft\nbnas: no rule for fft\n"
    assert len(others) == 3
