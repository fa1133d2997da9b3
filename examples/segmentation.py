"""A segmentation model with a loss and a metric of its own: a small U-Net, cross-entropy of pixels, mean IoU.

    python examples/segmentation.py

The images are made here: a disc, a square and a cross on noise, 32 x 32 pixels. The model returns a dict, as
torchvision's models of segmentation do: loss and metric read ``["out"]``, whether bnas gives them the super-network, a
sub-network or the ONNX file. With a trained model of yours leave the first `bnas.fine_tune` out.

Needs nothing beside bnas. About a minute of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnas

CLASSES, SIZE = ("background", "disc", "square", "cross"), 32


class UNet(nn.Module):
    """Two levels down and up again; what comes up is joined with what went down."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = self.level(3, 16), self.level(16, 32), self.level(32, 64)
        self.up2, self.up1 = self.level(64 + 32, 32), self.level(32 + 16, 16)
        self.head = nn.Conv2d(16, len(CLASSES), 1)

    @staticmethod
    def level(inputs: int, outputs: int) -> nn.Sequential:
        sizes = ((inputs, outputs), (outputs, outputs))
        steps = ((nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in sizes)
        return nn.Sequential(*(layer for step in steps for layer in step))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        third = self.middle(F.max_pool2d(second, 2))
        second = self.up2(torch.cat([F.interpolate(third, scale_factor=2.0), second], 1))
        return {"out": self.head(self.up1(torch.cat([F.interpolate(second, scale_factor=2.0), first], 1)))}


def scene(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (float32: 3, SIZE, SIZE) with a shape of each class, and the class of every pixel (int64)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = generator.normal(generator.uniform(-1, 1, (3, 1, 1)), 0.3, (3, SIZE, SIZE))
    target = np.zeros((SIZE, SIZE), dtype=np.int64)
    for number in generator.permutation([1, 2, 3]):  # the later ones cover the earlier ones
        radius = generator.integers(5, 9)
        down, right = (abs(axis - generator.integers(radius, SIZE - radius)) for axis in (y, x))
        square = np.maximum(down, right) < radius
        cross = square & (np.minimum(down, right) < 2)
        inside = {1: down**2 + right**2 < radius**2, 2: square, 3: cross}[number]
        target[inside] = number
        image[:, inside] += generator.uniform(-2, 2, (3, 1))
    return image.astype(np.float32), target


def batches(count: int, seed: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = np.random.default_rng(seed)
    scenes = [scene(generator) for _ in range(count)]
    images, targets = (torch.from_numpy(np.stack(part)) for part in zip(*scenes, strict=True))
    return list(zip(images.split(size), targets.split(size), strict=True))


def pixel_loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """The criterion: a mean over all pixels of the batch."""
    return F.cross_entropy(outputs["out"], targets)


def mean_iou(model: nn.Module, data: Iterable[Any]) -> float:
    """The metric: intersection over union of each class on all pixels, and their mean."""
    pairs = torch.zeros(len(CLASSES), len(CLASSES))
    with torch.inference_mode():
        for images, targets in data:
            numbers = len(CLASSES) * targets.flatten() + model(images)["out"].argmax(1).flatten()
            pairs += numbers.bincount(minlength=pairs.numel()).view_as(pairs)
    hits = pairs.diagonal()
    return float((hits / (pairs.sum(0) + pairs.sum(1) - hits).clamp(min=1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/segmentation"), help="folder for the ONNX files")
    parser.add_argument("--images", type=int, default=320, help="for training")
    parser.add_argument("--epochs", type=int, default=6, help="of each of the three trainings")
    parser.add_argument("--evals", type=int, default=40, help="evaluations of the search, 4 at least")
    settings = parser.parse_args()
    settings.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    train, validation, test = batches(settings.images, 0), batches(96, 1), batches(96, 2)
    example, recipe = torch.zeros(1, 3, SIZE, SIZE), bnas.Recipe(learning_rate=0.05)
    own: dict[str, Any] = {"epochs": settings.epochs, "recipe": recipe, "criterion": pixel_loss}

    original = bnas.fine_tune(UNet(), example, train, **own)
    bnas.export_onnx(original, settings.output / "original.onnx", example)

    supernet = bnas.SuperNetwork.from_model(original, example, {"dimensions": ["width"]})
    stage = bnas.Stage(epochs=settings.epochs, reorg_weights=True)
    bnas.Trainer(supernet, [stage], recipe, criterion=pixel_loss, metric=mean_iou).fit(train, validation)

    evaluator = bnas.Evaluator(supernet, train, validation, mean_iou, metric_name="mIoU")
    searcher = bnas.Searcher(
        supernet,
        evaluator,
        [bnas.Objective("mIoU", "max"), bnas.Objective("macs", "min")],
        bnas.SearchSettings(num_evals=settings.evals, constraints=("macs <= 50 %",)),
    )
    winner = max(searcher.run().feasible, key=lambda one: one.values["mIoU"]).subnet
    small = evaluator.prepare(winner)
    bnas.export_onnx(small, settings.output / "winner.onnx", example)
    tuned = bnas.fine_tune(small, example, train, teacher=original, **own)
    bnas.export_onnx(tuned, settings.output / "tuned.onnx", example)

    print("network   test mIoU  M MACs")
    for name, subnet in (("original", supernet.space.maximal()), ("winner", winner), ("tuned", winner)):
        quality = bnas.evaluate_onnx(settings.output / f"{name}.onnx", test, mean_iou)
        print(f"{name:8}  {quality:9.3f}  {supernet.costs(subnet)['macs'] / 1e6:6.2f}")


if __name__ == "__main__":
    main()
