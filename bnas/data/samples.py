"""Built-in data formats on disk: torchvision's data sets, folders of images, ``.npz`` files."""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnas.passes.settings import LARGEST
from bnas.passes.wording import listed, shown

from .files import DataError, decoded, torchvision_module

# Images and labels in a ``.npz`` file.


class ArrayError(DataError):
    """A ``.npz`` file has the wrong content."""


class Arrays(Sequence[tuple[Any, int]]):
    """The samples of an ``.npz`` file, each an image and its label.

    The file has ``labels`` (n integers from 0) and ``images`` (uint8: n, height, width; optionally with 1 or 3 channels
    as first or last axis). Instead of ``images`` it may have encoded ones: ``jpeg``, the concatenated bytes of JPEG or
    PNG files, and ``offsets``, the start of each file and the end of the last one.

    Raises:
        ArrayError: The file is missing or damaged, or has other content.
    """

    def __init__(self, path: Path) -> None:
        self.path, found = path, _read(path)
        self.coded = "jpeg" in found
        names = ("jpeg", "offsets", "labels") if self.coded else ("images", "labels")
        if missing := [name for name in names if name not in found]:
            told = f"{shown(path)} has no {missing[0]!r}; it has {listed(found, len(found)) or 'nothing'}"
            raise ArrayError(
                f"{told}. A .npz file is read as images and labels; for other inputs write a function that returns "
                'bnas.Splits, and name it: "data": "data.py:splits"'
            )
        self.labels = _labels(path, found["labels"])
        if self.coded:
            self.bytes, self.offsets = found["jpeg"], found["offsets"]
            _check_coded(path, self.bytes, self.offsets)
            count = len(self.offsets) - 1
        else:
            self.images = _channels_first(path, found["images"])
            count = len(self.images)
        if count != len(self.labels):
            raise ArrayError(f"{shown(path)} has {count} images and {len(self.labels)} labels")
        self.classes = int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: Any) -> Any:
        """Return an encoded image as a PIL image, any other as a uint8 tensor (channels, height, width)."""
        label = int(self.labels[number])
        return (self._decoded(number) if self.coded else torch.from_numpy(self.images[number])), label

    def _decoded(self, number: int) -> Any:
        begin, end = self.offsets[number], self.offsets[number + 1]
        try:
            return decoded(io.BytesIO(self.bytes[begin:end].tobytes()))
        except DataError as error:
            told = f"{end - begin} bytes that are not a complete JPEG or PNG file"
            raise ArrayError(f"{shown(self.path)}: image {number} has {told}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as begun:
            if begun.read(2) != b"PK":
                raise ArrayError(f"{shown(path)} is not a .npz file; write it with numpy.savez")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except ArrayError:
        raise
    except OSError as error:
        raise ArrayError(f"{shown(path)} cannot be read: {error.strerror or shown(error)}") from error
    except Exception as error:  # the archive, its compression or an array may be damaged
        objects = (
            "it has arrays of Python objects; save arrays of numbers" if "Object arrays" in str(error) else shown(error)
        )
        raise ArrayError(f"{shown(path)} cannot be read: {objects}") from error


def _labels(path: Path, labels: Any) -> Any:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise ArrayError(f"{shown(path)}: labels are {_kind(labels)}; they must be whole numbers from 0, of one axis")
    if labels.min() < 0 or labels.max() >= LARGEST:
        ends = f"{labels.min()} to {labels.max()}"
        raise ArrayError(f"{shown(path)}: labels go from {ends}; they must be class numbers, from 0")
    return labels


def _check_coded(path: Path, data: Any, offsets: Any) -> None:
    if data.ndim != 1 or data.dtype != np.uint8:
        raise ArrayError(f"{shown(path)}: jpeg is {_kind(data)}; it must be the bytes of all files, uint8 of one axis")
    if offsets.ndim != 1 or not np.issubdtype(offsets.dtype, np.integer) or not len(offsets):
        raise ArrayError(f"{shown(path)}: offsets are {_kind(offsets)}; they must be whole numbers of one axis")
    wrong = np.flatnonzero((offsets[:-1] >= offsets[1:]) | (offsets[:-1] < 0) | (offsets[1:] > len(data)))
    if len(wrong):
        ends = f"{offsets[wrong[0]]} to {offsets[wrong[0] + 1]} of {len(data)} bytes"
        raise ArrayError(
            f"{shown(path)}: offsets of image {wrong[0]} are {ends}; they must increase and lie within the bytes"
        )


def _channels_first(path: Path, images: Any) -> Any:
    if images.dtype == np.uint8 and images.ndim == 3 and images.size:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.size and {1, 3} & {images.shape[1], images.shape[3]}:
        return images if images.shape[1] in (1, 3) else images.transpose(0, 3, 1, 2)
    allowed = "uint8 of (n, height, width), with 1 or 3 channels last or first, and no axis of size 0"
    raise ArrayError(f"{shown(path)}: images are {_kind(images)}; they must be {allowed}")


def _kind(array: Any) -> str:
    return f"{array.dtype} of shape {array.shape}"


Samples = Sequence[tuple[Any, int]]
"""Images (PIL, or uint8 tensors of channels, height, width) and labels."""


@dataclass(frozen=True)
class Known:
    """A data set of torchvision: its class, mean and deviation of its channels in [0, 1], and its augmentation."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: tuple[str, ...] = ("crop", "flip")


USUAL_SIDE = 224
"""Pixels that images in files are resized to where nothing is said."""
IMAGENET = Known("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = Known("", (0.5,), (0.5,), ("crop",))
KNOWN = {
    "cifar10": Known("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Known("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": Known("FashionMNIST", (0.2860,), (0.3530,), ("crop",)),
    "imagenet": IMAGENET,
}


@dataclass(frozen=True)
class Parts:
    """The parts of a data set on disk; a missing part is None."""

    train: Samples
    validation: Samples | None
    test: Samples | None
    classes: int
    kind: Known
    files: bool = False
    """Whether images are files of any size."""


def find_parts(place: Path, dataset: str | None, download: bool) -> Parts:
    """Find the data at `place`; `dataset` is a key of `KNOWN`, or empty.

    If there are two parts, the second one is the test data, which a search never uses.

    Raises:
        DataError: There are no data, they are damaged, or their parts have different classes.
    """
    kind = KNOWN.get(dataset or "")
    try:
        arrays = place.suffix == ".npz" or any(place.glob("*train.npz"))
    except OSError as error:
        raise DataError(f"data {shown(place)} cannot be read: {error.strerror}") from error
    if arrays:
        return _arrays(place, kind)
    if kind is not None and kind is not IMAGENET:
        return _torchvision(kind, place, download)
    if not place.is_dir():
        names = ("digits", *KNOWN)
        near = difflib.get_close_matches(place.name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known names are {', '.join(names)}"
        raise DataError(f"data {shown(place)}: there is no such folder or .npz file; {hint}")
    return _folders(place)


def channels(samples: Samples) -> int:
    """Return the number of channels of the first image."""
    image = samples[0][0]
    return int(image.shape[0]) if isinstance(image, Tensor) else len(image.getbands())


def _torchvision(kind: Known, place: Path, download: bool) -> Parts:
    datasets = torchvision_module("datasets")
    try:
        train, test = (getattr(datasets, kind.name)(place, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        told = f"cannot be downloaded: {shown(error)}" if download else "is not there"
        remedy = "set the key 'data' to its folder, or set data_options.download=true to download it"
        raise DataError(f"data {shown(place)}: {kind.name} {told}; {remedy}") from error
    return Parts(train, None, test, len(train.classes), kind)


def _folders(place: Path) -> Parts:
    ImageFolder = torchvision_module("datasets").ImageFolder
    above = (place / "train").is_dir()
    names = {"train": ["train"], "validation": ["val", "valid", "validation"], "test": ["test"]}
    there = {key: [place / name for name in some if (place / name).is_dir()] for key, some in names.items()}
    try:
        sets = {key: ImageFolder(some[0], loader=decoded) for key, some in there.items() if some} if above else {}
        train = sets["train"] if above else ImageFolder(place, loader=decoded)
    except FileNotFoundError as error:
        wanted = "one folder of images for each class, or the folders train and val (or test) with such folders in each"
        raise DataError(f"data {shown(place)}: {shown(str(error).splitlines()[0])} It must hold {wanted}") from None
    for one in sets.values():
        if different := set(one.classes) ^ set(train.classes):
            raise DataError(
                f"data {one.root} and {train.root} must have the same classes; only one of them has {min(different)!r}"
            )
    return _two_or_three(train, sets.get("validation"), sets.get("test"), len(train.classes), None, files=True)


def _arrays(place: Path, kind: Known | None) -> Parts:
    if place.suffix == ".npz":
        train = Arrays(place)
        return _two_or_three(train, None, None, train.classes, kind)
    sets: dict[str, Arrays] = {}
    for key in ("train", "val", "test"):
        found = sorted(place.glob(f"*{key}.npz"))
        if len(found) > 1:
            raise DataError(f"data {shown(place)}: there are {len(found)} files *{key}.npz; one is allowed")
        sets.update((key, Arrays(path)) for path in found)
    for key, one in sets.items():
        if channels(one) != channels(sets["train"]):
            told = f"{key} images have {channels(one)} channels, but training images have {channels(sets['train'])}"
            raise DataError(f"data {shown(place)}: {told}")
    classes = max(one.classes for one in sets.values())
    return _two_or_three(sets["train"], sets.get("val"), sets.get("test"), classes, kind)


def _two_or_three(
    train: Samples,
    validation: Samples | None,
    test: Samples | None,
    classes: int,
    kind: Known | None,
    files: bool = False,
) -> Parts:
    if test is None:
        validation, test = None, validation
    return Parts(train, validation, test, classes, kind or (IMAGENET if channels(train) == 3 else GREY), files)
