"""The commands that come next, as verdicts and pages give them to be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

from bnas.runtime.latency.settings import TRUSTED_RUNS

MORE = 4
"""Where a latency was not stable, so many times as many runs are proposed."""


def remedy(runs: int) -> tuple[str, int]:
    """Return what to do about a latency that is not stable after so many runs, and how many runs to measure then."""
    if runs < TRUSTED_RUNS:
        return "Measure more often", TRUSTED_RUNS
    return "Close other programs, then measure again", MORE * runs


def export_command(folder: Path, name: str, *, int8: bool = False) -> str:
    """Return the command that writes a sub-network of a run to one ONNX file."""
    file = ["--onnx", "model.int8.onnx", "--int8"] if int8 else ["--onnx", "model.onnx"]
    return shlex.join(["bnas", "export", str(folder), "--subnet", name, *file])


def again_command(folder: Path, runs: int) -> str:
    """Return the command that exports and measures a run again, with so many runs."""
    return shlex.join(["bnas", "export", str(folder), "--set", f"latency.runs={runs}"])
