"""The code in the documentation runs, its commands are those of bnas, and its examples are as short as they say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from run_cases import small, write_run
from typer.testing import CliRunner

from bnas.cli.app import app
from bnas.page.recorded import MISSING
from bnas.passes import OPERATORS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PASSES = ROOT / "docs" / "passes.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READ = {"report": ("runs/demo",), "howto/compare_runs": ("runs/a", "runs/b")}
"""Folders of runs that the code of a page reads."""
COMMAND = re.compile(r"(?:^    |`)(bnas [a-z]+\b[^`\n]*)", re.MULTILINE)


def name_of(page: Path) -> str:
    """The path of a page below the repository, without its ending."""
    return str(page.relative_to(ROOT).with_suffix("")).removeprefix("docs/")


def blocks(text: str) -> list[str]:
    """The Python code in a page, block by block."""
    return BLOCK.findall(text)


def run(code: list[str]) -> None:
    """Run blocks one after another, as one module."""
    names: dict[str, object] = {"__name__": "example"}
    for number, block in enumerate(code):
        exec(compile(block, f"block {number}", "exec", dont_inherit=True), names)


@pytest.fixture
def tables_put_back() -> Iterator[None]:
    """What an example registers is forgotten after it."""
    with OPERATORS.copied():
        yield


@pytest.mark.usefixtures("tables_put_back")
@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run_folder in READ.get(name_of(page), ()):
        write_run(Path(run_folder), small())
    torch.manual_seed(0)
    run(blocks(page.read_text(encoding="utf-8")))


def test_code_is_found_where_there_is_some() -> None:
    with_code = {name_of(page) for page in PAGES if blocks(page.read_text(encoding="utf-8"))}
    assert with_code >= {
        "distributed",
        "latency",
        "passes",
        "quick_start",
        "report",
        "search",
        "training",
        "your_data",
        "your_model",
    }
    how_to = {name_of(page) for page in PAGES if page.parent.name == "howto"}
    assert len(how_to) == 15
    assert how_to <= with_code


def test_examples_are_as_short_as_they_say() -> None:
    of_passes = blocks(PASSES.read_text(encoding="utf-8"))
    examples = [block for block in of_passes if "register(" in block or "(Pass):" in block]
    assert len(examples) == 3
    assert all(len(block.splitlines()) < 40 for block in examples)
    of_training = blocks((ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
    loop = next(block for block in of_training if "schedule.step()" in block)
    assert len(loop.splitlines()) <= 8 + 1  # what the page promises, and the optimizer


def commands() -> list[tuple[str, str]]:
    """The commands in README and pages, each with where it stands."""
    pages = [ROOT / "README.md", *PAGES]
    texts = [(page.name, page.read_text(encoding="utf-8").replace("\\\n", " ")) for page in pages]
    return [(name, line) for name, text in texts for line in COMMAND.findall(text)]


def code_of(line: str) -> int:
    """The exit code of a command that asks for help: 2 where bnas does not know the command or an option.

    What stands behind three blanks is what a command does; brackets are around what may be left out.
    """
    words = shlex.split(re.sub(r"[\[\]]", "", re.split(r" {3}|>", line)[0]))[1:]
    return CliRunner().invoke(app, [*words, "--help"]).exit_code


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_are_those_of_bnas(page: str, line: str) -> None:
    assert code_of(line) == 0


@pytest.mark.parametrize("line", ["bnas run config.json --outptu runs/a", "bnas runn config.json"])
def test_a_wrong_command_is_noticed(line: str) -> None:
    assert code_of(line) == 2


def test_the_page_of_operators_is_what_the_command_prints() -> None:
    found = CliRunner().invoke(app, ["operators", "--markdown"]).stdout
    assert (ROOT / "docs" / "operators.md").read_text(encoding="utf-8") == found


def test_the_operators_are_listed() -> None:
    listed = {row["name"]: row for row in json.loads(CliRunner().invoke(app, ["operators", "--json"]).stdout)}
    assert listed["torch.nn.functional.relu"]["layers"] == ["ReLU"]
    assert (listed["torch.cumprod"]["axes"], listed["torch.cumprod"]["onnx"]) == (True, False)
    assert "torch.cumprod" in CliRunner().invoke(app, ["operators"], env={"COLUMNS": "120"}).stdout


def test_the_page_on_reports_names_every_file_that_may_be_missing() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert [name for name in (*MISSING, "config.json") if f"`{name}`" not in text] == []


@pytest.mark.usefixtures("tables_put_back")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("types.unify(input[1], gain[0])", "types.unify(input[2], gain[0])"),
        ('layers={Limiter: Layer(tensors=("gain",))}, ', ""),
        ("graph.call_function(F.relu,", "graph.call_function(F.gelu,"),
        ('"0": (16, 24, 32)}\nbnas.verify', '"0": (16, 32)}\nbnas.verify'),
    ],
)
def test_a_mistake_in_the_page_is_noticed(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PASSES.read_text()
    assert text.count(right) == 1
    with pytest.raises(AssertionError):
        run(blocks(text.replace(right, wrong)))
