"""Shrink your own CIFAR-10 ResNet: a model in your file, its weights, your data and transform (`cifar10.py`).

    python examples/cifar10_resnet.py --data DIR --depth 20 --output runs/resnet20
    python examples/cifar10_resnet.py --data DIR --recipe front --output runs/front

The recipe "short" gets one sub-network of a given size with a few epochs: a narrow super-network that learns from the
frozen original, a search, and fine-tuning of the winner by itself. The recipe "front" trains a wide one, and measures
sub-networks of all sizes. Run it again with the same arguments and it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from cifar10 import read_data, read_model
from rich.console import Console
from rich.table import Table
from torch import nn

import bnas
from bnas.cli.progress import watching
from bnas.runtime import accuracy, first_samples
from bnas.runtime.storage.files import write_json
from bnas.search import SearchResult

NARROW = bnas.Elasticity(("depth", "width"), width_multipliers=(1.0, 0.875, 0.75), divisor=4, min_width=4)
WIDE = bnas.Elasticity(("depth", "width"), width_multipliers=(1.0, 0.75, 0.5), divisor=8, min_width=8)
EXAMPLE = torch.zeros(1, 3, 32, 32)


class Run:
    """The original, its super-network and the data of one run in a folder."""

    def __init__(self, arguments: argparse.Namespace, elasticity: bnas.Elasticity) -> None:
        self.folder: Path = arguments.output
        self.console = Console()
        self.original = read_model(arguments.data, arguments.depth)
        self.data = read_data(arguments.data, batch=128)
        self.supernet = bnas.SuperNetwork.from_model(copy.deepcopy(self.original), EXAMPLE, elasticity)
        self.calibration = first_samples(self.data.train, 2000)
        self.check(arguments)

    def check(self, arguments: argparse.Namespace) -> None:
        """A folder is for one set of arguments."""
        known = {key: value for key, value in vars(arguments).items() if key not in ("data", "output")}
        path = self.folder / "arguments.json"
        if path.is_file() and json.loads(path.read_text()) != known:
            raise bnas.BnasError(f"{path} has other arguments than those given: give another --output")
        write_json(path, known)

    def train(self, stage: bnas.Stage, recipe: bnas.Recipe) -> None:
        """Train the super-network, or go on with it."""
        self.console.print(f"{self.supernet.space.size:.3g} sub-networks")
        start = time.process_time()
        with watching(self.console) as watch:
            trainer = bnas.Trainer(
                self.supernet,
                [stage],
                recipe,
                directory=self.folder / "training",
                checkpoint_every=50,
                watch=1,
                callbacks=[watch],
            )
            trainer.fit(self.data.train, list(self.data.validation)[:20], resume=True)
        self.supernet.eval()
        self.console.print(f"training took {time.process_time() - start:.0f} CPU s in this process")

    def evaluator(self, calibration: int, validation: int) -> bnas.Evaluator:
        """Measures on so many training and held-out images."""
        batches = list(self.data.validation)[: validation // 100]
        return bnas.Evaluator(self.supernet, first_samples(self.calibration, calibration), batches)

    def test(self, module: nn.Module) -> float:
        """Accuracy on the test images."""
        return accuracy(module.eval().to(memory_format=torch.channels_last), self.data.test)

    def tested(self, subnet: bnas.Subnet) -> float:
        """Accuracy of a sub-network on the test images, with recalibrated statistics."""
        return self.test(self.evaluator(2000, 100).prepare(subnet))

    def macs(self, subnet: bnas.Subnet) -> float:
        """In millions."""
        return self.supernet.costs(subnet)["macs"] / 1e6

    def table(self, title: str, rows: Sequence[tuple[str, float, float]]) -> None:
        """Print and keep rows of name, millions of MACs and accuracy on the test images."""
        table = Table("network", "MACs (M)", "fewer", "test top-1 (%)", title=title)
        full = self.macs(self.supernet.space.maximal())
        for name, macs, top1 in rows:
            table.add_row(name, f"{macs:.2f}", f"{full / macs:.2f}x", f"{100 * top1:.2f}")
        self.console.print(table)
        write_json(self.folder / "table.json", [{"name": n, "macs": 1e6 * m, "test_accuracy": a} for n, m, a in rows])


def short(arguments: argparse.Namespace) -> None:
    """One sub-network with ``--fewer`` times fewer MACs."""
    run = Run(arguments, NARROW)
    stage = bnas.Stage(epochs=arguments.epochs, init_lr=arguments.rate, reorg_weights=True)
    run.train(stage, bnas.Recipe(distillation=bnas.Distillation("original")))
    maximal = run.supernet.space.maximal()
    limit = f"macs <= {run.macs(maximal) / arguments.fewer} M"
    result = search(run, run.evaluator(500, 2000), bnas.SearchSettings(num_evals=arguments.evals, constraints=(limit,)))
    winner = max(result.feasible, key=lambda one: one.values["accuracy"]).subnet
    run.console.print(f"winner: {winner.to_json()}")
    both = bnas.Distillation("original", hard=1)
    with watching(run.console) as watch:
        tuned = bnas.fine_tune(
            run.evaluator(2000, 100).prepare(winner),
            EXAMPLE,
            run.data.train,
            list(run.data.validation)[:20],
            epochs=arguments.tune_epochs,
            recipe=bnas.Recipe(learning_rate=arguments.tune_rate, weight_decay=5e-4, distillation=both),
            teacher=run.original,
            resume=True,
            directory=run.folder / "tuning",
            checkpoint_every=50,
            callbacks=[watch],
        )
    rows = [
        ("original", run.macs(maximal), run.test(run.original)),
        ("maximal, trained", run.macs(maximal), run.tested(maximal)),
        ("winner of the search", run.macs(winner), run.tested(winner)),
        ("winner, fine-tuned", run.macs(winner), run.test(tuned)),
    ]
    bnas.export_onnx(tuned, run.folder / "winner.onnx", (EXAMPLE,))
    run.table(f"ResNet-{arguments.depth}, {arguments.epochs} + {arguments.tune_epochs} epochs", rows)


def search(run: Run, evaluator: bnas.Evaluator, settings: bnas.SearchSettings) -> SearchResult:
    """Trade accuracy for MACs, or go on with that."""
    objectives = (bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min"))
    with watching(run.console) as watch:
        log = run.folder / "evaluations.jsonl"
        return bnas.Searcher(run.supernet, evaluator, objectives, settings, log=log, callbacks=[watch]).run()


def front(arguments: argparse.Namespace) -> None:
    """Test accuracy of the front of sub-networks of all sizes, chosen on held-out images."""
    run = Run(arguments, WIDE)
    both = bnas.Distillation("original", hard=1)
    recipe = bnas.Recipe(sampling="attentive", subnets_per_step=3, weight_decay=5e-4, distillation=both)
    run.train(bnas.Stage(epochs=arguments.epochs, init_lr=0.02, reorg_weights=True), recipe)
    evaluator = run.evaluator(2000, 5000)
    result = search(run, evaluator, bnas.SearchSettings(algorithm=arguments.algorithm, num_evals=arguments.evals))
    best = sorted(result.pareto(), key=lambda one: one.values["macs"])
    rows = [
        (f"held out {100 * one.values['accuracy']:.2f}", run.macs(one.subnet), run.tested(one.subnet)) for one in best
    ]
    maximal = run.supernet.space.maximal()
    rows.append(("maximal", run.macs(maximal), run.tested(maximal)))
    title = f"{arguments.epochs} epochs, front of {arguments.evals} sub-networks by {arguments.algorithm}"
    run.table(f"ResNet-{arguments.depth}, {title}", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of weights and images")
    parser.add_argument("--recipe", choices=("short", "front"), default="short")
    parser.add_argument("--depth", type=int, choices=(20, 56), default=20)
    parser.add_argument("--output", type=Path, default=None, help="folder for all results")
    parser.add_argument("--epochs", type=int, default=None, help="of the super-network (default 4, or 8 for the front)")
    parser.add_argument("--rate", type=float, default=0.01, help="of learning, for the super-network (recipe short)")
    parser.add_argument("--tune-epochs", type=int, default=8, help="of the winner (recipe short)")
    parser.add_argument("--tune-rate", type=float, default=0.025, help="of learning, for the winner (recipe short)")
    parser.add_argument("--fewer", type=float, default=1.37, help="how many times fewer MACs (recipe short)")
    parser.add_argument("--evals", type=int, default=None, help="evaluations (default 60, or 200 for the front)")
    parser.add_argument(
        "--algorithm", choices=("NSGA2", "random"), default="NSGA2", help="of the search (recipe front)"
    )
    arguments = parser.parse_args()
    wide = arguments.recipe == "front"
    arguments.epochs = arguments.epochs or (8 if wide else 4)
    arguments.evals = arguments.evals or (200 if wide else 60)
    arguments.output = arguments.output or Path(f"runs/resnet{arguments.depth}-{arguments.recipe}")
    torch.manual_seed(0)
    front(arguments) if wide else short(arguments)


if __name__ == "__main__":
    try:
        main()
    except bnas.BnasError as error:
        sys.exit(f"cifar10_resnet: {error}")
