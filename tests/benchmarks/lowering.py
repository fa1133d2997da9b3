"""Tables of what lowering and latency models reach: ``python tests/benchmarks/lowering.py [PART ...]``.

Parts are lowering, runtime and model. CPU seconds of one thread; goals as they were set for a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from zoo_models import make_model

from bnas.passes import Elasticity
from bnas.passes.lowering import lower
from bnas.runtime import LatencyModel, SuperNetwork, measure_latency
from bnas.runtime.latency_model import kendall_tau, measured_ms, spread

LOWERING = {"mobilenet_v2": 60, "resnet50": 120, "vit_b_16": 150}
"""Goals in milliseconds, by model."""
FASTER, RUNTIME = 20, 1.03
"""Goals: how many times faster than the standard exporter, and how much its file may be faster than ours."""
MODELS = {"resnet18": 64, "mobilenet_v2": 64}
"""Side of the square images, by model."""
FITTED, HELD_OUT = 15, 20
TAU, ERROR, SECONDS = 0.93, 0.08, 1.0
SPACE = Elasticity(width_multipliers=(1.0, 0.75, 0.5, 0.25))


def images(side: int) -> torch.Tensor:
    """Two random images."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    run()
    return time.process_time() - start


def standard(module: nn.Module, inputs: torch.Tensor) -> Any:
    """What torch.onnx.export makes, with an open batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        return torch.onnx.export(module, (inputs,), dynamo=True, dynamic_shapes=dynamic, verbose=False).model_proto


def chosen(models: dict[str, int], only: str | None) -> list[tuple[str, int]]:
    """All models, or the one that was asked for."""
    return [(name, value) for name, value in models.items() if only in (None, name)]


def maximal(name: str, inputs: torch.Tensor) -> Any:
    """The extracted maximal sub-network."""
    supernet = SuperNetwork.from_model(make_model(name), inputs)
    return supernet.extract(supernet.space.maximal())


def lowering_table(only: str | None) -> Table:
    """CPU time of making the graph, ours and the standard exporter's in turns."""
    title = f"Lowering, CPU ms: median (smallest to largest); goal: at least {FASTER} times faster"
    table = Table("model", "bnas", "goal", "torch.onnx.export", "times faster", title=title)
    for name, goal in chosen(LOWERING, only):
        inputs = images(224)
        module = maximal(name, inputs)
        lower(module, [inputs])
        own, others = [], []
        for _ in range(3):
            own += [cpu_seconds(lambda m=module, x=inputs: lower(m, [x])) for _ in range(5)]
            others.append(cpu_seconds(lambda m=module, x=inputs: standard(m, x)))
        shown = (f"{1e3 * median(t):.0f} ({1e3 * min(t):.0f} to {1e3 * max(t):.0f})" for t in (own, others))
        ours, theirs = shown
        table.add_row(name, ours, str(goal), theirs, f"{median(others) / median(own):.0f}")
    return table


def runtime_table(only: str | None) -> Table:
    """Run time of our file and of the standard exporter's, interleaved, one image."""
    title = f"ONNX Runtime, CPU ms of one image of 224 x 224; goal for the ratio: {RUNTIME}"
    table = Table("model", "bnas", "torch.onnx.export", "ratio", "stable", title=title)
    for name, _ in chosen(LOWERING, only):
        inputs = images(224)
        module = maximal(name, inputs)
        made = {"bnas": lower(module, [inputs]), "standard": standard(module, inputs)}
        contents = {key: model.SerializeToString() for key, model in made.items()}
        found = measure_latency(contents, inputs[:1].numpy(), reference="standard")
        ours, theirs = found["bnas"], found["standard"]
        stable = "; ".join(f"{key}: {one.unstable}" for key, one in found.items() if not one.stable) or "yes"
        table.add_row(name, f"{ours.median_ms:.2f}", f"{theirs.median_ms:.2f}", f"{ours.ratio:.3f}", stable)
    return table


def model_table(only: str | None) -> Table:
    """Latency models: fitted on some sub-networks, held against others, which are measured twice."""
    title = f"Latency models, {FITTED} fitted, {HELD_OUT} held out; goals: tau {TAU}, error {ERROR:.0%}, {SECONDS} s"
    table = Table(
        "model",
        "tau",
        "tau of measuring twice",
        "error",
        "without level",
        "cross-validated",
        "s for 1,000",
        title=title,
    )
    for name, side in chosen(MODELS, only):
        supernet = SuperNetwork.from_model(make_model(name), images(side), SPACE)
        model = LatencyModel.fit(supernet, FITTED)
        others = [
            one for one in spread(supernet, FITTED + HELD_OUT, np.random.default_rng(1)) if one not in model.measured
        ]
        held = others[:HELD_OUT]
        first, second = (np.array(list(measured_ms(supernet, held).values())) for _ in range(2))
        truth, found = (first + second) / 2, model.many(held)
        errors = (float(np.mean(np.abs(level * found - truth) / truth)) for level in (1, np.median(truth / found)))
        many = [supernet.space.sample(np.random.default_rng(seed)) for seed in range(1000)]
        took = cpu_seconds(lambda m=model, ones=many: m.many(ones))
        taus = (f"{kendall_tau(a, b):.3f}" for a, b in ((found, truth), (first, second)))
        table.add_row(
            f"{name} ({len(held)})",
            *taus,
            *(f"{e:.1%}" for e in errors),
            f"{model.tau:.3f}, {model.error:.1%}",
            f"{took:.2f}",
        )
    return table


TABLES = {"lowering": lowering_table, "runtime": runtime_table, "model": model_table}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(TABLES)}; by default all")
    parser.add_argument("--only", metavar="MODEL", choices=[*LOWERING, *MODELS], help="one model")
    arguments = parser.parse_args()
    parts = arguments.parts or list(TABLES)
    if unknown := sorted(set(parts) - set(TABLES)):
        raise SystemExit(f"there is no part {unknown[0]!r}; there are {', '.join(TABLES)}")
    torch.set_num_threads(1)
    console = Console(width=120)
    for part in parts:
        console.print(TABLES[part](arguments.only))


if __name__ == "__main__":
    main()
