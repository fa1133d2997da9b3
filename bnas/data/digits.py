"""The demo's model and data: a small residual CNN and scikit-learn's handwritten digits (1,797 real images)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnas.passes.errors import BnasError
from bnas.passes.settings import Count, Seed
from bnas.run.job import Splits
from bnas.runtime.feed import length_of

WIDTHS = (32, 64, 96)
TRAIN, VALIDATION = 1000, 397


class MissingExtraError(BnasError, ImportError):
    """An optional dependency is not installed."""


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitNet(nn.Module):
    """A residual CNN for 8 x 8 images in 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        for stage, width in enumerate(WIDTHS):
            before = WIDTHS[max(0, stage - 1)]
            blocks += [Block(before, width, 2 if stage else 1), Block(width, width, 1), Block(width, width, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) to (batch, 10)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Shifted:
    """Batches of shuffled images, each moved by up to one pixel: the training transform."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        self.images, self.labels, self.batch = F.pad(images, (1, 1, 1, 1)), labels, batch
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        for chosen in order[: len(self) * self.batch].view(-1, self.batch):
            moves = torch.randint(3, (2, self.batch), generator=self.generator).tolist()
            images = [self.images[i, :, y : y + 8, x : x + 8] for i, y, x in zip(chosen, *moves, strict=True)]
            yield torch.stack(images), self.labels[chosen]


def splits(batch_size: Count = 50, seed: Seed = 0, *, batch_size_val: Count = 100) -> Splits:
    """1,000 images for training, 397 for the search, 400 for the test, in a fixed random order.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the data set 'digits' needs scikit-learn: pip install 'bnas[demo]'") from error
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(1))
    images = (torch.tensor(data.images, dtype=torch.float32)[order, None] - 4.9) / 6.0
    labels = torch.tensor(data.target)[order]
    held = [
        list(zip(torch.split(a, batch_size_val), torch.split(b, batch_size_val), strict=True))
        for a, b in _parts(images, labels)
    ]
    return Splits(Shifted(images[:TRAIN], labels[:TRAIN], batch_size, seed), held[0], held[1])


def _parts(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    end = TRAIN + VALIDATION
    yield images[TRAIN:end], labels[TRAIN:end]
    yield images[end:], labels[end:]


def pretrain(data: Splits, epochs: int, on_epoch: Callable[[int, float], None]) -> DigitNet:
    """A `DigitNet` trained from scratch; `on_epoch` gets the epoch, from 1, and the mean loss."""
    model = DigitNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = length_of(data.train) or 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * batches)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for images, labels in data.train:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        on_epoch(epoch, total / batches)
    return model.eval()
