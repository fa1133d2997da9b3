"""``bnas train``, ``search`` and ``export`` one after another, again and resumed, on the folder of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import Called, bnas, found, write_files

from bnas.run.files.mark import OutputError
from bnas.run.files.output import differences, open_output
from bnas.run.pipeline import free_in

EVALS, POPULATION = "bootstrapNAS.search.num_evals", "bootstrapNAS.search.population"


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a user, a run in one go, and one step by step, not to be changed."""
    folder = tmp_path_factory.mktemp("steps")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert bnas(patch, "run", "config.json", "-o", "whole") == 0
        assert bnas(patch, "train", "config.json", "-o", "run") == 0
        shutil.copytree(folder / "run", folder / "trained")
        assert bnas(patch, "search", "run") == 0
        shutil.copytree(folder / "run", folder / "searched")
        assert bnas(patch, "export", "run") == 0
    return folder


@pytest.fixture
def folder(steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, to work in."""
    shutil.copytree(steps, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def called(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Call ``bnas`` in the folder."""
    return Called(monkeypatch, capsys)


def files(folder: Path) -> set[str]:
    """Without those that are named after their content."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "-" not in path.name}


def config(run: Path) -> Any:
    return json.loads((run / "config.json").read_text())


def test_each_step_leaves_its_part_of_a_run(steps: Path) -> None:
    trained = {"run.json", "config.json", "source.txt", "original/model.json", "supernet/supernet.json"}
    trained |= {"training/last/training.json", "training/best/supernet.json", "training/history.json"}
    trained |= {"environment.json", "architecture.json"}
    searched = {"search.json", "evaluations.jsonl", "evaluations.csv", "pareto.json", "winners.json"}
    assert files(steps / "trained") == trained
    assert files(steps / "searched") == trained | searched
    assert "report.html" in files(steps / "run"), "the export measures, so it writes the report"
    assert files(steps / "run") == files(steps / "whole")
    assert found(steps / "run") == found(steps / "whole")
    assert config(steps / "run") == config(steps / "whole")
    for name in ("original", "best", "smallest"):
        file = f"subnets/{name}.onnx"
        assert (steps / "run" / file).read_bytes() == (steps / "whole" / file).read_bytes()


def test_a_search_by_other_settings_replaces_or_goes_on(folder: Path, called: Called) -> None:
    before = found(folder / "searched")
    told = called("search", "searched", "--resume", "--set", f"{EVALS}=9")
    assert "9 evaluations; accuracy to reach: " in told
    assert "to export and measure these winners: `bnas export searched`" in told
    assert found(folder / "searched")[:6] == before
    assert len(found(folder / "searched")) == 9
    assert config(folder / "searched")["bootstrapNAS"]["search"]["num_evals"] == 9

    called("search", "searched", "--overwrite", "--set", f"{EVALS}=5", "--set", "bootstrapNAS.search.seed=3")
    assert len(found(folder / "searched")) == 5
    assert found(folder / "searched") != before[:5]
    called("search", "trained", "--set", 'bootstrapNAS.search.constraints=["macs <= 90 %"]')
    most = max(values["macs"] for _, values in found(folder / "trained"))
    assert all(one["values"]["macs"] <= 0.9 * most for one in json.loads((folder / "trained/pareto.json").read_text()))


def test_an_export_has_settings_of_its_own(folder: Path, called: Called) -> None:
    told = called("export", "run", "--set", "export.int8=true", "--set", "export.calibration_samples=12")
    rows = json.loads((folder / "run" / "report.json").read_text())["rows"]
    assert all(row["int8"]["latency"]["runs"] == 2 for row in rows)
    assert config(folder / "run")["export"]["int8"] is True
    before = config(folder / "run")
    told = called("export", "run", "--onnx", "small.onnx", "--subnet", "smallest", "--set", "export.int8=false")
    assert "small.onnx: " in told
    assert "test accuracy on ONNX Runtime: " in told
    assert ", in float" not in told
    assert config(folder / "run") == before  # what one file is like is no setting of the run
    told = called("export", "searched", "--onnx", "b.onnx", "--int8", "--exclude", "he*")
    assert ", in float" in told
    operators = [node.op_type for node in onnx.load(folder / "b.onnx").graph.node]
    assert operators.count("DequantizeLinear") > 0
    assert operators.count("Gemm") == 1
    assert "fastest" not in called("export", "searched", "--onnx", "c.onnx", "--subnet", "fastest")
    assert not (folder / "searched" / "report.json").exists()


def test_a_finished_step_is_not_done_again(folder: Path, called: Called) -> None:
    weights = {path: path.stat().st_mtime_ns for path in (folder / "run" / "supernet").iterdir()}
    log = (folder / "run" / "evaluations.jsonl").read_bytes()
    assert "The trained super-network is in run/supernet" in called("train", "config.json", "-o", "run", "--resume")
    called("run", "config.json", "-o", "run", "--resume")
    assert {path: path.stat().st_mtime_ns for path in (folder / "run" / "supernet").iterdir()} == weights
    assert (folder / "run" / "evaluations.jsonl").read_bytes() == log


def test_a_run_needs_its_files_no_more_but_for_the_code(folder: Path, called: Called) -> None:
    """Weights that changed or moved after the training do not change what is searched, or called the original."""
    called("search", "searched", "--overwrite")
    before = json.loads((folder / "searched" / "winners.json").read_text())["reference"]
    (folder / "net.pt").unlink()
    (folder / "searched" / "source.txt").unlink()
    called("search", "searched", "--overwrite", "--from", str(folder), "--trust")
    assert json.loads((folder / "searched" / "winners.json").read_text())["reference"] == before


@pytest.mark.parametrize("command", [("train", "config.json", "-o", "new"), ("search", "trained"), ("export", "run")])
def test_passes_and_refusals_are_shown_if_asked_for(command: tuple[str, ...], called: Called) -> None:
    told = called(*command, "-v")
    assert "pass type-axes: " in told
    assert "1 blocks, " in told


def test_notes_are_lines_of_their_own(
    folder: Path, called: Called, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With pytest's filters off: a warning is an error in a test."""
    import warnings

    monkeypatch.setattr(warnings, "filters", [])
    few = ("--set", f"{EVALS}=4", "--set", "bootstrapNAS.training.train_steps=12")
    (folder / "big.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "model": "resnet18_cifar10", "weights": None})
        .replace('"population": 4', '"population": 50')
        .replace("[1, 1, 6, 6]", "[1, 3, 8, 8]")
    )
    assert bnas(monkeypatch, "train", "big.json", "-o", "new", *few, "--set", "data=gone") == 1
    assert capsys.readouterr().err.splitlines() == [
        f"bnas: {POPULATION} 50 is ignored: it is larger than num_evals=4 of --set; to set it, use "
        f"--set {POPULATION}=N",
        "bnas: data gone: there is no such folder or .npz file; known names are digits, cifar10, cifar100, "
        "fashion_mnist, imagenet",
    ]


@pytest.mark.parametrize(
    ("there", "free", "fixed"),
    [
        ((), ("optimizer.base_lr", "model", "bootstrapNAS.search.seed"), ()),
        (
            ("training/last/training.json",),
            ("bootstrapNAS.search.num_evals", "latency.batch", "export.int8", "log_dir", "device", "tensorboard"),
            ("bootstrapNAS.search.seed", "optimizer.base_lr", "data", "bootstrapNAS.training.rule", "model"),
        ),
        (
            ("supernet/supernet.json",),
            ("bootstrapNAS.search.seed", "bootstrapNAS.search.batchnorm_adaptation.num_bn_adaptation_samples", "data"),
            ("optimizer.base_lr", "data_options.seed", "bootstrapNAS.training.rule", "datas"),
        ),
        (
            ("supernet/supernet.json", "evaluations.jsonl"),
            ("bootstrapNAS.search.seed", "bootstrapNAS.search.constraints", "latency.batch", "export.int8"),
            ("bootstrapNAS.search.batchnorm_adaptation.num_bn_adaptation_samples", "data", "device", "model"),
        ),
        (
            ("supernet/supernet.json", "evaluations.jsonl", "latency.json"),
            ("bootstrapNAS.search.constraints", "export.int8"),
            ("latency.batch",),
        ),
    ],
)
def test_what_is_settled_by_what_is_there(
    there: tuple[str, ...], free: tuple[str, ...], fixed: tuple[str, ...], tmp_path: Path
) -> None:
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    allowed = free_in(tmp_path)
    assert [place for place in free if not allowed(place)] == []
    assert [place for place in fixed if allowed(place)] == []
    anew = free_in(tmp_path, anew=True)
    assert [place for place in (*free, "latency.batch") if not anew(place)] == []


def test_differences_have_their_places() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": 3, "g": [{"x": None, "y": 1}, {"y": 2}]}
    now = {
        "a": {"b": 2, "c": (1, 2)},
        "d": {"x": 1},
        "e": 3,
        "f": list(range(99)),
        "g": [{"x": None, "y": 3}, {"y": 4}],
    }
    assert dict(differences(before, now)) == {
        "a.b": "a.b was 1 and is now 2",
        "d": 'd was null and is now {"x": 1}',
        "f": f"f was null and is now {json.dumps(list(range(99)))[:77]}...",
        "g": "g[0].y was 1 and is now 3; g[1].y was 2 and is now 4",
    }


def test_a_folder_of_a_user_with_a_configuration_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "thesis.txt").touch()
    for said in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(OutputError, match="holds files that do not belong to a run of bnas"):
            open_output(tmp_path, {}, **said)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "thesis.txt"}
