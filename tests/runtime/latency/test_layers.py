"""Where the time of a network goes: real profiles by layer, the names that fusions make, and what adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx import GraphProto, helper, numpy_helper
from torch import Tensor, nn

import bnas
from bnas.data.digits import DigitNet
from bnas.runtime import LatencyError, LayerTimes, layer_times
from bnas.runtime.latency.layers import Names, _summed

EXAMPLE = torch.zeros(1, 3, 24, 24)


class Three(nn.Module):
    """Three convolutions, of which one is large, a BatchNorm, activations, a sum and a classifier."""

    def __init__(self, large: str, wide: int = 768) -> None:
        super().__init__()
        channels = {name: wide if name == large else 8 for name in ("first", "second", "third")}
        self.enter = nn.Conv2d(3, 8, 1)
        for name, count in channels.items():
            self.add_module(name, nn.Sequential(nn.Conv2d(8, count, 3, padding=1), nn.ReLU(), nn.Conv2d(count, 8, 1)))
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        x = torch.relu(self.norm(self.enter(x)))
        for name in ("first", "second", "third"):
            x = torch.relu(self.get_submodule(name)(x) + x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def measured(model: nn.Module, example: Tensor, folder: Path, **settings: object) -> LayerTimes:
    bnas.export_onnx(model.eval(), folder / "net.onnx", example)
    return layer_times(folder / "net.onnx", **{"runs": 10, "warmup": 3, **settings})


@pytest.mark.parametrize("large", ["first", "third"])
def test_the_slow_layer_is_the_slowest(large: str, tmp_path: Path) -> None:
    times = measured(Three(large), EXAMPLE, tmp_path)
    assert max(times.layers, key=lambda name: times.layers[name]) == f"{large}.0"
    assert times.layers[f"{large}.0"] > 0.4 * times.total_ms
    layers = {"enter", "head", *(f"{name}.{place}" for name in ("first", "second", "third") for place in (0, 2))}
    assert set(times.layers) == layers
    assert "BatchNormalization" not in times.other, "it is folded into a convolution"


def test_all_times_add_up_to_the_total_and_are_less_than_a_run(tmp_path: Path) -> None:
    times = measured(Three("first"), EXAMPLE, tmp_path)
    assert times.total_ms == pytest.approx(sum(times.layers.values()) + sum(times.other.values()))
    assert times.total_ms <= times.run_ms
    assert times.runs == 10
    assert LayerTimes(**times.to_json()) == times


def test_functions_with_weights_are_told_by_their_module(tmp_path: Path) -> None:
    """Attention calls linear functions on its own weights: they are layers of the module that has these."""
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    times = measured(model, torch.zeros(1, 6, 32), tmp_path)
    assert {"self_attn", "self_attn.out_proj", "linear1", "linear2"} <= times.layers.keys()
    assert "Softmax" in times.other


@pytest.mark.parametrize("threads", [1, 2])
def test_every_layer_of_a_super_network_has_its_time(threads: int, tmp_path: Path) -> None:
    supernet = bnas.SuperNetwork.from_model(DigitNet().eval(), torch.zeros(1, 1, 8, 8))
    for subnet in (supernet.space.maximal(), supernet.space.minimal()):
        times = layer_times(subnet, supernet=supernet, runs=5, warmup=2, threads=threads)
        sizes = supernet.architecture.of(subnet)
        kept = [one.name for one, size in zip(supernet.architecture.layers, sizes, strict=True) if size is not None]
        assert sorted(times.layers) == sorted(kept)


def graph() -> GraphProto:
    """A convolution, its activation, a product with a weight, and a sum of two inputs."""
    weight = numpy_helper.from_array(torch.zeros(8, 8, 3, 3).numpy(), "conv.weight")
    matrix = numpy_helper.from_array(torch.zeros(4, 4).numpy(), "matrix")
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["conv"], "block.conv/Conv"),
        helper.make_node("Relu", ["conv"], ["relu"], "relu/Relu"),
        helper.make_node("MaxPool", ["relu"], ["pool"], "pool/MaxPool"),
        helper.make_node("MatMul", ["pool", "matrix"], ["product"], "/head/MatMul"),
        helper.make_node("Add", ["product", "x"], ["sum"], "add/Add"),
    ]
    return helper.make_graph(nodes, "net", [], [], [weight, matrix])


@pytest.mark.parametrize(
    ("name", "kind", "layer"),
    [
        pytest.param("block.conv/Conv", "Conv", "block.conv", id="as-in-the-file"),
        pytest.param("relu_nchwc", "Conv", "block.conv", id="fused-with-its-activation"),
        pytest.param("conv_nchwc_token_3", "Conv", "block.conv", id="a-name-that-was-taken"),
        pytest.param("/head/MatMul/MatMulAddFusion", "Gemm", "head", id="a-word-more"),
        pytest.param("fused /head/MatMul", "FusedGemm", "head", id="a-word-before"),
        pytest.param("pool_nchwc", "MaxPool", None, id="has-no-weight"),
        pytest.param("relu/Relu", "Relu", None, id="activation-alone"),
        pytest.param("add/Add", "Add", None, id="sum-alone"),
        pytest.param("ReorderOutput_token_2", "ReorderOutput", None, id="from-onnx-runtime"),
        pytest.param("pool_nchwc", "Concat", None, id="of-a-kind-that-is-not-there"),
        pytest.param("", "Conv", None, id="no-name"),
    ],
)
def test_names_of_fusions_lead_to_layers(name: str, kind: str, layer: str | None) -> None:
    assert Names(graph()).layer_of(name, kind) == layer


def test_medians_are_of_each_operator_and_what_runs_twice_counts_twice() -> None:
    def event(name: str, kind: str, took: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": took, "args": {"op_name": kind}}

    events = [{"cat": "Session", "name": "model_run", "dur": took} for took in (90, 100, 9000)]
    events += [event("block.conv/Conv", "Conv", took) for took in (40, 50, 8000)]
    events += [event("relu/Relu", "Relu", 2) for _ in range(6)]
    times = _summed(events, Names(graph()), 3)
    assert (times.layers, times.other) == ({"block.conv": 0.05}, {"Relu": 0.004})
    assert times.run_ms == 0.1


def test_other_targets_have_no_times_by_layer(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="target OpenVINO: times by layer are the profile of ONNX Runtime"):
        measured(Three("first"), EXAMPLE, tmp_path, target="openvino")
    with pytest.raises(LatencyError, match=r"nowhere\.onnx"):
        layer_times(tmp_path / "nowhere.onnx")
