"""The model and the images of `fashion.py`: Fashion-MNIST, enlarged from 28 x 28 to 64 x 64.

Fashion-MNIST (Xiao et al. 2017, MIT licence) are 60,000 + 10,000 grey images of clothes. Debian and Ubuntu have them in
a package, as have torchvision (`torchvision.datasets.FashionMNIST(folder, download=True)`) and its mirrors:

    apt-get download dataset-fashion-mnist
    dpkg -x dataset-fashion-mnist_*.deb fashion

The last 5,000 training images are held out for the search.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from photos import Pictures, read_trained, untrained
from torch import Tensor, nn

import bnas
from bnas.data.sources import SourceError

CLASSES = 10
SIZE = 64
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)
HELD_OUT = 5000
PLACES = (".", "usr/share/datasets/fashion-mnist", "FashionMNIST/raw")


def read_file(folder: Path, name: str, shape: tuple[int, ...]) -> Tensor:
    """The bytes of one file as a tensor of a shape.

    Raises:
        SourceError: the file is not there, or is another one.
    """
    path = next((folder / place / name for place in PLACES if (folder / place / name).is_file()), None)
    if path is None:
        raise SourceError(f"{folder} holds no {name}: see the text of {Path(__file__).name} for getting it")
    with gzip.open(path) as file:
        data = file.read()
    head = 4 + 4 * len(shape)
    sizes = tuple(np.frombuffer(data[4:head], dtype=">i4").tolist())
    if sizes != shape or len(data) != head + np.prod(shape):
        raise SourceError(f"{path} holds {sizes}, that of Fashion-MNIST {shape}")
    return torch.frombuffer(bytearray(data[head:]), dtype=torch.uint8).reshape(shape)


def read_images(folder: Path, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Images (n, 64, 64) and labels (n,) of "train" or "t10k"."""
    small = read_file(folder, f"{split}-images-idx3-ubyte.gz", (count, 28, 28))
    labels = read_file(folder, f"{split}-labels-idx1-ubyte.gz", (count,)).long()
    return torch.cat([enlarged(part) for part in small.split(1000)]), labels


def enlarged(images: Tensor) -> Tensor:
    """The images with `SIZE` pixels a side."""
    wide = F.interpolate(images[:, None].float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return wide[:, 0].round().to(torch.uint8)


def read_data(folder: Path, batch: int = 128) -> bnas.Splits:
    """Images for training, the search and the test."""
    images, labels = read_images(folder, "train", 60000)
    train = Pictures(images[:-HELD_OUT], labels[:-HELD_OUT], batch, augment="mirror")
    validation = Pictures(images[-HELD_OUT:], labels[-HELD_OUT:], 100)
    return bnas.Splits(train, validation, Pictures(*read_images(folder, "t10k", 10000), 100))


def read_model(path: Path) -> nn.Module:
    """MobileNetV2 as it was trained on these images: the original."""
    return read_trained(path, CLASSES)


def new_model(weights: Path) -> nn.Module:
    """MobileNetV2 as it was trained on ImageNet."""
    return untrained(CLASSES, weights)
