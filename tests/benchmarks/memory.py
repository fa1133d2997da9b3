"""What a long run leaves: ``python tests/benchmarks/memory.py [--evaluations 3000] [--extractions 600]``.

Random sub-networks of an untrained ResNet-18 are evaluated one after another on images of 32 x 32. After every sixth
of them: the memory of the process, the objects that Python's garbage collector knows, and the texts of compiled graphs
that are kept for tracebacks. Memory in use was asked for and not freed; memory that was freed stays resident, ready for
the next tensor (`bnas.runtime.evaluate.evaluator`). Linux with glibc only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import linecache
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.fx import graph_module
from torchvision.models import resnet18

from bnas.passes import Subnet
from bnas.runtime import Evaluator, SuperNetwork

STEPS = 6
"""So many times it is looked what there is."""


def resident() -> float:
    """Megabytes of the process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Mallinfo2(ctypes.Structure):
    """What glibc says of its memory (mallinfo(3))."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    )


def in_use() -> float:
    """Megabytes that were asked for and not freed, in its heap and in mappings of their own."""
    ask = ctypes.CDLL("libc.so.6").mallinfo2
    ask.restype = Mallinfo2
    found = ask()
    return float(found.uordblks + found.hblkhd) / 1e6


def row(table: Table, done: int, start: float) -> None:
    """Add what there is now."""
    gc.collect()
    numbers = (done, len(linecache.cache), len(graph_module._loader.eval_cache), len(gc.get_objects()))
    memory = f"{in_use():.1f}", f"{resident():.0f}"
    table.add_row(*(f"{number:,}" for number in numbers), *memory, f"{time.perf_counter() - start:.0f}")


def watched(title: str, supernet: SuperNetwork, run: Callable[[Subnet], Any], count: int) -> Table:
    """Run for `count` random sub-networks, and look from time to time."""
    table = Table(
        "done", "linecache", "texts of torch.fx", "objects", "in use (MB)", "resident (MB)", "seconds", title=title
    )
    generator, start = np.random.default_rng(0), time.perf_counter()
    for _ in range(20):  # what is made once is there
        run(supernet.space.sample(generator))
    row(table, 0, start)
    for done in range(1, count + 1):
        run(supernet.space.sample(generator))
        if done * STEPS % count < STEPS:
            row(table, done, start)
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--extractions", type=int, default=600)
    options = parser.parse_args()
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(resnet18(num_classes=10).eval(), torch.zeros(1, 3, 32, 32))
    data = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,)))]
    evaluator = Evaluator(supernet, data, data)
    console = Console()
    if options.extractions:
        console.print(watched("Extractions", supernet, supernet.extract, options.extractions))
    if options.evaluations:
        console.print(watched("Evaluations", supernet, evaluator.evaluate, options.evaluations))


if __name__ == "__main__":
    main()
