"""What models of further libraries do, as minimal modules: padding, tried keywords, random numbers, kept tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bnas
from bnas import Elasticity, SuperNetwork
from bnas.passes import CaptureError, LoweringError, VerificationError
from bnas.passes.frontend import front
from bnas.testing import assert_maximal_is_original


class PaddedWhereItMustBe(nn.Module):
    """A U-Net that repeats the last row or column where halves were rounded down."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(levels))
        self.up = nn.ModuleList(nn.ConvTranspose2d(8, 8, 2, 2) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.stem(x)]
        for down in self.down:
            levels.append(down(F.max_pool2d(levels[-1], 2)))
        y = levels.pop()
        for up in self.up:
            y, beside = up(y), levels.pop()
            pads = [int(y.shape[axis] != beside.shape[axis]) * side for axis in (3, 2) for side in (0, 1)]
            y = F.pad(y, pads, "replicate") + beside
        return y


def test_a_size_at_which_a_graph_was_wrong_is_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for levels in (1, 2, 3):
        model = PaddedWhereItMustBe(levels).eval()
        supernet = SuperNetwork.from_model(model, torch.randn(2, 1, 48, 48))
        assert supernet.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
        for height, width in itertools.product((24, 31, 37, 50, 64, 91), (27, 44, 49, 70, 102)):
            assert_maximal_is_original(supernet, torch.randn(1, 1, height, width))
    monkeypatch.setattr(front, "LEARNT", 0)
    assert "width" not in SuperNetwork.from_model(model, torch.randn(2, 1, 48, 48)).dynamic["x"].values()


class Triple(nn.Linear):
    """A layer of a user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3


class TriesLengths(nn.Module):
    """Gives each layer the lengths, and calls those again that do not take them, as speech models do."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 16), Triple(16, 16), nn.Linear(16, 4)])
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer() if self.wrong else layer(x)
        return x


def test_a_call_with_a_keyword_too_many_may_be_tried() -> None:
    supernet, x = SuperNetwork.from_model(TriesLengths().eval(), torch.randn(2, 6)), torch.randn(3, 6)
    assert set(supernet.space.widths) == {"layers.0", "layers.1"}
    assert_maximal_is_original(supernet, x)
    with pytest.raises(CaptureError, match=r"x = layer\(\) if self.wrong.*missing . required positional argument"):
        SuperNetwork.from_model(TriesLengths(wrong=True).eval(), x)


class Anchors(nn.Module):
    """Scales each place of a map of features by its stride, a tensor of one number that fills another tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.head, self.kind = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 4, 1), kind
        if kind == "buffer":
            self.register_buffer("strides", torch.tensor([2.0, 4.0]))
        else:
            self.strides = torch.tensor([2.0, 4.0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.relu(self.stem(x))).flatten(2)
        size, stride = (1, y.shape[2]), self.strides[0]
        if self.kind == "full":
            return y * torch.full(size, stride, dtype=x.dtype, device=x.device)
        if self.kind == "like":
            return y * torch.full_like(y, fill_value=stride) + torch.full_like(y, stride, dtype=torch.int64)
        return y * y.new_full(size, stride)


@pytest.mark.parametrize("kind", ["full", "new", "like", "buffer"])
def test_a_tensor_may_be_filled_with_the_number_of_another(kind: str, tmp_path: Path) -> None:
    supernet, x = SuperNetwork.from_model(Anchors(kind).eval(), torch.randn(2, 3, 16, 16)), torch.randn(3, 3, 20, 26)
    assert supernet.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    assert_maximal_is_original(supernet, x)
    part = supernet.extract(supernet.space.minimal())
    assert bnas.export_onnx(part, tmp_path / "anchors.onnx", x).fallback is None


class Sampled(nn.Module):
    """A variational autoencoder: the code is drawn in evaluation mode too, and each call draws another one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mean, self.spread, self.head = (
            nn.Linear(*sizes) for sizes in ((4, 16), (16, 6), (16, 6), (6, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        spread = self.spread(y)
        return self.head(self.mean(y) + torch.randn_like(spread) * spread.exp())


def test_a_model_that_draws_numbers_is_verified_with_the_same_ones() -> None:
    model, x = Sampled().eval(), torch.randn(3, 4)
    supernet = SuperNetwork.from_model(model, x, Elasticity(pin=["mean", "spread"]))
    assert bnas.verify(model, supernet, supernet.space.minimal(), x) < 1e-12
    supernet = SuperNetwork.from_model(model, x, Elasticity(min_width=2, divisor=2))
    with pytest.raises(VerificationError, match="draws random numbers in evaluation mode"):
        bnas.verify(model, supernet, supernet.space.minimal(), x)


def test_a_file_of_a_model_that_draws_numbers_is_not_taken_for_right(tmp_path: Path) -> None:
    supernet = SuperNetwork.from_model(Sampled().eval(), torch.randn(3, 4))
    with pytest.warns(UserWarning, match="randn_like"), pytest.raises(LoweringError, match="two calls of the model"):
        bnas.export_onnx(supernet.extract(supernet.space.maximal()), tmp_path / "sampled.onnx", torch.randn(3, 4))
    assert not list(tmp_path.iterdir())


class KeptGrid(nn.Module):
    """Holds its tables as attributes and not as buffers, as registration networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 4)
        self.tables = {"grid": torch.rand(4, 9)}

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("qi,bq->bi", self.tables["grid"], self.head(torch.relu(self.stem(x))))


def test_a_table_that_is_no_buffer_is_verified_in_double_precision_too() -> None:
    model, x = KeptGrid().eval(), torch.randn(2, 6)
    grid, before = model.tables["grid"], model.tables["grid"].clone()
    supernet = SuperNetwork.from_model(model, x)
    assert bnas.verify(model, supernet, supernet.space.minimal(), x) < 1e-12
    assert model.tables["grid"] is grid
    assert grid.dtype == torch.float32
    torch.testing.assert_close(grid, before, rtol=0, atol=0)
