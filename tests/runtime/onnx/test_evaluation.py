"""The metric of a file is that of the model it was made from, and what cannot be measured is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from bnas.passes import Subnet
from bnas.passes.errors import LoweringError
from bnas.runtime import EvaluationError, OnnxModule, SessionError, accuracy, evaluate_onnx, origin
from bnas.runtime.onnx import session
from bnas.runtime.onnx.export import export_onnx
from bnas.runtime.onnx.int8 import Int8
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


class Segmenter(nn.Module):
    """Returns what it is told to, of one convolution."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 4, 3), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.conv(x))


FORMS = {
    "dict of one": lambda x: {"out": x},
    "dict called as a tensor is": lambda x: {"output": x},
    "tuple of one": lambda x: (x,),
    "list": lambda x: [x, x * 2],
    "nested": lambda x: {"out": (x, {"aux": x * 2}), "last": x * 3},
    "tensor": lambda x: x,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_a_file_returns_what_the_module_returns(form: Callable[[Tensor], Any], int8: bool, tmp_path: Path) -> None:
    net = Segmenter(form).eval()
    report = export_onnx(net, tmp_path / "a.onnx", DATA[0][0], Int8(DATA) if int8 else None)
    assert report.fallback is None
    with torch.no_grad():
        expected = net(DATA[1][0])
    expected = tuple(expected) if isinstance(expected, list) else expected
    close = {"rtol": 0.1, "atol": 0.1} if int8 else {}
    torch.testing.assert_close(OnnxModule(report.path)(DATA[1][0]), expected, **close)


def test_a_metric_that_reads_a_dict_reads_it_from_a_file_too(tmp_path: Path) -> None:
    net = Segmenter(lambda x: {"out": x}).eval()

    def largest(module: nn.Module, batches: Any) -> float:
        with torch.no_grad():
            return max(float(module(images)["out"].max()) for images, _ in batches)

    path = export_onnx(net, tmp_path / "a.onnx", DATA[0][0]).path
    assert evaluate_onnx(path, DATA, largest) == pytest.approx(largest(net, DATA), rel=1e-5)
    with pytest.raises(EvaluationError, match=r"at least 2 classes; the model returns {out: \(20, 4, 4, 4\)"):
        evaluate_onnx(path, DATA)


def test_the_form_of_a_file_that_others_made_is_told_by_its_names(tmp_path: Path) -> None:
    for count, expected in ((1, torch.Tensor), (2, dict)):
        net = Segmenter(lambda x, n=count: (x, x * 2)[:n]).eval()  # type: ignore[misc]
        model = onnx.load(export_onnx(net, tmp_path / "a.onnx", DATA[0][0]).path)
        del model.metadata_props[:]
        found = OnnxModule(model.SerializeToString())(DATA[0][0])
        assert isinstance(found, expected)
    assert list(found) == ["output_0", "output_1"]


@pytest.mark.parametrize(
    ("change", "data", "error", "reason"),
    [
        (lambda path: path.unlink(), DATA, SessionError, r"a\.onnx: ONNX Runtime cannot load it"),
        (lambda path: path.write_bytes(path.read_bytes()[:99]), DATA, SessionError, r"a\.onnx: ONNX Runtime cannot lo"),
        (lambda path: None, [], EvaluationError, "the data are empty"),
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
    with pytest.raises(SessionError, match=r"'GPU' is not installed; installed are .*CPUExecutionProvider"):
        evaluate_onnx(path, DATA, provider="GPU")

    class Session:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    installed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: installed)
    monkeypatch.setattr(session.onnxruntime, "InferenceSession", lambda *args, **settings: Session())
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
    with pytest.raises(LoweringError, match="a Subnet has no weights: also give its super-network"):
        export_onnx(subnet, tmp_path / "b.onnx", DATA[0][0])
