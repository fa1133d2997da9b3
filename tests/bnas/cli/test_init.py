"""``bnas init``: what it guesses and how sure it is, a file of real keys only, and a run of that file as it is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import Called, write_files
from PIL import Image
from torch import nn

from bnas.config.configuration import Configuration
from bnas.config.file import load_config, parse_configuration
from bnas.config.proposal import CLIP_NORM, Proposal, is_like_a_transformer
from bnas.data.guess import GuessError, classes_of, guess, usual_size
from bnas.data.inputs import Input
from bnas.run.job import Splits

MORE = """
def tokens():
    ids = torch.tensor([[3, 7, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([1])}
    return bnas.Splits([batch], [batch], [batch])

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(20, 16), nn.LayerNorm(16), nn.Linear(16, 2)
    def forward(self, input_ids, attention_mask):
        return self.head((self.norm(self.words(input_ids)) * attention_mask.unsqueeze(-1)).mean(1))

class Fixed(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8 * 16 * 16, num_classes)
    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))

def curves():
    batch = (torch.zeros(4, 6), torch.zeros(4, 1))
    return bnas.Splits([batch], [batch], [batch])

class Curve(nn.Linear):
    def __init__(self):
        super().__init__(6, 1)

def table():
    kinds = torch.tensor([[0, 0, 0], [6, 19, 2]])
    batch = ((torch.zeros(2, 4), kinds), torch.tensor([0, 1]))
    return bnas.Splits([batch], [batch], [batch])

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.kinds = nn.ModuleList(nn.Embedding(count, 8) for count in (7, 20, 3))
        self.inner, self.head = nn.Linear(28, 16), nn.Linear(16, 2)
    def forward(self, numbers, kinds):
        parts = [one(kinds[:, place]) for place, one in enumerate(self.kinds)]
        return self.head(torch.relu(self.inner(torch.cat([numbers, *parts], 1))))

def anomalies():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 6, generator=generator)
    return bnas.Splits([(rows, rows)], [(rows, torch.tensor([0, 1, 1, 0]))], [(rows, torch.tensor([0, 1, 1, 0]))])

def mixed():
    rows = torch.zeros(4, 6)
    return bnas.Splits([(rows, torch.full((4, 6), 1 / 6))], [(rows, torch.tensor([0, 1, 1, 0]))], [])

def ten():
    batch = (torch.zeros(10, 6), torch.tensor([1] * 9 + [5]))
    return bnas.Splits([batch], [batch], [batch])

class Rows(nn.Linear):
    def __init__(self):
        super().__init__(6, 6)

class Guesses(nn.Linear):
    favourite = 5
    def __init__(self):
        super().__init__(6, 6)
        nn.init.zeros_(self.weight)
        self.bias.data.copy_(torch.eye(6)[self.favourite])

class Knows(Guesses):
    favourite = 1

class Grey(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 8, 3)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    with (tmp_path / "net.py").open("a") as file:
        file.write(MORE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def called(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    return Called(monkeypatch, capsys)


def images(place: Path, classes: int = 2, each: int = 8, size: int = 20) -> None:
    """A folder of images by class."""
    generator = np.random.default_rng(0)
    for name in "abc"[:classes]:
        (place / name).mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{number}.png")


COMMENTED = re.compile(r"^( *)#(?=\S)", re.MULTILINE)
"""A key that is not set; what is explained stands behind a blank."""


def keys(data: Any) -> int:
    """How many keys there are in nested data."""
    inside = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return (len(data) if isinstance(data, dict) else 0) + sum(map(keys, inside))


# The file runs as it is, and each of its keys is real.


def test_the_written_file_runs_as_it_is_and_so_does_the_command_that_the_run_names(
    folder: Path, called: Called
) -> None:
    told = called("init", "net.py:Net", "--data", "net.py:data", "--weights", "net.pt")
    assert "inputs: one input of 1,1,6,6 (sure: as in the first batch of the validation data)" in told
    assert "outputs: 3 for at least 3 classes (a guess: from the largest label in the first batch)" in told
    assert told.endswith("Wrote bnas.yaml. Next: `bnas run bnas.yaml`\n")
    ran = " ".join(called(*shlex.split(re.findall("`bnas (.*)`", told)[-1])).split())
    assert 0 < ran.index("the plan") < ran.index("training, stage 1")
    assert "`half` is " in ran
    called(*shlex.split(re.findall("Next: `bnas (.*?)`", ran)[-1]))
    assert any((folder / name).is_file() for name in ("model.onnx", "model.int8.onnx"))


@pytest.mark.parametrize(
    ("model", "data"), [("net.py:Net", "net.py:data"), ("net.py:Words", "net.py:tokens"), ("net.py:Fixed", "images")]
)
def test_every_key_of_the_file_is_one_of_bnas_also_those_that_are_not_set(
    model: str, data: str, folder: Path, called: Called
) -> None:
    images(folder / "images")
    called("init", model, "--data", data)
    text = (folder / "bnas.yaml").read_text()
    plain, full = yaml.safe_load(text), yaml.safe_load(COMMENTED.sub(r"\1", text))
    assert isinstance(load_config("bnas.yaml"), Configuration)
    assert keys(full) > keys(plain) + 15
    parse_configuration(full, "the file with all keys", folder)
    with pytest.raises(Exception, match="reorg_weight"):
        parse_configuration({**full, "stages": [{"reorg_weight": True}]}, "a wrong key", folder)


def test_explanations_are_no_keys(called: Called, folder: Path) -> None:
    called("init", "net.py:Net")
    lines = (folder / "bnas.yaml").read_text().splitlines()
    assert all(re.match(r" *(#( |\w)|- |\w|$)", line) for line in lines)
    assert max(map(len, lines)) <= 120


# What it never does.


def test_no_file_is_replaced_unless_asked_to(folder: Path, called: Called) -> None:
    (folder / "bnas.yaml").write_text("mine")
    assert "bnas.yaml exists already; use --overwrite" in called("init", "net.py:Net", code=1)
    assert (folder / "bnas.yaml").read_text() == "mine"
    called("init", "net.py:Net", "--overwrite")
    assert (folder / "bnas.yaml").read_text().startswith("# Configuration of a bnas run")
    assert "choose a name that ends in .yaml" in called("init", "net.py:Net", "-o", "net.py", code=1)
    assert "the folder nowhere does not exist" in called("init", "net.py:Net", "-o", "nowhere/bnas.yaml", code=1)


def test_names_are_relative_to_the_file(folder: Path, called: Called) -> None:
    (folder / "settings").mkdir()
    called("init", "net.py:Net", "--data", "net.py:data", "--weights", "net.pt", "-o", "settings/first.yaml")
    found = load_config("settings/first.yaml")
    assert (found.model, found.data, found.weights) == ("../net.py:Net", "../net.py:data", "../net.pt")


# What it guesses, and what it says of it.


def test_without_data_the_file_says_what_is_needed(folder: Path, called: Called) -> None:
    told = called("init", "net.py:Net")
    assert "1,1,224,224 (a guess: the model accepts it; no data were given to compare with)" in told
    assert "without your data. Set `data` in it, then: `bnas run bnas.yaml`" in told
    assert "# REQUIRED: set your data here; bnas init was called without --data." in (folder / "bnas.yaml").read_text()
    assert "data is missing" in called("run", "bnas.yaml", code=1)


def test_images_get_a_size_that_the_model_takes_and_the_model_their_classes(folder: Path, called: Called) -> None:
    images(folder / "images", classes=3)
    told = called("init", "net.py:Fixed", "--data", "images")
    assert "resized to 32 x 32 (a guess: the first size that the model accepts)" in told
    assert "outputs: 3 for 3 classes (sure: read from the data)" in told
    assert "num_classes: 3, so that the model has one output for each class of the data" in told
    found = load_config("bnas.yaml")
    assert (found.data_options, found.num_classes) == ({"size": 32}, 3)
    assert found.input_info[0].sample_size == (1, 3, 32, 32)


def test_images_get_their_common_size_where_the_model_takes_any(folder: Path, called: Called) -> None:
    images(folder / "images", size=40)
    told = called("init", "resnet18", "--data", "images", "-o", "r.yaml")
    assert "resized to 40 x 40 (a guess: of 16 images that were looked at, all are 40 x 40)" in told
    assert "if the model was trained on images of another size, set data_options: {size: N}" in told
    found = load_config("r.yaml")
    assert (found.num_classes, found.data_options) == (2, {"size": 40})
    assert found.input_info[0].sample_size == (1, 3, 40, 40)


@pytest.mark.parametrize(
    ("sizes", "side", "why"),
    [
        ([(28, 28)] * 3, 28, "of 3 images that were looked at, all are 28 x 28"),
        ([(100, 150), (130, 90), (120, 170)], 96, "the middle one is 100 x 150"),
        ([(30, 40), (31, 41), (29, 39)], 24, "the middle one is 30 x 40"),
        ([(500, 375), (640, 480)], 224, "it is the usual size; of 2 images that were looked at"),
        ([(5, 5), (6, 6)], 6, "the middle one is 6 x 6"),
    ],
)
def test_the_size_of_images_is_near_the_shorter_side_of_most(
    sizes: list[tuple[int, int]], side: int, why: str, tmp_path: Path
) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / "images" / "a" / f"{number}.png")
    found = usual_size(tmp_path / "images")
    assert found is not None
    assert found.side == side
    assert why in found.why


def test_of_many_images_a_few_all_over_the_folder_are_looked_at(tmp_path: Path) -> None:
    images(tmp_path / "images", classes=2, each=40, size=30)
    for number in range(5, 40, 5):
        (tmp_path / "images" / "a" / f"{number}.png").write_bytes(b"no image")
    found = usual_size(tmp_path / "images")
    assert found is not None
    assert re.fullmatch(r"of 1\d images that were looked at, all are 30 x 30", found.why)
    for number in range(40):
        Image.new("RGB", (90, 90)).save(tmp_path / "images" / "b" / f"large{number}.png")
    mixed = usual_size(tmp_path / "images")
    assert mixed is not None
    assert mixed.why != found.why, "those of the second class are looked at too"


def test_arrays_keep_their_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    assert usual_size(tmp_path / "x.npz") is None


def test_several_inputs_are_those_of_the_batch(folder: Path, called: Called) -> None:
    told = called("init", "net.py:Words", "--data", "net.py:tokens")
    assert "2 inputs of input_ids=1,4:int64[0..7] and attention_mask=1,4:int64[1..1] (sure" in told
    found = load_config("bnas.yaml")
    assert [(one.keyword, one.type, one.range) for one in found.input_info] == [
        ("input_ids", "int64", (0, 7)),
        ("attention_mask", "int64", (1, 1)),
    ]
    assert found.recipe.optimizer == "adamw"
    assert found.recipe.clip_norm == CLIP_NORM
    written = (folder / "bnas.yaml").read_text()
    assert "# A guess: the model has LayerNorm" in written
    assert "range: [0, 7]" in written, "whole numbers stay whole"


def test_columns_of_a_table_have_categories_of_their_own(folder: Path, called: Called) -> None:
    """A random example must fit each column; sequences keep the whole range of the batch."""
    told = called("init", "net.py:Table", "--data", "net.py:table")
    assert "2 inputs of 1,4 and 1,3:int64[0..2] (sure" in told
    file = load_config(folder / "bnas.yaml")
    assert file.input_info[1].range == (0, 2)
    both = torch.tensor([[0, 5], [9, 2]])
    splits = Splits([], [(both, torch.tensor([0, 1]))], [])
    assert guess(nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 2)), splits).inputs[0].range == (0, 9)
    refused = r"IndexError: .*Give shape, type and range of each input: --input '1,2:int64\[2..5\]'"
    with pytest.raises(GuessError, match=refused):
        guess(nn.Sequential(nn.Embedding(4, 4), nn.Flatten(), nn.Linear(8, 2)), splits)


def test_known_data_have_their_name(folder: Path, called: Called) -> None:
    told = called("init", "net.py:Net", "--data", "digits")
    assert "num_classes: 10" in told
    found = load_config("bnas.yaml")
    assert (found.dataset, found.data, found.num_classes) == ("digits", None, 10)
    assert 'dataset: "digits"' in (folder / "bnas.yaml").read_text()


def test_what_does_not_fit_is_told(folder: Path, called: Called) -> None:
    told = called("init", "resnet18_cifar10", "--data", "digits", code=1)
    assert "the data give 1,1,8,8, but the model does not accept it: RuntimeError: Given groups=1" in told
    told = called("init", "net.py:Words", "--data", "net.py:data", code=1)
    assert "the model does not accept it" in told
    images(folder / "images", classes=3)
    told = called("init", "torchvision:resnet18", "--input", "1,3,x", code=1)
    assert "is not a shape" in told
    assert not (folder / "bnas.yaml").exists()


def test_a_model_with_too_few_outputs_is_told(folder: Path, called: Called) -> None:
    text = "class Two(Net):\n    def __init__(self):\n        super().__init__(2)\n"
    with (folder / "net.py").open("a") as file:
        file.write(text)
    told = called("init", "net.py:Two", "--data", "net.py:data", code=1)
    assert "net.py:Two has 2 outputs, but the data net.py:data have at least 3 classes" in told


@pytest.mark.parametrize(
    ("model", "shape", "kind"),
    [
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
            (1, 3, 224, 224),
            None,
        ),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 4)), (1, 3, 28, 28), None),
        (nn.Sequential(nn.Conv1d(5, 8, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), (1, 5, 16), None),
        (nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4)), (1, 16), "int64"),
        (nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 4)), (1, 7), None),
        (nn.GRU(6, 8, batch_first=True), (1, 16, 6), None),
    ],
)
def test_a_model_says_what_it_takes(model: nn.Module, shape: tuple[int, ...], kind: str | None) -> None:
    found = guess(model.eval())
    assert (found.inputs[0].shape, found.inputs[0].type, found.sure) == (shape, kind, False)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    guess(model)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_a_model_that_says_nothing_needs_a_shape() -> None:
    with pytest.raises(GuessError, match="give it: --input SHAPE"):
        guess(nn.ReLU())
    assert guess(nn.ReLU(), given=[Input((1, 3))]).sure
    with pytest.raises(GuessError, match="the input is 1,3, but the model does not accept it"):
        guess(nn.Linear(4, 2), given=[Input((1, 3))])


def test_targets_that_are_no_class_numbers_say_nothing_of_classes() -> None:
    x = torch.zeros(2, 4)
    for targets in (torch.zeros(2, 3), torch.zeros(2), torch.zeros(0, dtype=torch.long)):
        assert classes_of(Splits([(x, targets)], [(x, targets)], [])) == (None, False)
    assert classes_of(Splits([], [(x, torch.tensor([0, 4]))], [])) == (5, False)
    assert classes_of(Splits([], [], [], {"classes": 7})) == (7, True)


def test_where_accuracy_does_not_fit_loss_and_metric_are_required(folder: Path, called: Called) -> None:
    out = called("init", "net.py:Curve", "--data", "net.py:curves")
    assert "loss and metric: set `criterion` and `metric`" in out
    assert "without your loss and metric. Set both in it, then: `bnas run bnas.yaml`" in out
    assert "# REQUIRED: set both here" in (folder / "bnas.yaml").read_text()
    assert "Set what is REQUIRED below, then run it: `bnas run bnas.yaml`" in (folder / "bnas.yaml").read_text()
    out = called("init", "net.py:Words", "--data", "net.py:tokens", "--overwrite")
    assert "loss and metric" not in out
    assert "REQUIRED" not in (folder / "bnas.yaml").read_text()
    assert "You can run it unchanged: `bnas run bnas.yaml`" in (folder / "bnas.yaml").read_text()


def test_an_autoencoder_is_no_classification_though_its_validation_targets_are_whole_numbers(called: Called) -> None:
    """The twin learns from probabilities, as mixed images do."""
    assert "loss and metric: set `criterion` and `metric`" in called(
        "init", "net.py:Rows", "--data", "net.py:anomalies"
    )
    out = called("init", "net.py:Rows", "--data", "net.py:mixed", "--overwrite")
    assert "loss and metric" not in out


def test_weights_that_guess_are_told(folder: Path, called: Called) -> None:
    """Of a model for other classes, for images with another normalisation, or of embeddings."""
    told = {}
    for favourite in (5, 1):
        torch.save({"weight": torch.zeros(6, 6), "bias": torch.eye(6)[favourite]}, folder / f"{favourite}.pt")
        named = ("--data", "net.py:ten", "--overwrite", "--weights", f"{favourite}.pt")
        told[favourite] = called("init", "net.py:Rows", *named)
    assert "accuracy: 10.0 % on the first validation batch, hardly better than guessing" in told[5]
    assert "check that 5.pt fits the model" in told[5]
    assert "guessing" not in told[1]


def test_a_model_without_trained_weights_is_told(called: Called) -> None:
    """The twin's factory gives weights that do not guess."""
    out = called("init", "net.py:Guesses", "--data", "net.py:ten")
    assert "accuracy: 10.0 % on the first validation batch, hardly better than guessing" in out
    assert "--weights FILE" in out
    assert "guessing" not in called("init", "net.py:Knows", "--data", "net.py:ten", "--overwrite")


def test_names_in_the_file_are_text_whatever_they_are() -> None:
    hostile = 'a"b: #c.py:F\n#x'
    found = guess(nn.Linear(4, 2))
    read = yaml.safe_load(Proposal(hostile, found, hostile, command=hostile, file=hostile).text())
    assert (read["model"], read["data"]) == (hostile, hostile)
    assert not is_like_a_transformer(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4)))
