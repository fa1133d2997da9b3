"""What replaces a skipped block: plain modules of PyTorch, so that a file of the whole model needs no bnas."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from form_cases import FINE, assert_is_graph, copies, run
from torch import Tensor, nn

from bnas import SuperNetwork
from bnas.passes.modules.removal import Called, skipped

SEVERAL = """
import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 16)

    def forward(self, x, scale):
        return x + scale * self.body(x).relu()


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 32)

    def forward(self, x):
        return self.up(x).relu(), None


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain, self.stem, self.head = Scaled(), nn.Linear(6, 16), nn.Linear(16, 3)
        self.named, self.words = Scaled(), nn.Embedding(9, 16)
        self.branch, self.narrow = Wide(), nn.Linear(32, 16)

    def forward(self, x, ids):
        x = self.plain(self.stem(x), 2.0).sin()
        x = self.named(scale=2.0, x=x).sin()
        x = (x + self.narrow(self.branch(x)[0])).sin()
        return self.head(x + self.words(ids))
"""
ALONE = """
import sys

sys.modules["bnas"] = None  # an import of bnas is an error
import torch

module, inputs, expected = torch.load("whole.pt", weights_only=False)
torch.testing.assert_close(module(*inputs), expected)
"""


def test_a_file_with_skipped_blocks_needs_no_bnas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "skipping_network.py").write_text(SEVERAL)
    monkeypatch.syspath_prepend(tmp_path)
    model, inputs = importlib.import_module("skipping_network").Several().eval(), (torch.randn(4, 6), torch.arange(4))
    supernet = SuperNetwork.from_model(model, inputs, FINE)
    subnet = replace(supernet.space.minimal(), skipped=frozenset(supernet.space.blocks))
    made: Any = assert_is_graph(supernet, subnet, *inputs)
    assert not [name for name in made.state_dict() if name.startswith(("plain", "named", "branch", "narrow"))]
    for shift, status in ((0, 0), (1, 1)):
        torch.save((made, inputs, run(made, *inputs) + shift), tmp_path / "whole.pt")
        done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr


@pytest.mark.parametrize(
    ("layer", "value", "shape"),
    [
        pytest.param(nn.LayerNorm(4), torch.randn(2, 4), (2, 4), id="of the same shape"),
        pytest.param(nn.Linear(4, 6), torch.randn(2, 3, 4), (2, 3, 6), id="of another width"),
        pytest.param(nn.Embedding(9, 6), torch.arange(3), (3, 6), id="of an embedding"),
    ],
)
def test_zeros_have_the_shape_and_type_of_the_result(layer: nn.Module, value: Tensor, shape: tuple[int, ...]) -> None:
    double = skipped(layer, True, Called()).double()
    made = skipped(layer, True, Called((1, "x", 1), alone=False, results=3))
    for module in (made, *copies(made)):
        first, *rest = module(x=[0, value])
        torch.testing.assert_close(first, torch.zeros(shape))
        assert rest == [None, None]
    assert double(value.double() if value.is_floating_point() else value).dtype == torch.float64
    assert not made.state_dict()


def test_what_replaces_a_module_has_its_plain_attributes() -> None:
    layer = nn.Linear(4, 6)
    for zeros in (False, True):
        made: Any = skipped(layer, zeros, Called())
        assert (made.in_features, made.out_features) == (4, 6)
    assert type(skipped(layer, False, Called())) is nn.Identity
    assert type(skipped(layer, False, Called(results=1))) is not nn.Identity
