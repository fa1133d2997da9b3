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

from bnas.passes import Elasticity, Subnet
from bnas.passes.onnx.lower import lower, lowered_graph
from bnas.runtime import LatencyModel, SuperNetwork, measure_latency
from bnas.runtime.latency.measurement import ratios, spread
from bnas.runtime.latency.model import kendall_tau
from bnas.runtime.onnx.session import Array

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
    """CPU time of making the graph, ours and the standard exporter's in turns, and of copying the weights into it."""
    title = f"Lowering, CPU ms: median (smallest to largest); goal: at least {FASTER} times faster"
    columns = ("bnas: graph", "goal", "with weights", "torch.onnx.export", "times faster")
    table = Table("model", *columns, title=title)
    for name, goal in chosen(LOWERING, only):
        inputs = images(224)
        module = maximal(name, inputs)
        lower(module, [inputs])
        times: dict[str, list[float]] = {"graph": [], "model": [], "standard": []}
        for _ in range(3):
            for _ in range(5):
                times["graph"].append(cpu_seconds(lambda m=module, x=inputs: lowered_graph(m, [x])))
                times["model"].append(cpu_seconds(lambda m=module, x=inputs: lower(m, [x])))
            times["standard"].append(cpu_seconds(lambda m=module, x=inputs: standard(m, x)))
        shown = [f"{1e3 * median(t):,.0f} ({1e3 * min(t):,.0f} to {1e3 * max(t):,.0f})" for t in times.values()]
        faster = median(times["standard"]) / median(times["model"])
        table.add_row(name, shown[0], str(goal), *shown[1:], f"{faster:.0f}")
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
    """Latency models: fitted on some sub-networks, held against others, which are measured twice.

    Errors are means of the absolute relative errors, against the mean of both measurements.
    """
    title = f"Latency models, {FITTED} fitted, {HELD_OUT} held out; goals: tau {TAU}, error {ERROR:.0%}, {SECONDS} s"
    columns = ("tau", "tau of measuring twice", "error", "of measuring twice", "in ms of now", "cross-validated")
    table = Table("held out", *columns, "s for 1,000", title=title)
    for name, side in chosen(MODELS, only):
        supernet = SuperNetwork.from_model(make_model(name), images(side), SPACE)
        model = LatencyModel.fit(supernet, subnets=FITTED)
        for kind, drawn in (("spread", spread), ("random", random)):
            ones = drawn(supernet, FITTED + HELD_OUT, np.random.default_rng(1))
            held = [one for one in ones if one not in model.measured][:HELD_OUT]
            table.add_row(f"{name}, {len(held)} {kind}", *held_out(model, held), seconds(model))
    return table


def random(supernet: SuperNetwork, count: int, generator: np.random.Generator) -> list[Subnet]:
    """Different random sub-networks, which are mostly of middle size."""
    drawn = (supernet.space.canonical(supernet.space.sample(generator)) for _ in range(count))
    return list(dict.fromkeys(drawn))


def held_out(model: LatencyModel, held: list[Subnet]) -> list[str]:
    """What the table says of one model and the sub-networks that it did not see."""
    first, second = (ratios(model.supernet, held, model.settings) for _ in range(2))
    one, two = (np.array(list(some.found.values())) for some in (first, second))
    found, truth, level = model.many(held), (one + two) / 2, model.level or first.level_ms
    errors = relative(found, level * truth), relative(one, two), relative(found, first.level_ms * truth)
    taus = kendall_tau(found, truth), kendall_tau(one, two)
    shown = [f"{one:.3f}" for one in taus] + [f"{one:.1%}" for one in errors]
    return [*shown, f"{model.tau:.3f}, {model.error:.1%}"]


def relative(found: Array, truth: Array) -> float:
    """The mean of the absolute relative errors."""
    return float(np.mean(np.abs(found - truth) / truth))


def seconds(model: LatencyModel) -> str:
    """CPU seconds for the latency of 1,000 random sub-networks."""
    space = model.supernet.space
    many = [space.sample(np.random.default_rng(seed)) for seed in range(1000)]
    return f"{cpu_seconds(lambda: model.many(many)):.2f}"


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
