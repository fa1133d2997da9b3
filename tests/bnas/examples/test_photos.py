"""The examples with MobileNetV2 on photographs: on a few drawn ones, and on the real ones where they are there."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision.models import mobilenet_v2

import bnas

EXAMPLES = Path(__file__).parents[3] / "examples"
PLACES = {name: os.environ.get(name, "") for name in ("BNAS_ELPV", "BNAS_FASHION", "BNAS_MOBILENET")}


def needs(name: str, what: str) -> pytest.MarkDecorator:
    """Skip where the environment does not say where the data are."""
    return pytest.mark.skipif(not PLACES[name], reason=f"{name} does not name {what}: see docs/examples.md")


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def photos() -> ModuleType:
    import photos

    return photos


@pytest.fixture
def cells() -> ModuleType:
    import solar_cells

    return solar_cells


@pytest.fixture
def fashion() -> ModuleType:
    import fashion_mnist

    return fashion_mnist


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def draw_cells(folder: Path, count: int) -> None:
    """Photographs as ELPV has them: dark lines on bright cells are the defects."""
    generator, lines = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        cell = generator.integers(100, 200, (300, 300), dtype=np.uint8)
        probability = number % 4 / 3
        cell[:, 140 : 140 + int(60 * probability)] = 0
        Image.fromarray(cell).save(folder / "images" / f"cell{number}.png")
        lines.append(f"images/cell{number}.png {probability} {'mono' if number % 8 < 4 else 'poly'}")
    (folder / "labels.csv").write_text("\n".join(lines))


def write_idx(path: Path, array: np.ndarray) -> None:
    """A file as Fashion-MNIST has them."""
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(gzip.compress(head + array.tobytes(), 1))


def draw_clothes(folder: Path) -> None:
    """Images of the right number, all of a class alike."""
    folder.mkdir()
    for split, count in (("train", 60000), ("t10k", 10000)):
        labels = np.arange(count) % 10
        patterns = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", patterns[labels])
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels.astype(np.uint8))


def save_original(path: Path, classes: int) -> None:
    model = mobilenet_v2(weights=None, num_classes=classes)
    safetensors.torch.save_file(model.state_dict(), path)


# Batches.


def pictures(photos: ModuleType, augment: str | None, shift: int = 0) -> Any:
    images = torch.arange(6 * 8 * 8, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(6, 8, 8)
    return photos.Pictures(images, torch.arange(6), 4, augment, shift)


def grey(photos: ModuleType, batch: torch.Tensor) -> torch.Tensor:
    """The bytes that a batch was made from, from its middle channel."""
    return (255 * (batch[:, 1] * photos.STD[1] + photos.MEAN[1])).round().long()


def test_batches_are_normalised_in_three_channels_and_in_order(photos: ModuleType) -> None:
    plain = pictures(photos, None)
    batches = list(plain)
    assert len(plain) == 2
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    assert torch.cat([y for _, y in batches]).tolist() == list(range(6))
    assert torch.equal(torch.cat([grey(photos, x) for x, _ in batches]), plain.images.long())
    x = batches[0][0]
    expected = (plain.images[:4] / 255 - 0.406) / 0.225
    torch.testing.assert_close(x[:, 2], expected)


@pytest.mark.parametrize(("augment", "seen"), [("mirror", 2), ("turn", 8)])
def test_augmented_images_are_mirrored_or_turned(photos: ModuleType, augment: str, seen: int) -> None:
    loader = pictures(photos, augment)
    found = set()
    for _ in range(40):
        for x, y in loader:
            found |= {tuple(one.flatten().tolist()) for one in grey(photos, x)[y == 0]}
    first = loader.images[0].long()
    turned = [first, first.flip(1), first.flip(0), first.flip(0, 1)]
    allowed = {tuple(one.flatten().tolist()) for each in turned for one in (each, each.T)}
    assert found <= allowed
    assert len(found) == seen
    if augment == "mirror":
        assert found == {tuple(one.flatten().tolist()) for one in turned[:2]}


def test_augmented_images_are_shifted_and_their_border_repeated(photos: ModuleType) -> None:
    loader = pictures(photos, "mirror", shift=1)
    first = loader.images[0].long()
    assert torch.equal(first[0, 1:-1], first[1, 1:-1])
    found = {tuple(one.flatten().tolist()) for _ in range(60) for x, y in loader for one in grey(photos, x)[y == 0]}
    shifted = [first[a : a + 8, b : b + 8] for a in range(3) for b in range(3)]
    assert found == {tuple(one.flatten().tolist()) for each in shifted for one in (each, each.flip(1))}


def test_epochs_differ_and_a_seed_repeats_them(photos: ModuleType) -> None:
    one, other = pictures(photos, "turn"), pictures(photos, "turn")
    epochs = [torch.cat([y for _, y in one]) for _ in range(2)]
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], torch.cat([y for _, y in other]))
    assert epochs[0].sort().values.tolist() == list(range(6))


# Weights and originals.


def test_other_weights_than_those_of_imagenet_are_refused(photos: ModuleType, tmp_path: Path) -> None:
    torch.save(mobilenet_v2(weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(bnas.BnasError, match=r"that of mobilenet_v2-b0353104\.pth begins with b0353104"):
        photos.untrained(2, tmp_path / "weights.pth")


@needs("BNAS_MOBILENET", "the file of ImageNet's weights")
def test_the_weights_of_imagenet_are_taken_but_for_the_last_layer(photos: ModuleType) -> None:
    model = photos.untrained(2, Path(PLACES["BNAS_MOBILENET"]))
    state = torch.load(PLACES["BNAS_MOBILENET"], weights_only=True)
    assert torch.equal(model.features[3].conv[0][0].weight, state["features.3.conv.0.0.weight"])
    assert model.classifier[1].weight.shape == (2, 1280)


def test_a_trained_original_is_read_as_it_was_kept(photos: ModuleType, tmp_path: Path) -> None:
    images, labels = torch.randint(256, (8, 32, 32), dtype=torch.uint8), torch.arange(8) % 2
    data = bnas.Splits(*(photos.Pictures(images, labels, 4) for _ in range(3)))
    before = mobilenet_v2(weights=None, num_classes=2)
    photos.train_original(before, data, bnas.Recipe(), 1, tmp_path / "new" / "original.safetensors")
    after = photos.read_trained(tmp_path / "new" / "original.safetensors", 2)
    assert not after.training
    assert not torch.equal(after.features[18][0].weight, before.features[18][0].weight)
    with pytest.raises(bnas.BnasError, match="does not fit the model"):
        photos.read_trained(tmp_path / "new" / "original.safetensors", 10)
    with pytest.raises(bnas.BnasError, match="there is no original yet; train it with --train-original"):
        photos.read_trained(tmp_path / "none.safetensors", 2)


# ELPV.


def test_the_parts_of_the_cells_are_alike(cells: ModuleType) -> None:
    kinds = [
        (path, p, kind)
        for path, p, kind in zip(map(str, range(400)), [0.0, 1.0] * 200, ["mono"] * 300 + ["poly"] * 100, strict=True)
    ]
    rows = np.array(kinds, dtype=[("path", "U60"), ("probability", "f8"), ("type", "U4")])
    part = cells.parts(rows)
    assert np.bincount(part).tolist() == [254, 48, 98]
    for kind, number in (("mono", 150), ("poly", 50)):
        for probability in (0.0, 1.0):
            chosen = part[(rows["type"] == kind) & (rows["probability"] == probability)]
            assert np.bincount(chosen)[2] == number // 4
            assert np.bincount(chosen)[1] == number // 8
    assert np.array_equal(part, cells.parts(rows))


@pytest.mark.parametrize("place", ["", "elpv_dataset/data"])
def test_cells_are_read_from_the_package_or_its_folder(cells: ModuleType, place: str, tmp_path: Path) -> None:
    draw_cells(tmp_path / place, 64)
    data = cells.read_data(tmp_path)
    assert data.record == {"source": "ELPV", "images": {"train": 40, "validation": 8, "test": 16}}
    labels = torch.cat([part.labels for part in (data.train, data.validation, data.test)])
    assert labels.bincount().tolist() == [32, 32]  # 0 and 1/3 against 2/3 and 1
    x, _ = next(iter(data.test))
    assert x.shape[1:] == cells.EXAMPLE.shape[1:]


def test_what_is_no_photograph_of_elpv_is_refused(cells: ModuleType, tmp_path: Path) -> None:
    draw_cells(tmp_path, 2)
    Image.new("RGB", (300, 300)).save(tmp_path / "images" / "cell0.png")
    with pytest.raises(bnas.BnasError, match=r"cell0\.png: RGB of .*the photographs of ELPV are grey, 300 x 300"):
        cells.read_data(tmp_path)


@needs("BNAS_ELPV", "a folder with the photographs of ELPV")
def test_all_cells_are_read(cells: ModuleType) -> None:
    data = cells.read_data(Path(PLACES["BNAS_ELPV"]))
    assert data.record == {"source": "ELPV", "images": {"train": 1644, "validation": 326, "test": 654}}
    assert int(data.test.labels.sum()) == 204


# Fashion-MNIST.


@pytest.mark.parametrize("place", ["", "usr/share/datasets/fashion-mnist", "FashionMNIST/raw"])
def test_a_file_of_clothes_is_read_wherever_it_lies(fashion: ModuleType, place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    array = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    write_idx(tmp_path / place / "some.gz", array)
    assert np.array_equal(fashion.read_file(tmp_path, "some.gz", (2, 28, 28)).numpy(), array)
    with pytest.raises(bnas.BnasError, match=r"holds \(2, 28, 28\), that of Fashion-MNIST \(3, 28, 28\)"):
        fashion.read_file(tmp_path, "some.gz", (3, 28, 28))


def test_clothes_are_enlarged_without_new_greys(fashion: ModuleType) -> None:
    small = torch.full((3, 28, 28), 77, dtype=torch.uint8)
    small[1, :, 14:] = 200
    wide = fashion.enlarged(small)
    assert wide.shape == (3, 64, 64)
    assert wide[0].unique().tolist() == [77]
    assert wide[1, :, :28].unique().tolist() == [77]
    assert wide[1, :, 36:].unique().tolist() == [200]


@needs("BNAS_FASHION", "a folder with the files of Fashion-MNIST")
def test_all_clothes_are_read(fashion: ModuleType) -> None:
    data = fashion.read_data(Path(PLACES["BNAS_FASHION"]))
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [55000, 5000, 10000]
    assert data.test.labels.bincount().tolist() == [1000] * 10


# The stories.


@pytest.mark.parametrize(
    ("name", "text"),
    [("mobilenet_own_photos", "holds no labels.csv of ELPV"), ("fashion", "holds no train-images-idx3-ubyte.gz")],
)
def test_a_story_says_what_it_misses_and_where_that_is_told(name: str, text: str, tmp_path: Path) -> None:
    done = example(name, "--data", str(tmp_path), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert text in done.stderr
    assert "for getting it" in done.stderr
    assert "Traceback" not in done.stderr


def test_photographs_within_a_latency(tmp_path: Path) -> None:
    draw_cells(tmp_path / "data", 64)
    save_original(tmp_path / "original.safetensors", 2)
    places = ["--data", str(tmp_path / "data"), "--original", str(tmp_path / "original.safetensors")]
    done = example("mobilenet_own_photos", *places, "--output", str(tmp_path / "out"), "--quick")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    names = [f"{name}{kind}" for name in ("original", "a half", "a third") for kind in ("", " int8")]
    assert [row["name"] for row in rows] == names
    assert all((tmp_path / "out" / f"{name}.onnx").is_file() for name in names)
    assert rows[0]["share"] == 1
    assert all(0 < row["share"] < 0.9 for row in rows if row["name"] in ("a half", "a third"))
    assert "<svg" in (tmp_path / "out" / "table.svg").read_text()


def test_clothes_with_fewer_macs(tmp_path: Path) -> None:
    draw_clothes(tmp_path / "data")
    save_original(tmp_path / "original.safetensors", 10)
    places = ["--data", str(tmp_path / "data"), "--original", str(tmp_path / "original.safetensors")]
    done = example("fashion", *places, "--output", str(tmp_path / "out"), "--quick")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["name"].partition(",")[0] for row in rows] == ["original", *["a half"] * 2, *["a quarter"] * 2]
    assert [row["share"] <= bound for row, bound in zip(rows, (1, 0.5, 0.5, 0.25, 0.25), strict=True)] == [True] * 5
    assert (tmp_path / "out" / "a quarter.onnx").is_file()
