"""Commands for the next step, which verdicts and pages show for copying."""

from __future__ import annotations

import shlex
from pathlib import Path

from bnas.runtime.latency.settings import TRUSTED_RUNS

MORE = 4
"""Factor for the number of runs that is proposed after an unstable latency."""


def remedy(runs: int) -> tuple[str, int]:
    """Return a remedy for a latency that was unstable with `runs` runs, and the number of runs to use instead."""
    if runs < TRUSTED_RUNS:
        return "Measure more often", TRUSTED_RUNS
    return "Close other programs, then measure again", MORE * runs


def step_command(step: str, folder: Path, *, resume: bool = False) -> str:
    """Return the command that does a step of a run, such as "tune" or "export", for all its winners."""
    return shlex.join(["bnas", step, str(folder), *(["--resume"] if resume else [])])


def export_command(folder: Path, name: str, *, int8: bool = False) -> str:
    """Return the command that writes a sub-network of a run to one ONNX file."""
    file = ["--onnx", "model.int8.onnx", "--int8"] if int8 else ["--onnx", "model.onnx"]
    return shlex.join(["bnas", "export", str(folder), "--subnet", name, *file])


def again_command(folder: Path, runs: int) -> str:
    """Return the command that exports and measures a run again, with `runs` runs."""
    return shlex.join(["bnas", "export", str(folder), "--set", f"latency.runs={runs}"])
