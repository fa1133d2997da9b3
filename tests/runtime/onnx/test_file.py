"""Large models have a file of weights beside them; whatever goes wrong, what was there stays whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from bnas.runtime import SuperNetwork, measure_latency
from bnas.runtime.onnx import file
from bnas.runtime.onnx.export import export_onnx
from bnas.runtime.onnx.file import OnnxWriteError
from bnas.runtime.onnx.int8 import Int8
from bnas.runtime.onnx.session import open_session, run_session
from bnas.runtime.onnx.weights import weight_files
from bnas.runtime.targets import onnxruntime

IMAGES = [torch.randn(2, 3, 9, 9)]


def net(seed: int) -> GraphModule:
    torch.manual_seed(seed)
    return symbolic_trace(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3))).eval()


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "SIZE_LIMIT", 10_000)
    monkeypatch.setattr(file, "STRUCTURE", 1_000)


def outputs(path: Path) -> Tensor:
    return torch.from_numpy(run_session(open_session(path), IMAGES)[0])


@pytest.mark.usefixtures("small_limit")
def test_weights_of_a_large_model_stand_beside_it(tmp_path: Path) -> None:
    module = net(0)
    report = export_onnx(module, tmp_path / "net.onnx", IMAGES)
    (weights,) = weight_files(report.path)
    assert sorted(tmp_path.iterdir()) == sorted([report.path, weights])
    assert weights.stat().st_size >= 16 * 24 * 9 * 4
    assert report.bytes == report.path.stat().st_size + weights.stat().st_size
    with torch.no_grad():
        torch.testing.assert_close(outputs(report.path), module(*IMAGES))
    data = bytearray(weights.read_bytes())
    data[-16 * 24 * 9 * 4 :] = bytes(16 * 24 * 9 * 4)
    weights.write_bytes(data)
    with torch.no_grad(), pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(outputs(report.path), module(*IMAGES))


@pytest.mark.usefixtures("small_limit")
def test_weights_of_the_former_model_go_when_it_is_replaced(tmp_path: Path) -> None:
    target, other = tmp_path / "net.onnx", tmp_path / "other.onnx"
    export_onnx(net(0), other, IMAGES)
    former = weight_files(export_onnx(net(0), target, IMAGES).path)
    latter = weight_files(export_onnx(net(1), target, IMAGES).path)
    assert former != latter
    assert sorted(tmp_path.iterdir()) == sorted([target, *latter, other, *weight_files(other)])


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("step", [1, 2])
def test_an_interruption_while_files_are_moved_keeps_the_former_model(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "net.onnx"
    export_onnx(net(0), target, IMAGES)
    before, replace, steps = outputs(target), os.replace, iter(range(1, 9))

    def stop(source: Path, place: Path) -> None:
        if next(steps) == step:
            raise KeyboardInterrupt
        replace(source, place)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(net(1), target, IMAGES)
    torch.testing.assert_close(outputs(target), before, rtol=0, atol=0)
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


@pytest.mark.usefixtures("small_limit")
def test_a_large_model_is_quantised(tmp_path: Path) -> None:
    data = [(IMAGES[0], torch.zeros(2))]
    report = export_onnx(net(0), tmp_path / "net.onnx", IMAGES, Int8(data))
    assert {"0/Conv", "2/Conv"} <= set(report.int8.layers if report.int8 else ())
    assert sorted(tmp_path.iterdir()) == sorted([report.path, *weight_files(report.path)])
    assert outputs(report.path).shape == (2, 24, 5, 5)


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    path = export_onnx(net(0), tmp_path / "net.onnx", IMAGES).path
    assert list(tmp_path.iterdir()) == [path]
    assert all(not tensor.external_data for tensor in onnx.load(path, load_external_data=False).graph.initializer)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OnnxWriteError, match=r"file/net\.onnx: the ONNX file cannot be written"):
        export_onnx(net(0), tmp_path / "file" / "net.onnx", IMAGES)


@pytest.mark.parametrize("limit", [10_000, 10_000_000])
def test_a_large_model_is_measured_from_a_file(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[type] = []

    def session(source: Path | bytes, **settings: Any) -> Any:
        opened.append(type(source))
        return open_session(source, **settings)

    monkeypatch.setattr(file, "SIZE_LIMIT", limit)
    monkeypatch.setattr(file, "STRUCTURE", 1_000)
    monkeypatch.setattr(onnxruntime, "open_session", session)
    supernet = SuperNetwork.from_model(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3)), IMAGES[0])
    found = measure_latency(supernet.space.maximal(), supernet=supernet, runs=2, warmup=1)
    assert found.median_ms > 0
    assert issubclass(opened[0], Path) is (limit == 10_000)
