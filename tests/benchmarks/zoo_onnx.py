"""Table of torchvision's models as ONNX files: ``python tests/benchmarks/zoo_onnx.py [NAME ...]``.

Of each model the minimal and a random sub-network (of those above 100 M parameters the minimal one) are exported, which
checks them and compares them with PyTorch on ONNX Runtime. Each model has a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from zoo_models import FINE, NAMES, enliven, make_model, run_input, traced_input

from bnas.runtime import OnnxFallbackWarning, SuperNetwork, export_onnx

LARGE = 100_000_000
HEAD = "| model | minimal | random | fallbacks | MB | CPU s |\n|---|---:|---:|---:|---:|---:|"


def row(name: str) -> str:
    """The row of one model: relative errors, how many were exported by PyTorch, and the size of the last file."""
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
    errors = [f"{one.max_relative_error:.0e}" for one in reports] + ["-"] * (2 - len(reports))
    fallbacks = sum(one.fallback is not None for one in reports)
    size, took = reports[-1].bytes / 1e6, time.process_time() - start
    return f"| {name} | {' | '.join(errors)} | {fallbacks} | {size:.1f} | {took:.0f} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; by default all")
    parser.add_argument("--row", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.row:
        print(row(arguments.row))
        return
    if unknown := sorted(set(arguments.names) - set(NAMES)):
        raise SystemExit(f"{unknown[0]!r} is not in the zoo; there are {', '.join(NAMES)}")
    print(HEAD)
    failed = 0
    for name in arguments.names or NAMES:
        done = subprocess.run([sys.executable, __file__, "--row", name], capture_output=True, text=True)
        why = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
        print(done.stdout.strip() if done.returncode == 0 else f"| {name} | failed: {why[0]} |", flush=True)
        failed += done.returncode != 0
    raise SystemExit(f"{failed} models have a fault" if failed else 0)


if __name__ == "__main__":
    main()
