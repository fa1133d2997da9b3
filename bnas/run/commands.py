"""The commands that come next, as verdicts and pages give them to be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

MORE = 4
"""Where a latency was not stable, so many times as many runs are proposed."""


def export_command(folder: Path, name: str, *, int8: bool = False) -> str:
    """Return the command that writes a sub-network of a run to one ONNX file."""
    file = ["--onnx", "model.int8.onnx", "--int8"] if int8 else ["--onnx", "model.onnx"]
    return shlex.join(["bnas", "export", str(folder), "--subnet", name, *file])


def again_command(folder: Path, runs: int) -> str:
    """Return the command that exports and measures a run again, with so many runs."""
    return shlex.join(["bnas", "export", str(folder), "--set", f"latency.runs={runs}"])
