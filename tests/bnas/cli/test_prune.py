"""``bnas prune`` from a configuration file to measured files; stopped and resumed; and what its folder is not for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import bnas, write_files

from bnas.run.files.ledger import Ledger

Called = Callable[..., tuple[int, str]]
PRUNE = ("prune", "config.json", "--to", "macs <= 50 %", "--divisor", "4", "--epochs", "2")


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Call ``bnas`` in a folder with the files of a user: its exit code and what it says."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = bnas(monkeypatch, *arguments)
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return call


def test_a_model_is_pruned_fine_tuned_and_measured(called: Called) -> None:
    code, said = called(*PRUNE, "-o", "run")
    assert code == 0, said
    folder = Path("run")
    data = json.loads((folder / "report.json").read_text())
    original, pruned, tuned = data["rows"]
    assert [row["name"] for row in data["rows"]] == ["original", "pruned", "fine-tuned"]
    assert pruned["macs"] == tuned["macs"] <= 0.5 * original["macs"]
    assert pruned["subnet"] == tuned["subnet"] == json.loads((folder / "pruned.json").read_text())["subnet"]
    assert tuned["int8"]["test_accuracy"] is not None
    assert "fine-tuned" in said
    assert "pruned to macs <= 50 %" in said
    listed, there = Ledger(folder).files(), {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {name for name in there if not name.startswith(".bnas")} == {*listed, "run.json"}
    page = (folder / "report.html").read_text()
    assert "Pruned to macs &lt;= 50 %" in page
    assert "a finished run of bnas" in page
    assert "Missing:" not in page


def test_without_fine_tuning_there_are_two_rows_by_another_importance(called: Called) -> None:
    plain = ("--importance", "L1", "--allocation", "uniform", "--set", "export.int8=false")
    code, said = called(*PRUNE, *plain, "--epochs", "0", "-o", "run")
    assert code == 0, said
    rows = json.loads(Path("run/report.json").read_text())["rows"]
    assert [(row["name"], row["int8"]) for row in rows] == [("original", None), ("pruned", None)]
    assert not Path("run/training").exists()


def test_a_pruning_that_was_stopped_goes_on_to_the_same_files(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(*PRUNE, "-o", "whole")[0] == 0
    monkeypatch.setenv("STOP_AT", "12")  # in the fine-tuning
    code, said = called(*PRUNE, "-o", "run")
    assert (code, "--resume" in said) == (130, True), said
    assert Path("run/pruned.json").is_file()
    assert not Path("run/report.json").exists()
    monkeypatch.delenv("STOP_AT")
    code, said = called(*PRUNE, "-o", "run", "--resume")
    assert code == 0, said
    for name in ("pruned.json", "pruned.safetensors", "subnets/pruned.safetensors", "subnets/fine-tuned.safetensors"):
        assert (Path("run") / name).read_bytes() == (Path("whole") / name).read_bytes(), name
    rows = [json.loads((Path(one) / "report.json").read_text())["rows"] for one in ("run", "whole")]
    assert [[row["test_accuracy"] for row in some] for some in rows] == [[r["test_accuracy"] for r in rows[1]]] * 2


def test_a_folder_of_a_pruning_says_what_it_is(called: Called) -> None:
    assert called(*PRUNE, "--epochs", "0", "-o", "run")[0] == 0
    for command in (("search", "run"), ("export", "run")):
        code, said = called(*command)
        assert (code, "was made by `bnas prune`, so it has no super-network to search" in said) == (1, True), said
    code, said = called(*PRUNE, "-o", "run")
    assert (code, "holds a run already" in said) == (1, True)
    code, said = called("prune", "config.json", "--to", "macs <= 60 %", "--divisor", "4", "-o", "run", "--resume")
    assert (code, "prune.to was" in said) == (1, True), said
    code, said = called("train", "config.json", "-o", "run", "--resume")
    assert (code, "and is now null" in said) == (1, True), said
    code, said = called("report", "run")
    assert code == 0, said


def test_damaged_files_of_a_pruning_are_refused(called: Called) -> None:
    assert called(*PRUNE, "--epochs", "0", "-o", "run")[0] == 0
    for name in ("pruned.json", "pruned.safetensors"):
        path = Path("run") / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-8] + b"damaged.")
        code, said = called(*PRUNE, "--epochs", "0", "-o", "run", "--resume")
        assert (code, f"{name} is damaged" in said) == (1, True), said
        path.write_bytes(whole)
    assert called(*PRUNE, "--epochs", "0", "-o", "run", "--resume")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--to", "half"), "constraint 'half': must have the form"),
        (("--to", "macs >= 50 %"), "pruning lowers a cost, so give an upper bound"),
        (("--to", "speed <= 50 %"), "'speed' is not a cost; known are 'macs'"),
        (("--to", "macs <= 0.1 %"), "cannot be met: the smallest sub-network has"),
        (("--importance", "L3"), "importance 'L3': known are 'L1'"),
        (("--allocation", "local"), "allocation 'local': known are 'global', 'uniform'"),
        (("--importance", "L1", "--depth"), "cannot be compared with that of blocks"),
    ],
)
def test_mistakes_are_told(called: Called, arguments: tuple[str, ...], reason: str) -> None:
    code, said = called(*PRUNE, "-o", "run", *arguments)
    assert (code, reason in said) == (1, True), said


def test_what_the_file_pins_stays(called: Called) -> None:
    pinned = ("--set", 'ignored_scopes=["body"]')
    assert called(*PRUNE, "--epochs", "0", "-o", "run", *pinned)[0] == 0
    assert "body" not in json.loads(Path("run/pruned.json").read_text())["subnet"]["widths"]
