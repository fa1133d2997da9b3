"""The steps of a run, one by one and all together: what each leaves, reads, and says where the former is missing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import torch
from job_cases import Shuffled, job
from torch import nn

from bnas.passes import BnasError, Subnet
from bnas.run.files.lock import kept
from bnas.run.files.mark import OutputError
from bnas.run.files.output import Output, open_output
from bnas.run.pipeline import described, run_job
from bnas.run.pruning import PrunePlan, Pruning
from bnas.run.steps import Steps
from bnas.run.winners.winners import Winners
from bnas.runtime import BatchError, CheckpointError, Int8, LatencySettings
from bnas.runtime.storage.checkpoint import MODEL
from bnas.search import RNSGA2, SearchError, SearchSettings

ENDS = (".safetensors", ".json", ".onnx", ".int8.onnx")


def found(folder: Path) -> list[tuple[Any, Any]]:
    """What was evaluated, in order, without the time that it took."""
    lines = (folder / "evaluations.jsonl").read_text().splitlines()[1:]
    return [(one["subnet"], one["values"]) for one in map(json.loads, lines)]


def test_steps_one_by_one_leave_what_a_run_leaves(tmp_path: Path) -> None:
    run_job(job(), tmp_path / "all")
    open_output(tmp_path / "each", {"job": described(job())})
    for step in (Steps.train, Steps.search, Steps.export):  # each as in a process of its own
        step(Steps(job(), Output(tmp_path / "each", resumed=True)))
    assert found(tmp_path / "all") == found(tmp_path / "each")
    names = {str(one.relative_to(tmp_path / "all")) for one in (tmp_path / "all").rglob("*")}
    assert names == {str(one.relative_to(tmp_path / "each")) for one in (tmp_path / "each").rglob("*")}
    assert {"data.json", "original", "training", "supernet", "winners.json", "pareto.json", "report.json"} < names
    for name in ("pareto.json", "data.json", "subnets/best.json", "subnets/best.safetensors", "subnets/best.onnx"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "each" / name).read_bytes()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_held_out_data_that_are_empty_are_told_before_the_training(tmp_path: Path, part: str) -> None:
    given = job()
    empty = replace(given, data=replace(given.data, **{part: []}))
    for made in (Steps(empty, Output(tmp_path)).train, Pruning(empty, PrunePlan("macs <= 50 %"), Output(tmp_path)).all):
        with pytest.raises(BatchError, match=f"the {part} data are empty: .*; hold out samples"):
            made()
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    ("loader", "message"),
    [
        pytest.param(
            None, "must be batches of inputs and targets, such as a DataLoader or a list, not None", id="none"
        ),
        pytest.param([torch.zeros(2, 1, 6, 6)], "a batch must be a pair of inputs and targets", id="no-pairs"),
        pytest.param([(torch.zeros(2, 3, 6, 6), torch.zeros(2))], "do not fit the model", id="other-channels"),
        pytest.param(
            [(torch.zeros(2, 6, 6, 1), torch.zeros(2))], r"the last axis: make .*permute\(2, 0, 1\)", id="channels-last"
        ),
        pytest.param(
            [(torch.zeros(2, 1, 6, 6).double(), torch.zeros(2))], "The model computes in float32", id="other-type"
        ),
    ],
)
def test_held_out_data_that_do_not_fit_are_told_before_the_training(
    tmp_path: Path, part: str, loader: Any, message: str
) -> None:
    given = job()
    wrong = replace(given, data=replace(given.data, **{part: loader}))
    for made in (Steps(wrong, Output(tmp_path)).train, Pruning(wrong, PrunePlan("macs <= 50 %"), Output(tmp_path)).all):
        with pytest.raises(BnasError, match=rf"the {part} data.*{message}"):
            made()
    assert not (tmp_path / "training").exists()


def test_looking_at_the_held_out_data_changes_nothing() -> None:
    given = job()
    given.model.train()
    held, tensors = Shuffled(1), copy.deepcopy(given.model.state_dict())
    once = iter([(torch.zeros(2, 1, 6, 6), torch.zeros(2))])  # an iterator is left whole
    before, numbers = held.generator.get_state(), torch.get_rng_state()
    replace(given.data, validation=held, test=once).check_held_out(given.model)
    assert torch.equal(held.generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert given.model.training
    assert all(torch.equal(one, tensors[name]) for name, one in given.model.state_dict().items())
    assert len(list(once)) == 1


def test_the_file_of_a_winner_is_read_as_a_sub_network(tmp_path: Path) -> None:
    steps = Steps(job(), Output(tmp_path))
    steps.train()
    found = steps.search().found
    steps.export()
    for name, winner in found.items():
        data = json.loads((tmp_path / f"subnets/{name}.json").read_text())
        assert Subnet.from_json(data) == winner.subnet
        assert data["costs"] == steps.supernet.costs(winner.subnet)


def test_each_network_has_its_times_by_layer(tmp_path: Path) -> None:
    steps = Steps(job(), Output(tmp_path))
    report = steps.all()
    layers = steps.supernet.architecture.layers
    told = json.loads((tmp_path / "report.json").read_text())["rows"]
    for row, data in zip(report.rows, told, strict=True):
        assert row.profile is not None
        sizes = steps.supernet.architecture.of(row.subnet)
        assert set(row.profile.layers) == {one.name for one, size in zip(layers, sizes, strict=True) if size}
        sums = sum(data["profile"]["layers"].values()) + sum(data["profile"]["other"].values())
        assert 0 < sums == pytest.approx(row.profile.total_ms)


def test_evaluations_depend_on_what_calibrates_them(tmp_path: Path) -> None:
    for name, samples in (("many", 24), ("few", 12)):
        steps = Steps(job(num_bn_adaptation_samples=samples), Output(tmp_path / name))
        steps.train()
        steps.search()
    assert found(tmp_path / "many") != found(tmp_path / "few")


def test_a_model_without_calibration_keeps_its_statistics(tmp_path: Path) -> None:
    steps = Steps(job(num_bn_adaptation_samples=0), Output(tmp_path))
    supernet = steps.train()
    assert steps.evaluator.calibration is None
    best = supernet.space.maximal()
    assert torch.equal(
        steps.evaluator.prepare(best).state_dict()["norm.running_mean"], supernet.model.norm.running_mean
    )  # type: ignore[union-attr,arg-type]


def test_the_original_is_the_model_as_it_was(tmp_path: Path) -> None:
    given = job()
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    Steps(given, Output(tmp_path)).train()
    assert not torch.equal(given.model.state_dict()["head.weight"], before["head.weight"])
    other = job()
    nn.init.ones_(other.model.head.weight)  # type: ignore[union-attr,arg-type]
    original = Steps(other, Output(tmp_path, resumed=True)).original.state_dict()
    assert original.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.items())
    next((tmp_path / "original").glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        _ = Steps(other, Output(tmp_path, resumed=True)).original


def test_the_original_is_kept_anew_where_no_training_began(tmp_path: Path) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    first = Steps(job(), Output(tmp_path))
    first.watch = replace(first.watch, on_step=stop)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    other = job()
    nn.init.ones_(other.model.head.weight)  # type: ignore[union-attr,arg-type]
    assert MODEL.exists(tmp_path / "original")
    Steps(other, Output(tmp_path, resumed=True)).train()
    original = Steps(job(), Output(tmp_path, resumed=True)).original.state_dict()
    assert bool((original["head.weight"] == 1).all())


@pytest.mark.parametrize(
    ("step", "there", "message"),
    [
        (Steps.search, (), "holds no trained super-network; train it with `bnas train CONFIG --output .*run`"),
        (Steps.search, ("training/last/training.json",), "train it with `bnas train CONFIG --output .*run --resume`"),
        (Steps.export, (), "holds no finished search; run it with `bnas search .*run`"),
        (Steps.export, ("evaluations.jsonl",), "holds no finished search; run it with `bnas search .*run --resume`"),
    ],
)
def test_a_step_says_what_makes_what_it_needs(
    step: Callable[[Steps], Any], there: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    for name in there:
        (tmp_path / "run" / name).parent.mkdir(parents=True)
        (tmp_path / "run" / name).touch()
    with pytest.raises(OutputError, match=message):
        step(Steps(job(), Output(tmp_path / "run")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": SearchSettings(constraints=("macss <= 3 M",))}, "'macss' is not a value of an evaluation"),
        (
            {"search": SearchSettings(algorithm=RNSGA2(aspiration_points=[[0.9]]))},
            r"\(0.9,\) must have 2 values, \[accuracy, macs\]",
        ),
    ],
)
def test_what_cannot_be_searched_is_told_before_the_training(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    steps = Steps(job(**changes), Output(tmp_path / "run"))
    with pytest.raises(SearchError, match=message):
        steps.train()
    assert not (tmp_path / "run").exists()


def test_int8_files_are_written_measured_and_removed_again(tmp_path: Path) -> None:
    steps = Steps(job(int8=Int8(samples=24), latency=LatencySettings(runs=3, batch=5)), Output(tmp_path))
    report = steps.all()
    files = {name: tmp_path / "subnets" / f"{name}.int8.onnx" for name in ("original", "best", "smallest")}
    for row in report.rows:
        assert row.int8 is not None
        assert (row.latency.batch, row.int8.latency.batch, row.int8.latency.runs) == (5, 5, 3)
        assert row.int8.latency.ratio is not None
        operators = onnxruntime.InferenceSession(str(files[row.name]), providers=["CPUExecutionProvider"])
        assert [one.name for one in operators.get_inputs()] == ["input"]
    told = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["int8"]["test_accuracy"] for row in told] == [row.int8 and row.int8.accuracy for row in report.rows]
    table = report.table()
    assert all(" ms" in str(cell) for cell in table.columns[-1].cells)

    again = Steps(job(int8=None), Output(tmp_path, resumed=True)).export()
    assert all(row.int8 is None for row in again.rows)
    assert not any(file.exists() for file in files.values())
    assert safetensors.torch.load_file(tmp_path / "subnets" / "best.safetensors")


def test_one_sub_network_under_two_names_is_measured_once(tmp_path: Path) -> None:
    steps = Steps(job(int8=Int8(samples=24)), Output(tmp_path))
    steps.train()
    winners = steps.search()
    for other in (winners.found["best"], replace(winners.found["best"], subnet=steps.supernet.space.minimal())):
        with kept(tmp_path):
            Winners(winners.found | {"smallest": other}, 0.0, 0.01, 6, False).write(tmp_path / "winners.json")
        _, best, smallest = steps.export().rows
        same = best.subnet == smallest.subnet
        assert smallest.name == "smallest"
        assert (best.latency is smallest.latency, best.int8 is smallest.int8) == (same, same)
        assert (replace(best, name="smallest") == smallest) == same
        files = [[tmp_path / "subnets" / f"{name}{end}" for end in ENDS] for name in ("best", "smallest")]
        states = [safetensors.torch.load_file(one[0]) for one in files]
        assert all(file.is_file() for one in files for file in one)
        assert (states[0]["stem.weight"].shape == states[1]["stem.weight"].shape) == same


def test_training_and_search_have_their_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = Steps(job(tensorboard=True), Output(tmp_path))
    steps.train()
    steps.search()
    steps.search()  # a search that is told again
    tags = {}
    for name in ("training", "search"):
        events = EventAccumulator(str(tmp_path / name / "tensorboard"))
        events.Reload()
        tags[name] = {tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"]}
    assert tags["training"]["train/loss"] == 8
    names = {"best_accuracy", "hypervolume", "evaluations"} | {
        f"last_{one}" for one in steps.winners().found["best"].values
    }
    assert tags["search"] == {f"search/{name}": 6 for name in names}
