"""What training needs, and what a long run leaves.

``python tests/benchmarks/memory.py --peaks vit_l_16 [--batch 2]``: the largest resident set of a process that trains
a model of torchvision for one step of SGD with momentum on images of 224 x 224: by itself, and as a super-network by
`Trainer.fit`, with what was needed to make the super-network. Linux only.

``python tests/benchmarks/memory.py [--evaluations 3000] [--extractions 600]``: what a long run leaves.

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
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from rich.console import Console
from rich.table import Table
from torch.fx import graph_module
from torchvision.models import resnet18

from bnas.passes import Subnet
from bnas.runtime import Evaluator, Recipe, Stage, SuperNetwork, Trainer

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


# The peak of a training.

KINDS = {
    "plain": "the model, one step",
    "maximal": "super-network, one step of the maximal sub-network",
    "sandwich": "super-network, one sandwich step of four",
    "recomputed": "the same with checkpoint_activations",
}


def peak() -> float:
    """Gigabytes: the most that this process had in memory; `resource` counts what it had before ``exec`` too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def train(kind: str, name: str, batch: int) -> None:
    """Print the gigabytes of the model, the peak after one step, and the seconds of that."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    before, start = peak(), time.process_time()
    data = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    if kind.startswith("plain"):
        optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, fused=True)
        F.cross_entropy(model.train()(data[0]), data[1]).backward()
        optimizer.step()
    else:
        supernet = SuperNetwork.from_model(model.eval(), data[0])
        rule = (
            {"rule": "maximal", "subnets_per_step": 1}
            if kind == "maximal"
            else {"rule": "sandwich", "subnets_per_step": 4}
        )
        recipe = Recipe(**rule, num_bn_adaptation_samples=0, checkpoint_activations=kind == "recomputed")
        Trainer(supernet, [Stage()], recipe).fit([data])
    print(before, peak(), time.process_time() - start)


def peaks(name: str, batch: int) -> Table:
    """The peaks of all kinds, each in a process of its own."""
    table = Table("what", "before (GiB)", "peak (GiB)", "/ plain", "CPU s", title=f"{name}, batch {batch}")
    plain = 0.0
    for kind, what in KINDS.items():
        command = [sys.executable, __file__, "--train", kind, name, str(batch)]
        before, most, seconds = map(float, subprocess.run(command, check=True, capture_output=True).stdout.split())
        plain = plain or most
        table.add_row(what, f"{before:.2f}", f"{most:.2f}", f"{most / plain:.3f}", f"{seconds:.0f}")
    return table


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--extractions", type=int, default=600)
    parser.add_argument("--peaks", metavar="MODEL", help="the peak of a training of this model, instead")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--train", nargs=3, metavar=("KIND", "MODEL", "BATCH"), help="one of these, in this process")
    options = parser.parse_args()
    if options.train:
        return train(*options.train[:2], int(options.train[2]))
    if options.peaks:
        return Console().print(peaks(options.peaks, options.batch))
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
