"""Folders of runs, written without running anything: what the report reads, with any number of evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.run.files.lock import OWN, kept
from bnas.run.files.mark import FORMAT
from bnas.run.files.names import CONFIG, MARK, TUNING
from bnas.run.files.output import Output, note_architecture, note_environment, note_search
from bnas.run.winners.tuned import Record, Tuned
from bnas.runtime import EpochRecord, Stage, SuperNetwork
from bnas.runtime.storage.files import file_checksum, write_json
from bnas.runtime.train.validation import write_history
from bnas.search import EvaluationLog, Objective
from bnas.search.log import sealed

OBJECTIVES = (Objective("accuracy", "max"), Objective("macs", "min"))


class Residual(nn.Module):
    """A block that may be skipped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branch and its input."""
        out: Tensor = self.conv2(torch.relu(self.conv1(x))) + x
        return out


class Small(nn.Module):
    """Has depth, widths and a kernel to choose; `name` is that of a module in it."""

    def __init__(self, name: str = "blocks") -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 5, padding=2)
        self.add_module(name, nn.Sequential(*(Residual(16) for _ in range(5))))
        self.head = nn.Linear(16, 4)
        self.inner = name

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        out: Tensor = self.head(getattr(self, self.inner)(torch.relu(self.stem(x))).mean((2, 3)))
        return out


def small(name: str = "blocks") -> SuperNetwork:
    """A super-network of some ten thousand sub-networks."""
    torch.manual_seed(0)
    elasticity = {"width_multipliers": [1, 0.75, 0.5], "divisor": 4, "min_width": 4}
    return SuperNetwork.from_model(Small(name).eval(), torch.zeros(1, 1, 8, 8), elasticity)


def write_run(
    folder: Path,
    supernet: SuperNetwork,
    evaluations: int = 40,
    *,
    epochs: int = 6,
    finished: bool = True,
    objectives: tuple[Objective, ...] = OBJECTIVES,
    constraints: tuple[str, ...] = (),
    configuration: Any = None,
    extra: str = "",
    profiled: bool = False,
) -> None:
    """Write a run of `supernet`; `extra` is the name of one more value of each evaluation; `profiled`: with times."""
    with kept(folder) as ledger:
        ledger.begin()
        output, generator = Output(folder), np.random.default_rng(0)
        write_json(output.path(CONFIG), configuration or {"model": "made up"})
        note_environment(output)
        note_architecture(output, supernet.architecture)
        _train(output, epochs)
        maximal = supernet.space.maximal()
        note_search(
            output,
            objectives,
            constraints,
            supernet.costs(maximal),
            reference=0.9,
            reference_of="original",
            acc_delta=0.01,
            evaluations=evaluations,
            samples=400,
        )
        chosen = {supernet.space.canonical(maximal): None}
        while len(chosen) < evaluations:
            subnet = supernet.space.sample(generator, full=float(generator.random()))
            chosen[supernet.space.canonical(subnet)] = None
        found = {subnet: _values(supernet, subnet, generator, extra) for subnet in chosen}
        _log(output.path("evaluations.jsonl"), found)
        if finished:
            _finish(output, supernet, found, profiled)


def stamp(folder: Path) -> None:
    """Make the files in a folder those of a run, as they are now."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (*OWN, MARK)]
    listed = {path.relative_to(folder).as_posix(): [file_checksum(path)] for path in files}
    write_json(folder / MARK, {"format": FORMAT, "bnas": "0", "files": listed | {"evaluations.jsonl": []}})


def _train(output: Output, epochs: int) -> None:
    names, rate = ("maximal", "minimal", "random1", "random2", "random3"), 0.1
    records = [
        EpochRecord(n, n // 3, 1 / (n + 1), rate, {name: 0.9 - (k + 1) / (8 + n) for k, name in enumerate(names)})
        for n in range(epochs)
    ]
    stages = [Stage(("depth",), epochs=3), Stage(("depth", "width"), epochs=max(1, epochs - 3))]
    if epochs:
        write_history(output.path("training/history.json"), stages, "accuracy", records)


def _tune(output: Output, winners: Mapping[str, Subnet]) -> None:
    """A fine-tuning of winners, the later of which were trained for fewer epochs."""
    tuned = tuple(Tuned(name, subnet, 0.5) for name, subnet in winners.items())
    Record({}, tuned).write(output.path(TUNING))
    for place, name in enumerate(winners):
        records = [EpochRecord(n, 0, 0.8 / (n + 1) + 0.1 * place, 0.01) for n in range(5 - 2 * place)]
        write_history(output.path(f"tuning/{name}/history.json"), [Stage(epochs=len(records))], "", records)


def _values(supernet: SuperNetwork, subnet: Subnet, generator: np.random.Generator, extra: str) -> dict[str, float]:
    costs = supernet.costs(subnet)
    share = costs["macs"] / supernet.costs(supernet.space.maximal())["macs"]
    accuracy = 0.9 - 0.4 * (1 - share) ** 3 - 0.02 * float(generator.random())
    return {"accuracy": accuracy, **costs, **({extra: float(generator.random())} if extra else {})}


def _log(path: Path, found: Mapping[Subnet, Mapping[str, float]]) -> None:
    """As an `EvaluationLog` writes it, but in one step."""
    path.unlink(missing_ok=True)
    EvaluationLog(path)
    lines = (
        {"index": number, "subnet": subnet.to_json(), "seconds": 0.1, "values": dict(values)}
        for number, (subnet, values) in enumerate(found.items())
    )
    with path.open("ab") as file:
        file.writelines(sealed(line) + b"\n" for line in lines)


def latency(ms: float) -> dict[str, Any]:
    """A measured latency, as a run writes it."""
    return {
        "median_ms": ms,
        "quartiles_ms": [0.98 * ms, 1.03 * ms],
        "spread": 0.05,
        "runs": 50,
        "threads": 1,
        "batch": 1,
        "provider": "CPUExecutionProvider",
        "unstable": None,
    }


def profile(supernet: SuperNetwork, subnet: Subnet) -> dict[str, Any]:
    """Times by layer as a run writes them: a layer takes as long as it is wide."""
    layers, sizes = supernet.architecture.layers, supernet.architecture.of(subnet)
    times = {layer.name: size.width / 1000 for layer, size in zip(layers, sizes, strict=True) if size is not None}
    return {"layers": times, "other": {"ReorderOutput": 0.002, "ReduceMean": 0.005}, "run_ms": 0.5, "runs": 20}


def _finish(
    output: Output, supernet: SuperNetwork, found: Mapping[Subnet, Mapping[str, float]], profiled: bool
) -> None:
    first, *others = found
    within = [one for one in others if found[one]["accuracy"] > 0.85] or others
    named = {
        "original": first,
        "best": max(others, key=lambda one: found[one]["accuracy"]),
        "smallest": min(within, key=lambda one: found[one]["macs"]),
    }
    rows = []
    for number, (name, subnet) in enumerate(named.items()):
        int8 = {"test_accuracy": 0.89, "latency": latency(0.5 / (number + 1)), "failure": None}
        row = {"name": name, "test_accuracy": found[subnet]["accuracy"], **supernet.costs(subnet)}
        rows.append({**row, "latency": latency(1 / (number + 1)), "int8": int8, "subnet": subnet.to_json()})
        if profiled:
            rows[-1]["profile"] = profile(supernet, subnet)
    _tune(output, {name: subnet for name, subnet in named.items() if name != "original"})
    settings = {"reference": 0.9, "acc_delta": 0.01, "evaluations": len(found), "missed": False, "test_samples": 500}
    environment = json.loads(output.path("environment.json").read_text())
    write_json(output.path("report.json"), {"rows": rows, **settings, "machine": environment[0]["machine"]})
