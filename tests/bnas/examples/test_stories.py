"""The examples that tell a user's story: each runs here with small settings, in this process where it can."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch import Tensor, nn

EXAMPLES = Path(__file__).parents[3] / "examples"
STORIES = (
    "digits",
    "distributed_search",
    "distributed_training",
    "fashion",
    "lightning_training",
    "mobilenet_folder",
    "mobilenet_own_photos",
    "own_loop",
    "own_search",
    "segmentation",
    "vit_heads",
)
Rows = list[dict[str, str]]


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs an example as its command does, in an empty folder; returns what it prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def table(text: str, first: str) -> Rows:
    """The rows under the line that begins with `first`, up to one of another number of columns."""
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    head = next(place for place, cells in enumerate(lines) if cells[0] == first)
    rows: Rows = []
    for cells in lines[head + 1 :]:
        if len(cells) != len(lines[head]):
            break
        rows.append(dict(zip(lines[head], cells, strict=True)))
    return rows


def column(rows: Rows, name: str) -> list[float]:
    return [float(row[name].rstrip("%")) for row in rows]


@pytest.mark.parametrize("name", STORIES)
def test_an_example_is_short_says_how_long_it_takes_and_stands_in_the_docs(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 135
    assert re.search(r"[Aa]bout (\d+|a|half a) minutes?\s", text)
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    assert f"examples/{name}.py" in page


def small_digits() -> nbformat.NotebookNode:
    """The notebook with small settings."""
    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert cell.source.startswith("epochs, evals = ")
    cell.source = "epochs, evals = 1, 6"
    return notebook


def check_digits(text: str, folder: Path) -> None:
    rows = table(text, "network")
    assert [row["network"] for row in rows] == ["original", "winner", "tuned"]
    assert all((folder / "runs" / "digits" / f"{row['network']}.onnx").is_file() for row in rows)
    macs, accuracy = column(rows, "M MACs"), column(rows, "test accuracy")
    assert macs[2] == macs[1] <= macs[0]
    assert all(20 < one <= 100 for one in accuracy)  # a tenth would be guessed
    assert all(one > 0 for one in column(rows, "CPU ms"))


def test_the_notebook_is_the_script() -> None:
    script, notebook = (
        [(cell.cell_type, cell.source) for cell in one.cells]
        for one in (jupytext.read(EXAMPLES / "digits.py"), nbformat.read(EXAMPLES / "digits.ipynb", as_version=4))
    )
    assert script == notebook, "say: make notebook"
    assert len(notebook) > 10


def test_the_notebook_has_no_outputs_and_runs(tmp_path: Path) -> None:
    notebook = small_digits()
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    check_digits("".join(one.text for one in outputs if one.get("name") == "stdout"), tmp_path)


@pytest.mark.slow  # the notebook runs the same code
def test_the_script_of_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "digits.py"
    path.write_text(jupytext.writes(small_digits(), "py:percent"), encoding="utf-8")
    runpy.run_path(str(path), run_name="__main__")
    check_digits(capsys.readouterr().out, tmp_path)


def test_mobilenet_on_a_folder_of_images(story: Any, tmp_path: Path) -> None:
    text = story("mobilenet_folder", "--count", "14", "--size", "32", "--epochs", "1", "--evals", "4")
    assert "original" in text
    run = tmp_path / "runs" / "mobilenet"
    assert len(list((tmp_path / "runs" / "mobilenet_images").glob("*/*.png"))) == 3 * 14
    assert json.loads((run / "data.json").read_text())["images"] == {"train": 26, "validation": 8, "test": 8}
    rows = json.loads((run / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["original", "best", "smallest"]
    assert all(row["macs"] < rows[0]["macs"] and (run / f"subnets/{row['name']}.onnx").is_file() for row in rows[1:])


def test_mobilenet_takes_weights_of_the_full_classifier(tmp_path: Path) -> None:
    names = runpy.run_path(str(EXAMPLES / "mobilenet_folder.py"))
    state = names["network"](1000, None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    model = names["network"](3, tmp_path / "weights.pth")
    assert torch.equal(model.features[0][0].weight, state["features.0.0.weight"])
    assert model.classifier[1].weight.shape == (3, 1280)


def test_segmentation_by_the_metric_of_the_user(story: Any, tmp_path: Path) -> None:
    text = story("segmentation", "--images", "48", "--epochs", "1", "--evals", "4")
    rows = table(text, "network")
    assert [row["network"] for row in rows] == ["original", "winner", "tuned"]
    macs = column(rows, "M MACs")
    assert macs[1] == macs[2] <= macs[0] / 2
    assert all(0 < one < 1 for one in column(rows, "test mIoU"))


def test_mean_iou_is_that_of_a_count_by_hand() -> None:
    names = runpy.run_path(str(EXAMPLES / "segmentation.py"))
    right, found = torch.tensor([[0, 0, 1, 1, 2, 3]]), torch.tensor([[0, 1, 1, 1, 2, 2]])

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"out": nn.functional.one_hot(images, 4).movedim(-1, 1).float()}

    # 0: 1 of 2, 1: 2 of 3, 2: 1 of 2, 3: 0 of 1
    assert names["mean_iou"](Fixed(), [(found, right)]) == pytest.approx((1 / 2 + 2 / 3 + 1 / 2 + 0) / 4)
    assert names["mean_iou"](Fixed(), [(right, right)]) == 1
    halves = [(found[:, :3], right[:, :3]), (found[:, 3:], right[:, 3:])]  # over all batches, not the mean of theirs
    assert names["mean_iou"](Fixed(), halves) == pytest.approx((1 / 2 + 2 / 3 + 1 / 2 + 0) / 4)


def test_a_transformer_with_heads_for_each_layer(story: Any) -> None:
    text = story("vit_heads", "--epochs", "1", "--evals", "8")
    layers = table(text, "layer")
    assert [row["layer"] for row in layers] == ["0", "1", "2"]
    assert all(row["heads"] in {f"{heads}/6" for heads in range(7)} for row in layers)
    assert all(row["MLP units"] in {"0/96", "48/96", "72/96", "96/96"} for row in layers)
    rows = table(text, "network")
    assert [row["network"] for row in rows] == ["whole", "winner", "tuned"]
    whole, winner, _ = column(rows, "M MACs")
    assert 0 < winner <= 0.6 * whole + 0.001  # as printed


def test_a_loop_of_the_user_trains_all_sizes(story: Any) -> None:
    rows = table(story("own_loop", "--epochs", "2"), "sub-network")
    assert [row["sub-network"] for row in rows] == ["maximal", "minimal", "random"]
    before, after = column(rows, "accuracy before"), column(rows, "after")
    assert all(then > first for first, then in zip(before, after, strict=True))
    assert after[0] > 50


RESUMED = """
import runpy, sys, torch, bnas
from dataclasses import replace
from torch.utils.data import DataLoader, TensorDataset
from bnas.data.digits import DigitNet, splits
train, data, ends = runpy.run_path(sys.argv[1])["train"], splits(), []
images, labels = map(torch.cat, zip(*list(data.train)[:5], strict=True))
data = replace(data, train=DataLoader(TensorDataset(images, labels), 32))
for stops in ((), (2,)):
    path = None
    for epochs in (*stops, 4):
        torch.manual_seed(1)
        supernet = bnas.SuperNetwork.from_model(DigitNet(), torch.zeros(1, 1, 8, 8))
        trainer = train(supernet, data, 3, path, max_epochs=epochs, enable_progress_bar=False)
        path = f"{epochs}.ckpt"
        trainer.save_checkpoint(path)
        print(epochs, trainer.lightning_module.schedule.done)
    ends.append({name: tensor.clone() for name, tensor in supernet.state_dict().items()})
print("same", all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]))
"""


def test_lightning_trains_all_sizes(tmp_path: Path) -> None:
    """In a process of its own: Lightning leaves handlers of logs."""
    pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")
    rows = table(command(str(EXAMPLES / "lightning_training.py"), "--epochs", "2", folder=tmp_path), "sub-network")
    assert [row["sub-network"] for row in rows] == ["maximal", "minimal"]
    before, after = column(rows, "accuracy before"), column(rows, "after")
    assert all(then > first for first, then in zip(before, after, strict=True))
    assert after[0] > 50


def test_lightning_resumes_a_super_network(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")
    lines = command("-c", RESUMED, str(EXAMPLES / "lightning_training.py"), folder=tmp_path).splitlines()
    assert lines == ["4 True", "2 False", "4 True", "same True"]


def test_a_search_of_the_user_beside_others(story: Any) -> None:
    rows = table(story("own_search", "--epochs", "1", "--evals", "8"), "search")
    assert [row["search"] for row in rows] == ["NSGA2", "random", "own"]
    assert {row["evaluations"] for row in rows} == {"8"}
    assert all(1 <= int(row["front"]) <= 8 for row in rows)


def command(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where two processes trained, and what they printed."""
    folder = tmp_path_factory.mktemp("distributed")
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return folder, command(*start, str(EXAMPLES / "distributed_training.py"), "--epochs", "1", folder=folder)


def test_processes_that_train_together_end_with_the_same_weights(distributed: tuple[Path, str]) -> None:
    rows = table(distributed[1], "process")
    assert [(row["process"], row["images"], row["steps an epoch"]) for row in rows] == [
        ("0", "700", "28"),
        ("1", "700", "28"),
    ]
    assert rows[0]["weights"] == rows[1]["weights"]


@pytest.mark.parametrize("how", [("--workers", "2"), pytest.param(("--dask",), marks=pytest.mark.slow)])
def test_workers_find_what_one_process_finds(how: tuple[str, ...], distributed: tuple[Path, str]) -> None:
    script, folder = str(EXAMPLES / "distributed_search.py"), distributed[0]
    fronts = [
        table(command(script, "--evals", "8", *one, folder=folder), "M MACs") for one in (how, ("--workers", "0"))
    ]
    assert fronts[0] == fronts[1]
    accuracies = column(fronts[0], "accuracy")
    assert accuracies == sorted(accuracies)
    assert len(accuracies) > 1
