"""The models and data that `against.py` compares on, each as one of the examples reads it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bnas
from bnas.runtime.nested import placed

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """What a user begins with."""

    model: nn.Module
    """Trained on the data, in evaluation mode."""
    data: bnas.Splits
    example: Any
    bounds: Mapping[str, str]
    """Of the rows by name, each as `bnas.search.Constraint` reads it."""
    elasticity: bnas.Elasticity
    """What bnas may change; pruning has the widths of it."""
    recipe: bnas.Recipe
    """The optimizer of all trainings; the rate is that of the super-network."""
    tuning: bnas.FineTune
    """The fine-tuning that all columns have."""
    ignored: Callable[[nn.Module], list[nn.Module]]
    """What Torch-Pruning has to leave alone: the classifier, and what it cannot prune."""
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    sizes: Mapping[str, int] | None = None
    """Of dynamic axes, for latency and MACs."""
    calibration: int = 2000
    """Training samples for the BatchNorm statistics."""
    validation: int = 2000
    """Held-out samples that a search measures on."""
    device: torch.device = CPU

    def on(self, device: torch.device) -> Task:
        """The same on a device; on another one than the CPU, trainings compute in bfloat16."""
        if device.type == "cpu":
            return self
        recipe, example = replace(self.recipe, precision="bfloat16"), placed(self.example, device)
        return replace(self, model=self.model.to(device), example=example, recipe=recipe, device=device)


BATCH = 128
"""Images of a batch that the rates are for."""
BOTH = bnas.Distillation("original", hard=1)


def larger(task: Task, batch: int) -> Task:
    """A task whose batches have so many samples instead of `BATCH`: the rates grow with the root of that."""
    factor = math.sqrt(batch / BATCH)
    recipe = replace(task.recipe, learning_rate=factor * task.recipe.learning_rate)
    return replace(task, recipe=recipe, tuning=replace(task.tuning, learning_rate=factor * task.tuning.learning_rate))


def resnet(folder: Path, depth: int, bounds: Mapping[str, str], batch: int) -> Task:
    """A ResNet on CIFAR-10: `cifar10_resnet.py`."""
    from cifar10 import read_data, read_model

    def ignored(model: nn.Module) -> list[nn.Module]:
        """The stream too: the zeros that its shortcuts pad with stop Torch-Pruning 1.6.1 (sizes that do not match)."""
        blocks = [block for layer in (model.layer1, model.layer2, model.layer3) for block in layer]
        return [model.conv1, model.linear, *(block.conv2 for block in blocks)]

    return Task(
        read_model(folder, depth),
        read_data(folder, batch),
        torch.zeros(1, 3, 32, 32),
        bounds,
        bnas.Elasticity(
            ("depth", "width"),
            width_step=4,
            divisor=4,
            min_width=4,
            filter_importance="taylor",
            importance_samples=1000,
        ),
        bnas.Recipe(learning_rate=0.02, sampling="spread", distillation=BOTH),
        bnas.FineTune(epochs=1, learning_rate=0.04),
        ignored,
    )


def fashion(folder: Path, original: Path, batch: int) -> Task:
    """MobileNetV2 on Fashion-MNIST at 64 x 64: `fashion.py`."""
    from fashion_mnist import EXAMPLE, read_data, read_model

    return Task(
        read_model(original),
        read_data(folder, batch),
        EXAMPLE,
        {"2x": "macs <= 50 %", "4x": "macs <= 25 %"},
        bnas.Elasticity(("depth", "width"), width_step=8, filter_importance="taylor", importance_samples=1000),
        bnas.Recipe(learning_rate=0.02, sampling="spread", distillation=BOTH),
        bnas.FineTune(epochs=1, learning_rate=0.03),
        lambda model: [model.classifier],
    )


def solar(folder: Path, original: Path) -> Task:
    """MobileNetV2 on photographs of solar cells: `mobilenet_own_photos.py`."""
    from solar_cells import EXAMPLE, read_data, read_model

    return Task(
        read_model(original),
        read_data(folder),
        EXAMPLE,
        {"a half": "latency <= 50 %", "a third": "latency <= 33.3 %"},
        bnas.Elasticity(("depth", "width"), width_step=8, filter_importance="taylor", importance_samples=500),
        bnas.Recipe(learning_rate=0.01, sampling="spread", distillation=BOTH),
        bnas.FineTune(epochs=1, learning_rate=0.02),
        lambda model: [model.classifier],
        calibration=500,
        validation=400,
    )


def texts(folder: Path, original: Path, task: str) -> Task:
    """MiniLM on mails or film reviews: `text_classifier.py`."""
    from text_classifier import ELASTIC
    from text_data import DYNAMIC, LENGTH, example_inputs, read_data, read_model, softened

    model, data = read_model(folder, original), read_data(folder, task)
    adam: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.01, "clip_norm": 1.0, "precision": "bfloat16"}
    return Task(
        model,
        replace(data, train=softened(data.train, model)),
        example_inputs(),
        {"a half": "latency <= 50 %", "a quarter": "latency <= 25 %"},
        replace(ELASTIC, importance_samples=500),  # only pruning has it
        bnas.Recipe(learning_rate=5e-5, sampling="spread", distillation=None, **adam),
        bnas.FineTune(epochs=1, learning_rate=1e-4, weight_decay=0.01, distillation=None),
        lambda model: [model.head],
        DYNAMIC,
        {"length": LENGTH},
        calibration=0,
        validation=500,
    )


def read_task(name: str, folder: Path, original: Path | None, batch: int = BATCH) -> Task:
    """The task of a name; `original` is the file of the trained model where the example trains it.

    `batch` counts for the tasks with many images; the others keep the batches of their examples.
    """
    if name == "resnet20":
        shares = {"1.4x": 100 / 1.4, "2x": 50, "3x": 100 / 3, "5x": 20}
        bounds = {key: f"macs <= {share:.4g} %" for key, share in shares.items()}
        return larger(resnet(folder, 20, bounds, batch), batch)
    if name == "resnet56":
        return larger(resnet(folder, 56, {"2x": "macs <= 50 %", "2.5x": "macs <= 40 %"}, batch), batch)
    if original is None:
        raise SystemExit(f"{name}: say --original FILE; its example trains it")
    if name == "fashion":
        return larger(fashion(folder, original, batch), batch)
    return solar(folder, original) if name == "elpv" else texts(folder, original, name)
