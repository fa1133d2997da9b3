"""What models of other libraries do, as minimal modules: each is its graph at sizes that were not recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import bnas
from bnas import SuperNetwork
from bnas.passes import CaptureError, InputError
from bnas.passes.frontend import front, functions, recipes
from bnas.passes.frontend.chains import FAMILIES, chains
from bnas.passes.frontend.structure import tensors_of
from bnas.testing import assert_maximal_is_original


class GroupDeviation(nn.Module):
    """Divides by a deviation that is expanded to the sizes before it, after two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = layer(x)
            b, c, h, w = x.shape
            grouped = x.view(b, 2, c // 2, h, w)
            deviation = (grouped.var((2, 3, 4), keepdim=True) + 1e-5).sqrt()
            x = x / deviation.expand(b, 2, c // 2, h, w).reshape(b, c, h, w)
        return x


class PaddedWindows(nn.Module):
    """Pads to a multiple of seven, takes windows apart, and puts them together again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        below, right = (7 - h % 7) % 7, (7 - w % 7) % 7
        x = F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x
        rows, columns = (h + below) // 7, (w + right) // 7
        windows = x.view(b, rows, 7, columns, 7, c).transpose(2, 3).reshape(b * rows * columns, 49, c)
        windows = windows - self.inner(windows).mean(1, keepdim=True)
        x = windows.view(b, rows, columns, 7, 7, c).transpose(2, 3).reshape(b, h + below, w + right, c)
        return x[:, :h, :w].contiguous()


class FourierPositions(nn.Module):
    """Counts rows and columns from 1, and divides by the last number."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        h, w = x.shape[-2:]
        rows = torch.arange(1, h + 1, device=x.device).float().unsqueeze(1).repeat(1, 1, w)
        columns = torch.arange(1, w + 1, device=x.device).float().repeat(1, h, 1)
        return x + (rows / rows[:, -1:]).sin() + (columns / columns[:, :, -1:]).cos()


class RelativeTable(nn.Module):
    """Resizes a table to twice the patches less one, along each axis."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.table = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 8, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        size = (2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        table = F.interpolate(self.table, size=size, mode="bilinear")
        return x * table[:, :, : x.shape[2], -x.shape[3] :]


class ResizedToSkip(nn.Module):
    """A U-Net whose decoder resizes to the sizes of the encoder's features."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(n, 8, 3, 2, 1) for n in (3, 8, 8, 8))
        self.up = nn.ModuleList(nn.Conv2d(16, 8, 3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for layer in self.down:
            x = layer(x)
            features.append(x)
        for layer, skip in zip(self.up, features[-2::-1], strict=True):
            x = F.interpolate(x, size=(skip.shape[2], skip.shape[3]), mode="nearest")
            x = layer(torch.cat([x, skip], 1))
        return x


class Limited(nn.Module):
    """Pads what is missing to 24 steps, and takes the last 12 at most."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        missing = max(0, 24 - x.shape[1])
        padded = F.pad(x, (0, 0, 0, missing))
        return self.inner(padded[:, -min(x.shape[1], 12) :]).mean(1)


class Scaled(nn.Module):
    """Resizes by factors that are quotients of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.table = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        factors = (x.shape[2] / 4, x.shape[3] / 4)
        return x + F.interpolate(self.table, scale_factor=factors, mode="nearest")


def images(*sizes: int) -> Tensor:
    return torch.randn(3 if sizes == (32, 32) else 2, 3, *sizes)


@pytest.mark.parametrize(
    "net",
    [GroupDeviation, PaddedWindows, FourierPositions, RelativeTable, ResizedToSkip, Scaled],
    ids=lambda net: net.__name__,
)
def test_image_sizes_are_dynamic(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(net().eval(), images(32, 32))
    assert supernet.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    for sizes in ((32, 32), (48, 40), (33, 47), (70, 29), (56, 98)):
        assert_maximal_is_original(supernet, images(*sizes))


def test_limits_of_a_length_hold_on_both_sides_or_are_refused() -> None:
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(Limited().eval(), torch.randn(2, 16, 4))
    for length in (16, 12, 20, 24, 9, 40):
        try:
            assert_maximal_is_original(supernet, torch.randn(3, length, 4))
        except InputError:
            assert length != 16


class Positions(nn.Module):
    """A table of positions that is as long as the example."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, 8), nn.Embedding(16, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))


def test_a_length_is_dynamic_although_the_example_is_the_longest() -> None:
    supernet = SuperNetwork.from_model(Positions().eval(), torch.randint(20, (2, 16)))
    assert supernet.dynamic == {"tokens": {0: "batch", 1: "length"}}
    for length in (16, 5, 1):
        assert_maximal_is_original(supernet, torch.randint(20, (3, length)))


class Masked(nn.Module):
    """A mask of ones of the sizes of the image, whose sums are positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[0], *x.shape[2:], device=x.device)
        return self.stem(x) + mask.cumsum(1).unsqueeze(1)


def test_a_tensor_that_is_too_large_at_one_size_is_a_node_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "LARGE", functions.BATCH * 33 * 33)
    supernet = SuperNetwork.from_model(Masked().eval(), images(32, 32))
    assert supernet.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    assert_maximal_is_original(supernet, images(20, 45))


class Windows(nn.Module):
    """Samples a map of features in a window around each place, as networks for optical flow do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, (height, width) = len(x), x.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([columns, rows], -1).float().expand(batch, height, width, 2)
        steps = torch.linspace(-1, 1, 9).view(9, 1)
        windows = places.reshape(batch, -1, 1, 2) + steps  # here they grow
        found = F.grid_sample(torch.relu(self.stem(x)), windows / height - 0.5, align_corners=False)
        return self.head(found.mean(-1, keepdim=True))


@pytest.mark.parametrize("large", [recipes.LARGE, functions.BATCH * 8 * 8 * 4])
def test_what_grows_beyond_a_size_is_a_node(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    noted = recipes.Recipes._noted_cold

    def counted(self: Any, target: Any, args: Any, kwargs: Any, result: Any, *rest: Any, **named: Any) -> Any:
        made.extend(one.untyped_storage().nbytes() // one.itemsize for one in tensors_of(result))
        return noted(self, target, args, kwargs, result, *rest, **named)

    monkeypatch.setattr(recipes.Recipes, "_noted_cold", counted)
    monkeypatch.setattr(recipes, "LARGE", large)
    supernet = SuperNetwork.from_model(Windows().eval(), images(8, 8))
    assert max(made) <= large
    assert supernet.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    assert_maximal_is_original(supernet, images(12, 21))


class Nested(nn.Module):
    """Takes a tensor out of a list in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, given: dict[str, list[Tensor]]) -> Tensor:
        return self.head(self.inner(given["x"][0]).relu())


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        pytest.param({"x": [torch.randn(3, 7)]}, r"given\['x'\]\[0\].*axis 1 has size 7, expected 6", id="size"),
        pytest.param({"x": []}, r"given\['x'\].*has 0 entries, expected 1", id="length"),
        pytest.param({"x": None}, r"given\['x'\].*must be a list as in the example, not NoneType", id="no-list"),
        pytest.param({"y": []}, r"given.*no part 'x'", id="structure"),
    ],
)
def test_tensors_inside_an_input_are_checked(bad: Any, told: str) -> None:
    supernet = SuperNetwork.from_model(Nested(), ({"x": [torch.randn(2, 6)]},))
    program = supernet.program(supernet.space.maximal())
    assert program({"x": [torch.randn(5, 6)]}).shape == (5, 3)
    with pytest.raises(InputError, match=told):
        program(bad)


class FrozenNorm(nn.Module):
    """A batch norm of buffers only, written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean"):
            self.register_buffer(name, torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean = (one.view(1, -1, 1) for one in (self.weight, self.bias, self.mean))
        return (x - mean) * weight + bias


class Residual(nn.Module):
    """A shortcut around layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def bodies() -> Iterator[Any]:
    def conv() -> nn.Conv1d:
        return nn.Conv1d(8, 8, 3, padding=1)

    made: dict[str, Sequence[nn.Module]] = {
        "frozen-norm": (conv(), FrozenNorm(8), nn.ReLU(), conv(), FrozenNorm(8)),
        "weight-norm": (weight_norm(conv()), nn.ReLU(), weight_norm(conv())),
        "spectral-norm": (spectral_norm(conv()), nn.ReLU(), spectral_norm(conv())),
    }
    yield from (pytest.param(layers, id=name) for name, layers in made.items())


@pytest.mark.parametrize("layers", list(bodies()))
def test_skipped_blocks_equal_the_oracle(layers: Sequence[nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), Residual(*layers), nn.Conv1d(8, 3, 1)).eval()
    inputs = torch.randn(2, 4, 10)
    supernet = SuperNetwork.from_model(net, inputs)
    subnet = supernet.space.minimal()
    assert subnet.skipped
    assert bnas.verify(net, supernet, subnet, inputs) <= 1e-12
    skipped = nn.Sequential(net[0], net[1], net[3])
    small = supernet.space.maximal().__class__(supernet.space.maximal().widths, subnet.skipped)
    with torch.no_grad():
        torch.testing.assert_close(supernet.eval().program(small)(inputs), skipped(inputs))


class Root(nn.Module):
    """Gives what is no number for some samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)).log()


def test_verify_tells_what_is_no_number_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, inputs = Root().eval(), torch.randn(8, 4)
    supernet = SuperNetwork.from_model(net, inputs)
    subnet = supernet.space.sample(np.random.default_rng(0))
    assert bnas.verify(net, supernet, subnet, inputs) <= 1e-12
    skeleton, build = type(supernet.skeleton), type(supernet.skeleton).build

    def without_nan(*args: Any, **kwargs: Any) -> nn.Module:
        made = build(*args, **kwargs)
        made.register_forward_hook(lambda _, args, out: out.nan_to_num())
        return made

    monkeypatch.setattr(skeleton, "build", without_nan)
    assert bnas.verify(net, supernet, subnet, inputs, tolerance=math.inf) == math.inf


class ShortCut(nn.Module):
    """A table of positions that is resized unless it has the size of the image already."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.table = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        h, w = x.shape[2:]
        if h == w == 4:
            return x + self.table
        return x + F.interpolate(self.table, size=(h, w), mode="bilinear")


def test_a_short_cut_at_the_size_of_the_example_is_left_out() -> None:
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(ShortCut().eval(), images(32, 32))
    assert supernet.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    for sizes in ((32, 32), (48, 40), (33, 47), (70, 29)):
        assert_maximal_is_original(supernet, images(*sizes))
    assert supernet.costs(supernet.space.maximal())["macs"] == 16 * 3 * 8 * 64


class OtherAtExample(ShortCut):
    """What it does at the size of the example is another thing altogether."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        h, w = x.shape[2:]
        return x + self.table.flip(2) if h == w == 4 else x + F.interpolate(self.table, size=(h, w), mode="bilinear")


def test_a_graph_of_other_sizes_that_is_wrong_at_the_example_is_not_taken() -> None:
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(OtherAtExample().eval(), images(32, 32))
    assert_maximal_is_original(supernet, images(32, 32))
    with pytest.raises(InputError, match="expected 32"):
        assert_maximal_is_original(supernet, images(48, 32))


class InverseOrder(nn.Module):
    """After a block, an order is inverted by writing as many numbers as the block has steps inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.head = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 8, 3, 2, 1), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.interpolate(self.down(x), size=x.shape[2], mode="nearest")
        few = (x.shape[2] + 1) // 2
        order = x[:, :, :few].mean((0, 1)).argsort()
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(few, device=x.device)
        return self.head(x[:, :, order][:, :, inverse])


def test_a_write_into_what_is_read_later_is_no_dead_end_of_a_block() -> None:
    torch.manual_seed(0)
    net, inputs = InverseOrder().eval(), torch.randn(2, 4, 13)
    supernet = SuperNetwork.from_model(net, inputs)
    assert_maximal_is_original(supernet, torch.randn(3, 4, 22))
    assert bnas.verify(net, supernet, supernet.space.minimal(), inputs) <= 1e-12


class ComparedWithSize(nn.Module):
    """Leaves the last steps of a length out, by comparing their numbers with it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        steps = torch.arange(x.shape[2], device=x.device)
        return x * (steps < x.shape[2] - 2)


def test_numbers_are_compared_with_a_size_in_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 10)
    supernet = SuperNetwork.from_model(ComparedWithSize().eval(), inputs)
    assert supernet.dynamic == {"x": {0: "batch", 2: "length_2"}}
    report = bnas.export_onnx(supernet.extract(supernet.space.minimal()), tmp_path / "model.onnx", inputs)
    assert report.fallback is None


class Shuffled(nn.Module):
    """A channel shuffle by views that say the sizes of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.second(x)


def test_a_shuffle_with_dynamic_sizes_is_one_operator() -> None:
    torch.manual_seed(0)
    supernet = SuperNetwork.from_model(Shuffled().eval(), images(32, 32))
    assert supernet.dynamic == {"x": {0: "batch", 2: "height", 3: "width"}}
    assert [node.target for node in supernet.ir.graph.nodes if node.target is F.channel_shuffle]
    assert not [node for node in supernet.ir.graph.nodes if node.target == "view"]
    assert_maximal_is_original(supernet, images(41, 50))


def test_no_number_is_taken_for_a_part_of_the_batch() -> None:
    emission_chains = [chain for family in FAMILIES for chain in chains(family, (6, 6, 5), (1009, 1013, 1018))]
    assert emission_chains == []
    assert list(chains(FAMILIES[0], (3, 3, 5), (6, 7, 10)))


def test_a_graph_of_several_sizes_that_is_wrong_at_the_example_leaves_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare = front.compare

    def strict(ir: Any, *given: Any) -> Any:
        if len(ir.sizes.axes) > 1:
            raise CaptureError("the graph differs from the model")
        return compare(ir, *given)

    monkeypatch.setattr(front, "compare", strict)
    supernet = SuperNetwork.from_model(Scaled().eval(), images(32, 32))
    assert supernet.dynamic == {"x": {0: "batch"}}
    with pytest.raises(CaptureError, match="differs from the model"):
        SuperNetwork.from_model(Scaled().eval(), images(32, 32), dynamic={"x": {2: "height"}})
