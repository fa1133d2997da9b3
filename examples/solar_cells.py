"""The model and the photographs of `mobilenet_own_photos.py`: solar cells, some of them defective (ELPV).

ELPV are 2,624 photographs of 300 x 300 pixels by electroluminescence, each with the probability of a defect as experts
judged it: 0, 1/3, 2/3 or 1 (Deitsch et al. 2019, Solar Energy 185, 455-468). They are licensed under CC BY-NC-SA 4.0:
name the authors, do not sell what you make with them. PyPI has them in a package, of which only the files are needed:

    pip download --no-deps elpv-dataset
    python -m zipfile -e elpv_dataset-1.0.0.post1-py3-none-any.whl elpv

As in that paper, a cell is defective from a probability of 0.5 on, and a quarter of the cells are for the test. Here
the cells are split evenly by probability and type of cell; an eighth of them is held out for the search.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from photos import Pictures, read_trained, untrained
from PIL import Image
from torch import Tensor, nn

import bnas
from bnas.data.sources import SourceError

CLASSES = ("functional", "defective")
SIZE = 96
EXAMPLE = torch.zeros(1, 3, SIZE, SIZE)


def read_labels(folder: Path) -> tuple[Path, np.ndarray]:
    """The folder of labels.csv, and its rows: path, probability, type."""
    path = next((one for one in (folder / "labels.csv", *folder.glob("*/data/labels.csv")) if one.is_file()), None)
    if path is None:
        raise SourceError(f"{folder} holds no labels.csv of ELPV: see the text of {Path(__file__).name} for getting it")
    rows = np.genfromtxt(path, dtype=["U60", "f8", "U4"], names=["path", "probability", "type"], encoding="utf-8")
    return path.parent, rows


def read_image(path: Path) -> np.ndarray:
    """One cell, grey and of the size that the model gets."""
    with Image.open(path) as image:
        if image.size != (300, 300) or image.mode != "L":
            raise SourceError(f"{path}: {image.mode} of {image.size}; the photographs of ELPV are grey, 300 x 300")
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX, reducing_gap=None))


def parts(rows: np.ndarray) -> np.ndarray:
    """0 for training, 1 for validation, 2 for the test: alike in the cells of each probability and type."""
    generator, found = np.random.default_rng(0), np.zeros(len(rows), dtype=np.int64)
    for kind in np.unique(rows[["probability", "type"]]):
        (places,) = np.nonzero(rows[["probability", "type"]] == kind)
        places = generator.permutation(places)
        quarter = len(places) // 4
        found[places[:quarter]] = 2
        found[places[quarter : quarter + len(places) // 8]] = 1
    return found


def read_data(folder: Path, batch: int = 32) -> bnas.Splits:
    """Photographs for training, the search and the test."""
    place, rows = read_labels(folder)
    images = torch.from_numpy(np.stack([read_image(place / path) for path in rows["path"]]))
    labels, part = torch.from_numpy((rows["probability"] > 0.5).astype(np.int64)), torch.from_numpy(parts(rows))

    def of(number: int) -> tuple[Tensor, Tensor]:
        return images[part == number], labels[part == number]

    record = {
        "source": "ELPV",
        "images": dict(zip(("train", "validation", "test"), part.bincount().tolist(), strict=True)),
    }
    train = Pictures(*of(0), batch, augment="turn")
    return bnas.Splits(train, Pictures(*of(1), 64), Pictures(*of(2), 64), record)


def read_model(path: Path) -> nn.Module:
    """MobileNetV2 as it was trained on these photographs: the original."""
    return read_trained(path, len(CLASSES))


def new_model(weights: Path) -> nn.Module:
    """MobileNetV2 as it was trained on ImageNet, before it has seen a solar cell."""
    return untrained(len(CLASSES), weights)
