"""A half and a quarter of the MACs: MobileNetV2 on Fashion-MNIST at 64 x 64.

    python examples/fashion.py --data fashion --weights mobilenet_v2-b0353104.pth --train-original
    python examples/fashion.py --data fashion

The first command trains the original from ImageNet's weights, and keeps it. The second one makes a super-network of it
and searches under each bound; what it finds is trained by itself, with the original as the teacher. By default the
super-network is not trained: the search ranks sub-networks as they are right after cutting, BatchNorm recalibrated (Li
et al. 2020, EagleEye), and all the time goes to the winners. `--shared-images` trains it with so many images first,
which pays where many bounds share it. `fashion_mnist.py` reads the images and says how to get them; `photos.py` the
weights. Needs `bnas[plot]`. About 8 minutes of one core, and 9 for the original.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time

import torch
from fashion_mnist import EXAMPLE, new_model, read_data, read_model
from photos import Row, draw, options, show, train_original

import bnas
from bnas.runtime import accuracy, first_samples

SPACE = bnas.Elasticity(("depth", "width"), width_multipliers=(1, 0.875, 0.75, 0.625, 0.5, 0.375))
TAUGHT = bnas.Distillation("original", hard=1)
BOUNDS = {"a half": 1 / 2, "a quarter": 1 / 4}


def super_network(original: torch.nn.Module, data: bnas.Splits, images: int) -> bnas.SuperNetwork:
    """The super-network, trained with so many images; with none, important channels are only brought to the front."""
    supernet = bnas.SuperNetwork.from_model(copy.deepcopy(original), EXAMPLE, SPACE)
    if images:
        recipe = bnas.Recipe(
            distillation=TAUGHT, sampling="spread", train_steps=images, num_bn_adaptation_samples=min(2000, images)
        )
        stage = bnas.Stage(epochs=1, init_lr=0.01, reorg_weights=True)
        bnas.Trainer(supernet, [stage], recipe, watch=0).fit(data.train)
        supernet.eval()
    else:
        supernet.reorder()
    return supernet


def search(evaluator: bnas.Evaluator, share: float, evals: int) -> bnas.Subnet:
    """The most accurate sub-network that was found with a share of the MACs."""
    objectives = (bnas.Objective("accuracy", "max"), bnas.Objective("macs", "min"))
    algorithm, bound = bnas.NSGA2(population=min(10, evals)), f"macs <= {100 * share} %"
    settings = bnas.SearchSettings(algorithm=algorithm, num_evals=evals, constraints=(bound,))
    result = bnas.Searcher(evaluator.supernet, evaluator, objectives, settings).run()
    return max(result.feasible, key=lambda one: one.values["accuracy"]).subnet


def tune(module: torch.nn.Module, data: bnas.Splits, original: torch.nn.Module, images: int) -> torch.fx.GraphModule:
    """A sub-network, trained by itself with so many images."""
    recipe = bnas.Recipe(
        learning_rate=0.03, distillation=TAUGHT, train_steps=images, num_bn_adaptation_samples=min(2000, images)
    )
    return bnas.fine_tune(module, EXAMPLE, data.train, epochs=1, recipe=recipe, teacher=original)


def run(arguments: argparse.Namespace) -> None:
    start, folder = time.process_time(), arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    data, original = read_data(arguments.data, batch=64), read_model(arguments.original)
    supernet = super_network(original, data, arguments.shared_images)
    test = first_samples(data.test, 100 if arguments.quick else 10000)
    evaluator = bnas.Evaluator(
        supernet, first_samples(data.train, arguments.few), first_samples(data.validation, 2 * arguments.few)
    )
    full = supernet.costs(supernet.space.maximal())["macs"]
    rows = [Row("original", full / 1e6, 1.0, accuracy(original, test))]
    for name, share in BOUNDS.items():
        subnet = search(evaluator, share, arguments.evals)
        cut = evaluator.prepare(subnet)
        tuned = tune(cut, data, original, arguments.images)
        bnas.export_onnx(tuned, folder / f"{name}.onnx", (EXAMPLE,))
        macs = supernet.costs(subnet)["macs"]
        rows += [
            Row(f"{name}{kind}", macs / 1e6, macs / full, accuracy(one, test))
            for kind, one in ((", as found", cut), (", trained by itself", tuned))
        ]
    show(rows, "MACs (M)", folder / "table.json")
    draw([row for row in rows if "found" not in row.name], "MACs (M)", folder / "table.svg")
    print(f"{time.process_time() - start:.0f} CPU s; all files are in {folder}")


def main() -> None:
    parser = options(__doc__, "fashion")
    parser.add_argument("--shared-images", type=int, default=0, help="for the training of the super-network")
    parser.add_argument("--images", type=int, default=37000, help="for the training of each winner")
    parser.set_defaults(few=512)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.quick:
        arguments.shared_images, arguments.evals, arguments.images, arguments.few = 128, 4, 128, 32
    if arguments.train_original:
        images = 128 if arguments.quick else 44000
        recipe = bnas.Recipe(learning_rate=0.04, label_smoothing=0.1, train_steps=images)
        train_original(new_model(arguments.weights), read_data(arguments.data), recipe, 2, arguments.original)
    else:
        run(arguments)


if __name__ == "__main__":
    try:
        main()
    except bnas.BnasError as error:
        sys.exit(f"fashion: {error}")
