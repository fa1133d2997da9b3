"""The model, weights, images and transform of `cifar10_resnet.py`: all of it a user's own.

A folder holds ``resnet20_cifar10.pt`` (or 56): the state dict of `ResNet`, tensors only; and the images, either as
``cifar10_train.npz`` and ``cifar10_test.npz`` with the keys ``jpeg`` (all files one after another, uint8),
``offsets`` (n + 1) and ``labels``, or as torchvision's own CIFAR-10 (the folder ``cifar-10-batches-py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import bnas
from bnas.data.sources import SourceError, read_weights
from bnas.runtime.storage.checkpoint import check_state

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HELD_OUT = 5000
"""Training images that only the search sees."""


class BasicBlock(nn.Module):
    """He et al. 2015, section 4.2, with shortcut A: strided, channels padded with zeros, no parameters."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.padding = planes // 4 if stride != 1 or inputs != planes else 0

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding), "constant", 0)
        return F.relu(out + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of depth 6n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, n, 1)
        self.layer2 = self._stage(16, 32, n, 2)
        self.layer3 = self._stage(32, 64, n, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, planes: int, n: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, planes, stride), *(BasicBlock(planes, planes, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class Images:
    """Batches of normalised images; with `augment`, shuffled, randomly cropped after padding by 4, and flipped."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch: int, augment: bool) -> None:
        self.images = F.pad(torch.from_numpy(images).permute(0, 3, 1, 2), (4, 4, 4, 4)).permute(0, 2, 3, 1).contiguous()
        self.labels, self.batch, self.augment = torch.from_numpy(labels), batch, augment
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.randperm(count, generator=self.generator) if self.augment else torch.arange(count)
        for chosen in order.split(self.batch):
            yield self._crop(chosen), self.labels[chosen]

    def _crop(self, chosen: Tensor) -> Tensor:
        y, x = torch.full((2, len(chosen), 1), 4)
        if self.augment:
            y, x = torch.randint(9, (2, len(chosen), 1), generator=self.generator)
        rows, columns = y + torch.arange(32), x + torch.arange(32)
        if self.augment:
            flip = torch.randint(2, (len(chosen), 1), generator=self.generator).bool()
            columns = torch.where(flip, columns.flip(1), columns)
        images = self.images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return ((images / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def read_images(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,) int64 of "train" or "test"."""
    path = folder / f"cifar10_{split}.npz"
    if path.is_file():
        with np.load(path) as file:
            jpeg, offsets, labels = file["jpeg"], file["offsets"], file["labels"].astype(np.int64)
        coded = (jpeg[a:b].tobytes() for a, b in pairwise(offsets))
        return np.stack([np.asarray(Image.open(io.BytesIO(c)).convert("RGB")) for c in coded]), labels
    if (folder / "cifar-10-batches-py").is_dir():
        import torchvision

        data = torchvision.datasets.CIFAR10(folder, train=split == "train")
        return data.data, np.array(data.targets, dtype=np.int64)
    raise SourceError(f"{folder} holds neither {path.name} nor cifar-10-batches-py: see the text of this example")


def read_data(folder: Path, batch: int) -> bnas.Splits:
    """Training images, of which the last 5,000 are held out for the search, and test images."""
    images, labels = read_images(folder, "train")
    train = Images(images[:-HELD_OUT], labels[:-HELD_OUT], batch, augment=True)
    validation = Images(images[-HELD_OUT:], labels[-HELD_OUT:], 100, augment=False)
    return bnas.Splits(train, validation, Images(*read_images(folder, "test"), 100, augment=False))


def read_model(folder: Path, depth: int) -> ResNet:
    """The pre-trained model."""
    model, path = ResNet(depth), folder / f"resnet{depth}_cifar10.pt"
    state = read_weights(path)
    check_state(model.state_dict(), state, str(path))
    model.load_state_dict(state)
    return model.eval()
