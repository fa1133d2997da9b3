"""A run replaces, removes and believes only what it wrote itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from bnas.passes import Subnet
from bnas.run.files.ledger import Ledger
from bnas.run.files.lock import HOLDER, OWN, Holder, kept
from bnas.run.files.mark import OutputError
from bnas.run.files.names import FOUND, MARK
from bnas.run.files.output import Output, open_output
from bnas.run.winners.winners import check_name
from bnas.runtime.storage.archive import Archive
from bnas.runtime.storage.files import TEMPORARY, ReadError, claim_growing, discard, publish, write_bytes
from bnas.search import EvaluationLog


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that wrote a file, one in a folder, and a log."""
    folder = tmp_path / "run"
    with kept(folder):
        open_output(folder, {"a": 1})
        write_bytes(folder / "winners.json", b"{}")
        write_bytes(folder / "subnets" / "best.json", b"[1]")
        EvaluationLog(folder / "evaluations.jsonl").record(Subnet({"w": 1}), {"accuracy": 0.5}, 1.0)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in OWN]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_all_that_is_written_is_listed(run: Path) -> None:
    assert set(content(run)) == {MARK, *Ledger(run).files()}
    assert Ledger(run).read("subnets/best.json") == b"[1]"
    assert Ledger(run).json("subnets/best.json") == [1]
    with kept(run):
        discard(run / "winners.json")
    assert "winners.json" not in Ledger(run).files()


def test_overwriting_leaves_the_files_of_the_user(run: Path) -> None:
    mine = {"my.json": b"{}", "net.py": b"x = 1", "subnets/notes.txt": b"best of all", "report/mine.png": b"1"}
    for name, data in mine.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(data)
    assert not open_output(run, {"a": 2}, overwrite=True).resumed
    assert content(run).items() >= mine.items()
    assert set(content(run)) == {*mine, MARK, "config.json"}
    assert json.loads((run / "config.json").read_text()) == {"a": 2}


def test_overwriting_refuses_to_remove_a_source_of_the_new_run(run: Path, tmp_path: Path) -> None:
    before = content(run)
    for source in (run / "config.json", run / "subnets" / "best.json", run / "subnets", tmp_path / "link.json"):
        if not source.exists():
            source.symlink_to(run / "winners.json")
        with pytest.raises(OutputError, match=r"belongs to the run that you want to overwrite.*copy it"):
            open_output(run, {"a": 2}, overwrite=True, sources=[source])
        assert content(run) == before
    open_output(run, {"a": 2}, overwrite=True, sources=[tmp_path / "elsewhere.json"])


def test_a_file_that_was_changed_is_not_removed(run: Path) -> None:
    (run / "winners.json").write_text("edited by hand")
    before = content(run)
    with pytest.raises(OutputError, match=r"winners\.json is damaged, or was changed after the run wrote it"):
        open_output(run, {}, overwrite=True)
    assert content(run) == before


@pytest.mark.parametrize("name", ["winners.json", "subnets/best.json", "config.json"])
def test_only_what_the_run_wrote_is_believed(run: Path, name: str) -> None:
    ledger, path = Ledger(run), run / name
    path.write_bytes(b"{]")
    with pytest.raises(OutputError, match=f"{name} is damaged, or was changed"):
        ledger.json(name)
    with kept(run), pytest.raises(OutputError, match=f"{name} is damaged, or was changed"):
        write_bytes(path, b"new")
    path.unlink()
    with pytest.raises(ReadError, match=f"{name} cannot be read: No such file"):
        ledger.read(name)
    with kept(run):
        write_bytes(path, b"new")
    assert ledger.read(name) == b"new"


def test_a_file_of_the_user_is_not_replaced(run: Path) -> None:
    (run / "report.json").write_text("mine")
    (run / "new").write_text("theirs")
    with kept(run):
        with pytest.raises(OutputError, match=r"report\.json exists, but the run did not write it; move it"):
            write_bytes(run / "report.json", b"ours")
        with pytest.raises(OutputError, match=r"report\.json exists"):
            publish(run / "new", run / "report.json")
    assert (run / "report.json").read_text() == "mine"
    with pytest.raises(OutputError, match=r"report\.json was not written by the run"):
        Ledger(run).read("report.json")


@pytest.mark.parametrize("link", ["subnets", "subnets/best.json", "evaluations.jsonl", "winners.json"])
def test_links_in_a_folder_are_not_followed(run: Path, tmp_path: Path, link: str) -> None:
    (run / link).rename(tmp_path / "outside")
    (run / link).symlink_to(tmp_path / "outside")
    name = "subnets/best.json" if link == "subnets" else link
    told = pytest.raises(OutputError, match=f"{link} is a symbolic link; bnas does not follow links")
    with told:
        Ledger(run).read(name)
    with told:
        open_output(run, {}, overwrite=True)
    with kept(run), told:
        write_bytes(run / name, b"through")
    with kept(run), told:
        claim_growing(run / name)
    with told:
        Output(run).path(name)
    assert (tmp_path / "outside").exists()
    assert b"through" not in {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_may_itself_be_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to(run)
    with kept(tmp_path / "name"):
        write_bytes(tmp_path / "name" / "winners.json", b"[]")
    assert Ledger(run).read("winners.json") == b"[]"


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("", "is damaged: "),
        ("[]", "has an unknown format; this version of bnas reads format 2"),
        ('{"format": 1}', "has an unknown format; this version of bnas reads format 2"),
        ('{"format": 2}', "'files' is missing"),
        ('{"format": 2, "files": {"../x": ["a"]}}', r"'../x' is not the name of a file in this folder"),
        ('{"format": 2, "files": {"/etc/x": ["a"]}}', r"'/etc/x' is not the name of a file in this folder"),
        ('{"format": 2, "files": {"a/../../x": ["a"]}}', r"'a/../../x' is not the name of a file in this folder"),
        ('{"format": 2, "files": {"": ["a"]}}', r"'' is not the name of a file in this folder"),
        ('{"format": 2, "files": {"a\\u0000": ["a"]}}', r"is not the name of a file in this folder"),
        ("[" * 200_000, "is damaged: "),
        ('{"format": 2, "files": {"a\\ud800": ["a"]}}', "is not the name of a file in this folder"),
        ('{"format": 2, "files": {"notes.txt": []}}', r"'notes.txt' has no checksums"),
        ('{"format": 2, "files": {"notes.txt": 3}}', r"'notes.txt' has no checksums"),
    ],
)
def test_a_damaged_mark_removes_nothing(run: Path, mark: str, message: str) -> None:
    (run / MARK).write_text(mark)
    before = content(run)
    with pytest.raises(OutputError, match=rf"run\.json (is|has) .*{message.removeprefix('is ').removeprefix('has ')}"):
        open_output(run, {}, overwrite=True)
    assert content(run) == before


LIKE_OURS = {
    "mylogs/tensorboard/events.out.tfevents.1.mine": b"scalars",
    "supernet/weights-aaaaaaaaaaaa.safetensors": b"my copy of other weights",
    "subnets/best.int8.onnx": b"a file of another tool",
    f"notes/.draft.999999{TEMPORARY}": b"not complete",
    f"subnets/.mine.999999{TEMPORARY}": b"not complete",
}


def test_files_that_look_like_those_of_a_run_stay(run: Path) -> None:
    for name, data in LIKE_OURS.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(data)
    with kept(run):
        discard(run / "subnets" / "best.int8.onnx")
        MODEL_LIKE.write(run / "supernet", {"weight": torch.zeros(2)}, {})
        MODEL_LIKE.write(run / "supernet", {"weight": torch.ones(2)}, {})
    assert len(list((run / "supernet").glob("weights-*"))) == 2, "the former weights are gone, and mine are not"
    open_output(run, {"a": 2}, overwrite=True)
    assert {name: data for name, data in content(run).items() if name in LIKE_OURS} == LIKE_OURS


MODEL_LIKE = Archive("supernet", "super-network", 1, (), "weights")


def test_nothing_is_removed_in_a_folder_that_is_no_run(run: Path) -> None:
    unfinished = run / "subnets" / f".best.json.999999{TEMPORARY}"
    unfinished.touch()
    with pytest.raises(OutputError, match="holds files that do not belong to a run of bnas"):
        open_output(run.parent, {})
    assert unfinished.exists()
    with kept(run):
        pass
    assert not unfinished.exists()


def test_a_log_that_was_edited_is_not_removed(run: Path) -> None:
    with (run / "evaluations.jsonl").open("a") as file:
        file.write("# my remarks\n")
    with pytest.raises(OutputError, match=r"evaluations\.jsonl is damaged, or was changed"):
        open_output(run, {}, overwrite=True)
    assert "my remarks" in (run / "evaluations.jsonl").read_text()


@pytest.mark.parametrize("name", [MARK, "config.json", HOLDER])
def test_a_pipe_is_not_waited_for(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    if name == HOLDER:
        assert Holder.read(run) is None
        return
    with pytest.raises(ReadError, match=f"{name} cannot be read: it is not a regular file"):
        Ledger(run).json("config.json")


def test_a_mark_that_is_a_link_is_refused(run: Path, tmp_path: Path) -> None:
    (run / MARK).rename(tmp_path / "outside")
    (run / MARK).symlink_to(tmp_path / "outside")
    with pytest.raises(OutputError, match=r"run\.json is a symbolic link"):
        open_output(run, {}, overwrite=True)


def test_a_file_in_the_way_is_told_before_the_work(run: Path) -> None:
    (run / "pareto.json").write_text("mine")
    with pytest.raises(OutputError, match=r"pareto\.json exists, but the run did not write it"):
        Ledger(run).refuse_foreign(FOUND)


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "..", "a\0b", "a/b", "a\n", None, 3, "-"])
def test_names_that_leave_the_folder_are_refused(name: object) -> None:
    with pytest.raises(OutputError, match=r"winners\.json: .* cannot be a file name"):
        check_name(name, "winners.json")
    assert check_name("best_2-a", "winners.json") == "best_2-a"


def test_what_dead_processes_left_is_removed(run: Path) -> None:
    dead = 2**22 + 1  # no process has such a number
    (run / "subnets" / f".best.onnx.x7.{dead}{TEMPORARY}").mkdir()
    (run / "subnets" / f".best.onnx.x7.{dead}{TEMPORARY}" / "best.onnx").touch()
    (run / f".config.json.{dead}{TEMPORARY}").touch()
    alive = run / f".report.html.{os.getppid()}{TEMPORARY}"
    alive.touch()
    before = content(run)
    with kept(run):
        pass
    assert [path.name for path in run.rglob(f".*{TEMPORARY}")] == [alive.name]
    assert set(before) - set(content(run)) == {
        f".config.json.{dead}{TEMPORARY}",
        f"subnets/.best.onnx.x7.{dead}{TEMPORARY}/best.onnx",
    }


def test_a_kill_between_the_note_and_the_file_loses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with kept(run), monkeypatch.context() as patch:
        Ledger(run).claim(run / "winners.json", "0" * 64)
        replace = Path.replace
        patch.setattr(Path, "replace", lambda one, to: replace(one, to) if to.name == MARK else killed())
        with pytest.raises(KeyboardInterrupt):
            write_bytes(run / "subnets" / "best.json", b"new")
    assert len(Ledger(run).files()["subnets/best.json"]) == 2
    assert Ledger(run).read("winners.json") == b"{}"
    assert Ledger(run).read("subnets/best.json") == b"[1]"
    with kept(run):
        write_bytes(run / "winners.json", b"after")
    assert Ledger(run).read("winners.json") == b"after"
