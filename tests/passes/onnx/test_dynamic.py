"""Files with several dynamic axes compute what PyTorch does at all sizes of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowering_checks import Net, assert_dynamic, assert_lowered, inputs_of, traced
from torch import Tensor, fx, nn
from torch.fx import GraphModule

from bnas.passes.errors import LoweringError
from bnas.passes.onnx.lower import lower

IMAGES = {0: "batch", 2: "height", 3: "width"}
TOKENS = {0: "batch", 1: "length"}
IMAGE_SIZES = [{"batch": 1, "height": 12, "width": 15}, {"batch": 3, "height": 17, "width": 10}]
TOKEN_SIZES = [{"batch": 1, "length": 7}, {"batch": 3, "length": 12}]


def images(net: Net) -> Any:
    return assert_dynamic(net, [IMAGES], torch.randn(2, 6, 16, 16), sizes=IMAGE_SIZES)


def tokens(net: Net) -> Any:
    return assert_dynamic(net, [TOKENS], torch.randn(2, 9, 8), sizes=TOKEN_SIZES)


def windows(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4))
    h2, w2 = x.size(2), x.size(3)
    y = x.view(b, c, h2 // 4, 4, w2 // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
    y = y.softmax(-1).view(b, h2 // 4, w2 // 4, c, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h2, w2)
    return y[:, :, :h, :w]


def grid(x: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(x.size(2)), torch.arange(x.size(3)), indexing="ij")
    return torch.stack([rows, columns], -1).float() / x.size(3) + x.mean(1)[..., None]


def padded_to_square(x: Tensor) -> Tensor:
    return F.pad(x, (0, 32 - x.size(3), 0, 32 - x.size(2)), value=1.0)


IMAGE_NETS: dict[str, Net] = {
    "convolutions": nn.Sequential(nn.Conv2d(6, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2, 3)),
    "deep": nn.Sequential(*(nn.MaxPool2d(3, 2, 1) for _ in range(3)), nn.AdaptiveAvgPool2d(3), nn.Flatten()),
    "transposed": nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.Conv2d(4, 3, 3, padding_mode="reflect", padding=1)
    ),
    "max-pool": nn.Sequential(nn.MaxPool2d(3, 2, 1)),
    "max-pool-ceil": nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.MaxPool2d(2, 3, ceil_mode=True)),
    "max-pool-dilated-ceil": nn.Sequential(nn.MaxPool2d(2, 3, 1, dilation=2, ceil_mode=True)),
    "avg-pool": nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1, count_include_pad=False)),
    "avg-pool-ceil": nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "avg-pool-ceil-uncounted": nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "avg-pool-ceil-divisor": nn.Sequential(nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5)),
    "adaptive": nn.Sequential(nn.AdaptiveAvgPool2d((5, 3))),
    "adaptive-one": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1) + F.adaptive_max_pool2d(x, 1).flatten(1),
    "adaptive-part": nn.Sequential(nn.AdaptiveAvgPool2d((None, 3))),
    "adaptive-classifier": nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)),
    "norms": lambda x: F.instance_norm(F.group_norm(x, 3), weight=torch.arange(6.0)),
    "shuffles": nn.Sequential(nn.ChannelShuffle(3), nn.PixelUnshuffle(1)),
    "pixel-unshuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x[:, :4], 2), 2),
    "tokens-and-back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape).view(x.size(0), -1, 1),
    "view-back": lambda x: x.flatten(2).softmax(-1).view(x.size(0), x.size(1), x.size(2), x.size(3)),
    "view-as": lambda x: x.flatten(2).relu().view_as(x) + x.flatten(1).unflatten(1, (6, -1)).reshape_as(x),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1)[:, :1].squeeze(1),
    "windows": windows,
    "upsample": nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")),
    "upsample-fraction": nn.Sequential(nn.Upsample(scale_factor=1.5), nn.Upsample(scale_factor=0.7, mode="bilinear")),
    "upsample-fixed": nn.Sequential(nn.Upsample((20, 9)), nn.Upsample((7, 11), mode="bicubic", align_corners=True)),
    "upsample-exact": nn.Sequential(nn.Upsample(scale_factor=1.3, mode="nearest-exact")),
    "upsample-to": lambda x: F.interpolate(F.max_pool2d(x, 2), (x.size(2), x.size(3)), mode="bilinear") + x,
    "upsample-nearest-to": lambda x: F.interpolate(F.avg_pool2d(x, 3), size=(x.size(2), x.size(3))) + x,
    "pad": lambda x: F.pad(x, (1, 2, -1, 3))[:, :, : x.size(2)],
    "pad-to": padded_to_square,
    "grid": grid,
    "position": lambda x: x + torch.linspace(0, 1, x.size(3)) * torch.arange(x.size(2))[:, None],
    "variance": lambda x: (
        x.var((2, 3)) + x.std(dim=(1, 2), unbiased=False).sum(-1, keepdim=True) + x.var(3).mean((1, 2))[:, None]
    ),
    "sizes": lambda x: x / (x.size(2) * x.size(3)) ** 0.5 + x.size(2) // 2 - x.size(3) % 5,
    "numel": lambda x: x.sum() / x.numel() + x,
    "narrow": lambda x: x.narrow(2, 1, x.size(2) - 2) + x[:, :, 1:-1] * x.select(3, -1)[:, :, 2:, None],
    "crop": lambda x: x[:, :, (x.size(2) - 8) // 2 : (x.size(2) - 8) // 2 + 8, x.size(3) // 2 :],
    "last-by-size": lambda x: x[:, :, x.size(2) - 1, 0] + x[:, 0, -1].mean(-1, keepdim=True),
    "halves": lambda x: torch.cat(x.split([x.size(2) // 2, x.size(2) - x.size(2) // 2], 2)[::-1], 2),
    "chunks": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "roll": lambda x: x.roll((2, -3), (2, 3)) + x.roll(x.size(3) // 2, 3) + x.roll(5).flip(2, -1),
    "flip": lambda x: torch.flip(x, [0, 2]),
    "repeat": lambda x: (
        x[:, :1].repeat(1, x.size(2), 1, 1).sum(1) + x.mean((1, 2), keepdim=True)[:, 0].expand(-1, x.size(2), -1)
    ),
    "cat": lambda x: torch.cat([x, x.new_zeros(x.size(0), 2, x.size(2), x.size(3))], 1),
    "stack": lambda x: torch.stack([x, -x], 1).flatten(0, 1),
    "attention-2d": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "affine-grid": lambda x: F.grid_sample(
        x, F.affine_grid(x[:, :2, 0, :3] * 0.3, x.shape, align_corners=False), align_corners=False
    ),
    "einsum": lambda x: torch.einsum("bchw,bcHw->bhH", x, x),
    "zeros": lambda x: (
        x
        + torch.zeros((x.size(2), x.size(3)))
        + torch.ones((x.size(0), 1, x.size(2), 1))
        + torch.full((x.size(3),), 2.5)
    ),
    "like": lambda x: (
        torch.zeros_like(x) + torch.ones_like(x[:, :1]) + torch.full_like(x, 3) * x + x.new_full((x.size(3),), 1.5)
    ),
    "argmax": lambda x: x.argmax() + x.argmax(1),
}


@pytest.mark.parametrize("name", IMAGE_NETS)
def test_images_of_any_size(name: str) -> None:
    images(IMAGE_NETS[name])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(40, 8))
        self.project, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        x = x + self.positions[:length]
        query, key, value = self.project(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mask = torch.full((length, length), -1e4).triu(1)
        scores = (query @ key.transpose(-2, -1)) / width**0.5 + mask
        y = scores.softmax(-1) @ value
        return self.norm(y.transpose(1, 2).reshape(batch, length, width))


def by_position(x: Tensor) -> Tensor:
    places = torch.arange(x.size(1), device=x.device).expand(x.size(0), x.size(1))
    return F.embedding(places, torch.arange(100.0).view(50, 2))


def strided(x: Tensor) -> Tensor:
    x = F.conv1d(x.transpose(1, 2), torch.ones(4, 8, 3), stride=2, padding=1)
    return x + torch.arange(x.size(2)) - x.shape[2]


TOKEN_NETS: dict[str, Net] = {
    "encoder": Encoder(),
    "positions": by_position,
    "strided": strided,
    "first-and-last": lambda x: x[:, 0] + x[:, -1] + x[:, x.size(1) // 2],
    "shift": lambda x: x[:, 1:] - x[:, :-1] + x[1:2, ::2].sum() + x[:, -1:],
    "ends": lambda x: torch.cat([x[:, :1], x, x[:, -2:]], 1),
    "eye": lambda x: x.transpose(1, 2) @ torch.eye(x.size(1)) + torch.linspace(-1, 1, x.size(1)),
    "tril": lambda x: (x @ x.mT).tril() + torch.ones((x.size(1), x.size(1))).triu(2),
    "cumsum": lambda x: x.cumsum(1) + torch.cumsum(torch.ones((x.size(1), 1)), 0),
    "flatten": lambda x: x.flatten(0, 1).relu().view(x.size(0), x.size(1), 8),
    "heads": lambda x: x.view(x.size(0), -1, 2, 4).transpose(1, 2).flatten(0, 1),
    "masked": lambda x: x.masked_fill(torch.arange(x.size(1))[:, None] > 4, 0.0),
    "mean": lambda x: x.sum(1) / x.size(1) - float(2) * x.shape[1],
    "where": lambda x: x[x > 0].sum() + x[x[..., 0] > 0].mean(0),
    "arange-from": lambda x: x + torch.arange(2, x.size(1) + 2)[:, None] + torch.arange(0, 2 * x.size(1), 2)[:, None],
    "repeat-interleave": lambda x: x.repeat_interleave(3, 1) + x.repeat_interleave(3, dim=1),
    "unfold": lambda x: x.unfold(1, 3, 2),
    "half-batch": lambda x: x.view(x.size(0), x.size(1), 2, 4).mean(2),
}


@pytest.mark.parametrize("name", TOKEN_NETS)
def test_sequences_of_any_length(name: str) -> None:
    tokens(TOKEN_NETS[name])


def test_two_lengths_and_a_shared_one() -> None:
    def net(x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        scores = x @ memory.transpose(1, 2)
        return scores.masked_fill(mask[:, None] == 0, -1e9).softmax(-1) @ memory

    axes = [{0: "batch", 1: "target"}, {0: "batch", 1: "source"}, {0: "batch", 1: "source"}]
    examples = torch.randn(2, 9, 8), torch.randn(2, 9, 8), torch.ones(2, 9, dtype=torch.int64)
    sizes = [{"batch": 1, "target": 4, "source": 6}, {"batch": 3, "target": 7, "source": 5}]
    model = assert_dynamic(net, axes, *examples, sizes=sizes)
    dims = [[dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in model.graph.output]
    assert dims == [["batch", "target", 8]]


def test_a_table_that_is_as_long_as_the_example() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(9, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.rows[: x.size(1)]

    tokens_up_to_9 = [{"batch": 1, "length": 4}, {"batch": 3, "length": 9}]
    assert_dynamic(Table(), [TOKENS], torch.randn(2, 9, 8), sizes=tokens_up_to_9)


def test_axes_that_must_be_divisible() -> None:
    def net(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c * 16).relu()

    sizes = [{"batch": 1, "height": 8, "width": 12}, {"batch": 3, "height": 4, "width": 20}]
    assert_dynamic(net, [IMAGES], torch.randn(2, 6, 16, 16), sizes=sizes)


def test_a_slice_that_takes_all_of_the_example_keeps_the_axis_dynamic() -> None:
    tokens(lambda x: x[:, :512].flatten(1).view(x.size(0), -1, 8) + x)


def test_outputs_name_their_axes() -> None:
    model = images(lambda x: (x, x.flatten(2), F.max_pool2d(x, 2), x.mean((2, 3))))
    dims = [[dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in model.graph.output]
    assert dims[0] == ["batch", 6, "height", "width"]
    assert dims[1] == ["batch", 6, "output_1_axis_2"]
    assert dims[2] == ["batch", 6, "output_2_axis_2", "output_2_axis_3"]
    assert dims[3] == ["batch", 6]


def test_no_dynamic_axis_at_all() -> None:
    assert_dynamic(lambda x: x.view(2, 72) / x.size(0), [{}], torch.randn(2, 9, 8), sizes=[{}])


def test_nested_inputs_have_names() -> None:
    graph = fx.Graph()
    first, second = graph.placeholder("images"), graph.placeholder("batch")
    one = graph.call_function(operator.getitem, (first, 1))
    two = graph.call_function(operator.getitem, (second, "ids"))
    graph.output(graph.call_function(torch.add, (one, two)))
    module = GraphModule(nn.Module(), graph).eval()
    model = lower(module, [[torch.zeros(2, 3), torch.zeros(2, 3)], {"ids": torch.zeros(2, 3)}])
    assert [one.name for one in model.graph.input] == ["images_0", "images_1", "batch_ids"]


def test_checks_of_sizes_are_left_out() -> None:
    def check_sizes(x: Tensor) -> None:
        raise AssertionError

    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(check_sizes, (x,))
    graph.output(graph.call_method("relu", (x,)))
    model = lower(GraphModule(nn.Module(), graph).eval(), inputs_of([(3,)], 2))
    assert [node.op_type for node in model.graph.node] == ["Relu"]


class ByMode(nn.Module):
    def forward(self) -> bool:
        return self.training


def test_modes_are_constants() -> None:
    graph = fx.Graph()
    x, mode = graph.placeholder("x"), graph.call_module("mode")
    graph.output(graph.call_function(F.dropout, (x, 0.5, mode)))
    root = nn.Module()
    root.add_module("mode", ByMode())
    assert_lowered(GraphModule(root, graph), (3, 4))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        pytest.param(lambda x: x.split(4, 2)[0], "another number", id="split"),
        pytest.param(lambda x: F.adaptive_max_pool2d(x, 2), "not a divisor", id="adaptive-max"),
        pytest.param(
            lambda x: F.interpolate(x[..., 1:, 1:], scale_factor=(x.size(2) / (x.size(2) - 1), 2.0)),
            "a factor that follows the sizes",
            id="factor-by-size",
        ),
    ],
)
def test_refuses_and_says_why(net: Callable[..., Any], reason: str) -> None:
    module = traced(net)
    module.meta["dynamic"] = {"x": IMAGES}
    with pytest.raises(LoweringError, match=reason):
        lower(module, [torch.randn(2, 6, 16, 16)])
