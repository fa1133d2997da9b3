"""What the sub-networks of a step are worth: a CIFAR-10 ResNet-20 trained by several rules on the same images.

    python tests/benchmarks/ablation.py --data DIR [--epochs 2] [--output runs/ablation]

DIR is that of `examples/cifar10.py`. Prints, for every rule, the accuracy on the test images of the maximal, the
minimal and ten random sub-networks, BatchNorm recalibrated, and the CPU seconds of the training. Goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import bnas
from bnas.runtime import first_samples
from bnas.runtime.storage.files import write_json
from bnas.runtime.train.validation import watched

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from cifar10 import read_data, read_model

RULES = {
    "one random": bnas.Recipe(rule="random", distillation=None, learning_rate=0.02),
    "sandwich": bnas.Recipe(rule="sandwich", distillation=None, learning_rate=0.02),
    "sandwich, in-place distillation": bnas.Recipe(rule="sandwich", learning_rate=0.02),
}
WIDE = bnas.Elasticity(("depth", "width"), width_multipliers=(1.0, 0.75, 0.5))


def measured(name: str, data: Path, epochs: int, folder: Path) -> dict[str, float]:
    """Accuracy on the test images of the watched sub-networks after training by a rule, and CPU seconds."""
    torch.manual_seed(0)
    splits = read_data(data, batch=128)
    supernet = bnas.SuperNetwork.from_model(read_model(data, 20), torch.zeros(1, 3, 32, 32), WIDE)
    stages = [bnas.Stage(epochs=epochs, reorg_weights=True)]
    start = time.process_time()
    trainer = bnas.Trainer(supernet, stages, RULES[name], directory=folder / name, checkpoint_every=50)
    trainer.fit(splits.train, resume=True)
    seconds = time.process_time() - start
    evaluator = bnas.Evaluator(supernet, first_samples(splits.train, 2000), list(splits.test))
    found = {one: evaluator.evaluate(subnet)["accuracy"] for one, subnet in watched(supernet.space, 10, 0).items()}
    return {**found, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    arguments = parser.parse_args()
    table = Table("step", "maximal", "minimal", "random: median", "worst", "best", "CPU s")
    for name in RULES:
        path = arguments.output / f"{name}.json"
        if not path.is_file():
            write_json(path, measured(name, arguments.data, arguments.epochs, arguments.output))
        found = json.loads(path.read_text())
        random = [value for key, value in found.items() if key.startswith("random")]
        values = (found["maximal"], found["minimal"], statistics.median(random), min(random), max(random))
        table.add_row(name, *(f"{100 * value:.2f}" for value in values), f"{found['seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
