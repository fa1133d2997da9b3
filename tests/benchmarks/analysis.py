"""Table of what analysis and programs cost: ``python tests/benchmarks/analysis.py``.

CPU seconds of one thread, as medians with quartiles; goals as they were set for a quiet machine.
"""

from __future__ import annotations

import gc
import tracemalloc

from timing import Spread  # isort: skip  # first: it sets the number of threads
from timing import seconds  # isort: skip  # first: it sets the number of threads

import torch
from rich.console import Console
from rich.table import Table
from switching import Structures
from zoo_models import make_model, traced_input

from bnas.runtime import SuperNetwork

ANALYSIS = {"resnet50": 1.0, "efficientnet_b7": 2.0, "vit_b_16": 1.5, "swin_t": 2.0, "densenet201": 2.5}
"""Goals in seconds, by model."""
PROGRAMS = ("resnet50", "efficientnet_b0", "mobilenet_v2", "vit_b_16")
MEMORY = 0.1
"""Goal for the memory that analysis adds, as a share of the size of the model."""


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
    table = Table("model", "CPU s: median (quartiles)", "goal", "memory / model", "goal", title="Trace, analyse, build")
    for name, goal in ANALYSIS.items():
        model, inputs = make_model(name), traced_input(name)
        took = seconds(lambda _, m=model, x=inputs: SuperNetwork.from_model(m, x), range(7))
        memory = added_memory(model, inputs)
        table.add_row(name, Spread(took).shown(2), f"{goal}", f"{memory:.1%}", f"{MEMORY:.0%}")
    return table


def program_table() -> Table:
    """Programs of structures that were not seen before, of one that was, and extracted modules."""
    table = Table("model", "unseen", "seen", "extract", title="Programs, CPU ms: median (quartiles)")
    for name in PROGRAMS:
        supernet = SuperNetwork.from_model(make_model(name), traced_input(name))
        structures = Structures.of(supernet)
        rows = [(supernet.program, structures.unseen), (supernet.program, structures.seen)]
        rows.append((supernet.extract, structures.unseen))
        table.add_row(name, *(Spread(seconds(run, ones)).shown(1, 1e3) for run, ones in rows))
    return table


def main() -> None:
    """The command line."""
    torch.set_num_threads(1)
    console = Console()
    console.print(analysis_table())
    console.print(program_table())


if __name__ == "__main__":
    main()
