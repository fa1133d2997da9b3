"""A whole small run: a model, data and a configuration in files of their own, and what such a run must find."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NET = """
import torch
from torch import nn
import bnas

class Net(nn.Module):
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.body, self.last = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 3)
    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.last(torch.relu(self.body(x))) + x).mean((2, 3)))

def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    patterns = 2 * torch.randn(3, 1, 6, 6, generator=generator)
    def batches(count):
        labels = torch.arange(12) % 3
        noise = [torch.randn(12, 1, 6, 6, generator=generator) for _ in range(count)]
        return [(patterns[labels] + one, labels) for one in noise]
    return bnas.Splits(batches(3), batches(2), batches(1))
"""
ADAPTATION = {"num_bn_adaptation_samples": 12}
CONFIG = {
    "model": "model.py:Net",
    "data": "model.py:data",
    "input_info": {"sample_size": [1, 1, 6, 6]},
    "latency": {"runs": 2, "threads": 1},
    "export": {"int8": True},
    "fine_tune": {"epochs": 1},
    "optimizer": {"base_lr": 0.1},
    "bootstrapNAS": {
        "training": {
            "memory_format": "contiguous",  # "auto" chooses by a timing, which may come out another way next time
            "elasticity": {"width": {"min_width": 4, "divisor": 4}},
            "schedule": {"list_stage_descriptions": [{"epochs": 2}]},
            "batchnorm_adaptation": ADAPTATION,
        },
        "search": {"num_evals": 9, "population": 4, "batchnorm_adaptation": ADAPTATION},
    },
}
RUN = "run"
"""The folder of the run, beside `SOURCES`."""
SOURCES = "sources"


def write_sources(place: Path, seed: int = 0) -> Path:
    """Write model, data and configuration into a folder of their own at `place`; returns the configuration's path."""
    folder = place / SOURCES
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(NET)
    options = {"model_options": {"seed": seed}, "data_options": {"seed": seed}}
    config = folder / "config.json"
    config.write_text(json.dumps({**CONFIG, **options}))
    return config


# What a run found: equal for two runs that nobody disturbed, and for one that was disturbed and resumed.

MEASURED = ("report.json", "environment.json", "run.json", "report.html", "source.txt")
"""Files with times, or of this process: their content may differ."""
TIMED = ("seconds", "latency", "profile", "machine", "check")
"""Keys of what was measured with a clock, or says where; and of a checksum over such numbers."""
CLOCKED = re.compile(r"seconds|(fp32|int8)_(?!test_accuracy)|.* ms$")
"""Names of columns of such numbers."""


def facts(run: Path) -> dict[str, str]:
    """What each file of a run holds, without what a clock says: a digest for each name."""
    return {str(one.relative_to(run)): _fact(run, one) for one in files(run)}


def files(run: Path) -> list[Path]:
    """All files but hidden ones, and those in hidden folders."""
    found = (one for one in sorted(run.rglob("*")) if one.is_file())
    return [one for one in found if not any(part.startswith(".") for part in one.relative_to(run).parts)]


def _fact(run: Path, file: Path) -> str:
    name = str(file.relative_to(run))
    try:
        if name == "report.json":
            return _digest(_untimed(json.loads(file.read_text())))
        if name in MEASURED or name.startswith(("report/latency", "report/architecture.png")):
            return "there"
        if name == "evaluations.jsonl":
            return _digest([_untimed(json.loads(line)) for line in file.read_text().splitlines()])
        if name.endswith(".csv"):
            return _digest(_untimed_rows(list(csv.DictReader(file.read_text().splitlines()))))
        return _digest(_untimed(json.loads(file.read_text()))) if file.suffix == ".json" else bytes_of(file)
    except (ValueError, OSError) as error:
        return f"unreadable: {error}"


def _untimed(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _untimed(value) for key, value in data.items() if key not in TIMED}
    return [_untimed(one) for one in data] if isinstance(data, list) else data


def _untimed_rows(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if not CLOCKED.match(key)} for row in rows]


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def bytes_of(file: Path) -> str:
    """A digest of the content of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is missing, too much or other than expected."""
    missing = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    more = [f"{name} is too much" for name in sorted(found.keys() - expected.keys())]
    both = expected.keys() & found.keys()
    return missing + more + [f"{name} differs" for name in sorted(both) if expected[name] != found[name]]


# Files that are not whole.


def half_files(run: Path) -> Iterator[str]:
    """The files of a run that cannot be read, and why: none may be there, whatever happened to the run."""
    for file in files(run):
        try:
            _load(file)
        except Exception as error:
            yield f"{file.relative_to(run)} is half: {type(error).__name__}: {str(error)[:80]}"


def _load(file: Path) -> None:
    import onnx
    from safetensors import safe_open

    if file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".jsonl":
        *lines, _ = file.read_bytes().split(b"\n")  # the line that was being written is dropped when it is read
        for line in lines:
            json.loads(line)
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:  # type: ignore[no-untyped-call]
            for name in opened.keys():
                opened.get_tensor(name)
    elif file.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(str(file)))
    elif file.suffix == ".html" and not file.read_text().rstrip().endswith("</html>"):
        raise ValueError("its end is missing")
    elif file.suffix == ".png" and not file.read_bytes().endswith(b"IEND\xaeB`\x82"):
        raise ValueError("its end is missing")


def left_behind(run: Path) -> list[str]:
    """Temporary files and hidden ones that a command left."""
    return [str(one.relative_to(run)) for one in sorted(run.rglob(".*")) if "tmp" in one.name or one.is_dir()]


def unaccounted(run: Path) -> list[str]:
    """Files that the mark of a run does not list, or with another checksum: nobody would believe them."""
    listed = json.loads((run / "run.json").read_text())["files"]
    told = []
    for file in files(run):
        name = file.relative_to(run).as_posix()
        if name not in listed and name != "run.json":
            told.append(f"{name} is not in run.json")
        elif listed.get(name) and hashlib.sha256(file.read_bytes()).hexdigest() not in listed[name]:
            told.append(f"{name} has another checksum than in run.json")
    return told + [f"{name} is in run.json and missing" for name in sorted(listed) if not (run / name).is_file()]
