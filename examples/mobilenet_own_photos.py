"""A latency budget for photographs of your own: MobileNetV2 on ONNX Runtime in a half and in a third of the time.

    python examples/mobilenet_own_photos.py --data elpv --weights mobilenet_v2-b0353104.pth --train-original
    python examples/mobilenet_own_photos.py --data elpv

The first command trains the original on your photographs, from ImageNet's weights, and keeps it. The second one makes a
super-network of it, measures some sub-networks on this machine for a model of their latency, trains the super-network
for a short time, and searches under each bound. What it finds is trained by itself, with the original as the teacher,
and exported in float and in int8. The table is of the test photographs and of measured files. `solar_cells.py` reads
the photographs and says how to get them; `photos.py` the weights. Put your own in their place. Needs `bnas[plot]`.
About 8 minutes of one core, and 5 for the original.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time

import torch
from photos import Row, draw, options, show, train_original
from solar_cells import EXAMPLE, new_model, read_data, read_model

import bnas
from bnas.runtime import accuracy, first_samples

SPACE = bnas.Elasticity(("depth", "width"), width_multipliers=(1, 0.875, 0.75, 0.625, 0.5, 0.375))
TAUGHT = bnas.Distillation("original", hard=1)
BOUNDS = {"a half": 1 / 2, "a third": 1 / 3}
MARGIN = 0.95
"""A prediction of latency is off by a few percent: the search gets a bound that is lower by so much."""


class Story:
    """The original, its super-network and the data."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.folder = arguments, arguments.output
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data, self.original = read_data(arguments.data), read_model(arguments.original)
        self.supernet = bnas.SuperNetwork.from_model(copy.deepcopy(self.original), EXAMPLE, SPACE)
        self.evaluator = bnas.Evaluator(
            self.supernet, first_samples(self.data.train, arguments.few), list(self.data.validation)
        )

    def measured(self) -> bnas.LatencyModel:
        """The model of latency, fitted to some sub-networks on this machine."""
        quick = self.arguments.quick
        model = bnas.LatencyModel.fit(self.supernet, subnets=6 if quick else 24, runs=5 if quick else 50)
        print(f"latency model: cross-validated tau {model.tau:.2f}, error {model.error:.0%}")
        return model

    def train(self) -> None:
        """Train the super-network; without epochs only bring important channels to the front."""
        if not self.arguments.epochs:
            return self.supernet.reorder()
        stage = bnas.Stage(epochs=self.arguments.epochs, init_lr=0.005, reorg_weights=True)
        recipe = bnas.Recipe(distillation=TAUGHT, sampling="spread", train_steps=self.arguments.images)
        bnas.Trainer(self.supernet, [stage], recipe, watch=0).fit(self.data.train)
        self.supernet.eval()

    def search(self, latency: bnas.LatencyModel, share: float) -> bnas.Subnet:
        """The most accurate sub-network that was found within a share of the original's latency."""
        objectives = (bnas.Objective("accuracy", "max"), bnas.Objective("latency", "min"))
        settings = bnas.SearchSettings(
            algorithm=bnas.NSGA2(population=min(10, self.arguments.evals)),
            num_evals=self.arguments.evals,
            constraints=(f"latency <= {100 * MARGIN * share} %",),
            latency=latency,
        )
        result = bnas.Searcher(self.supernet, self.evaluator, objectives, settings).run()
        return max(result.feasible, key=lambda one: one.values["accuracy"]).subnet

    def tune(self, subnet: bnas.Subnet) -> torch.fx.GraphModule:
        """The sub-network, trained by itself: it learns from the labels and from the original."""
        recipe = bnas.Recipe(learning_rate=0.01, distillation=TAUGHT, train_steps=self.arguments.images)
        module, epochs = self.evaluator.prepare(subnet), self.arguments.tune_epochs
        return bnas.fine_tune(module, EXAMPLE, self.data.train, epochs=epochs, recipe=recipe, teacher=self.original)

    def export(self, modules: dict[str, torch.nn.Module]) -> list[Row]:
        """Write each in float and in int8; measure the accuracy and, all in turns, the latency of the files."""
        int8 = bnas.Int8(first_samples(self.data.train, self.arguments.few))
        for name, module in modules.items():
            bnas.export_onnx(module, self.folder / f"{name}.onnx", (EXAMPLE,))
            bnas.export_onnx(module, self.folder / f"{name} int8.onnx", (EXAMPLE,), int8)
        files = {f"{name}{kind}": self.folder / f"{name}{kind}.onnx" for name in modules for kind in ("", " int8")}
        times = bnas.measure_latency(files, reference="original", runs=5 if self.arguments.quick else 50)
        right = {name: bnas.evaluate_onnx(path, self.data.test) for name, path in files.items()}
        return [Row(name, times[name].median_ms, times[name].ratio or 1, right[name]) for name in files]


def run(arguments: argparse.Namespace) -> None:
    start, story = time.process_time(), Story(arguments)
    latency = story.measured()
    story.train()
    modules: dict[str, torch.nn.Module] = {"original": story.original}
    for name, share in BOUNDS.items():
        subnet = story.search(latency, share)
        modules[name] = story.tune(subnet)
        before, after = (
            accuracy(one, story.data.validation) for one in (story.evaluator.prepare(subnet), modules[name])
        )
        print(f"{name}: held-out accuracy {before:.1%}, trained by itself {after:.1%}")
    rows = story.export(modules)
    show(rows, "CPU ms", arguments.output / "table.json")
    draw(rows, "CPU ms of a photograph on ONNX Runtime", arguments.output / "table.svg")
    print(f"{time.process_time() - start:.0f} CPU s; all files are in {arguments.output}")


def main() -> None:
    parser = options(__doc__, "own_photos")
    parser.add_argument("--epochs", type=int, default=2, help="of the super-network; 0 leaves it as it is")
    parser.add_argument("--tune-epochs", type=int, default=6, help="of each winner")
    parser.add_argument("--images", type=int, help="training images of an epoch; by default all")
    parser.set_defaults(few=512)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.quick:
        arguments.epochs, arguments.evals, arguments.tune_epochs, arguments.images, arguments.few = 1, 4, 1, 64, 32
    if arguments.train_original:
        recipe = bnas.Recipe(learning_rate=0.006, label_smoothing=0.1, train_steps=arguments.images)
        epochs = 1 if arguments.quick else 10
        train_original(new_model(arguments.weights), read_data(arguments.data), recipe, epochs, arguments.original)
    else:
        run(arguments)


if __name__ == "__main__":
    try:
        main()
    except bnas.BnasError as error:
        sys.exit(f"mobilenet_own_photos: {error}")
