"""What becomes of a network in int8: its accuracy and latency, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from bnas.passes import BnasError
from bnas.runtime import Int8, Latency, export_onnx


@dataclass(frozen=True)
class Quantised:
    """A network in int8 on ONNX Runtime; both numbers are measured."""

    accuracy: float | None = None
    """On the test data."""
    latency: Latency | None = None
    failure: str | None = None
    """Why there are no numbers."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        latency = None if self.latency is None else self.latency.to_json()
        return {"test_accuracy": self.accuracy, "latency": latency, "failure": self.failure}


def write_int8(
    module: GraphModule,
    path: Path,
    example: Any,
    settings: Int8,
    metadata: Mapping[str, str],
) -> str | None:
    """Export `module` to an int8 file at `path`; returns why there is none where that cannot be done."""
    try:
        export_onnx(module, path, example, settings, metadata=metadata)
    except BnasError as error:
        return str(error)
    return None
