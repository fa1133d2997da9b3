"""Choosing winners, the folder of a run, public names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from job_cases import job
from safetensors.torch import load_file, save_file
from target_cases import Counting

import bnas
from bnas.data.digits import DigitNet, splits
from bnas.page import write_page
from bnas.passes import Subnet
from bnas.run.files.lock import kept
from bnas.run.files.mark import OutputError
from bnas.run.files.output import open_output
from bnas.run.folder import RunFolder
from bnas.run.pipeline import described
from bnas.run.winners.winners import Winners
from bnas.runtime import QuantisationError
from bnas.runtime.storage.files import write_bytes, write_json
from bnas.search import Constraint, Evaluation, Objective, SearchError, SearchResult

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))


def result(*values: tuple[float, float]) -> SearchResult:
    evaluations = [
        Evaluation(i, Subnet({"w": i + 1}), {"accuracy": a, "macs": m}, 0.0) for i, (a, m) in enumerate(values)
    ]
    return SearchResult(OBJECTIVES, tuple(evaluations))


def test_best_is_the_most_accurate_smaller_one_and_smallest_the_cheapest_within_the_delta() -> None:
    got = Winners.of(result((0.90, 100), (0.905, 80), (0.89, 50), (0.5, 10)), 0.9, 0.01)
    assert (got.found["best"].index, got.found["smallest"].index, got.missed) == (1, 2, False)


def test_where_none_is_within_the_delta_it_says_so() -> None:
    got = Winners.of(result((0.9, 100), (0.8, 80), (0.7, 50)), 0.95, 0.01)
    assert (got.found["best"].index, got.found["smallest"].index, got.missed) == (1, 1, True)


def test_winners_are_read_back_and_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "winners.json"
    got = Winners.of(result((0.9, 100), (0.8, 80), (0.7, 50)), 0.8, 0.01)
    got.write(path)
    assert Winners.read(path) == got
    whole = json.loads(path.read_text())
    for text, message in (
        ("{", "is not a JSON file"),
        (json.dumps({**whole, "format": 2}), "has an unknown format"),
        (json.dumps({"format": 1}), "is damaged: KeyError: 'winners'"),
        (json.dumps({**whole, "winners": {"best": {"index": 0}}}), "is damaged"),
    ):
        path.write_text(text)
        with pytest.raises(OutputError, match=message):
            Winners.read(path)


def test_job_takes_objectives_and_bounds_and_resumes_with_its_latency_model(tmp_path: Path) -> None:
    def job() -> bnas.Job:
        torch.manual_seed(0)
        return bnas.Job(
            DigitNet().eval(),
            splits(),
            torch.zeros(1, 1, 8, 8),
            stages=[bnas.Stage(("depth", "width"), epochs=1)],
            num_bn_adaptation_samples=12,
            objectives=(Objective("accuracy", "max"), Objective("activations", "min")),
            search=bnas.SearchSettings(
                algorithm=bnas.NSGA2(population=4), num_evals=8, constraints=("peak_memory <= 99 %", "latency <= 1000")
            ),
        )

    bnas.run_job(job(), tmp_path / "run")
    model = (tmp_path / "run" / "latency.json").read_bytes()
    front, log = (tmp_path / "run" / "pareto.json").read_text(), (tmp_path / "run" / "evaluations.jsonl").read_text()
    assert all({"activations", "latency"} <= set(one["values"]) for one in json.loads(front))
    bnas.run_job(job(), str(tmp_path / "run"), resume=True)
    assert (tmp_path / "run" / "latency.json").read_bytes() == model
    assert (tmp_path / "run" / "pareto.json").read_text() == front
    assert (tmp_path / "run" / "evaluations.jsonl").read_text() == log


def test_a_run_measures_where_its_target_is(tmp_path: Path) -> None:
    """The model of latency, the choice of winners, the table and the page: all of them, also when it is resumed."""

    def made() -> bnas.Job:
        latency = bnas.LatencySettings(runs=3, turns=1, subnets=6, target=Counting())
        return job(targets={"half": Constraint.parse("latency <= 60 %")}, latency=latency)

    report = bnas.run_job(made(), tmp_path / "run")
    first, half = report.rows
    sizes = [sum(one.numel() for one in load_file(path).values()) for path in (tmp_path / "run/subnets").glob("*.s*")]
    assert (first.latency.clock, first.latency.machine) == ("wall", {"target": "bytes"})
    assert half.latency.median_ms / first.latency.median_ms == pytest.approx(min(sizes) / max(sizes), rel=0.3), (
        "BatchNorm is folded"
    )
    assert half.latency.median_ms / first.latency.median_ms <= 0.6
    assert json.loads((tmp_path / "run" / "latency.json").read_text())["machine"] == {"target": "bytes"}
    assert "latency on bytes" in str(report.table().title)
    (tmp_path / "run" / "winners.json").unlink()
    again = bnas.run_job(made(), tmp_path / "run", resume=True)
    assert [row.subnet for row in again.rows] == [row.subnet for row in report.rows]
    page = write_page(tmp_path / "run").read_text()
    assert "wall-clock time" in page
    assert "bytes" in page
    assert [row.profile for row in report.rows] == [None, None], "times by layer are of ONNX Runtime only"
    assert "There are no times by layer: they are the profile of ONNX Runtime, and this run measured on bytes." in page


def test_int8_that_cannot_be_is_noted_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise QuantisationError("no such operator")

    def left_from_an_earlier_run(_: str) -> None:
        write_bytes(tmp_path / "run/subnets/best.int8.onnx", b"")

    torch.manual_seed(0)
    settings = {"stages": [bnas.Stage(("depth",), epochs=1)], "search": bnas.SearchSettings(num_evals=4)}
    job = bnas.Job(DigitNet().eval(), splits(), torch.zeros(1, 1, 8, 8), num_bn_adaptation_samples=12, **settings)
    monkeypatch.setattr("bnas.runtime.onnx.export.quantise", refuse)
    report = bnas.run_job(job, tmp_path / "run", bnas.run.Watch(left_from_an_earlier_run))
    for row in report.to_json()["rows"]:
        assert row["int8"] == {"test_accuracy": None, "latency": None, "failure": "no such operator"}
    assert not list((tmp_path / "run/subnets").glob("*.int8.onnx"))
    without = dataclasses.replace(job, int8=None)
    rows = bnas.run_job(without, tmp_path / "run", resume=True).to_json()["rows"]
    assert [row["int8"] for row in rows] == [None, None, None]


def tiny(**changes: Any) -> bnas.Job:
    torch.manual_seed(0)
    settings = {"stages": [bnas.Stage(("depth",), epochs=1)], "search": bnas.SearchSettings(num_evals=4), "int8": None}
    latency = bnas.LatencySettings(runs=3)
    more: Any = {"num_bn_adaptation_samples": 12, "latency": latency, **settings, **changes}
    return bnas.Job(DigitNet().eval(), splits(), torch.zeros(1, 1, 8, 8), **more)


def test_a_job_notes_its_settings_and_goes_on_by_none_that_it_has_used(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    bnas.run_job(tiny(), folder)
    noted = json.loads((folder / "config.json").read_text())["job"]
    assert (noted["model"], noted["search"]["num_evals"], noted["stages"][0]["epochs"]) == (
        "bnas.data.digits.DigitNet",
        4,
        1,
    )
    with pytest.raises(OutputError, match=r"run holds a run already; .*resume=True or overwrite=True"):
        bnas.run_job(tiny(), folder)
    for changes, told in (
        ({"stages": [bnas.Stage(("depth",), epochs=2)]}, "job.stages"),
        ({"num_bn_adaptation_samples": 24}, "job.num_bn_adaptation_samples was 12 and is now 24"),
    ):
        with pytest.raises(OutputError, match=told):
            bnas.run_job(tiny(**changes), folder, resume=True)
    report = bnas.run_job(tiny(search=bnas.SearchSettings(num_evals=6)), folder, resume=True)
    assert report.evaluations == 6
    assert not bnas.run_job(tiny(num_bn_adaptation_samples=24), folder, overwrite=True).missed
    assert "bnas.data.digits.DigitNet" in write_page(folder).read_text(encoding="utf-8")


def test_a_run_from_python_is_no_run_of_a_configuration(tmp_path: Path) -> None:
    open_output(tmp_path, {"job": described(tiny())})
    with pytest.raises(OutputError, match=r"`bnas.run_job` made it from Python: continue it there, with resume=True"):
        _ = RunFolder.open(tmp_path).configuration


def test_settings_of_every_kind_are_noted_as_plain_data() -> None:
    training = {"loss": torch.nn.functional.mse_loss, "rate": float("inf"), "file": Path("a"), "names": {"b", "a"}}
    noted = described(tiny(training=training, objectives=(Objective("accuracy", "max", len), Objective("macs", "min"))))
    assert json.loads(json.dumps(noted, allow_nan=False)) == noted
    assert noted["training"] == {
        "loss": "torch.nn.functional.mse_loss",
        "rate": "inf",
        "file": "a",
        "names": ["a", "b"],
    }
    assert noted["objectives"][0] == {
        "name": "accuracy",
        "direction": "max",
        "measure": "builtins.len",
        "target": None,
    }


def test_a_job_is_made_of_a_configuration_file(tmp_path: Path) -> None:
    state = DigitNet().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    search = {"num_evals": 8, "population": 4}
    data = {"model": "bnas.data.digits:DigitNet", "data": "bnas.data.digits:splits", "weights": "weights.safetensors"}
    more = {"input_info": {"sample_size": [1, 1, 8, 8]}, "bootstrapNAS": {"search": search}}
    (tmp_path / "c.json").write_text(json.dumps({**data, **more}))
    job = bnas.Job.from_config(str(tmp_path / "c.json"), ["bootstrapNAS.search.num_evals=12"])
    assert (type(job.model), job.search.num_evals, job.search.algorithm.population) == (DigitNet, 12, 4)
    assert torch.equal(job.model.state_dict()["head.weight"], state["head.weight"])
    with pytest.raises(bnas.run.ConfigurationError, match="num_eval"):
        bnas.Job.from_config(tmp_path / "c.json", ["bootstrapNAS.search.num_eval=12"])


def test_job_without_accuracy_is_refused_before_anything_runs() -> None:
    with pytest.raises(SearchError, match="'accuracy' must be one of them"):
        bnas.Job(DigitNet(), splits(), torch.zeros(1, 1, 8, 8), objectives=(Objective("macs", "min"),))


def test_folder_is_not_taken_by_accident(tmp_path: Path) -> None:
    open_output(tmp_path / "new", {"a": 0})
    output = open_output(tmp_path / "new", {"a": 1})
    assert not output.resumed, "the first one did nothing: nothing is lost with it"
    with kept(tmp_path / "new"):
        write_json(output.path("plan/train.json"), {})
    with pytest.raises(OutputError, match="--resume"):
        open_output(tmp_path / "new", {"a": 1})
    assert open_output(tmp_path / "new", {"a": 1}, resume=True).resumed
    with pytest.raises(OutputError, match="has other settings"):
        open_output(tmp_path / "new", {"a": 2}, resume=True)
    (tmp_path / "new" / "old.txt").touch()
    assert not open_output(tmp_path / "new", {"a": 2}, overwrite=True).resumed
    assert (tmp_path / "new" / "old.txt").exists(), "a user's file was removed"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="do not belong to a run"):
        open_output(tmp_path / "mine", {}, overwrite=True)


def test_public_names() -> None:
    assert all(getattr(bnas, name).__name__ == name for name in bnas.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(bnas, "nothing")  # noqa: B009
