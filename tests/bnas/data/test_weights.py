"""Weights as training scripts leave them, and models by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from bnas.data.models import ModelError, named
from bnas.data.sources import WeightsError, WeightsWarning, load_model, read_weights
from bnas.runtime import CheckpointError

NET = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
STATE = NET.state_dict()


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (STATE, ()),
        ({"state_dict": STATE, "epoch": 3, "name": "x"}, ("the key 'state_dict'",)),
        ({"model": prefixed("module."), "optimizer": {"lr": 0.1}}, ("the key 'model'", "removed the prefix 'module.'")),
        (prefixed("module._orig_mod."), ("removed the prefix 'module.'", "removed the prefix '_orig_mod.'")),
        ({"state_dict": prefixed("model.")}, ("the key 'state_dict'", "removed the prefix 'model.'")),
    ],
)
def test_wrappers_are_recognised_and_said(tmp_path: Path, saved: Any, said: tuple[str, ...]) -> None:
    torch.save(saved, tmp_path / "w.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert same(read_weights(tmp_path / "w.pt", STATE))
    assert len(caught) == len(said)
    for one, part in zip(caught, said, strict=True):
        assert one.category is WeightsWarning
        assert part in str(one.message)


def test_names_that_are_the_models_own_stay(tmp_path: Path) -> None:
    safetensors.torch.save_file(prefixed("model."), tmp_path / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_weights(tmp_path / "w.safetensors", prefixed("model."))
    assert found.keys() == prefixed("model.").keys()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no archive", "cannot be read as tensors"),
        ({"epoch": 3}, "found a dictionary of epoch"),
        ([1, 2], "found a list"),
        ({}, "found a dictionary of"),
        (nn.Linear(2, 2), "cannot be read as tensors"),  # a whole module is a pickle of code
    ],
)
def test_other_files_are_told(tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=reason):
        read_weights(path)
    with pytest.raises(WeightsError, match="there is no such file"):
        read_weights(tmp_path / "none.pt")


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt"):
        load_model("resnet18", Path("w.pt"), tmp_path)


def test_models_have_names(tmp_path: Path) -> None:
    for name in ("resnet18", "torchvision:resnet18"):
        assert load_model(name, num_classes=7).fc.out_features == 7
    small = load_model("resnet18_cifar10")
    assert (small.conv1.kernel_size, small.conv1.stride, small.fc.out_features) == ((3, 3), (1, 1), 10)
    assert small(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert not small.training
    with pytest.raises(ModelError, match="torchvision has no model 'resnet5'; did you mean 'resnet50'"):
        named("resnet5")
