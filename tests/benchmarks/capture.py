"""Table of what the capture costs: ``python tests/benchmarks/capture.py [--chain 1500] [--old seconds.json]``.

CPU seconds of one thread, as medians: capture with all recordings, comparison with the model and axis types; and four
forward passes of the model on its example, which is what the goal counts in. ``--only-analysis`` prints the seconds of
`bnas.passes.trace` and `analyse` as JSON; it also runs in a checkout of an older version, whose figures ``--old``
takes. ``--only-trials`` prints what the trials at sizes far from the example's add.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

from timing import Spread, ratio  # isort: skip  # first: it sets the number of threads
from timing import seconds  # isort: skip  # first: it sets the number of threads

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from zoo_models import make_model, traced_input

from bnas.passes import analyse, trace
from bnas.passes.frontend import capture
from bnas.runtime import SuperNetwork

MODELS = ("resnet50", "efficientnet_b7", "vit_b_16", "swin_t", "densenet201")
GOAL = 1.5
"""Capture, comparison and analysis, in (tracing and analysis of the version before + four forward passes)."""
CHAIN_GOAL = 15.0


def analysed(model: nn.Module, inputs: torch.Tensor) -> Any:
    """Graph and axis types."""
    return analyse(trace(model, inputs))


def figures(name: str, runs: int) -> dict[str, float]:
    """Medians of capture with its comparison and analysis, and of one forward pass."""
    model, inputs = make_model(name).eval(), traced_input(name)
    whole = seconds(lambda _: analysed(model, inputs), range(runs))
    with torch.no_grad():
        forward = seconds(lambda _: model(inputs), range(runs))
    return {"whole": Spread(whole).median, "forward": Spread(forward).median}


def trials(name: str) -> Spread:
    """CPU time of capture with its comparison and analysis, over that without trials at far sizes, taking turns."""
    model, inputs = make_model(name).eval(), traced_input(name)

    def without() -> None:
        with mock.patch.object(capture, "ended", lambda session, axes: list(axes)):
            analysed(model, inputs)

    return ratio(lambda: analysed(model, inputs), without)


def chain(length: int) -> float:
    """A super-network of so many convolutions in a row."""
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(length))).eval()
    return seconds(lambda _: SuperNetwork.from_model(model, torch.randn(1, 8, 8, 8)), range(1))[0]


def main(
    only_analysis: Annotated[bool, typer.Option(help="Print seconds of trace and analyse as JSON.")] = False,
    only_trials: Annotated[bool, typer.Option(help="Print the ratio of a capture with trials to one without.")] = False,
    old: Annotated[Path | None, typer.Option(help="What --only-analysis printed in an older checkout.")] = None,
    runs: Annotated[int, typer.Option(help="Runs of which the median is taken.")] = 5,
    length: Annotated[int, typer.Option("--chain", help="Convolutions in a chain.")] = 1500,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    if only_trials:
        for name in MODELS:
            print(f"{name}: {trials(name).shown(2)}", flush=True)
        return
    found = {name: figures(name, runs) for name in MODELS}
    if only_analysis:
        print(json.dumps({name: one["whole"] for name, one in found.items()}))
        return
    before = json.loads(old.read_text()) if old is not None else {}
    table = Table("model", "capture + check + analysis", "4 forward passes", "before", "ratio", "goal")
    for name, one in found.items():
        allowed = before.get(name, 0.0) + 4 * one["forward"]
        ratio = f"{one['whole'] / allowed:.2f}" if name in before else ""
        cells = [f"{one['whole']:.2f}", f"{4 * one['forward']:.2f}", f"{before.get(name, 0.0):.2f}", ratio, f"{GOAL}"]
        table.add_row(name, *cells)
    Console().print(table)
    print(
        f"chain of {length} convolutions: {chain(length):.1f} CPU s (goal {CHAIN_GOAL}); half: {chain(length // 2):.1f}"
    )


if __name__ == "__main__":
    typer.run(main)
