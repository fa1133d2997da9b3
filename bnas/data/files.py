"""Image files, and helpers to read them."""

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
        if text.startswith("Caught "):  # re-created from a DataLoader worker's traceback
            text = text.rstrip().rpartition(f"{type(self).__name__}: ")[2]
        super().__init__(text)


def is_file(path: Path) -> bool:
    """Return whether the file exists; False for an invalid name."""
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
"""Allowed formats of encoded images. For PostScript content, whatever the file name, Pillow would start Ghostscript."""


def sides(path: Path) -> tuple[int, int] | None:
    """Return width and height of the image in a file, from its first bytes; None where it is damaged."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            return width, height
    except Exception:  # reading the whole image later reports what is wrong
        return None


def decoded(source: Any) -> Any:
    """Decode the image in a file into a Pillow image in RGB.

    Raises:
        DataError: The image is damaged, or its format is not one of `FORMATS`.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise many kinds of errors
        place = f"{shown(source)} " if isinstance(source, str | Path) else "an image "
        told = f"{place}cannot be read: {shown(error)}; its format must be one of {', '.join(FORMATS)}"
        raise DataError(told) from error
