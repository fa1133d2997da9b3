"""Images and labels in a ``.npz`` file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bnas.passes.errors import BnasError


class ArrayError(BnasError):
    """A ``.npz`` file is not what it must be."""


class Arrays(Sequence[tuple[Any, int]]):
    """Samples of a file: an image, and its label.

    The file has ``labels`` (n whole numbers from 0) and ``images`` (uint8: n, height, width; with 1 or 3 channels last
    or first too). Instead of ``images`` it may have coded ones: ``jpeg``, the bytes of all files (JPEG, PNG) one after
    another, and ``offsets``, where each begins, and the end.

    Raises:
        ArrayError: the file is missing, damaged, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {key: file[key] for key in file.files}
        except Exception as error:
            raise ArrayError(f"{path} cannot be read: {error}") from error
        self.coded = "jpeg" in found
        names = ("jpeg", "offsets", "labels") if self.coded else ("images", "labels")
        if missing := [name for name in names if name not in found]:
            raise ArrayError(f"{path} has no {missing[0]!r}; it has {', '.join(found) or 'nothing'}")
        self.labels = _labels(path, found["labels"])
        if self.coded:
            self.bytes, self.offsets = found["jpeg"], found["offsets"]
            count = len(self.offsets) - 1
        else:
            self.images = _channels_first(path, found["images"])
            count = len(self.images)
        if count != len(self.labels):
            raise ArrayError(f"{path} has {count} images and {len(self.labels)} labels")
        self.classes = int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: Any) -> Any:
        """A PIL image where they are coded, else a uint8 tensor of channels, height, width."""
        label = int(self.labels[number])
        if not self.coded:
            return torch.from_numpy(self.images[number]), label
        from PIL import Image

        begin, end = self.offsets[number : number + 2]
        return Image.open(io.BytesIO(self.bytes[begin:end].tobytes())).convert("RGB"), label


def _labels(path: Path, labels: Any) -> Any:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels) or labels.min() < 0:
        raise ArrayError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; they must be whole numbers from 0"
        )
    return labels


def _channels_first(path: Path, images: Any) -> Any:
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and {1, 3} & {images.shape[1], images.shape[3]}:
        return images if images.shape[1] in (1, 3) else images.transpose(0, 3, 1, 2)
    allowed = "uint8 of (n, height, width), with 1 or 3 channels last or first"
    raise ArrayError(f"{path}: images are {images.dtype} of shape {images.shape}; they must be {allowed}")
