"""What is on disk of a training, and what is not taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import batches, plain, same, supernet, tensors

from bnas.passes import BnasError
from bnas.runtime import CheckpointError, Distillation, Recipe, Stage, SuperNetwork, Trainer, TrainingError
from bnas.runtime.storage.archive import SEAL, sealed
from bnas.runtime.storage.checkpoint import optimizer_state
from bnas.runtime.storage.files import checksum

STAGES = [Stage(("depth",)), Stage()]
RECIPE = plain(ema_decay=0.5)


def fit(folder: Path, net: SuperNetwork | None = None, resume: bool = True, count: int = 3, **options: Any) -> Any:
    settings: dict[str, Any] = {"stages": STAGES, "recipe": RECIPE, **options}
    net = net or supernet()
    Trainer(net, directory=folder, **settings).fit(batches(count), resume=resume)
    return tensors(net)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fit(tmp_path, resume=False)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, message: str, **options: Any) -> None:
    """The training is refused with `message`, and neither the files nor the network are changed."""
    before, net = content(folder), options.pop("net", None) or supernet()
    weights = tensors(net)
    with pytest.raises(CheckpointError, match=message):
        fit(folder, net, **options)
    assert content(folder) == before
    assert same(tensors(net), weights)
    assert not net.training


def test_what_is_there_is_whole(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["best", "history.json", "last"]
    assert len(list((folder / "last").iterdir())) == len(list((folder / "best").iterdir())) == 2
    assert same(tensors(SuperNetwork.load(folder / "best", supernet(seed=4).model)), fit(folder))


def test_directory_with_a_training_is_not_overwritten(folder: Path) -> None:
    refused(folder, "holds a training already: resume it", resume=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": plain(ema_decay=0.9)}, "ema_decay was 0.5 when .* is now 0.9"),
        ({"recipe": plain(ema_decay=0.5, seed=1)}, "seed was 0 when .* is now 1"),
        ({"recipe": plain(ema_decay=0.5, distillation=Distillation())}, r"distillation was None when .* is now \{"),
        ({"stages": [Stage(("depth",)), Stage(sample_rate=2)]}, r"stages\[1\] was \{.* is now \{.*'sample_rate': 2"),
        ({"stages": [Stage()]}, r"stages\[0\] was"),
        ({"stages": [*STAGES, Stage()]}, r"stages\[2\] was None when .* is now \{"),
        ({"count": 4}, "batches was 3 when .* is now 4"),
        ({"optimizer": lambda p: torch.optim.AdamW(p, 0.01)}, "optimizer was .*SGD.* is now .*AdamW"),
        (
            {"optimizer": lambda p: torch.optim.SGD(p, 0.02, 0.9, nesterov=True)},
            "optimizer was .*0.01.* is now .*0.02",
        ),
    ],
)
def test_other_settings_name_the_key(folder: Path, options: dict[str, Any], message: str) -> None:
    refused(folder, message, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: supernet(seed=1), "its weights differ"),
        (lambda: supernet(width=24), r"stem.weight \(16, 1, 3, 3\) instead of \(24, 1, 3, 3\)"),
        (lambda: supernet(norm=False), "unexpected: norm1.bias"),
        (lambda: supernet(elasticity={"dimensions": ("depth", "width"), "min_width": 16}), "space was .* and is now"),
    ],
)
def test_another_model_is_told(folder: Path, make: Callable[[], SuperNetwork], message: str) -> None:
    refused(folder, message, net=make())


def manifest(folder: Path) -> Path:
    return folder / "last" / "training.json"


def weights(folder: Path) -> Path:
    (path,) = (folder / "last").glob("*.safetensors")
    return path


def edited(folder: Path, **changes: Any) -> None:
    path = manifest(folder)
    data = {**json.loads(path.read_text()), SEAL: None, **changes}
    path.write_text(json.dumps(sealed({key: value for key, value in data.items() if value is not None})))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edited(f, format=99), "has an unknown format; this version of bnas reads format 1"),
        (lambda f: edited(f, state=None), "is damaged: 'state' is missing"),
        (lambda f: edited(f, sha256="0"), "is damaged: its checksum"),
        (lambda f: manifest(f).write_text(manifest(f).read_text()[:-100]), "training.json is damaged"),
        (lambda f: manifest(f).write_text("[]"), "has an unknown format"),
        (
            lambda f: weights(f).write_bytes(weights(f).read_bytes()[:-1]),
            r"is damaged: its checksum .*; restore it from a backup, or move \S+ away",
        ),
        (lambda f: weights(f).write_bytes(b""), "is damaged: its checksum"),
        (lambda f: weights(f).unlink(), "is missing; training.json names it"),
    ],
    ids=["format", "key", "checksum", "cut", "list", "cut-weights", "empty-weights", "no-weights"],
)
def test_damage_is_told(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    refused(folder, message)


def test_undamaged_one_is_taken(folder: Path) -> None:
    edited(folder)
    assert same(fit(folder), fit(folder))


def test_what_is_no_training_is_begun_over(tmp_path: Path) -> None:
    """Such as a write that was interrupted before the manifest."""
    (tmp_path / "last").mkdir(parents=True)
    former = tmp_path / "last" / f"training-{checksum(b'whole')[:12]}.safetensors"
    former.write_bytes(b"whole")
    fit(tmp_path, resume=False)
    assert weights(tmp_path) != former


def test_a_file_that_is_only_called_so_stays(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir(parents=True)
    mine = tmp_path / "last" / "training-000000000000.safetensors"
    mine.write_bytes(b"mine")
    fit(tmp_path, resume=False)
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["history.json", "best/supernet.json", "last/training.json"])
def test_a_file_of_the_user_in_the_way_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('{"my": "only copy"}')
    with pytest.raises(
        BnasError, match=rf"{name.rpartition('/')[2]} (exists, but bnas did not write it|has an unknown)"
    ):
        fit(tmp_path, resume=name.startswith("last"))
    assert (tmp_path / name).read_text() == '{"my": "only copy"}'


class Odd(torch.optim.SGD):
    """Keeps something that no file can hold."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["thing"] = object()
        return super().step(closure)


def test_optimizer_that_cannot_be_saved_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the state of Odd has parts that are neither tensors nor numbers"):
        fit(tmp_path, optimizer=lambda p: Odd(p, 0.1))
    layer = torch.nn.Linear(1, 1)
    assert optimizer_state(torch.optim.SGD(layer.parameters(), 0.1))[0] == {}


def test_nan_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    data = batches(3)
    Trainer(supernet(), STAGES, RECIPE, directory=tmp_path, checkpoint_every=1).fit(data[:3])
    poisoned = [*data[:2], (data[2][0] * float("nan"), data[2][1])]
    other = tmp_path / "other"
    net = supernet()
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 2 \(epoch 0, batch 2\), of sub-network \{'widths'"
    ):
        Trainer(net, STAGES, RECIPE, directory=other, checkpoint_every=1).fit(poisoned)
    assert json.loads(manifest(other).read_text())["state"]["schedule"]["taken"] == 2
    resumed = supernet()
    Trainer(resumed, STAGES, RECIPE, directory=other, checkpoint_every=1).fit(data, resume=True)
    whole = supernet()
    Trainer(whole, STAGES, RECIPE).fit(data)
    assert same(tensors(resumed), tensors(whole))
    assert all(tensor.isfinite().all() for tensor in tensors(resumed).values())


def test_recipe_is_a_value_of_json(folder: Path) -> None:
    saved = json.loads(manifest(folder).read_text())["settings"]
    assert saved["ema_decay"] == RECIPE.ema_decay
    assert set(vars(Recipe())) <= set(saved)
