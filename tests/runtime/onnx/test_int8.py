"""Quantised files: what is in them, what is left out, and what is refused. Accuracy is told, never promised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from bnas.runtime.onnx.export import export_onnx
from bnas.runtime.onnx.int8 import Int8, QuantisationError
from bnas.runtime.onnx.session import OnnxModule, evaluate_onnx

IMAGES = torch.randn(64, 3, 8, 8)
DATA = list(zip(IMAGES.split(16), torch.randint(5, (64,)).split(16), strict=True))


@pytest.fixture
def module() -> GraphModule:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    return symbolic_trace(nn.Sequential(body, nn.Linear(128, 5))).eval()


def weights(path: Path) -> dict[str, onnx.TensorProto]:
    return {one.name: one for one in onnx.load(path).graph.initializer}


def test_weights_are_int8_with_a_scale_for_each_channel(module: GraphModule, tmp_path: Path) -> None:
    report = export_onnx(module, tmp_path / "a.onnx", IMAGES[:1], Int8(DATA, samples=40, validation=DATA))
    stored = weights(report.path)
    int8 = [one for one in stored.values() if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4]
    assert sorted(list(one.dims)[:2] for one in int8) == [[8, 3], [8, 8]]
    assert sorted(tuple(one.dims) for name, one in stored.items() if name.endswith("weight_scale")).count((8,)) == 2
    assert report.int8 is not None
    assert report.int8.samples == 40
    assert {"0.0/Conv", "0.2/Conv", "1/Gemm"} <= set(report.int8.layers)
    assert report.int8.metric_int8 == evaluate_onnx(report.path, DATA)
    plain = export_onnx(module, tmp_path / "fp32.onnx", IMAGES[:1])
    assert report.int8.metric_fp32 == evaluate_onnx(plain.path, DATA)
    with torch.no_grad():
        error = (OnnxModule(report.path)(IMAGES) - module(IMAGES)).abs().max()
    assert 1e-4 < error < 0.2
    assert report.bytes < plain.bytes


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_ranges_by_histograms_are_found_without_a_word(
    method: Any, module: GraphModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_onnx(module, tmp_path / "a.onnx", IMAGES[:1], Int8(DATA, method=method))
    assert capsys.readouterr() == ("", "")
    assert report.int8 is not None
    assert report.int8.samples == 64


def test_the_metric_is_the_users(module: GraphModule, tmp_path: Path) -> None:
    seen: list[Any] = []

    def metric(net: nn.Module, batches: Any) -> float:
        seen.append(net(IMAGES[:2]))
        return float(len(seen))

    report = export_onnx(module, tmp_path / "a.onnx", IMAGES[:1], Int8(DATA, validation=DATA, metric=metric))
    assert report.int8 is not None
    assert (report.int8.metric_fp32, report.int8.metric_int8) == (1.0, 2.0)
    assert not torch.equal(*seen)


@pytest.mark.parametrize(
    ("settings", "floats"),
    [
        pytest.param({"exclude": ("1",)}, {"1/Gemm"}, id="layer"),
        pytest.param({"exclude": ("0",)}, {"0.0/Conv", "0.1/Relu", "0.2/Conv", "0.3/Flatten"}, id="module-around"),
        pytest.param({"exclude": ("0.[02]",)}, {"0.0/Conv", "0.2/Conv"}, id="glob"),
        pytest.param({"exclude_operators": ("Conv",)}, {"0.0/Conv", "0.2/Conv"}, id="operator"),
    ],
)
def test_what_is_excluded_stays_in_floating_point(
    settings: dict[str, Any], floats: set[str], module: GraphModule, tmp_path: Path
) -> None:
    report = export_onnx(module, tmp_path / "a.onnx", IMAGES[:1], Int8(DATA, **settings)).int8
    assert report is not None
    assert set(report.excluded) <= floats
    assert not floats.intersection(report.layers)
    assert report.layers


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"calibration": None}, r"calibration: give batches of inputs and targets, such as bnas.Int8\(loader\)"),
        ({"calibration": []}, "calibration: the data are empty"),
        ({"calibration": [(torch.zeros(0, 3, 8, 8), torch.zeros(0))]}, "calibration: batch 0 of .* it is empty"),
        ({"calibration": [(torch.zeros(4, 1, 8, 8), torch.zeros(4))]}, r"shapes \[\(1, 8, 8\)\], but the model takes"),
        ({"calibration": [(IMAGES.double(), None)]}, "samples are torch.float64, but the model takes torch.float32"),
        ({"calibration": [(IMAGES * float("nan"), None)]}, "a sample contains NaN or inf"),
        (
            {"calibration": [IMAGES]},
            "calibration: batch 0 of the calibration data: a batch must be a pair .* returned a Tensor",
        ),
        ({"exclude": ("head",)}, "exclude: 'head' matches nothing in the model; the nearest are 0.0"),
        (
            {"exclude_operators": ("Con",)},
            "exclude_operators: 'Con' matches nothing in the model; the nearest are Conv",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_file(
    settings: dict[str, Any], reason: str, module: GraphModule, tmp_path: Path
) -> None:
    with pytest.raises(QuantisationError, match=reason):
        export_onnx(module, tmp_path / "a.onnx", IMAGES[:1], Int8(**{"calibration": DATA, **settings}))
    assert list(tmp_path.iterdir()) == []
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"samples": 0}, "samples is 0: must be greater than or equal to 1"),
        ({"method": "best"}, "method is 'best': must be 'minmax', 'entropy' or 'percentile'"),
        ({"calibration": 3}, "calibration is 3: must be batches of inputs and targets, not int"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(QuantisationError, match=reason):
        Int8(**{"calibration": DATA, **settings})
