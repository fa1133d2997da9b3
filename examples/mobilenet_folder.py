"""MobileNetV2 for images of your own, in a folder for each class; all of it is one call, `bnas.run_job`.

    python examples/mobilenet_folder.py --data FOLDER --weights mobilenet_v2.pth

Without ``--data`` it draws fruit, so that it runs anywhere. Nothing is fetched: without ``--weights``, a state dict of
torchvision's ``mobilenet_v2``, the weights are random and the accuracy says little. With them it is a transfer: the
classifier is replaced, the network is trained on your images, and then made a super-network, which is trained,
searched, exported and measured. A part of the images is held out for the search, another one for the table.

The folder ``--output`` then holds the original and the winners as ONNX files and as safetensors, all evaluations, and
the numbers of the table. Needs nothing beside bnas. About a minute of one core with the drawn images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from torch import nn
from torchvision.models import mobilenet_v2

import bnas
from bnas.data.datasets import images

FRUIT = {"cucumber": (60, 140, 50), "lemon": (235, 220, 70), "tomato": (210, 50, 40)}


def draw(folder: Path, count: int, size: int) -> None:
    """So many pictures of each fruit, in a folder of its name."""
    generator = np.random.default_rng(0)
    for name, colour in FRUIT.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture = Image.fromarray(generator.integers(90, 166, (size, size, 3), dtype=np.uint8))
            x, y = generator.integers(size // 4, 3 * size // 4, 2)
            long = generator.integers(size // 6, size // 4)
            wide = {"cucumber": long // 3, "lemon": 2 * long // 3, "tomato": long}[name]
            fill = tuple(int(one) for one in np.clip(generator.normal(colour, 30), 0, 255))
            ImageDraw.Draw(picture).ellipse((x - long, y - wide, x + long, y + wide), fill=fill)
            picture.rotate(generator.uniform(0, 360)).save(folder / name / f"{number}.png")


def network(classes: int, weights: Path | None) -> nn.Module:
    model = mobilenet_v2(weights=None)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    model.classifier[1] = nn.Linear(model.last_channel, classes)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of folders of images, one for each class")
    parser.add_argument("--weights", type=Path, help="a state dict of torchvision's mobilenet_v2")
    parser.add_argument("--output", type=Path, default=Path("runs/mobilenet"), help="folder for the run; a new one")
    parser.add_argument("--size", type=int, default=64, help="images are cut to so many pixels; 224 with weights")
    parser.add_argument("--count", type=int, default=60, help="pictures to draw of each fruit")
    parser.add_argument("--epochs", type=int, default=6, help="on your images, and of the super-network")
    parser.add_argument("--evals", type=int, default=30, help="evaluations of the search, 4 at least")
    settings = parser.parse_args()
    torch.manual_seed(0)
    if settings.data is None:
        settings.data = settings.output.with_name(f"{settings.output.name}_images")
        draw(settings.data, settings.count, settings.size)
    data = images(settings.data, size=settings.size, batch_size=32, validation=0.2, test=0.2)
    classes, example = (data.record or {})["classes"], torch.zeros(1, 3, settings.size, settings.size)

    rate = 0.05 if settings.weights is None else 0.01
    model = bnas.fine_tune(
        network(classes, settings.weights),
        example,
        data.train,
        epochs=settings.epochs,
        recipe=bnas.Recipe(learning_rate=rate),
    )
    job = bnas.Job(
        model,
        data,
        example,
        elasticity=bnas.Elasticity(width_multipliers=(1, 0.75, 0.5)),
        stages=[bnas.Stage(epochs=settings.epochs, init_lr=rate / 2, reorg_weights=True)],
        search=bnas.SearchSettings(algorithm=bnas.NSGA2(population=min(10, settings.evals)), num_evals=settings.evals),
        acc_delta=0.05,
    )
    report = bnas.run_job(job, settings.output)
    Console().print(report.table())


if __name__ == "__main__":
    main()
