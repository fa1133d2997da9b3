"""Table of torchvision's models as ONNX files: ``python tests/benchmarks/zoo_onnx.py [NAME ...]``.

Of each model the minimal and a random sub-network (of those above 100 M parameters the minimal one) are exported, which
checks them and compares them with PyTorch on ONNX Runtime. Each model has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from zoo_models import CLASSIFIERS, FINE, NAMES, enliven, make_model, run_input, traced_input

from bnas.runtime import OnnxFallbackWarning, SuperNetwork, export_onnx
from bnas.runtime.latency.machine import machine

ROOT = Path(__file__).resolve().parents[2]
TABLE, ROWS = ROOT / "docs/zoo_onnx.md", ROOT / "runs/zoo_onnx"
LARGE = 100_000_000
"""Parameters above which only the minimal sub-network is exported."""


@dataclass(frozen=True)
class Row:
    """What came of one model."""

    name: str
    errors: Sequence[float]
    """Largest relative errors against PyTorch: of the minimal sub-network and, if exported, of the random one."""
    fallbacks: Sequence[str]
    """Why torch.onnx.export had to make a file, for each that it made."""
    megabytes: float
    """Size of the last file."""
    seconds: float

    def shown(self) -> str:
        """The row of the table."""
        errors = [f"{one:.0e}" for one in self.errors] + ["-"] * (2 - len(self.errors))
        return (
            f"| {self.name} | {' | '.join(errors)} | {len(self.fallbacks)} | {self.megabytes:.1f} "
            f"| {self.seconds:.0f} |{''.join(f' {why}' for why in self.fallbacks)}"
        )


def measure(name: str) -> Row:
    """The row of one model."""
    start = time.process_time()
    model, images = make_model(name), run_input(name)
    enliven(model, images)
    supernet = SuperNetwork.from_model(model, traced_input(name), FINE)
    chosen = [supernet.space.minimal()]
    if sum(p.numel() for p in model.parameters()) <= LARGE:
        chosen.append(supernet.space.sample(np.random.default_rng(0)))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxFallbackWarning)
        reports = [export_onnx(one, Path(folder) / "a.onnx", images, supernet=supernet) for one in chosen]
    errors = [one.max_relative_error for one in reports]
    fallbacks = [one.fallback for one in reports if one.fallback is not None]
    return Row(name, errors, fallbacks, reports[-1].bytes / 1e6, time.process_time() - start)


def rows(names: Sequence[str], resume: bool) -> Iterator[Row | str]:
    """The rows of `names`, each measured in its own process, or a line that says what failed."""
    ROWS.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = ROWS / f"{name}.json"
        if not (resume and path.exists()):
            path.unlink(missing_ok=True)
            done = subprocess.run([sys.executable, __file__, "--row", name], stderr=subprocess.PIPE, text=True)
            if done.returncode:
                why = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
                yield f"| {name} | failed: {why[0]} |"
                continue
        yield Row(**json.loads(path.read_text()))


HEAD = "| model | minimal | random | fallbacks | MB | CPU s |\n|---|---:|---:|---:|---:|---:|"


def page(found: Sequence[Row | str]) -> str:
    """The document."""
    whole = [row for row in found if isinstance(row, Row)]
    classifiers = f"{sum(row.name in CLASSIFIERS for row in whole)} of the {len(CLASSIFIERS)} for classification"
    made_by_pytorch = sum(bool(row.fallbacks) for row in whole)
    worst = max((error for row in whole for error in row.errors), default=0.0)
    minutes, here = sum(row.seconds for row in whole) / 60, machine()
    versions = f"bnas {version('bnas')}, torch {here['torch']}, onnx {here['onnx']}, ONNX Runtime {here['onnxruntime']}"
    lines = "\n".join(row if isinstance(row, str) else row.shown() for row in found)
    return f"""# The zoo as ONNX files

{len(found)} models of torchvision with random weights, including {classifiers}; for detectors the
backbone with its feature pyramid. {len(found) - len(whole)} failed, {made_by_pytorch} needed `torch.onnx.export`;
the largest relative error is {worst:.0e}.
Written by `python tests/benchmarks/zoo_onnx.py --write` on {date.today()} in {minutes:.0f} CPU minutes:
{versions}, Python {here["python"]}, one thread.

- **minimal**, **random**: largest relative error of ONNX Runtime against PyTorch over all outputs of this sub-network
  (widths of 100, 75, 50 and 25 %, blocks and kernels together), on random images and on others of another batch size.
  A file is written only if `onnx.checker` accepts it and the error is at most 1e-4. For models above 100 M parameters,
  only the minimal sub-network is exported.
- **fallbacks**: number of these files that `torch.onnx.export` had to export.
- **MB**: size of the last file; **CPU s**: time of the whole row, including the creation of the model.

{HEAD}
{lines}
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; by default all")
    parser.add_argument("--resume", action="store_true", help="take rows that were measured before from runs/zoo_onnx")
    parser.add_argument("--write", action="store_true", help="write the table to docs/zoo_onnx.md")
    parser.add_argument("--row", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.row:
        (ROWS / f"{arguments.row}.json").write_text(json.dumps(asdict(measure(arguments.row))))
        return
    if unknown := sorted(set(arguments.names) - set(NAMES)):
        raise SystemExit(f"{unknown[0]!r} is not in the zoo; there are {', '.join(NAMES)}")
    print(HEAD)
    found = []
    for row in rows(arguments.names or NAMES, arguments.resume):
        found.append(row)
        print(row if isinstance(row, str) else row.shown(), flush=True)
    if arguments.write:
        TABLE.write_text(page(found))
    failed = sum(isinstance(row, str) for row in found)
    raise SystemExit(f"{failed} models have a fault" if failed else 0)


if __name__ == "__main__":
    main()
