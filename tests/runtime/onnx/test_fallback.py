"""What bnas cannot lower is exported by PyTorch, verified all the same, and said."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from bnas.passes.errors import LoweringError
from bnas.runtime import OnnxFallbackWarning, measure_latency
from bnas.runtime.onnx import export as onnx_fallback
from bnas.runtime.onnx.export import export_onnx
from bnas.runtime.onnx.file import FALLBACK
from bnas.runtime.onnx.session import OnnxModule

needs_onnxscript = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is missing")
IMAGES = torch.randn(1, 3, 6, 6)


class Summing(nn.Module):
    """Has an operator without a lowering rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"sums": torch.logaddexp(self.conv(x), x.sum()), "input": x * 2}


class Branching(nn.Module):
    """Cannot be traced, by nobody."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@needs_onnxscript
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_whole_graph_goes_to_the_standard_exporter(tmp_path: Path) -> None:
    net = Summing().eval()
    with pytest.warns(
        OnnxFallbackWarning, match=r"exported the whole graph: logaddexp: no lowering rule for torch\.log"
    ):
        report = export_onnx(net, tmp_path / "a.onnx", IMAGES, metadata={"of": "test"})
    assert "no lowering rule for torch.logaddexp" in str(report.fallback)
    properties = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    assert (properties[FALLBACK], properties["of"]) == (report.fallback, "test")
    assert properties["bnas.outputs"] == '{"sums": null, "input": null}'
    other = torch.randn(5, 3, 6, 6)  # of another batch size
    with torch.no_grad():
        torch.testing.assert_close(OnnxModule(report.path)(other), net(other))


@needs_onnxscript
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::bnas.runtime.OnnxFallbackWarning")
def test_dynamic_axes_have_the_names_of_bnas_and_can_be_timed(tmp_path: Path) -> None:
    report = export_onnx(Summing().eval(), tmp_path / "a.onnx", IMAGES)
    model = onnx.load(report.path)
    (declared,) = model.graph.input
    named = [axis.dim_param or axis.dim_value for axis in declared.type.tensor_type.shape.dim]
    assert named == ["batch", 3, "height", "width"]
    sizes = {entry.key: entry.value for entry in model.metadata_props}["bnas.sizes"]
    assert json.loads(sizes) == {"batch": 1, "height": 6, "width": 6}
    assert measure_latency(report.path, runs=1).median_ms > 0


@needs_onnxscript
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::bnas.runtime.OnnxFallbackWarning")
def test_a_wrong_number_of_the_standard_exporter_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export: Any = torch.onnx.export

    def wrong(module: nn.Module, *args: Any, **settings: Any) -> Any:
        with torch.no_grad():
            module.get_parameter("conv.bias").add_(0.1)
        program = export(module, *args, **settings)
        return program

    monkeypatch.setattr(torch.onnx, "export", wrong)
    with pytest.raises(LoweringError, match="output 'sums': the relative error"):
        export_onnx(Summing().eval(), tmp_path / "a.onnx", IMAGES)
    assert list(tmp_path.iterdir()) == []


@needs_onnxscript
def test_where_both_fail_both_say_why(tmp_path: Path) -> None:
    with pytest.raises(
        LoweringError,
        match=r"reads values of a tensor.*torch\.onnx\.export was tried for the whole graph and failed: Guard",
    ):
        export_onnx(Branching().train(), tmp_path / "a.onnx", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_without_onnxscript_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_fallback, "find_spec", lambda name: None)
    with pytest.raises(LoweringError, match=r"logaddexp.* needs onnxscript: pip install 'bnas\[export\]'"):
        export_onnx(Summing(), tmp_path / "a.onnx", IMAGES)
    assert list(tmp_path.iterdir()) == []
