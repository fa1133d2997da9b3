"""Files of images, and what reading them needs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from bnas.passes.errors import BnasError
from bnas.passes.wording import shown

from .digits import MissingExtraError


class DataError(BnasError):
    """Data cannot be found, or have the wrong form."""

    def __init__(self, text: str) -> None:
        if text.startswith("Caught "):  # by a worker process of a DataLoader, which tells it with its traceback
            text = text.rstrip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(text)


def is_file(path: Path) -> bool:
    """Return whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def torchvision_module(name: str = "") -> Any:
    """Return a module of torchvision, such as "transforms.v2".

    Raises:
        MissingExtraError: torchvision is not installed, or is built for another PyTorch.
    """
    try:
        return importlib.import_module(f"torchvision.{name}".removesuffix("."))
    except (ImportError, OSError, RuntimeError) as error:
        told = f"torchvision cannot be imported: {shown(error, 200)}"
        raise MissingExtraError(
            f"{told}; install the version for PyTorch {torch.__version__}: pip install torchvision"
        ) from error


# Coded images.

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Of coded images, whatever their files are called: Pillow would start Ghostscript on what says it is PostScript."""


def sides(path: Path) -> tuple[int, int] | None:
    """Return width and height of the image in a file, from its first bytes; None where it is damaged."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            return width, height
    except Exception:  # whoever reads all of the image says what is wrong with it
        return None


def decoded(source: Any) -> Any:
    """The coded image in a file, as one of Pillow's in RGB.

    Raises:
        DataError: it is damaged, or of none of `FORMATS`.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # the decoders raise errors of many kinds
        place = f"{shown(source)} " if isinstance(source, str | Path) else "an image "
        told = f"{place}cannot be read: {shown(error)}; its format must be one of {', '.join(FORMATS)}"
        raise DataError(told) from error
