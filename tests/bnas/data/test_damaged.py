"""Files of images that are damaged, or no images: each is an error that names the file and what is wrong in it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bnas.config.configuration import Configuration
from bnas.data.files import DataError
from bnas.data.models import ModelError, named
from bnas.data.samples import ArrayError
from bnas.data.sources import SourceError, load_data
from bnas.run.job import Job, Splits
from bnas.run.runner import job_of

COUNT = 40
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 4


def coded(kind: str = "JPEG", **changed: Any) -> dict[str, Any]:
    """Images as files; `changed` are files by number, as ``n3``."""
    files = []
    for number, image in enumerate(IMAGES):
        file = io.BytesIO()
        Image.fromarray(changed.get(f"n{number}", image)).save(file, kind)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": offsets, "labels": LABELS}


def damaged(kind: str, number: int, after: int) -> dict[str, Any]:
    """Coded images, one with another content from a byte on."""
    arrays = coded(kind)
    data = arrays["jpeg"].copy()
    data[arrays["offsets"][number] + after : arrays["offsets"][number + 1]] = 7
    return arrays | {"jpeg": data}


def read(folder: Path, arrays: dict[str, Any], **options: Any) -> list[Any]:
    np.savez(folder / "a.npz", **arrays)
    data = load_data("a.npz", folder, batch_size=4, **options)
    return [batch for loader in (data.train, data.validation, data.test) for batch in loader]


PLAIN = {"images": IMAGES, "labels": LABELS}
CODED = coded()


@pytest.mark.parametrize(
    "arrays",
    [PLAIN, CODED, coded("PNG"), PLAIN | {"labels": LABELS.astype(">u2")}, CODED | {"offsets": CODED["offsets"] + 0}],
)
def test_whole_files_are_read(tmp_path: Path, arrays: dict[str, Any]) -> None:
    batches = read(tmp_path, arrays)
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted(LABELS)
    assert all(images.dtype == torch.float32 and images.isfinite().all() for images, _ in batches)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (PLAIN | {"images": np.full(IMAGES.shape, np.nan)}, r"images are float64 of shape \(40, 8, 8, 3\)"),
        (PLAIN | {"images": IMAGES[:, :0, :0]}, r"shape \(40, 0, 0, 3\); .* no axis of size 0"),
        (PLAIN | {"images": IMAGES[:, 0, 0, 0]}, r"images are uint8 of shape \(40,\)"),
        (PLAIN | {"images": np.array([None] * COUNT)}, "it has arrays of Python objects; save arrays of numbers"),
        (
            PLAIN | {"labels": np.array([0, "a"] * 20, object)},
            "it has arrays of Python objects; save arrays of numbers",
        ),
        (PLAIN | {"labels": LABELS / 1}, "labels are float64"),
        (PLAIN | {"labels": LABELS[:-1]}, "has 40 images and 39 labels"),
        (PLAIN | {"labels": np.eye(COUNT, dtype=int)}, r"labels are int64 of shape \(40, 40\)"),
        (PLAIN | {"labels": np.int64(3)}, r"labels are int64 of shape \(\)"),
        (PLAIN | {"labels": LABELS - 1}, "labels go from -1 to 2; they must be class numbers, from 0"),
        (PLAIN | {"labels": LABELS + 2**40}, "labels go from 1099511627776 to"),
        (PLAIN | {"labels": LABELS.astype(np.uint64) + 2**63}, "labels go from 9223372036854775808 to"),
        (damaged("JPEG", 3, 0), r"a\.npz: image 3 has \d+ bytes that are not a complete JPEG or PNG file"),
        (damaged("PNG", 5, 40), "a.npz: image 5 has .* bytes that are not a complete JPEG or PNG file"),
        (CODED | {"jpeg": CODED["jpeg"][:-5]}, "offsets of image 39 are .* must increase and lie within the bytes"),
        (CODED | {"jpeg": CODED["jpeg"][None]}, r"jpeg is uint8 of shape \(1, .*\); it must be the bytes"),
        (CODED | {"jpeg": CODED["jpeg"] / 1}, "jpeg is float64"),
        (CODED | {"offsets": CODED["offsets"] / 1}, r"offsets are float64 of shape \(41,\)"),
        (CODED | {"offsets": CODED["offsets"] - 1}, "offsets of image 0 are -1 to"),
        (CODED | {"offsets": CODED["offsets"][::-1]}, r"offsets of image 0 are (\d+) to \d+ of \1 bytes"),
        (CODED | {"offsets": CODED["offsets"][None]}, r"offsets are int64 of shape \(1, 41\)"),
        (CODED | {"offsets": CODED["offsets"][:0]}, r"offsets are int64 of shape \(0,\)"),
        (CODED | {"offsets": CODED["offsets"][:-1]}, "has 39 images and 40 labels"),
    ],
)
def test_damaged_arrays_are_told(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArrayError, match=reason):
        read(tmp_path, arrays)


@pytest.mark.parametrize("data", [b"", b"text", b"\x80\x04K\x01.", b"\x93NUMPY\x01"])
def test_what_is_no_archive_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ArrayError, match=r"a\.npz is not a \.npz file; write it with numpy.savez"):
        load_data("a.npz", tmp_path)


def test_every_damaged_byte_is_told_or_harmless(tmp_path: Path) -> None:
    whole = np.concatenate([images for images, _ in read(tmp_path, PLAIN, augment=[])])
    written = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for place in range(0, len(written), 97):
        changed = bytearray(written)
        changed[place] ^= 255
        (tmp_path / "a.npz").write_bytes(changed)
        try:
            data = load_data("a.npz", tmp_path, batch_size=4, augment=[])
        except DataError:
            refused += 1
            continue
        batches = [batch for loader in (data.train, data.validation, data.test) for batch in loader]
        np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), whole)
    assert refused > len(written) // 97 * 0.8


def test_images_of_two_sizes_need_a_size(tmp_path: Path) -> None:
    two = coded(n5=np.zeros((9, 7, 3), np.uint8))
    with pytest.raises(DataError, match=r"shapes \(3, 8, 8\) and \(3, 9, 7\); set data_options.size=N to resize"):
        read(tmp_path, two, augment=[], validation=12, test=12)
    assert {images.shape[1:] for images, _ in read(tmp_path, two, size=8)} == {(3, 8, 8)}


def test_a_worker_process_tells_the_same_without_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ArrayError) as caught:
        read(tmp_path, damaged("JPEG", 3, 0), workers=1)
    assert str(caught.value).startswith(f"{tmp_path / 'a.npz'}: image 3 has ")
    assert "Traceback" not in str(caught.value)


def test_parts_with_other_channels_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", **PLAIN)
    np.savez(tmp_path / "val.npz", images=IMAGES[..., 0], labels=LABELS)
    with pytest.raises(DataError, match="val images have 1 channels, but training images have 3"):
        load_data(".", tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": "x"}, "size is 'x': must be a number"),
        ({"size": 10**6}, "size is 1000000: must be less than or equal to 16384"),
        ({"workers": -1}, "workers is -1: must be greater than or equal to 0"),
        ({"std": [0]}, r"std\[0\] is 0: must be greater than 0"),
        ({"mean": 3, "seed": 2**64}, "mean is 3: must be a valid tuple\n  seed is 18446744073709551616: must be less"),
        ({"batch_size": 0}, "batch_size is 0: must be greater than or equal to 1"),
        ({"download": "maybe"}, "download is 'maybe': must be a valid boolean"),
    ],
)
def test_options_that_cannot_be_are_told(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **PLAIN)
    with pytest.raises(DataError, match=reason):
        load_data("a.npz", tmp_path, **options)


def test_options_of_the_digits_are_checked_too() -> None:
    with pytest.raises(DataError, match="seed is -1: must be greater than or equal to 0"):
        load_data("digits", seed=-1)


def net(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def job(folder: Path, channels: int) -> Job:
    own = {"model": f"{__file__}:net", "model_options": {"channels": channels}, "data": "a.npz"}
    return job_of(Configuration.model_validate(own | {"input_info": {"sample_size": [1, channels, 8, 8]}}), folder)


@pytest.mark.parametrize(("images", "found", "other"), [(IMAGES, 3, 1), (IMAGES[..., 0], 1, 3)])
def test_images_have_the_channels_of_the_model(tmp_path: Path, images: Any, found: int, other: int) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS)
    with pytest.raises(
        SourceError, match=rf"sample_size is \[1, {other}, 8, 8\], .* the second number must be {found}"
    ):
        job(tmp_path, other)
    assert isinstance(job(tmp_path, found).data, Splits)


@pytest.mark.parametrize("make", [lambda _: named("resnet18"), lambda folder: load_data("a.npz", folder)])
def test_a_missing_torchvision_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    from bnas.run import MissingExtraError

    np.savez(tmp_path / "a.npz", **PLAIN)
    make(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"] + ["torchvision"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"torchvision cannot be imported: .*: pip install torchvision"):
        make(tmp_path)


@pytest.mark.parametrize("options", [{"num_classes": -1}, {"zzz": 2}, {"weights": "nonsense"}])
def test_arguments_that_torchvision_does_not_take_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"resnet18 does not accept the arguments \{'"):
        named("resnet18")(**options)
