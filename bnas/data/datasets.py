"""Built-in data sets as batches for training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bnas.passes.errors import BnasError
from bnas.passes.settings import NUMBER, Count, Names, Number, Positive, Seed, Whole
from bnas.passes.wording import shown
from bnas.run.job import Splits

from .files import DataError, torchvision_module
from .samples import KNOWN, USUAL_SIDE, Parts, Samples, channels, find_parts

LARGEST_SIDE = 16_384
"""Largest number of pixels; Pillow treats larger images as an attack."""
Transform = Callable[[Any], Tensor]
Chosen = tuple[Samples, list[int]]
"""Indices of samples."""


def images(
    place: Path,
    dataset: str | None = None,
    *,
    download: bool = False,
    batch_size: Count = 64,
    batch_size_val: Count | None = None,
    validation: Positive = 0.1,
    test: Positive = 0.1,
    size: Annotated[int, Field(ge=1, le=LARGEST_SIDE), NUMBER] | None = None,
    mean: tuple[Number, ...] | None = None,
    std: tuple[Positive, ...] | None = None,
    augment: Names | None = None,
    workers: Whole = 0,
    seed: Seed = 0,
) -> Splits:
    """Return the images at `place` with their classes as `Splits`; `Splits.record` describes the hold-out.

    Args:
        place: One of: a folder of a torchvision data set (see `dataset`); a folder with one folder of images per class,
            optionally inside ``train`` and ``val`` or ``test``; a ``.npz`` file (see `bnas.data.samples.Arrays`); or a
            folder with ``*train.npz`` and ``*val.npz`` or ``*test.npz``. If there are two parts, the second one is the
            test data.
        dataset: cifar10, cifar100, fashion_mnist or imagenet; also determines mean and standard deviation.
        download: Download a torchvision data set into the folder. Only then the network is used.
        batch_size: Batch size in training.
        batch_size_val: Batch size for validation and test, by default the same.
        validation: Share or number of training images to hold out for the search, if the data have no validation part.
        test: The same for the test.
        size: Height and width in pixels to which images are resized and cropped; by default 224 for folders of images,
            and no resizing for others.
        mean: Mean of the channels, in [0, 1]; by default that of the data set, or of ImageNet.
        std: Standard deviation of the channels.
        augment: Augmentation of training images: "crop" (random size if `size` is set, else padded by an eighth and
            shifted) and "flip". By default both; grey images are not flipped.
        workers: Number of processes that load images.
        seed: Determines the hold-out and the order of the training.

    Raises:
        DataError: There are no such data; a part is empty, damaged, or has other classes; or a setting does not fit.
    """
    parts = find_parts(place, dataset, download)
    changes = tuple(parts.kind.augment if augment is None else augment)
    training, plain = _transforms(parts, changes, size)
    chosen, held = _held_out(parts, {"validation": validation, "test": test}, seed)
    loader = partial(DataLoader[Any], num_workers=workers, collate_fn=_normalised(parts, mean, std))
    held_out = [
        loader(Transformed(*chosen[key], plain), batch_size_val or batch_size) for key in ("validation", "test")
    ]
    train = loader(
        Transformed(*chosen["train"], training),
        batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        drop_last=len(chosen["train"][1]) >= batch_size,  # BatchNorm fails on a last batch of one image
    )
    counts = {key: len(indices) for key, (_, indices) in chosen.items()}
    record = {"place": str(place), "dataset": dataset, "classes": parts.classes, "images": counts, "held_out": held}
    return Splits(train, held_out[0], held_out[1], {**record, "seed": seed})


def default_place(name: str, folder: Path) -> tuple[Path, str | None]:
    """Return the path of the data called `name`, and the data set; a known name stands for the folder ``data``."""
    return (folder / "data", name) if name in KNOWN else (folder / name, None)


class Transformed(Dataset[tuple[Tensor, int]]):
    """Samples selected by indices, each with a transform applied."""

    def __init__(self, samples: Samples, indices: Sequence[int], transform: Transform) -> None:
        self.samples, self.indices, self.transform = samples, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        place = self.indices[number]
        try:
            image, label = self.samples[place]
        except BnasError:
            raise
        except Exception as error:  # those of the decoders are of many kinds
            told = getattr(error, "strerror", None) or "it is not a complete image file"
            raise DataError(f"{self._file(place)} cannot be read: {told}") from error
        try:
            return self.transform(image), label
        except (RuntimeError, ValueError, MemoryError) as error:
            raise DataError(f"{self._file(place)} cannot be resized: {shown(error, 200)}") from error

    def _file(self, place: int) -> str:
        files = getattr(self.samples, "samples", None)
        return shown(files[place][0]) if files else f"image {place}"


@dataclass(frozen=True)
class Normalised:
    """Collates images and labels into a batch and normalises it; this takes 1/20 of the time of single images."""

    transform: Transform

    def __call__(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Images (float32: n, channels, height, width) and labels (int64: n)."""
        shapes = sorted({tuple(image.shape) for image, _ in samples})
        if len(shapes) > 1:
            told = f"images of one batch have the shapes {shapes[0]} and {shapes[-1]}"
            raise DataError(f"{told}; set data_options.size=N to resize all of them to N x N")
        images, labels = default_collate(samples)
        return self.transform(images), labels


def _normalised(parts: Parts, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalised:
    v2 = torchvision_module("transforms.v2")
    mean, std = mean or parts.kind.mean, std or parts.kind.std
    if len(mean) != len(std) or len(mean) not in (1, channels(parts.train)):
        counts = f"{len(mean)} and {len(std)} numbers, but images have {channels(parts.train)} channels"
        raise DataError(f"mean and std have {counts}")
    return Normalised(v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]))


def _transforms(parts: Parts, augment: tuple[str, ...], size: int | None) -> tuple[Transform, Transform]:
    """Return the transforms to uint8 tensors: for training images, and for all others."""
    v2 = torchvision_module("transforms.v2")
    if unknown := set(augment) - {"crop", "flip"}:
        raise DataError(f"augment: {min(unknown)!r} is not one of crop, flip")
    side = size or (USUAL_SIDE if parts.files else None)
    fitted = [v2.Resize(side * 8 // 7), v2.CenterCrop(side)] if side else []
    moved = [v2.RandomResizedCrop(side) if side else _padded_crop(parts)] if "crop" in augment else fitted
    flipped = [v2.RandomHorizontalFlip()] if "flip" in augment else []
    return v2.Compose([*moved, *flipped, v2.PILToTensor()]), v2.Compose([*fitted, v2.PILToTensor()])


def _padded_crop(parts: Parts) -> Any:
    v2 = torchvision_module("transforms.v2")
    height, width = v2.functional.get_size(parts.train[0][0])
    return v2.RandomCrop((height, width), (width // 8, height // 8))


def _held_out(parts: Parts, shares: dict[str, float], seed: int) -> tuple[dict[str, Chosen], dict[str, list[int]]]:
    """Return the samples of each part, and the indices of the held-out training images."""
    order = torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: dict[str, Chosen] = {}
    held: dict[str, list[int]] = {}
    for key, own in (("validation", parts.validation), ("test", parts.test)):
        if own is not None:
            chosen[key] = own, list(range(len(own)))
            continue
        count = round(shares[key] * len(parts.train) if shares[key] < 1 else shares[key])
        if not 0 < count < len(order):
            raise DataError(
                f"{key}: {shares[key]:g} of {len(parts.train)} training images are {count}; some must be left"
            )
        held[key], order = sorted(order[:count]), order[count:]
        chosen[key] = parts.train, held[key]
    return {"train": (parts.train, sorted(order)), **chosen}, held
