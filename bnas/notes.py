"""What a run notes down while it runs, so that a report of it needs neither the model nor the data."""

from __future__ import annotations

import datetime
import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from bnas.output import Output
from bnas.runtime.files import write_json
from bnas.runtime.machine import machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bnas.passes.architecture import Architecture
    from bnas.search import Constraint, Objective

ENVIRONMENT, ARCHITECTURE, SEARCH = "environment.json", "architecture.json", "search.json"
LIBRARIES = ("bnas", "torch", "torchvision", "numpy", "deap", "onnx", "onnxruntime", "safetensors", "pydantic")
"""Whose versions are noted."""


def note_environment(output: Output) -> None:
    """Add this process to ``environment.json``: when it began, on what machine, with what versions."""
    path = output.path(ENVIRONMENT)
    known = json.loads(path.read_text(encoding="utf-8")) if output.resumed and path.is_file() else []
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_json(path, [*known, {"began": now, "machine": machine(), "versions": versions()}])


def versions() -> dict[str, str]:
    """The versions of `LIBRARIES` that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def note_architecture(output: Output, architecture: Architecture) -> None:
    """Write ``architecture.json``: the layers, and how wide each is in every sub-network."""
    write_json(output.path(ARCHITECTURE), architecture.to_json())


def note_search(
    output: Output,
    objectives: Sequence[Objective],
    constraints: Sequence[str | Constraint],
    maximal: Mapping[str, int],
    **settings: Any,
) -> None:
    """Write ``search.json`` before the search: what is searched for, within which bounds, and further settings.

    `maximal` are the costs of the maximal sub-network, which bounds in percent refer to.
    """
    asked = [{"name": one.name, "direction": one.direction} for one in objectives]
    bounds = [str(one) for one in constraints]
    write_json(output.path(SEARCH), {"objectives": asked, "constraints": bounds, "maximal": dict(maximal), **settings})
