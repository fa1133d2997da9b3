"""Measures of importance against each other: accuracy right after pruning and BatchNorm recalibration, nothing trained.

    python tests/benchmarks/importance.py --data ../shared/data

ResNet-20 on CIFAR-10 at several numbers of times fewer MACs. 2,000 training images give the gradients and statistics;
the 5,000 training images that are held out give the accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from cifar10 import read_data, read_model
from torch import nn

import bnas
from bnas.passes import Elasticity, Subnet
from bnas.runtime.evaluate.evaluation import Batch
from bnas.search.allocation import global_path, uniform_path
from bnas.search.pruning import ordered, widths_only

MEASURES = ("L1", "L2", "geometric_median", "taylor")
FEWER = (1.4, 2, 3, 5)
EXAMPLE = torch.zeros(1, 3, 32, 32)


def macs(supernet: bnas.SuperNetwork, subnet: Subnet) -> float:
    """Of a sub-network."""
    return float(supernet.cost_model.many([subnet], ["macs"])["macs"][0])


Pruning: TypeAlias = tuple[str, bnas.SuperNetwork, list[Subnet]]


def paths(model: nn.Module, elasticity: Elasticity, measure: str, batches: list[Batch]) -> Iterator[Pruning]:
    """The ways of pruning by a measure, each with its super-network and path."""
    supernet = bnas.SuperNetwork.from_model(model, EXAMPLE, elasticity).eval()
    worth = ordered(supernet, measure, batches, None)
    cost = partial(macs, supernet)
    yield "global, per MAC", supernet, list(global_path(supernet.space, worth, cost))
    yield "global, per entry", supernet, list(global_path(supernet.space, worth, cost, "entry"))
    yield "uniform", supernet, list(uniform_path(supernet.space, worth))


def accuracies(supernet: bnas.SuperNetwork, path: list[Subnet], evaluator: bnas.Evaluator) -> Iterator[str]:
    """The accuracy at each of `FEWER`, in percent."""
    whole = macs(supernet, supernet.space.maximal())
    for fewer in FEWER:
        subnet = next((one for one in path if macs(supernet, one) <= whole / fewer), None)
        yield "-" if subnet is None else f"{100 * evaluator.evaluate(subnet)['accuracy']:.2f}"


def in_rounds(
    model: nn.Module, elasticity: Elasticity, rounds: int, batches: list[Batch], held: list[Batch]
) -> Iterator[str]:
    """The accuracy at each of `FEWER` where importance is measured again in what is left."""
    for fewer in FEWER:
        given: Any = {"elasticity": elasticity, "rounds": rounds}
        pruned = bnas.prune(model, EXAMPLE, batches, f"macs <= {100 / fewer} %", **given)
        yield f"{100 * bnas.runtime.accuracy(pruned.module, held):.2f}"


def main() -> None:
    """Print a table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--divisor", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--measures", nargs="*", choices=MEASURES, default=MEASURES)
    parser.add_argument("--rounds", type=int, default=4, help="of the last row, Taylor measured again; 1: no such row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = read_data(arguments.data, arguments.batch)
    batches, held = bnas.runtime.first_samples(data.train, 2000), list(data.validation)
    print(f"| importance | allocation | {' | '.join(f'{one:g}x' for one in FEWER)} | CPU s |")
    print(f"|---|---|{'---:|' * (len(FEWER) + 1)}")
    for measure in arguments.measures:
        model = read_model(arguments.data, arguments.depth)
        for name, supernet, path in paths(model, widths_only(arguments.divisor), measure, batches):
            start = time.process_time()
            found = accuracies(supernet, path, bnas.Evaluator(supernet, batches, held))
            print(f"| {measure} | {name} | {' | '.join(found)} | {time.process_time() - start:.0f} |", flush=True)
    if arguments.rounds > 1:
        start, model = time.process_time(), read_model(arguments.data, arguments.depth)
        elasticity = widths_only(arguments.divisor)
        found = in_rounds(model, elasticity, arguments.rounds, batches, held)
        name = f"global, per MAC, {arguments.rounds} rounds"
        print(f"| taylor | {name} | {' | '.join(found)} | {time.process_time() - start:.0f} |")


if __name__ == "__main__":
    main()
