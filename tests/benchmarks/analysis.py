"""Table of what analysis and programs cost: ``python tests/benchmarks/analysis.py``.

CPU seconds of one thread, as medians with the smallest and the largest; goals as they were set for a quiet machine.
"""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from zoo_models import make_model, traced_input

from bnas.passes import Subnet
from bnas.runtime import SuperNetwork

ANALYSIS = {"resnet50": 1.0, "efficientnet_b7": 2.0, "vit_b_16": 1.5, "swin_t": 2.0, "densenet201": 2.5}
"""Goals in seconds, by model."""
PROGRAMS = ("resnet50", "efficientnet_b0", "mobilenet_v2", "vit_b_16")
UNSEEN, SEEN = 10.0, 3.0
"""Goals in milliseconds, for ResNet-50."""
MEMORY = 0.1
"""Goal for the memory that analysis adds, as a share of the size of the model."""


def seconds(run: Callable[[Any], object], arguments: Iterable[Any]) -> list[float]:
    """CPU seconds of `run` for each argument; what it made is gone, and collected, before the next."""
    found = []
    for argument in arguments:
        gc.collect()
        start = time.process_time()
        kept = run(argument)
        found.append(time.process_time() - start)
        del kept
    return found


def spread(values: list[float], digits: int, factor: float = 1.0) -> str:
    """The median with the smallest and the largest."""
    low, middle, high = (f"{factor * v:.{digits}f}" for v in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def added_memory(model: torch.nn.Module, inputs: torch.Tensor) -> float:
    """What Python allocates and keeps for a super-network, as a share of the model's own size.

    By tracemalloc: memory of tensors is not seen, but the only tensors that analysis makes are constants of forward
    and matrices of kernels, which are added.
    """
    SuperNetwork.from_model(model, inputs)  # what is made once in a process is not counted
    gc.collect()
    tracemalloc.start()
    supernet = SuperNetwork.from_model(model, inputs)
    gc.collect()
    python, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    made = [*supernet.ir.constants.values(), *supernet.kernel_matrices.parameters()]
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return (python + sum(t.nbytes for t in made)) / own


def analysis_table() -> Table:
    """Tracing, analysis and the search space."""
    table = Table("model", "CPU s: median (range)", "goal", "memory / model", "goal", title="Trace, analyse, build")
    for name, goal in ANALYSIS.items():
        model, inputs = make_model(name), traced_input(name)
        took = seconds(lambda _, m=model, x=inputs: SuperNetwork.from_model(m, x), range(7))
        memory = added_memory(model, inputs)
        table.add_row(name, spread(took, 2), f"{goal}", f"{memory:.1%}", f"{MEMORY:.0%}")
    return table


def program_table() -> Table:
    """Programs of structures that were not seen before, of one that was, and extracted modules."""
    table = Table(
        "model", f"unseen (goal {UNSEEN:.0f})", f"seen (goal {SEEN:.0f})", "extract", title="Programs, CPU ms"
    )
    for name in PROGRAMS:
        supernet, generator = SuperNetwork.from_model(make_model(name), traced_input(name)), np.random.default_rng(0)
        subnets = list({s.skipped: s for s in (supernet.space.sample(generator) for _ in range(120))}.values())[:60]
        warm, unseen = subnets[:20], subnets[20:]
        seen = [replace_graph(supernet, subnets[0], subnet) for subnet in unseen]
        for subnet in (*warm, *seen):
            supernet.program(subnet)
        rows = [(supernet.program, unseen), (supernet.program, seen), (supernet.extract, unseen)]
        table.add_row(name, *(spread(seconds(run, ones), 1, 1e3) for run, ones in rows))
    return table


def replace_graph(supernet: SuperNetwork, structure: Subnet, subnet: Subnet) -> Subnet:
    """`subnet` with the blocks of `structure`, and with its widths that stand in the graph."""
    in_graph = {name for name, s in supernet.skeleton.choices.symbols.items() if s in supernet.skeleton.in_graph}
    widths = {n: (structure if n in in_graph else subnet).widths[n] for n in subnet.widths}
    return replace(subnet, widths=widths, skipped=structure.skipped)


def main() -> None:
    """The command line."""
    torch.set_num_threads(1)
    console = Console()
    console.print(analysis_table())
    console.print(program_table())


if __name__ == "__main__":
    main()
