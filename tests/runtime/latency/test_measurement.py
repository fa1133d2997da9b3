"""Latency measurements: what is run, in which order, and what is made of the times. Nothing here depends on time."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.fx import symbolic_trace

from bnas.passes import Subnet
from bnas.passes.errors import BnasError
from bnas.passes.onnx.lower import lower
from bnas.runtime import SuperNetwork
from bnas.runtime.latency import measurement
from bnas.runtime.latency.candidates import feed_of
from bnas.runtime.latency.machine import CPU_FLAGS, differences, machine
from bnas.runtime.latency.measurement import measure_latency
from bnas.runtime.latency.settings import LatencyError, LatencySettings
from bnas.runtime.latency.timing import WINDOWS, Latency, Runner, repeats_for, rounds, warmed
from bnas.runtime.targets import target
from bnas.runtime.targets.onnxruntime import OnnxRuntime

SHAPE = (2, 3, 8, 8)


def model(width: int) -> bytes:
    module = symbolic_trace(nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU())).eval()
    content: bytes = lower(module, [torch.zeros(SHAPE)]).SerializeToString()
    return content


@pytest.fixture
def models(tmp_path: Path) -> dict[str, bytes | Path]:
    (tmp_path / "wide.onnx").write_bytes(model(16))
    return {"narrow": model(4), "wide": tmp_path / "wide.onnx"}


def test_fields_are_sane(models: dict[str, bytes | Path]) -> None:
    found = measure_latency(models, SHAPE, reference="wide", runs=5, warmup=2)
    assert list(found) == ["narrow", "wide"]
    for one in found.values():
        assert 0 < one.quartiles_ms[0] <= one.median_ms <= one.quartiles_ms[1]
        assert one.spread == pytest.approx((one.quartiles_ms[1] - one.quartiles_ms[0]) / one.median_ms)
        assert one.wall_median_ms > 0
        assert (one.runs, one.threads, one.batch, one.stable) == (5, 1, 2, False)
        assert one.repeats >= 1
        assert one.ratio is not None
        assert one.ratio > 0
    assert found["wide"].ratio == 1


def test_json_holds_all_fields(models: dict[str, bytes | Path]) -> None:
    found = measure_latency(models, SHAPE, runs=2, warmup=1)["narrow"]
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert Latency.from_json(written) == found
    assert written["stable"] is False
    assert written["machine"]["onnxruntime"] == version("onnxruntime")
    assert found.ratio is None


@pytest.mark.parametrize(
    "inputs",
    [SHAPE, np.zeros(SHAPE, np.float32), {"input": np.zeros(SHAPE, np.float32)}],
    ids=["shape", "array", "by-name"],
)
def test_inputs_are_a_shape_an_array_or_named_arrays(inputs: Any, models: dict[str, bytes | Path]) -> None:
    assert measure_latency(models, inputs, runs=1, warmup=1)["wide"].batch == 2


class Clock:
    """Stands for a model: takes the CPU and wall milliseconds that it is told, one after the other."""

    def __init__(self, name: str, times: list[float], log: list[str]) -> None:
        self.name, self.times, self.log = name, iter(times), log

    def time(self) -> tuple[float, float]:
        self.log.append(self.name)
        cpu = next(self.times)
        return cpu, 2 * cpu


def test_candidates_take_turns_in_an_order_that_the_seed_fixes() -> None:
    logs: list[list[str]] = [[], []]
    for log in logs:
        clocks: Any = {name: Clock(name, [1.0] * 8, log) for name in "abc"}
        rounds(clocks, 8, np.random.default_rng(3))
    turns = [tuple(logs[0][start : start + 3]) for start in range(0, 24, 3)]
    assert logs[0] == logs[1]
    assert {"".join(sorted(one)) for one in turns} == {"abc"}
    assert len(set(turns)) > 1


def summary(times: list[float], base: list[float] | None = None) -> Latency:
    runner = Runner(OnnxRuntime(), None, {"x": np.zeros((4, 1))}, 3)
    measured = np.array([[one, one + 1] for one in times])
    references = None if base is None else np.array([[one, one] for one in base])
    return measurement._summary(measured, references, runner, LatencySettings(threads=2))


def test_summary_of_known_times() -> None:
    found = summary([4.0, 1.0, 2.0, 3.0, 5.0], base=[1.0, 1.0, 4.0, 1.0, 5.0])
    assert (found.median_ms, found.quartiles_ms, found.wall_median_ms) == (3.0, (2.0, 4.0), 4.0)
    assert found.spread == pytest.approx(2 / 3)
    assert found.ratio == 1.0  # of 4, 1, 1/2, 3, 1: not the ratio of the medians, which would be 3
    assert (found.runs, found.repeats, found.threads, found.batch) == (5, 3, 2, 4)


@pytest.mark.parametrize(
    ("times", "stable"),
    [
        pytest.param([1.0] * 50, True, id="quiet"),
        pytest.param([1.0] * 49, False, id="too-few"),
        pytest.param([1.0, 1.2] * 25, False, id="too-wide"),
        pytest.param([1.0] * 45 + [90.0] * 5, True, id="some-outliers"),
    ],
)
def test_stable_needs_enough_runs_and_a_narrow_spread(times: list[float], stable: bool) -> None:
    found = summary(times)
    assert found.stable is stable
    assert (found.unstable is None) is stable


@pytest.mark.parametrize(("milliseconds", "repeats"), [(5.0, 1), (0.2, 1), (0.1, 10), (0.003, 334), (0.0, 10_000)])
def test_quick_models_are_repeated_within_a_timing(milliseconds: float, repeats: int) -> None:
    assert repeats_for(milliseconds) == repeats


def test_all_are_repeated_as_often_as_the_slowest_calls_for(
    models: dict[str, bytes | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run in a row finds its weights in the caches: who is run alone must not be held against it."""
    times = iter([0.01, 0.1, 0.01, 0.3])

    def warm(name: str, runner: Runner, warmup: int) -> Runner:
        return replace(runner, quickest_ms=next(times))

    monkeypatch.setattr(measurement, "warmed", warm)
    for repeats in (10, 1):
        assert {one.repeats for one in measure_latency(models, SHAPE, runs=1).values()} == {repeats}
    times = iter([0.01, 0.1])
    assert {one.repeats for one in measure_latency(models, SHAPE, runs=1, repeats=3).values()} == {3}


def test_timing_is_divided_by_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    ticks = iter([0, 0, 8_000_000, 12_000_000])
    monkeypatch.setattr(target.time, "process_time_ns", lambda: next(ticks))
    monkeypatch.setattr(target.time, "perf_counter_ns", lambda: next(ticks))

    class Session:
        def run(self, names: None, feed: dict[str, Any]) -> None:
            calls.append(1)

    assert Runner(OnnxRuntime(), Session(), {}, 4).time() == (2.0, 3.0)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"runs": 0}, "runs is 0: must be greater than or equal to 1"),
        ({"warmup": 0}, "warmup is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"repeats": 0}, "repeats is 0"),
        ({"inter_threads": 0}, "inter_threads is 0"),
        ({"batch": 0, "inputs": None}, "batch is 0"),
        (
            {"provider": "CPUExecutionProvder"},
            r"narrow: .* is not installed; installed are .*did you mean 'CPUExecutionP",
        ),
        ({"candidates": {"subnet": Subnet()}}, r"subnet: a Subnet needs the super-network.*bnas.export_onnx writes"),
        ({"reference": "wid"}, "'wid' is not one of the candidates narrow, wide"),
        ({"inputs": {"y": np.zeros(1)}}, r"narrow: takes the inputs \['input'\] but got \['y'\]"),
        ({"candidates": {}}, "at least one"),
        ({"candidates": {"broken": b"no model"}}, "broken: .* is not an ONNX model"),
        ({"candidates": {"gone": "gone.onnx"}}, "gone: ONNX Runtime cannot load it"),
        ({"inputs": (2, 5, 8, 8)}, "narrow: ONNX Runtime cannot run it"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    settings: dict[str, Any], reason: str, models: dict[str, bytes | Path]
) -> None:
    with pytest.raises(LatencyError, match=reason) as caught:
        measure_latency(**{"candidates": models, "inputs": SHAPE, "runs": 1, "warmup": 1, **settings})
    assert isinstance(caught.value, BnasError)


def test_machine_is_described_in_json() -> None:
    found = json.loads(json.dumps(machine()))
    assert found["cpu"]
    assert found["cores"] >= found["usable_cores"] >= 1
    assert set(found["flags"]) <= set(CPU_FLAGS)
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "onnx", "onnxruntime", "system"} <= set(found)


def test_machine_without_a_description_of_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def missing(self: Path, **settings: Any) -> str:
        if self == Path("/proc/cpuinfo"):
            raise FileNotFoundError
        return read(self, **settings)

    monkeypatch.setattr(Path, "read_text", missing)
    assert machine()["flags"] == []


def test_machines_differ_in_what_latency_depends_on() -> None:
    here = machine()
    assert differences(here, {**here, "python": "2.7", "torch": "1"}) == []
    found = differences(here, {**here, "cpu": "abacus", "onnxruntime": "0"})
    assert len(found) == 2
    assert "cpu was 'abacus' and is" in found[0]


def test_modules_and_subnets_are_lowered_and_inputs_are_what_they_declare() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 3, 3))
    supernet = SuperNetwork.from_model(net, torch.zeros(SHAPE))
    subnet = supernet.space.minimal()
    candidates: dict[str, Any] = {"subnet": subnet, "module": supernet.extract(subnet), "file": model(4)}
    found = measure_latency(candidates, supernet=supernet, batch=3, runs=1, warmup=1)
    assert [one.batch for one in found.values()] == [3, 3, 3]
    alone = measure_latency(model(4), runs=1, warmup=1)
    assert (alone.batch, alone.ratio, alone.provider) == (1, None, "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("shape", "kind", "reason"),
    [
        (["batch", 3, "height"], TensorProto.FLOAT, "has no fixed size for 'height'"),
        ([2, 3], TensorProto.FLOAT, "has a fixed batch size of 2, not 5"),
        (["batch"], TensorProto.STRING, "cannot generate an input of STRING"),
    ],
)
def test_inputs_that_cannot_be_made_up_are_named(shape: list[Any], kind: int, reason: str) -> None:
    graph = helper.make_graph([], "net", [helper.make_tensor_value_info("x", kind, shape)], [])
    with pytest.raises(LatencyError, match=reason):
        feed_of("net", helper.make_model(graph), None, LatencySettings(batch=5))


def test_dynamic_axes_have_the_sizes_of_the_example_or_given_ones() -> None:
    graph = symbolic_trace(nn.Conv2d(3, 4, 3)).eval()
    graph.meta["dynamic"] = {"input": {0: "batch", 2: "height", 3: "width"}}
    model = lower(graph, [torch.zeros(2, 3, 8, 9)])
    assert feed_of("net", model, None, LatencySettings(batch=5))["input"].shape == (5, 3, 8, 9)
    assert feed_of("net", model, None, LatencySettings(sizes={"width": 20}))["input"].shape == (1, 3, 8, 20)


@pytest.mark.parametrize(
    ("times", "windows", "warm"),
    [
        pytest.param([1.0] * 4, 2, True, id="at-once"),
        pytest.param([9.0, 9.0, 5.0, 5.0, 1.0, 1.0, 1.0, 1.0], 4, True, id="once-it-settles"),
        pytest.param([2.0**-step for step in range(100)], WINDOWS, False, id="never"),
    ],
)
def test_warm_up_goes_on_until_the_times_settle(
    times: list[float], windows: int, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Any = Clock("a", times, log := [])
    runner = Runner(OnnxRuntime(), None, {"x": np.zeros((1, 1))})
    monkeypatch.setattr(Runner, "time", lambda _: clock.time())
    runner = warmed("a", runner, 2)
    assert (len(log), runner.warm) == (2 * windows, warm)
    told = measurement._summary(np.ones((50, 2)), None, runner, LatencySettings()).unstable
    assert told == (None if warm else "times did not settle during the warm-up")
