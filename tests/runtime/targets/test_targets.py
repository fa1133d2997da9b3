"""Targets: what each says of a network is what PyTorch says, and a class of the user's is as good as those of bnas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from target_cases import Counting
from torch import nn

import bnas
from bnas.runtime import LatencyError, LatencyModel, LatencySettings, OnnxRuntime, OpenVINO, Target
from bnas.runtime.latency.candidates import network_of
from bnas.runtime.latency.measurement import measure_latency, target_for
from bnas.runtime.targets.target import KNOWN, target_of

EXAMPLE = torch.zeros(2, 3, 12, 12)


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*body, nn.Conv2d(16, 24, 3), nn.GELU(), nn.Flatten(), nn.Linear(384, 5)).eval()


def supernet() -> bnas.SuperNetwork:
    return bnas.SuperNetwork.from_model(network(), EXAMPLE, {"width_step": 2, "divisor": 2, "min_width": 2}).eval()


def in_process() -> list[Any]:
    found: list[Any] = [OnnxRuntime()]
    try:
        import openvino  # noqa: F401
    except ImportError:
        return [*found, pytest.param(None, marks=pytest.mark.skip(reason="OpenVINO is not installed"))]
    return [*found, OpenVINO()]


@pytest.mark.parametrize("target", in_process(), ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_target_computes_what_the_module_computes(target: Target, batch: int, tmp_path: Path) -> None:
    made = supernet()
    for place, subnet in enumerate((made.space.maximal(), made.space.minimal(), made.space.sample(1))):
        folder = tmp_path / str(place)
        folder.mkdir()
        built = network_of("net", subnet, made, folder, LatencySettings(batch=batch))
        assert [len(one) for one in built.example] == [batch]
        given = torch.randn(batch, 3, 12, 12)
        (name,) = (one.name for one in built.graph.graph.input)
        feed = {name: given.numpy()}
        loaded = target.load(target.build(built, folder), feed, 1)
        (found,) = target.run(loaded, feed)
        expected = made.extract(subnet).eval()(given).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        cpu, wall = target.time(loaded, feed, 2)
        assert cpu >= 0
        assert wall > 0


@pytest.mark.parametrize("target", in_process(), ids=lambda one: type(one).__name__)
def test_what_a_target_cannot_load_is_an_error_with_the_name(target: Target, tmp_path: Path) -> None:
    made = supernet()
    path = tmp_path / "net.onnx"
    bnas.export_onnx(made.space.maximal(), path, EXAMPLE, supernet=made)
    with pytest.raises(LatencyError, match="mine"):
        measure_latency({"mine": path}, (1, 4, 12, 12), runs=2, warmup=1, target=target)


def test_a_class_of_the_users_is_a_target() -> None:
    made, target = supernet(), Counting()
    assert isinstance(target, Target)
    both = {"all": made.space.maximal(), "few": made.space.minimal()}
    found = measure_latency(both, supernet=made, reference="all", target=target, runs=50, warmup=2)
    assert target.asked == ["all", "few"]
    sizes = {name: sum(p.numel() for p in made.extract(one).parameters()) for name, one in both.items()}
    assert found["few"].wall_median_ms < found["all"].wall_median_ms
    assert found["few"].ratio == pytest.approx(sizes["few"] / sizes["all"], rel=0.1), "BatchNorm is folded"
    assert (found["few"].clock, found["few"].provider, found["few"].machine) == ("wall", "bytes", {"target": "bytes"})
    assert found["few"].stable


def test_a_latency_model_is_of_its_target(tmp_path: Path) -> None:
    made, target = supernet(), Counting()
    model = LatencyModel.fit(made, target=target, subnets=12, runs=2, warmup=1)
    assert model.tau > 0.95
    predicted = model(made.space.minimal()) / model(made.space.maximal())
    sizes = [
        sum(p.numel() for p in made.extract(one).parameters()) for one in (made.space.minimal(), made.space.maximal())
    ]
    assert predicted == pytest.approx(sizes[0] / sizes[1], rel=0.2)
    model.save(tmp_path / "latency.json")
    again = LatencyModel.load(tmp_path / "latency.json", made, Counting())
    assert again.coefficients == model.coefficients
    with pytest.raises(LatencyError, match="target was 'bytes' and is 'ONNX Runtime' here"):
        LatencyModel.load(tmp_path / "latency.json", made)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("openvin", "target 'openvin' is unknown; use onnxruntime, openvino"),
        ({"kind": "openvino", "precision": "f8"}, "precision"),
        ({"precision": "f16"}, "target None is unknown"),
        (7, "target 7 is unknown"),
    ],
)
def test_what_is_no_target_is_refused(given: Any, reason: str) -> None:
    with pytest.raises(bnas.BnasError, match=reason):
        LatencySettings(target=given)


def test_targets_have_names() -> None:
    assert target_of("onnxruntime") == OnnxRuntime()
    assert target_for(LatencySettings()) == OnnxRuntime()
    assert LatencySettings(target={"kind": "openvino", "precision": "bf16"}).target == OpenVINO(precision="bf16")
    assert {"onnxruntime", "openvino", "command"} <= KNOWN.keys()


WORKERS = """
import gc, os, signal, time
import numpy as np, onnx
from onnx import TensorProto, helper
from bnas.runtime import OpenVINO

shape = [1, 64, 16, 16]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 64, 1, 1], np.ones(4096, np.float32))
node = helper.make_node("Conv", ["x", "w"], ["y"])
model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
feed, loaded = {"x": np.zeros(shape, np.float32)}, []
for target in (OpenVINO(), OpenVINO()):
    loaded.append(target.load(model.SerializeToString(), feed, 1))
    target.run(loaded[-1], feed)
while loaded:
    del loaded[0]
    gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("heard", flush=True))  # as a DataLoader with workers does
if not (child := os.fork()):
    os._exit(0)
os.waitpid(child, 0)
"""
"""Two networks come and go in the same order, then a worker process ends."""


def test_a_worker_that_ends_after_openvino_was_used_ends_nothing_else() -> None:
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
