"""Several latencies in one search: each is measured where it is said, and winners keep the bounds of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from job_cases import job
from rich.console import Console
from target_cases import Counting, Nodes

import bnas
from bnas.config.file import load_config
from bnas.page import write_page
from bnas.run.files.trust import code_in
from bnas.run.latencies import INT8_ACCURACY
from bnas.run.quantised import TargetModule
from bnas.runtime import Int8, LatencyError, LatencySettings, OnnxRuntime, OpenVINO, SuperNetwork, evaluate_onnx
from bnas.runtime.targets.target import Network
from bnas.search import Constraint, Objective, SearchError

QUICK = LatencySettings(runs=3, turns=1, subnets=6)
BYTES = LatencySettings(runs=3, turns=1, subnets=6, target=Counting())


def server_and_phone(phone: Any = None) -> bnas.Job:
    """The phone as an objective with a target, and the server as a latency with a name, which is bounded only."""
    objectives = [Objective("accuracy", "max"), Objective("phone", "min", target=phone or Nodes())]
    targets = {"small": Constraint.parse("server <= 60 %"), "quick": Constraint.parse("phone <= 80 %")}
    search = bnas.SearchSettings(num_evals=12, algorithm=bnas.NSGA2(population=6))
    return job(objectives=objectives, latencies={"server": BYTES}, targets=targets, latency=QUICK, search=search)


def test_winners_keep_the_bounds_of_their_targets(tmp_path: Path) -> None:
    report = bnas.run_job(server_and_phone(), tmp_path / "run")
    first, small, quick = report.rows
    assert {name: one.machine for name, one in first.latencies.items()} == {
        "server": {"target": "bytes"},
        "phone": {"target": "nodes"},
    }
    assert small.latencies["server"].median_ms <= 0.6 * first.latencies["server"].median_ms
    assert quick.latencies["phone"].median_ms <= 0.8 * first.latencies["phone"].median_ms
    assert not any(row.target.missed for row in (small, quick) if row.target)
    assert small.latency.machine["target"] == "ONNX Runtime"
    rows = json.loads((tmp_path / "run/report.json").read_text())["rows"]
    assert [set(row["latencies"]) for row in rows] == [{"server", "phone"}] * 3
    assert not (tmp_path / "run/latency.json").exists(), "nothing asks for it"
    assert {one.name for one in (tmp_path / "run/latencies").iterdir()} == {"server.json", "phone.json"}
    written = Console(width=200, record=True)
    written.print(report.table())
    assert "phone: on nodes" in written.export_text()
    page = write_page(tmp_path / "run").read_text()
    assert "phone: on nodes" in page
    assert "latency on nodes" in page


def test_predicted_values_are_those_of_each_target(tmp_path: Path) -> None:
    bnas.run_job(server_and_phone(), tmp_path / "run")
    sizes, counts = [], []
    for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()[1:]:
        values = json.loads(line)["values"]
        sizes.append(values["server"] / values["parameters"])
        counts.append(values["phone"])
    assert max(sizes) / min(sizes) < 1.6
    assert all(one == pytest.approx(round(one), abs=0.6) for one in counts)


def test_a_target_that_fails_after_the_search_loses_nothing(tmp_path: Path) -> None:
    """It fails when winners are measured; the resumed run evaluates nothing anew and ends as if nothing had been."""
    whole = bnas.run_job(server_and_phone(), tmp_path / "whole")
    phone = Nodes()
    fits = bnas.run_job(server_and_phone(phone), tmp_path / "counted") and len(phone.asked)
    with pytest.raises(LatencyError, match="the cable is out"):
        bnas.run_job(server_and_phone(Nodes(healthy=fits - 4)), tmp_path / "run")
    before = (tmp_path / "run/evaluations.jsonl").read_text()
    again = bnas.run_job(server_and_phone(), tmp_path / "run", resume=True)
    assert (tmp_path / "run/evaluations.jsonl").read_text() == before
    assert [one.subnet for one in again.rows] == [one.subnet for one in whole.rows]


def test_another_target_under_the_same_name_is_refused(tmp_path: Path) -> None:
    bnas.run_job(server_and_phone(), tmp_path / "run")
    (tmp_path / "run/winners.json").unlink()
    with pytest.raises(LatencyError, match=r"phone\.json: was fitted on another machine"):
        bnas.run_job(server_and_phone(Counting()), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latencies": {"macs": BYTES}}, "'macs' is already the name of another value"),
        ({"latencies": {"../x": BYTES}}, "part of a file name"),
        ({"latencies": {"a": BYTES}, "objectives": ("a", Nodes())}, "'a': its target is given twice"),
        ({"latency": LatencySettings(target=Counting()), "objectives": ("latency", Nodes())}, "is given twice"),
        ({"latency": LatencySettings(int8=True)}, "for int8 define another latency"),
        ({"int8": None, "objectives": (INT8_ACCURACY, None)}, "needs int8 files"),
    ],
)
def test_latencies_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    if "objectives" in changes:
        name, target = changes["objectives"]
        changes = {**changes, "objectives": [Objective("accuracy", "max"), Objective(name, "min", target=target)]}
    with pytest.raises(SearchError, match=message):
        job(**changes)


def test_configurations_say_it_too(tmp_path: Path) -> None:
    command = {"kind": "command", "command": ["./bench", "{file}"]}
    data = {
        "model": "resnet18",
        "dataset": "cifar10",
        "data": "d",
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "objectives": [
            {"name": "accuracy", "direction": "max"},
            {"name": "latency", "direction": "min", "target": "onnxruntime"},
            {"name": "board", "direction": "min", "target": command},
        ],
        "latencies": {"server": {"batch": 16, "int8": {"per_channel": False}}},
        "search": {"constraints": ["server <= 50 %"]},
    }
    (tmp_path / "c.json").write_text(json.dumps(data))
    configuration = load_config(tmp_path / "c.json", [])
    assert configuration.latencies["server"].int8 == Int8(per_channel=False)
    assert configuration.objectives is not None
    assert configuration.objectives[2].target.command == ("./bench", "{file}")
    found = code_in(configuration.model_dump(mode="json"), tmp_path)
    assert found["objectives.2.target"].options["command"] == ["./bench", "{file}"], "a stranger's is not started"


def test_a_search_in_int8_is_by_the_files_that_a_run_hands_over(tmp_path: Path) -> None:
    """Its accuracy is that of the int8 file, and winners are chosen by it."""
    objectives = [Objective(INT8_ACCURACY, "max"), Objective("quick", "min")]
    latencies, said = {"quick": LatencySettings(runs=3, turns=1, subnets=6, int8=True)}, []
    whatever = Constraint.parse("quick <= 900 %")  # on a busy machine the original itself may take twice as long
    asked = {"num_bn_adaptation_samples": 0, "targets": {"best": whatever}}
    given = job(objectives=objectives, latencies=latencies, latency=QUICK, **asked)
    report = bnas.run_job(given, tmp_path / "run", bnas.run.Watch(phase=said.append))
    assert any(text.startswith("the int8 files of ") and text.endswith(" s each") for text in said)
    data = json.loads((tmp_path / "run/winners.json").read_text())["winners"]["best"]
    found = evaluate_onnx(tmp_path / "run/subnets/best.int8.onnx", given.data.validation)
    assert data["values"][INT8_ACCURACY] == pytest.approx(found)
    assert report.rows[1].latencies["quick"].ratio is not None
    lines = (tmp_path / "run/evaluations.jsonl").read_text().splitlines()[1:]
    assert max(json.loads(one)["values"][INT8_ACCURACY] for one in lines) == data["values"][INT8_ACCURACY]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_module_on_a_target_gives_what_the_network_gives(batch: int, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    import onnx

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    bnas.export_onnx(net.eval(), tmp_path / "net.onnx", torch.zeros(1, 1, 6, 6))
    network = Network("net", tmp_path / "net.onnx", onnx.load(str(tmp_path / "net.onnx")))
    for target in (OnnxRuntime(), OpenVINO()):
        module = TargetModule(network, target, tmp_path)
        for images in (torch.randn(batch, 1, 6, 6), torch.randn(batch + 1, 1, 6, 6)):
            torch.testing.assert_close(module(images), net(images), rtol=1e-3, atol=1e-4)


def test_files_are_not_quantised_by_the_way(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.Flatten(), torch.nn.Linear(256, 3)).eval()
    bnas.export_onnx(net, tmp_path / "net.onnx", torch.zeros(1, 1, 6, 6))
    with pytest.raises(LatencyError, match="a file cannot be quantised before measuring"):
        bnas.measure_latency(tmp_path / "net.onnx", int8=True)
    supernet = SuperNetwork.from_model(net, torch.zeros(1, 1, 6, 6)).eval()
    with pytest.raises(LatencyError, match="int8 files are ONNX files, which ByModule cannot run"):
        bnas.measure_latency(supernet.space.maximal(), supernet=supernet, int8=True, target=ByModule())


class ByModule(Counting):
    from_module = True
