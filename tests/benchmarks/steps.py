"""Steps of training, to be timed: of plain models, of programs on shared parameters, of the sandwich rule."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.runtime import SuperNetwork
from bnas.runtime.nested import LAYOUTS, laid_out

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/cifar10.py"
NAMES = ("resnet20", "resnet18", "resnet50", "mobilenet_v2")
BATCH, SIDE, CLASSES = 64, 32, 10

Step = Callable[[], object]


def example() -> ModuleType:
    """The example of CIFAR-10, which has the ResNet of that name."""
    if "cifar10" not in sys.modules:
        spec = importlib.util.spec_from_file_location("cifar10", EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["cifar10"] = module
        spec.loader.exec_module(module)
    return sys.modules["cifar10"]


def make_model(name: str) -> nn.Module:
    """One of `NAMES` in training mode, with random weights."""
    torch.manual_seed(0)
    if name == "resnet20":
        model: nn.Module = example().ResNet(20)
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    return model.train()


def batch() -> tuple[Tensor, Tensor]:
    """Random images and class numbers."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def make_supernet(name: str, layout: str) -> SuperNetwork:
    """The super-network of one of `NAMES`, in training mode, with the default search space."""
    model = make_model(name).to(memory_format=LAYOUTS[layout])
    return SuperNetwork.from_model(model, batch()[0][:2])


def sgd(module: nn.Module) -> torch.optim.SGD:
    """The optimizer of all rows; a rate so small that weights stay as they are."""
    return torch.optim.SGD(module.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True)
class Workbench:
    """A plain model and its super-network in one layout, with a batch."""

    plain: nn.Module
    """Shares no tensor with the super-network."""
    supernet: SuperNetwork
    images: Tensor
    targets: Tensor
    layout: str

    @classmethod
    def of(cls, name: str, layout: str) -> Workbench:
        """That of the model `name`."""
        (images, targets), supernet = batch(), make_supernet(name, layout)
        plain = make_model(name).to(memory_format=LAYOUTS[layout])
        return cls(plain, supernet, laid_out(images, layout), targets, layout)

    @property
    def half(self) -> Subnet:
        """All widths at 50 %, nothing skipped, kernels whole."""
        return replace(self.supernet.space.maximal(), widths=self.supernet.space.minimal().widths)

    def standalone(self, subnet: Subnet) -> nn.Module:
        """The extracted module, which trains parameters of its own."""
        return self.supernet.extract(subnet).train().to(memory_format=LAYOUTS[self.layout])

    def accumulation(self, module: nn.Module) -> Step:
        """Forward and backward of `module`, into the gradients that are there."""
        return lambda: F.cross_entropy(module(self.images), self.targets).backward()

    def training(self, module: nn.Module, owner: nn.Module) -> Step:
        """``zero_grad``, forward and backward of `module`, and SGD on all parameters of `owner`."""
        accumulate, optimizer = self.accumulation(module), sgd(owner)

        def step() -> None:
            optimizer.zero_grad()
            accumulate()
            optimizer.step()

        return step

    def sandwich(self, choose: Callable[[], Sequence[Subnet]]) -> Step:
        """A step of chosen sub-networks, programs made anew; all but the first learn from the first one's logits."""
        optimizer = sgd(self.supernet)

        def step() -> None:
            optimizer.zero_grad()
            first, *others = choose()
            logits = self.supernet.program(first)(self.images)
            F.cross_entropy(logits, self.targets).backward()
            soft = logits.detach().softmax(1)
            for subnet in others:
                F.cross_entropy(self.supernet.program(subnet)(self.images), soft).backward()
            optimizer.step()

        return step

    def choice(self, random: int) -> Callable[[], Sequence[Subnet]]:
        """Maximal, minimal and so many random sub-networks; the maximal alone where it is 0."""
        space, generator = self.supernet.space, np.random.default_rng(0)
        ends = (space.maximal(), space.minimal()) if random else (space.maximal(),)
        return lambda: (*ends, *(space.sample(generator) for _ in range(random)))
