"""The tutorial works as it is written: its files are made, its commands run, and its services do without bnas."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bnas.cli.app import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FILE = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
FILES = dict(FILE.findall(PAGE))
COMMANDS = re.findall(r"^    (bnas .+)$", PAGE, re.MULTILINE)
SERVICES = [name for name in FILES if name.startswith("serve_")]
SMALL = {
    "stages": [{"epochs": 1}],
    "recipe": {"train_steps": 100},
    "search": {"num_evals": 8},
    "fine_tune": {"epochs": 1, "train_steps": 100},
    "num_bn_adaptation_samples": 100,
    "latency": {"subnets": 6, "turns": 1, "runs": 4, "warmup": 1},
    "export": {"calibration_samples": 50},
}
"""Instead of the budget of five minutes."""
WITHOUT_BNAS = """
import runpy, sys
sys.modules["bnas"] = None  # an import of bnas is an error
sys.path.insert(0, ".")
runpy.run_path(sys.argv[1])
"""


def python(folder: Path, *arguments: str) -> str:
    """What a Python process in the folder prints."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(line: str) -> None:
    """Run a command of bnas in the current folder."""
    result = CliRunner().invoke(app, line.split()[1:])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the tutorial, after its commands: short versions of the pre-training and of the run."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    assert FILES["pretrain.py"].count("epochs = Net(), splits(), 8") == 1
    (folder / "pretrain.py").write_text(FILES["pretrain.py"].replace("splits(), 8", "splits(), 1"), encoding="utf-8")
    settings = json.loads(FILES["config.json"])
    assert settings.pop("budget") == "5m"
    (folder / "config.json").write_text(json.dumps(settings | SMALL), encoding="utf-8")
    python(folder, "pretrain.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in COMMANDS:
            command(line)
    python(folder, "deliver.py")
    return folder


def test_the_page_has_the_files_and_commands_of_the_story() -> None:
    assert set(FILES) > {"net.py", "data.py", "pretrain.py", "config.json", "deliver.py"}
    assert SERVICES == ["serve_onnx.py", "serve_program.py", "serve_class.py"]
    assert [line.split()[1] for line in COMMANDS] == ["inspect", "init", "run", "bench"]


def test_the_services_answer_alike_without_bnas(folder: Path) -> None:
    answers = {name: python(folder, "-c", WITHOUT_BNAS, name).strip() for name in SERVICES}
    assert len(set(answers.values())) == 1, answers
    assert 0 <= int(answers["serve_onnx.py"]) < 10


def test_a_service_that_imports_bnas_is_noticed(folder: Path) -> None:
    with pytest.raises(AssertionError, match="import of bnas halted"):
        python(folder, "-c", WITHOUT_BNAS, "deliver.py")


def test_what_bnas_inspect_prints_is_what_the_page_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    printed = CliRunner().invoke(app, COMMANDS[0].split()[1:]).output
    (shown,) = re.findall(r"^    1\. How small: .+\n(?:    .+\n)+", PAGE, re.MULTILINE)
    assert re.findall(r"^    (\d\.) ", shown, re.MULTILINE) == ["1.", "2.", "3."]
    assert " ".join(shown.split()) in " ".join(printed.split())  # a terminal breaks the lines elsewhere
