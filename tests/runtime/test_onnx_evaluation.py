"""The metric of a file is that of the model it was made from, and what cannot be measured is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from bnas.passes import Subnet
from bnas.passes.errors import LoweringError
from bnas.runtime import EvaluationError, OnnxModule, SessionError, accuracy, evaluate_onnx, onnx_session, origin
from bnas.runtime.onnx_export import export_onnx
from bnas.runtime.supernetwork import SuperNetwork

DATA = list(zip(torch.randn(40, 3, 6, 6).split(20), torch.randint(4, (40,)).split(20), strict=True))


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).eval()


def test_accuracy_is_that_of_the_model(net: nn.Module, tmp_path: Path) -> None:
    path = export_onnx(net, tmp_path / "a.onnx", DATA[0][0]).path
    assert evaluate_onnx(path, DATA) == accuracy(net, DATA)
    right = [(images, net(images).argmax(1)) for images, _ in DATA]
    assert evaluate_onnx(path, right, threads=1) == 1
    assert evaluate_onnx(path, [(images, (labels + 1) % 4) for images, labels in right]) == 0


def test_several_outputs_are_told_apart_by_name(tmp_path: Path) -> None:
    module = symbolic_trace(lambda x: {"twice": x * 2, "sum": x.sum(1)})
    found = OnnxModule(export_onnx(module, tmp_path / "a.onnx", torch.rand(2, 3)).path)(torch.ones(4, 3))
    torch.testing.assert_close(found, {"twice": torch.full((4, 3), 2.0), "sum": torch.full((4,), 3.0)})


@pytest.mark.parametrize(
    ("change", "data", "error", "reason"),
    [
        (lambda path: path.unlink(), DATA, SessionError, r"a\.onnx: ONNX Runtime cannot load it"),
        (lambda path: path.write_bytes(path.read_bytes()[:99]), DATA, SessionError, r"a\.onnx: ONNX Runtime cannot lo"),
        (lambda path: None, [], EvaluationError, "no data"),
        (lambda path: None, [(torch.zeros(2, 1, 6, 6), torch.zeros(2))], SessionError, "ONNX Runtime cannot run it"),
        (lambda path: None, [(torch.zeros(2, 3, 6, 6).bfloat16(), torch.zeros(2))], SessionError, "cannot be passed"),
    ],
    ids=["gone", "damaged", "no-data", "shape", "dtype"],
)
def test_what_cannot_be_evaluated_is_said(
    change: Any, data: Any, error: type[Exception], reason: str, net: nn.Module, tmp_path: Path
) -> None:
    path = export_onnx(net, tmp_path / "a.onnx", DATA[0][0]).path
    change(path)
    with pytest.raises(error, match=reason):
        evaluate_onnx(path, data)


def test_a_provider_that_is_not_there_or_does_not_start_is_said(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_onnx(net, tmp_path / "a.onnx", DATA[0][0]).path
    with pytest.raises(SessionError, match=r"'GPU' is not installed; there is .*CPUExecutionProvider"):
        evaluate_onnx(path, DATA, provider="GPU")

    class Session:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    installed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: installed)
    monkeypatch.setattr(onnx_session.onnxruntime, "InferenceSession", lambda *args, **settings: Session())
    with pytest.raises(SessionError, match="CUDAExecutionProvider is installed but cannot be started"):
        evaluate_onnx(path, DATA, provider="CUDAExecutionProvider")


def test_a_subnet_carries_where_it_comes_from(net: nn.Module, tmp_path: Path) -> None:
    supernet = SuperNetwork.from_model(net, DATA[0][0])
    subnet = supernet.space.minimal()
    path = export_onnx(subnet, tmp_path / "a.onnx", DATA[0][0], supernet=supernet).path
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert properties == origin(supernet, subnet)
    assert Subnet.from_json(json.loads(properties["bnas.subnet"])) == subnet
    assert json.loads(properties["bnas.costs"]) == supernet.costs(subnet)
    supernet.save(tmp_path / "supernet")
    manifest = json.loads((tmp_path / "supernet" / "supernet.json").read_text())
    assert properties["bnas.supernet"] == manifest["sha256"]
    with torch.no_grad():
        net[0].bias.add_(1)  # type: ignore[operator,union-attr]
    assert origin(supernet, subnet)["bnas.supernet"] != manifest["sha256"]
    with pytest.raises(LoweringError, match="a Subnet has no weights: give the super-network"):
        export_onnx(subnet, tmp_path / "b.onnx", DATA[0][0])
