"""Built-in data: what is read, what is held out, what training images get, and what is told of bad data."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from torch import nn
from torchvision import datasets

from bnas.config.configuration import Configuration
from bnas.data.factories import SourceError
from bnas.data.files import DataError
from bnas.data.samples import ArrayError, Arrays
from bnas.data.sources import load_data
from bnas.passes import BnasError
from bnas.run.job import Splits
from bnas.run.runner import job_of

COUNT = 40


def pictures(count: int = COUNT, side: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def labels(count: int = COUNT) -> np.ndarray:
    return np.arange(count) % 4


def store(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def folders(place: Path, parts: tuple[str, ...] = ("",), classes: str = "ab", each: int = 6) -> Path:
    for part in parts:
        for label in classes:
            (place / part / label).mkdir(parents=True)
            for number, one in enumerate(pictures(each, 20)):
                Image.fromarray(one).save(place / part / label / f"{number}.png")
    return place


def everything(loader: Any) -> tuple[torch.Tensor, list[int]]:
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]).tolist()


def plain(data: Splits, original: np.ndarray, key: str, **of: Any) -> torch.Tensor:
    """What the images of a part must be: scaled and normalised, in the order of the file."""
    assert data.record is not None
    chosen = torch.from_numpy(original[data.record["held_out"][key]]).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(of[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return (chosen - mean) / std


def test_one_file_is_held_out_from_twice_and_recorded(tmp_path: Path) -> None:
    images = pictures()
    store(tmp_path / "mine.npz", images=images, labels=labels())
    of = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    data = load_data("mine.npz", tmp_path, batch_size=8, batch_size_val=3, validation=0.2, test=5, **of)
    record = dict(data.record or {})
    assert record["images"] == {"train": 27, "validation": 8, "test": 5}
    assert record["classes"] == 4
    held = record["held_out"]
    assert not set(held["validation"]) & set(held["test"])
    for key, loader in (("validation", data.validation), ("test", data.test)):
        found, answers = everything(loader)
        assert answers == labels()[held[key]].tolist()
        torch.testing.assert_close(found.double(), plain(data, images, key, **of), atol=1e-6, rtol=0)
    assert [len(y) for _, y in data.validation] == [3, 3, 2]
    assert [len(y) for _, y in data.train] == [8, 8, 8]  # a last batch of three is left out


@given(seed=st.integers(0, 99), validation=st.floats(0.05, 0.5), test=st.integers(1, 10))
def test_every_image_is_in_one_part(seed: int, validation: float, test: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("data") / "a.npz"
    images = np.arange(COUNT, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), dtype=np.uint8)
    store(path, images=images, labels=labels())
    settings = {"batch_size": 1, "augment": (), "mean": [0.0], "std": [1 / 255]}
    data = load_data(str(path), Path(), seed=seed, validation=validation, test=test, **settings)
    again = load_data(str(path), Path(), seed=seed, validation=validation, test=test, **settings)
    seen, same = (
        [round(float(x.mean())) for part in (one.train, one.validation, one.test) for x, _ in part]
        for one in (data, again)
    )
    assert sorted(seen) == list(range(COUNT))
    assert seen == same
    assert data.record == again.record


def test_arrays_of_every_layout_are_the_same(tmp_path: Path) -> None:
    images = pictures(6)
    coded = [io.BytesIO() for _ in images]
    for one, file in zip(images, coded, strict=True):
        Image.fromarray(one).save(file, "png")
    sizes = [len(file.getvalue()) for file in coded]
    jpeg = np.frombuffer(b"".join(file.getvalue() for file in coded), dtype=np.uint8)
    last = Arrays(store(tmp_path / "last.npz", images=images, labels=labels(6)))
    first = Arrays(store(tmp_path / "first.npz", images=images.transpose(0, 3, 1, 2), labels=labels(6)))
    files = Arrays(store(tmp_path / "c.npz", jpeg=jpeg, offsets=np.cumsum([0, *sizes]), labels=labels(6)))
    for number, one in enumerate(images):
        expected = torch.from_numpy(one).permute(2, 0, 1)
        assert torch.equal(last[number][0], expected)
        assert torch.equal(first[number][0], expected)
        assert np.array_equal(np.asarray(files[number][0]), one)
    grey = Arrays(store(tmp_path / "grey.npz", images=images[..., 0], labels=labels(6)))
    assert grey[2][0].shape == (1, 8, 8)


def test_a_search_never_sees_the_test_images(tmp_path: Path) -> None:
    store(tmp_path / "x_train.npz", images=pictures(), labels=labels())
    store(tmp_path / "x_test.npz", images=pictures(8, seed=1), labels=labels(8))
    two = load_data(".", tmp_path, batch_size=4)
    assert (two.record or {})["images"] == {"train": 36, "validation": 4, "test": 8}
    (tmp_path / "x_test.npz").rename(tmp_path / "x_val.npz")  # the second of two parts is the test all the same
    renamed = load_data(".", tmp_path, batch_size=4)
    assert torch.equal(everything(two.test)[0], everything(renamed.test)[0])
    store(tmp_path / "x_test.npz", images=pictures(12, seed=2), labels=labels(12))
    three = load_data(".", tmp_path, batch_size=4)
    assert (three.record or {})["images"] == {"train": 40, "validation": 8, "test": 12}
    assert (three.record or {})["held_out"] == {}


@pytest.mark.parametrize("parts", [("",), ("train", "val"), ("train", "test"), ("train", "valid", "test")])
def test_folders_of_images(tmp_path: Path, parts: tuple[str, ...]) -> None:
    folders(tmp_path, parts)
    data = load_data(".", tmp_path, batch_size=2, size=16, validation=2, test=2)
    images = (data.record or {})["images"]
    assert images["test"] == (12 if len(parts) > 1 else 2)
    assert images["validation"] == (12 if len(parts) > 2 else 2)
    for loader in (data.train, data.validation, data.test):
        found, answers = everything(loader)
        assert found.shape[1:] == (3, 16, 16)
        assert set(answers) <= {0, 1}
    assert everything(load_data(".", tmp_path, batch_size=2).test)[0].shape[2:] == (224, 224)


def test_training_images_are_moved_and_flipped_and_others_are_not(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None] * 10, (60, 16, 16, 3))
    store(tmp_path / "a_train.npz", images=ramp, labels=labels(60))
    store(tmp_path / "a_test.npz", images=ramp[:4], labels=labels(4))

    def rows(loader: Any) -> set[tuple[int, ...]]:
        return {tuple(int(v) for v in image[0, 8]) for image in everything(loader)[0].round()}

    settings = {"batch_size": 10, "mean": [0.0], "std": [1 / 255]}
    whole = tuple(range(0, 160, 10))
    data = load_data(".", tmp_path, **settings)
    assert rows(data.test) == rows(data.validation) == {whole}
    moved = {(*whole[by:], *[0] * by)[:16] if by >= 0 else (*[0] * -by, *whole)[:16] for by in range(-2, 3)}
    seen = rows(data.train)
    assert seen <= moved | {one[::-1] for one in moved}
    assert len(seen) > 6
    assert rows(load_data(".", tmp_path, augment=["flip"], **settings).train) == {whole, whole[::-1]}
    assert rows(load_data(".", tmp_path, augment=[], **settings).train) == {whole}


def test_torchvision_sets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool, bool]] = []

    class Small(datasets.FakeData):
        classes = ("x",) * 10

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            asked.append((str(root), train, download))
            super().__init__(30, (3, 32, 32))

    monkeypatch.setattr(datasets, "CIFAR10", Small)
    by_name = load_data("cifar10", tmp_path, batch_size=5)
    assert asked == [(str(tmp_path / "data"), True, False), (str(tmp_path / "data"), False, False)]
    assert (by_name.record or {})["images"] == {"train": 27, "validation": 3, "test": 30}
    load_data("here", tmp_path, dataset="cifar10", download=True)
    assert asked[2:] == [(str(tmp_path / "here"), True, True), (str(tmp_path / "here"), False, True)]


def wrong_label(place: Path) -> None:
    store(place / "a.npz", images=pictures(), labels=-labels())


def few_labels(place: Path) -> None:
    store(place / "a.npz", images=pictures(), labels=labels(3))


def floats(place: Path) -> None:
    store(place / "a.npz", images=pictures() / 255, labels=labels())


def grey_floats(place: Path) -> None:
    store(place / "a.npz", images=pictures(channels=1) / 255, labels=labels())


def four_channels(place: Path) -> None:
    store(place / "a.npz", images=pictures(channels=4), labels=labels())


def other_keys(place: Path) -> None:
    store(place / "a.npz", x=pictures(), labels=labels())


def no_archive(place: Path) -> None:
    (place / "a.npz").write_text("text")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (wrong_label, "labels go from -3 to 0; they must be class numbers, from 0"),
        (few_labels, "has 40 images and 3 labels"),
        (floats, r"images are float64 of shape \(40, 8, 8, 3\); they must be uint8"),
        (grey_floats, r"images are float64 of shape \(40, 8, 8, 1\)"),
        (four_channels, r"images are uint8 of shape \(40, 8, 8, 4\)"),
        (
            other_keys,
            r"has no 'images'; it has x, labels\. .* a function that returns bnas.Splits, .*: \"data.py:splits\"",
        ),
        (no_archive, "a.npz is not a .npz file"),
        (lambda _: None, "a.npz cannot be read"),
    ],
)
def test_bad_arrays_are_told(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    make(tmp_path)
    with pytest.raises(ArrayError, match=reason):
        load_data("a.npz", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("cifar", {}, "data .*cifar: there is no such folder or .npz file; did you mean 'cifar10'"),
        ("nowhere", {}, "known names are digits, cifar10, cifar100, fashion_mnist, imagenet"),
        ("cifar10", {}, "CIFAR10 is not there; set the key 'data' to its folder, or set data_options.download=true"),
        ("mine.npz", {"augment": ["rotate"]}, "augment: 'rotate' is not one of crop, flip"),
        (
            "mine.npz",
            {"mean": [0.5] * 2, "std": [0.5] * 2},
            "mean and std have 2 and 2 numbers, but images have 3 channels",
        ),
        ("mine.npz", {"validation": 0}, "validation is 0: must be greater than 0"),
        ("mine.npz", {"test": 40}, "test: 40 of 40 training images are 40; some must be left"),
        ("two", {}, r"there are 2 files \*train.npz; one is allowed"),
        ("empty", {}, "Couldn't find any class folder .* It must hold one folder of images for each class"),
        ("others", {}, r"data .* and .*train must have the same classes; only one of them has 'c'"),
    ],
)
def test_bad_data_are_told(tmp_path: Path, name: str, options: dict[str, Any], reason: str) -> None:
    store(tmp_path / "mine.npz", images=pictures(), labels=labels())
    for folder in ("two", "empty"):
        (tmp_path / folder).mkdir()
    for file in ("a_train.npz", "b_train.npz"):
        store(tmp_path / "two" / file, images=pictures(), labels=labels())
    folders(tmp_path / "others", ("train",), "abc")
    folders(tmp_path / "others", ("val",), "ab")
    with pytest.raises(DataError, match=reason):
        load_data(name, tmp_path, **options)


def test_unknown_options_are_told(tmp_path: Path) -> None:
    store(tmp_path / "mine.npz", images=pictures(), labels=labels())
    with pytest.raises(SourceError, match=r"got an unexpected keyword argument 'sise'; it accepts .*size"):
        load_data("mine.npz", tmp_path, sise=3)


def test_a_damaged_image_is_told_by_name(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "a" / "3.png").write_bytes(b"no image")
    data = load_data(".", tmp_path, batch_size=1)
    with pytest.raises(BnasError, match=r"3\.png cannot be read: cannot identify image file .*; its format"):
        [everything(loader) for loader in (data.train, data.validation, data.test)]


def small_net(num_classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


def configured(tmp_path: Path, **changes: Any) -> Configuration:
    store(tmp_path / "mine.npz", images=pictures(), labels=labels())
    own = {"model": f"{__file__}:small_net", "data": "mine.npz", "input_info": {"sample_size": [1, 3, 8, 8]}}
    return Configuration.model_validate({**own, **changes})


def test_a_run_takes_built_in_data(tmp_path: Path) -> None:
    job = job_of(configured(tmp_path, batch_size=8, data_options={"validation": 6}), tmp_path)
    assert (job.data.record or {})["images"] == {"train": 30, "validation": 6, "test": 4}


def test_classes_and_images_must_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError,
        match="the model has 5 outputs, but the data have 4 classes; for a torchvision model set num_classes=4",
    ):
        job_of(configured(tmp_path, num_classes=5), tmp_path)
    with pytest.raises(SourceError, match=r"sample_size: the model does not accept images of shape \(1, 3, 2, 2\)"):
        job_of(configured(tmp_path, input_info={"sample_size": [1, 3, 2, 2]}), tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "EPS"])
def test_no_other_program_is_started_on_an_image(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    for label in ("one", "two"):
        (tmp_path / label).mkdir()
        for number in range(10):
            Image.new("RGB", (8, 8)).save(tmp_path / label / f"{number}.png", kind)
    started: list[Any] = []
    image = Image.new("RGB", (8, 8)).im
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: started.append(given) or image)
    if kind == "PNG":
        assert next(iter(load_data(".", tmp_path, size=8).train))[0].shape[1:] == (3, 8, 8)
    else:
        with pytest.raises(DataError, match=r"\.png cannot be read: cannot identify image file"):
            next(iter(load_data(".", tmp_path, size=8).train))
    assert started == []
    if kind == "EPS":
        with Image.open(tmp_path / "one" / "0.png") as opened:
            opened.load()
        assert started != []
