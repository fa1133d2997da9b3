"""Table of what bnas makes of torchvision's models: ``python tests/benchmarks/zoo.py [NAME ...]``.

Each model has a process of its own, which may crash or run out of memory: its row then says so, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_leaves
from zoo_models import FINE, NAMES, Counts, count, counts_by_name, enliven, make_model, run_input, traced_input

from bnas.passes import Subnet
from bnas.passes.rigidity import rigid_share
from bnas.runtime import SuperNetwork, verify

ROOT = Path(__file__).resolve().parents[2]
TABLE, GOLDEN, ROWS = ROOT / "docs/zoo.md", ROOT / "tests/passes/pipeline/golden_zoo.json", ROOT / "runs/zoo"
SUBNETS = 3
LARGE = 100_000_000
"""Parameters above which sub-networks are compared by their shapes only, on meta tensors."""
EXACT, SAME = 1e-11, 1e-5
"""Largest errors that pass for rounding: of the oracle in double, of programs in single precision."""


@dataclass(frozen=True)
class Row:
    """What was found and measured of one model."""

    name: str
    parameters: int
    counts: Counts
    rigid: float
    """Share of the used parameters that is left with one entry of each width."""
    macs: tuple[int, int]
    """Of the maximal and the minimal sub-network, one image of the traced size."""
    oracle: float | None
    """Largest error of the sub-networks against the oracle, relative; None where only shapes were compared."""
    programs: float | None
    """Largest difference of programs and extracted modules, relative to the largest output."""
    seconds: float

    @property
    def problem(self) -> str | None:
        """What is wrong, if anything is."""
        for what, error, allowed in (("oracle", self.oracle, EXACT), ("program", self.programs, SAME)):
            if error is not None and not error <= allowed:
                return f"{what} differs by {error:.1e}, allowed is {allowed:.0e}"
        return None


def measure(name: str) -> Row:
    """The row of one model."""
    start = time.process_time()
    model = make_model(name, "meta")
    parameters = sum(p.numel() for p in model.parameters())
    device = "meta" if parameters > LARGE else "cpu"
    model, inputs = (model, traced_input(name, "meta")) if device == "meta" else (make_model(name), traced_input(name))
    supernet, fine = SuperNetwork.from_model(model, inputs), SuperNetwork.from_model(model, inputs, FINE)
    generator = np.random.default_rng(0)
    subnets = [fine.space.sample(generator) for _ in range(SUBNETS)]
    if device != "meta":
        enliven(model, run_input(name))
    check = compare_shapes if device == "meta" else compare
    oracle, programs = check(model, fine, subnets, run_input(name, device))
    costs = [supernet.costs(end)["macs"] for end in (supernet.space.maximal(), supernet.space.minimal())]
    rigid = sum(rigid_share(supernet.skeleton.types).values())
    counts = count(model, supernet, inputs)
    return Row(name, parameters, counts, rigid, tuple(costs), oracle, programs, time.process_time() - start)


def compare(
    model: nn.Module, supernet: SuperNetwork, subnets: list[Subnet], images: torch.Tensor
) -> tuple[float, float]:
    """The largest errors of `subnets`: of the oracle, and of programs against extracted modules."""
    oracle = max(verify(model, supernet, subnet, images, tolerance=math.inf) for subnet in subnets)
    with torch.no_grad():
        pairs = [(supernet.program(subnet)(images), supernet.extract(subnet)(images)) for subnet in subnets]
    return oracle, max(difference(a, b) for pair in pairs for a, b in zip(*map(tree_leaves, pair), strict=True))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max())


def compare_shapes(
    model: nn.Module, supernet: SuperNetwork, subnets: list[Subnet], images: torch.Tensor
) -> tuple[None, None]:
    """Raise an error if the outputs or the number of parameters of a sub-network are not those expected."""
    expected = [tuple(leaf.shape) for leaf in tree_leaves(model(images))]
    for subnet in subnets:
        part = supernet.extract(subnet)
        for module in (supernet.program(subnet), part):
            shapes = [tuple(leaf.shape) for leaf in tree_leaves(module(images))]
            if shapes != expected:
                raise RuntimeError(f"outputs of {shapes} instead of {expected}")
        parameters, said = sum(p.numel() for p in part.parameters()), supernet.costs(subnet)["parameters"]
        if parameters != said:
            raise RuntimeError(f"{parameters} parameters, {said} by the cost expression")
    return None, None


def run(names: list[str], resume: bool, show: Callable[[str], object]) -> Iterator[Row | tuple[str, str]]:
    """The rows of `names`, each measured in its own process, or the name and what failed."""
    for name in names:
        path = ROWS / f"{name}.json"
        if not (resume and path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            done = subprocess.run([sys.executable, __file__, "--row", name], stderr=subprocess.PIPE, text=True)
            if done.returncode:
                why = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
                show(f"{name}: {why[0]}")
                yield name, why[0]
                continue
        row = read_row(path)
        show(shown(row))
        yield row


def read_row(path: Path) -> Row:
    """The row that was written to `path`."""
    data = json.loads(path.read_text())
    return Row(**data | {"counts": Counts(**data["counts"]), "macs": tuple(data["macs"])})


HEAD = (
    "| model | parameters (M) | symbols | blocks | kernels | rigid | MACs (M) max | min | oracle | program | CPU s |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def shown(row: Row | tuple[str, str]) -> str:
    """The row of the table, on one line."""
    if isinstance(row, tuple):
        return f"| {row[0]} | failed: {row[1]} |"
    errors = ["shapes" if e is None else "0" if e == 0 else f"{e:.0e}" for e in (row.oracle, row.programs)]
    macs = [f"{n / 1e6:,.{0 if n > 1e8 else 1}f}" for n in row.macs]
    counts = row.counts.to_json().values()
    cells = [f"{row.parameters / 1e6:.1f}", *counts, f"{row.rigid:.2%}", *macs, *errors, f"{row.seconds:.0f}"]
    return f"| {row.name} | {' | '.join(map(str, cells))} |" + (f" {row.problem}" if row.problem else "")


def page(rows: list[Row | tuple[str, str]]) -> str:
    """The document."""
    failed = [row for row in rows if isinstance(row, tuple) or row.problem]
    minutes = sum(row.seconds for row in rows if isinstance(row, Row)) / 60
    versions = f"bnas {version('bnas')}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    return (
        f"""# The zoo

{len(rows)} models of torchvision with random weights, {len(rows) - len(failed)} without an error. Written by `make zoo`
on {date.today()} in {minutes:.0f} CPU minutes: {versions}, Python {platform.python_version()}, one thread.

- **symbols**: free symbols of the axis types; **blocks** may be skipped; **kernels** may shrink.
- **rigid**: share of the parameters used in forward that remain if every width keeps only one entry.
- **MACs**: of one image of 224 x 224 (inception_v3: 299, ssdlite320: 320), maximal and minimal sub-network of the
  default search space.
- **oracle**: largest relative error in double precision of {SUBNETS} random sub-networks (widths of 100, 75, 50 and
  25 %, blocks and kernels together), compared with the model's own forward after zeroing the removed weights. The
  inputs are two images of 64 x 64, or of the traced size if the attention requires it (inception_v3: 96).
- **program**: largest relative difference, in single precision, between programs and extracted modules of these
  sub-networks.
- **shapes**: more than {LARGE // 10**6} M parameters; only the shapes of the outputs and the number of
  parameters are compared, on meta tensors.
- For detectors, the backbone with its feature pyramid is measured.

{HEAD}
"""
        + "\n".join(map(shown, rows))
        + "\n"
    )


def write_golden() -> None:
    """Rewrite the golden file with what the analysis finds now."""
    found = {name: counts_by_name(name).to_json() for name in NAMES}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(counts)}" for name, counts in sorted(found.items()))
    GOLDEN.write_text("{\n" + lines + "\n}\n")


def chosen(arguments: argparse.Namespace) -> list[str]:
    """The names that were asked for."""
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        raise SystemExit(f"{unknown[0]!r} is not in the zoo; there are {', '.join(NAMES)}")
    names = arguments.names or NAMES
    if arguments.below is None:
        return list(names)
    sizes: Mapping[str, float] = {n: sum(p.numel() for p in make_model(n, "meta").parameters()) for n in names}
    return [name for name in names if sizes[name] < arguments.below * 1e6]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; by default all")
    parser.add_argument("--below", type=float, metavar="M", help="only models of fewer million parameters")
    parser.add_argument("--resume", action="store_true", help="take rows that were measured before from runs/zoo")
    parser.add_argument("--write", action="store_true", help="write the table to docs/zoo.md")
    parser.add_argument("--golden", action="store_true", help="only rewrite the golden file")
    parser.add_argument("--row", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.row:
        data: dict[str, Any] = asdict(measure(arguments.row))
        (ROWS / f"{arguments.row}.json").write_text(json.dumps(data))
        return
    if arguments.golden:
        write_golden()
        return
    print(HEAD)
    rows = list(run(chosen(arguments), arguments.resume, lambda line: print(line, flush=True)))
    if arguments.write:
        TABLE.write_text(page(rows))
    failed = [row for row in rows if isinstance(row, tuple) or row.problem]
    raise SystemExit(f"{len(failed)} of {len(rows)} models have a fault" if failed else 0)


if __name__ == "__main__":
    main()
