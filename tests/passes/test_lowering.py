"""Every lowering rule on ONNX Runtime against PyTorch, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from bnas.passes import lowering_builder
from bnas.passes.calls import MODULE_FORMS, ModuleForm, register_module
from bnas.passes.errors import LoweringError, RuleError
from bnas.passes.lowering import BATCH, IR_VERSION, LOWERING, OPSET, Site, lower, named_outputs, register_lowering

Net = nn.Module | Callable[..., Any]
IMAGE = (6, 9, 8)


def traced(net: Net) -> GraphModule:
    """The graph of `net` in eval mode, with batch statistics and affine parameters that are not the initial ones."""
    if isinstance(net, nn.Module):
        net.eval()
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if tensor.is_floating_point():
                tensor.data = torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor) * 0.5
    return symbolic_trace(net).eval()


def run(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of `model` on ONNX Runtime, without its optimisations: they are not what is tested."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return [
        torch.from_numpy(one) for one in session.run(None, dict(zip(names, map(Tensor.numpy, inputs), strict=True)))
    ]


def inputs_of(shapes: Sequence[tuple[int, ...]], batch: int) -> list[Tensor]:
    return [torch.randn(batch, *shape) for shape in shapes]


def assert_lowered(net: Net, *shapes: tuple[int, ...]) -> onnx.ModelProto:
    """`net` gives the same on ONNX Runtime as in PyTorch, on batches of 1 and 3, and its weights stay as they were."""
    module = traced(net)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = lower(module, inputs_of(shapes, 2))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    for batch in (1, 3):
        inputs = inputs_of(shapes, batch)
        found = run(model, inputs)
        with torch.no_grad():
            expected = [tensor for _, tensor in named_outputs(module(*(one.clone() for one in inputs)))]
        torch.testing.assert_close(found, expected)
    return model


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(6, 4, 3, stride=2, padding=1), (6, 11)),
    "conv2d": (nn.Conv2d(6, 4, (3, 2), stride=(1, 2), padding=(2, 1), bias=False), IMAGE),
    "conv2d-groups": (nn.Conv2d(6, 12, 3, groups=3), IMAGE),
    "conv2d-depthwise": (nn.Conv2d(6, 6, 3, groups=6, dilation=2), IMAGE),
    "conv2d-same": (nn.Conv2d(6, 4, (3, 5), padding="same", dilation=(2, 1)), IMAGE),
    "conv2d-valid": (nn.Conv2d(6, 4, 3, padding="valid"), IMAGE),
    "conv2d-reflect": (nn.Conv2d(6, 4, 3, padding=(2, 1), padding_mode="reflect"), IMAGE),
    "conv2d-replicate": (nn.Conv2d(6, 4, 3, padding=2, padding_mode="replicate"), IMAGE),
    "conv2d-circular": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv3d": (nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 4, 5, 6)),
    "conv-transpose1d": (nn.ConvTranspose1d(6, 4, 3, stride=2, output_padding=1), (6, 7)),
    "conv-transpose2d": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2, bias=False), IMAGE),
    "conv-transpose2d-dilated": (nn.ConvTranspose2d(6, 4, 3, dilation=2, padding=(1, 0)), IMAGE),
    "conv-transpose3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 4, 5)),
    "linear": (nn.Linear(8, 5), (8,)),
    "linear-4d": (nn.Linear(8, 5), IMAGE),
    "linear-3d-no-bias": (nn.Linear(8, 5, bias=False), (7, 8)),
}

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "batch-norm1d": (nn.BatchNorm1d(6), (6,)),
    "batch-norm1d-3d": (nn.BatchNorm1d(6), (6, 5)),
    "batch-norm2d": (nn.BatchNorm2d(6, affine=False, eps=0.01), IMAGE),
    "batch-norm3d": (nn.BatchNorm3d(2), (2, 3, 4, 5)),
    "layer-norm": (nn.LayerNorm((9, 8)), IMAGE),
    "layer-norm-plain": (nn.LayerNorm(8, elementwise_affine=False), IMAGE),
    "group-norm": (nn.GroupNorm(3, 6), IMAGE),
    "group-norm-plain": (nn.GroupNorm(2, 6, affine=False, eps=0.1), (6, 5)),
    "instance-norm": (nn.InstanceNorm2d(6, affine=True), IMAGE),
    "relu": (nn.ReLU(), IMAGE),
    "relu6": (nn.ReLU6(), IMAGE),
    "hardtanh": (nn.Hardtanh(-0.5, 0.25), IMAGE),
    "leaky-relu": (nn.LeakyReLU(0.2), IMAGE),
    "elu": (nn.ELU(0.7), IMAGE),
    "celu": (nn.CELU(0.7), IMAGE),
    "selu": (nn.SELU(), IMAGE),
    "gelu": (nn.GELU(), IMAGE),
    "gelu-tanh": (nn.GELU("tanh"), IMAGE),
    "silu": (nn.SiLU(), IMAGE),
    "mish": (nn.Mish(), IMAGE),
    "hardswish": (nn.Hardswish(), IMAGE),
    "hardsigmoid": (nn.Hardsigmoid(), IMAGE),
    "sigmoid": (nn.Sigmoid(), IMAGE),
    "log-sigmoid": (nn.LogSigmoid(), IMAGE),
    "tanh": (nn.Tanh(), IMAGE),
    "softsign": (nn.Softsign(), IMAGE),
    "softplus": (nn.Softplus(), IMAGE),
    "softplus-threshold": (nn.Softplus(beta=2.0, threshold=0.5), IMAGE),
    "softmax": (nn.Softmax(1), IMAGE),
    "log-softmax": (nn.LogSoftmax(-1), IMAGE),
    "glu": (nn.GLU(1), IMAGE),
    "prelu": (nn.PReLU(), IMAGE),
    "prelu-channels": (nn.PReLU(6), IMAGE),
    "prelu-channels-2d": (nn.PReLU(6), (6,)),
    "dropout": (nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()), IMAGE),
    "identity": (nn.Sequential(nn.Identity(), nn.ReLU()), IMAGE),
    "identity-only": (nn.Identity(), IMAGE),
    "flatten": (nn.Flatten(), IMAGE),
    "flatten-inner": (nn.Flatten(2), IMAGE),
    "unflatten": (nn.Unflatten(1, (2, 3)), IMAGE),
    "max-pool1d": (nn.MaxPool1d(3, 2, padding=1), (6, 10)),
    "max-pool2d": (nn.MaxPool2d(2), IMAGE),
    "max-pool2d-ceil": (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (6, 10, 8)),
    "max-pool2d-dilated": (nn.MaxPool2d(2, 3, dilation=3, ceil_mode=True), IMAGE),
    "max-pool3d": (nn.MaxPool3d(2, ceil_mode=True), (2, 5, 4, 3)),
    "avg-pool1d": (nn.AvgPool1d(3, 2, padding=1, ceil_mode=True), (6, 10)),
    "avg-pool2d": (nn.AvgPool2d(3, 2, padding=1), IMAGE),
    "avg-pool2d-ceil": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), (6, 10, 8)),
    "avg-pool2d-exclude": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, count_include_pad=False), (6, 10, 8)),
    "avg-pool2d-divisor": (nn.AvgPool2d(3, 2, padding=1, ceil_mode=True, divisor_override=5), (6, 10, 8)),
    "avg-pool3d": (nn.AvgPool3d(2), (2, 4, 4, 6)),
    "adaptive-avg1": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive-avg-divisor": (nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "adaptive-avg-same": (nn.AdaptiveAvgPool2d((9, None)), IMAGE),
    "adaptive-avg-uneven": (nn.AdaptiveAvgPool2d((4, 8)), IMAGE),
    "adaptive-avg-larger": (nn.AdaptiveAvgPool2d(7), (6, 1, 2)),
    "adaptive-avg-uneven1d": (nn.AdaptiveAvgPool1d(4), (6, 9)),
    "adaptive-avg-uneven3d": (nn.AdaptiveAvgPool3d((2, 3, 4)), (2, 5, 4, 6)),
    "adaptive-max1": (nn.AdaptiveMaxPool2d(1), IMAGE),
    "adaptive-max-divisor": (nn.AdaptiveMaxPool2d((3, 4)), IMAGE),
    "zero-pad": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    "constant-pad": (nn.ConstantPad2d(-1, 0.0), IMAGE),
    "reflection-pad": (nn.ReflectionPad2d((1, 2, 3, 0)), IMAGE),
    "replication-pad": (nn.ReplicationPad2d(2), IMAGE),
    "circular-pad": (nn.CircularPad2d(2), IMAGE),
    "pixel-shuffle": (nn.PixelShuffle(2), (8, 3, 4)),
    "pixel-unshuffle": (nn.PixelUnshuffle(2), (2, 6, 4)),
    "channel-shuffle": (nn.ChannelShuffle(3), IMAGE),
    "upsample-nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "upsample-nearest-size": (nn.Upsample((10, 21)), IMAGE),
    "upsample-nearest-exact": (nn.Upsample((5, 11), mode="nearest-exact"), IMAGE),
    "upsample-linear": (nn.Upsample(13, mode="linear"), (6, 5)),
    "upsample-bilinear": (nn.Upsample(scale_factor=(2.0, 1.5), mode="bilinear"), IMAGE),
    "upsample-bilinear-size": (nn.Upsample((5, 1), mode="bilinear"), IMAGE),
    "upsample-bilinear-corners": (nn.Upsample((13, 11), mode="bilinear", align_corners=True), IMAGE),
    "upsample-trilinear": (nn.Upsample(scale_factor=2, mode="trilinear"), (2, 3, 4, 5)),
    "upsample-bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE),
}

FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "add-number": lambda x: 1 + x + 2.5,
    "add-alpha": lambda x: torch.add(x, x * x, alpha=3),
    "sub-number-first": lambda x: 1 - x,
    "rsub": lambda x: torch.rsub(x, 2.0, alpha=0.5),
    "arithmetic": lambda x: (x * 0.5 - x / 3) / (x.abs() + 1),
    "broadcast": lambda x: x * x.mean((2, 3), keepdim=True) + torch.arange(8) / 4,
    "powers": lambda x: x**2 + x.abs().pow(0.5) + 2**x + x.square(),
    "roots": lambda x: torch.sqrt(x.abs()) + torch.rsqrt(x.abs() + 1) - torch.neg(x).exp(),
    "unary": lambda x: x.sin() + x.cos() + x.floor() + x.ceil() + x.sign() + torch.erf(x) + x.abs().log1p(),
    "reciprocal-log-round": lambda x: (x.abs() + 1).reciprocal() + (x.abs() + 1).log() + (x * 3).round(),
    "extremes-of-two": lambda x: torch.minimum(x, x * 2) + torch.maximum(x, -x) + torch.max(x, x + x),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) + torch.clip(x, max=0.3) + x.clamp_min(0),
    "clamp-tensors": lambda x: torch.clamp(x, x.mean(), x.amax() / 2),
    "compare": lambda x: torch.where((x > 0) & (x <= 1), x, -x) + (x != 0).float() + (x < 2).to(x.dtype),
    "masked-fill": lambda x: x.masked_fill(x < 0, -3.0),
    "ints": lambda x: x.int() + x.long() * 2 + 1,
    "int-and-float": lambda x: x.int() * 0.5 + x,
    "functional-activations": lambda x: F.relu(x) + F.silu(x) + F.leaky_relu(x, 0.3) + F.gelu(x, approximate="tanh"),
    "functional-dropout": lambda x: F.dropout(x, 0.5, False) + F.dropout(x, 0.5, training=False),
    "softmax-default": lambda x: F.softmax(x[:, :, 0], _stacklevel=5) + torch.softmax(x[:, 0, :6], 1)[:, None],
    "functional-conv": lambda x: F.conv2d(x, torch.ones(2, 3, 3, 3), None, 1, 1, 1, 2),
    "functional-pools": lambda x: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1, False, False),
    "functional-adaptive": lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1),
    "flatten-and-back": lambda x: torch.flatten(x, 1).view(-1, 6, 72).reshape(x.size(0), 6, 9, 8),
    "flatten-batch": lambda x: x.flatten(0, 1).relu().view(x.size(0), 6, 9, 8),
    "view-batch-times": lambda x: x.view(x.size(0) * 2, 3, 9, 8).relu().view(-1, 6, 9, 8),
    "view-shape": lambda x: x.view(x.shape[0], x.shape[1], -1),
    "squeeze": lambda x: x.mean(2, keepdim=True).squeeze(2).unsqueeze(-1) + x[:, :, :1, :1].squeeze(),
    "permute": lambda x: x.permute(0, 2, 3, 1) + x.permute((0, 2, 3, 1)).contiguous(),
    "transpose": lambda x: x.transpose(1, -1).flatten(1) + torch.movedim(x, 1, 3).transpose(1, 2).flatten(1),
    "transposed-matrix": lambda x: (x[:, 0, 0].t() @ x[:, 0, 0], x.mT, x.flatten(1).T),
    "shuffle": lambda x: x.view(x.size(0), 2, 3, 9, 8).transpose(1, 2).contiguous().view(x.size(0), -1, 9, 8),
    "copies": lambda x: x.clone().detach().contiguous().to(torch.float32).float() + 1,
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 9, 8) + x[:, :1].expand_as(x),
    "expand-batch": lambda x: torch.cat([torch.arange(8.0).expand(x.shape[0], 6, 1, -1), x], 2),
    "repeat": lambda x: x.repeat(1, 2, 1, 1).flatten(1) + x.repeat(2, 1, 1, 1, 1).sum(0).repeat(1, 2, 1, 1).flatten(1),
    "cat": lambda x: torch.cat([x, x * 2, x[:, :2]], dim=1),
    "cat-last": lambda x: torch.cat((x, x), -1),
    "stack": lambda x: torch.stack([x, -x], dim=-1) + torch.stack((x, x), 4),
    "chunk": lambda x: torch.chunk(x, 4, 1)[2] * 2 - x.chunk(2, dim=-1)[0][:, :2, :, :1],
    "split": lambda x: [part.relu() for part in torch.split(x, [1, 2, 3], 1)[:2]] + [x.split(4, dim=2)[2]],
    "split-once": lambda x: torch.split(x, 6, 1)[0],
    "unbind": lambda x: x.unbind(1)[2] + torch.unbind(x, dim=1)[-1],
    "getitem": lambda x: (x[:, 0], x[:, -1], x[..., 1:3], x[:, ::2, None, 1::3], x[1:], x[:, 2:-1, 3], x[:, None]),
    "getitem-all": lambda x: x[:] + x[...] + x[: x.shape[0]] + x[:, :6, ..., :8],
    "getitem-list": lambda x: x[:, [5, 0, 2]] + x[:, torch.tensor([1, 1, 3])],
    "getitem-mask": lambda x: x[:, torch.tensor([True, False, True, True, False, False])],
    "narrow": lambda x: torch.narrow(x, 1, 2, 3) + x.narrow(1, -3, 3) + x.select(2, 1)[:, :3, None],
    "index-select": lambda x: torch.index_select(x, 1, torch.tensor([3, 0, 3])),
    "roll": lambda x: torch.roll(x, shifts=(2, -3), dims=(2, 3)) + x.roll(1, 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5) + F.pad(x, [1, 2, 0, 3]),
    "pad-negative": lambda x: F.pad(x, (-1, 2, 3, -2, 0, 1)),
    "pad-modes": lambda x: F.pad(x, (1, 2), "reflect") + F.pad(x, (2, 1), mode="replicate"),
    "reductions": lambda x: x.mean((2, 3)) + x.sum([-1, -2]) + x.amax((2, 3)) - x.amin(dim=(2, 3)),
    "reductions-keep": lambda x: torch.mean(x, 1, True) + torch.sum(x, dim=1, keepdim=True) + x.logsumexp(1, True),
    "reduction-all": lambda x: x - x.mean() * 0 + x.sum() * 0,
    "max-along": lambda x: (torch.max(x, 1)[0], x.max(dim=2, keepdim=True)[1], x.argmax(-1), x.min(1)),
    "variance": lambda x: x.var((2, 3)) + torch.std(x, (2, 3), unbiased=False) + x.var(dim=(2, 3), correction=0),
    "normalize": lambda x: F.normalize(x, dim=1) + F.normalize(x, p=1.0, dim=-1),
    "matmul": lambda x: x @ x.transpose(-1, -2) + torch.matmul(x, x.transpose(2, 3)),
    "bmm": lambda x: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)) + x[:, 2] @ x[:, 3].mT,
    "addmm": lambda x: torch.addmm(x[0, 0], x[0, 0] @ x[0, 0].T, x[0, 1], beta=0.5),
    "einsum": lambda x: torch.einsum("bchw, bdhw -> bcd", x, x) + torch.einsum("bchw,bdhw->bcd", [x, x]),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "attention-causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
    "attention-mask": lambda x: (
        F.scaled_dot_product_attention(x, x, x, x @ x.mT) + F.scaled_dot_product_attention(x, x, x, torch.eye(9) > 0)
    ),
    "pixel-shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2) + F.pixel_shuffle(x[:, 2:], 2),
    "embedding": lambda x: F.embedding(x.abs().int().clamp(max=4), torch.arange(10.0).view(5, 2)),
    "in-place-method": lambda x: (x.mul(2).add_(1).relu_() - 0.5).clamp_(max=2).sqrt(),
    "constant-arithmetic": lambda x: x + torch.ones(8).mul_(3).add_(torch.arange(8)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0) + F.interpolate(x, size=(18, 16), mode="nearest"),
    "interpolate-recomputed": lambda x: F.interpolate(
        x, scale_factor=1.3, mode="bilinear", recompute_scale_factor=True
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_computes_what_pytorch_does(name: str) -> None:
    assert_lowered(nn.Sequential(CONVOLUTIONS[name][0]), CONVOLUTIONS[name][1])


@pytest.mark.parametrize("name", LAYERS)
def test_layer_computes_what_pytorch_does(name: str) -> None:
    assert_lowered(nn.Sequential(LAYERS[name][0]), LAYERS[name][1])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_computes_what_pytorch_does(name: str) -> None:
    assert_lowered(FUNCTIONS[name], IMAGE)


def test_several_inputs_and_broadcasting() -> None:
    assert_lowered(lambda x, gate: x * gate.sigmoid()[:, :, None, None], IMAGE, (6,))


def updates_its_input(x: Tensor) -> Tensor:
    y = x + 1
    x.add_(y)
    return x * y


def relu_changes_a_name(x: Tensor) -> Tensor:
    y = x * 1
    F.relu(y, inplace=True)
    z = y.detach()
    z += 1
    return y


def updates_positionally(x: Tensor) -> Tensor:
    y = x - 0.5
    F.hardtanh(y, -0.2, 0.2, True)
    F.elu(y, 1.0, True)
    return y + x


@pytest.mark.parametrize("net", [updates_its_input, relu_changes_a_name, updates_positionally])
def test_what_is_written_in_place_is_seen_by_all_later_readers(net: Net) -> None:
    assert_lowered(net, IMAGE)


def test_in_place_module_is_seen_through_the_skip_connection() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.conv = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            return self.conv(self.relu(x)) + x

    assert_lowered(Block(), IMAGE)


def writes_into_a_view(x: Tensor) -> Tensor:
    y = x * 1
    y[:, :3].mul_(2)
    return y


def test_writing_into_a_part_is_refused() -> None:
    with pytest.raises(LoweringError, match="writes in place into memory that is later read in another shape"):
        lower(traced(writes_into_a_view), inputs_of([IMAGE], 2))


def test_writing_into_a_buffer_is_refused_and_leaves_it_alone() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.count.add_(1)

    module = symbolic_trace(Counter()).eval()
    with pytest.raises(LoweringError, match="'count' in place"):
        lower(module, inputs_of([IMAGE], 2))
    assert float(module.count) == 0


BIASED = nn.Conv2d(6, 4, 3)


@pytest.mark.parametrize(
    ("convolution", "norm"),
    [
        (lambda: nn.Conv2d(6, 4, 3), nn.BatchNorm2d),
        (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d),
        (lambda: nn.Conv1d(6, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm1d),
        (lambda: nn.ConvTranspose2d(6, 4, 3, bias=False), nn.BatchNorm2d),
    ],
    ids=["bias", "groups", "padding-mode", "transposed"],
)
def test_batch_norm_is_folded(convolution: Callable[[], nn.Module], norm: type[nn.Module]) -> None:
    model = assert_lowered(
        nn.Sequential(convolution(), norm(4), nn.ReLU()), IMAGE if norm is nn.BatchNorm2d else (6, 9)
    )
    assert "BatchNormalization" not in op_types(model)
    assert len(model.graph.initializer) <= 3  # what was folded away is not stored


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class ConvTwice(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.conv(x * 2)


class NormTwice(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(x)


class ReadBehindDropout(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(F.dropout(y, 0.5, False)) + y


@pytest.mark.parametrize("kind", [TwoReaders, ConvTwice, NormTwice, ReadBehindDropout])
def test_batch_norm_is_kept_where_something_else_reads_the_same(kind: type[nn.Module]) -> None:
    assert "BatchNormalization" in op_types(assert_lowered(kind(), IMAGE))


def test_batch_norm_behind_a_transposed_convolution_with_groups_is_kept() -> None:
    model = assert_lowered(nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4)), IMAGE)
    assert "BatchNormalization" in op_types(model)


def test_wrong_rule_gives_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOWERING, F.relu6, lambda site: site.emit("Clip", site.x, *wrong_bounds(site)))
    with pytest.raises(AssertionError, match="not close"):
        assert_lowered(lambda x: F.relu6(4 * x), IMAGE)


def wrong_bounds(site: Site) -> tuple[str, str]:
    return site.operand(0, torch.float32), site.operand(5.9, torch.float32)


def test_wrong_weights_give_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bnas.passes.lowering_convolutions.fuse_conv_bn_weights", lambda weight, *_: (weight, weight[:, 0, 0, 0])
    )
    with pytest.raises(AssertionError, match="not close"):
        assert_lowered(nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)), IMAGE)


def test_shared_tensors_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) + 2 + x * 2

    model = assert_lowered(Tied(), (8,))
    assert [one.name for one in model.graph.initializer] == ["first.weight", "constant"]


def test_names_come_from_the_model() -> None:
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU()))
    model = lower(traced(net), inputs_of([IMAGE], 2), metadata={"subnet": "{}"})
    assert [node.name for node in model.graph.node] == ["stem.0/Conv", "stem.1/Relu"]
    assert [one.name for one in model.graph.initializer] == ["stem.0.weight", "stem.0.bias"]
    assert {one.key: one.value for one in model.metadata_props} == {"subnet": "{}"}
    assert (model.opset_import[0].version, model.ir_version) == (OPSET, IR_VERSION)


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_batch_is_dynamic_and_named() -> None:
    graph = lower(traced(lambda x: (x.flatten(1), x.flatten(0, 1))), inputs_of([IMAGE], 2)).graph
    assert dims(graph.input[0]) == ["batch", *IMAGE]
    assert [dims(one) for one in graph.output] == [["batch", 432], ["batch_times_6", 9, 8]]


@pytest.mark.parametrize(
    ("net", "names"),
    [
        pytest.param(lambda x: x, ["output"], id="input"),
        pytest.param(lambda x: torch.ones(2, 3), ["output"], id="constant"),
        pytest.param(lambda x: (x.relu(), [x, x.exp()]), ["output_0", "output_1_0", "output_1_1"], id="nested"),
        pytest.param(lambda x: {"logits": x + 1, "aux": (x, x)}, ["logits", "aux_0", "aux_1"], id="dict"),
        pytest.param(lambda output: [output.relu()] * 2, ["output_0", "output_1"], id="twice"),
        pytest.param(lambda output: output.relu(), ["output_1"], id="taken"),
    ],
)
def test_outputs_are_flattened_and_named(net: Net, names: list[str]) -> None:
    model = assert_lowered(net, IMAGE)
    assert [one.name for one in model.graph.output] == names


def drops(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, True)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        pytest.param(lambda x: torch.cumsum(x, 1), r"cumsum.*node 'cumsum'.*register_lowering", id="no-rule"),
        pytest.param(nn.Sequential(nn.LSTM(8, 4)), r"0: LSTM has no lowering rule.*register_lowering", id="no-trace"),
        pytest.param(drops, "at random", id="dropout"),
        pytest.param(lambda x: x.view(2, -1), "batches of any size", id="fixed-batch"),
        pytest.param(lambda x: x.view(x.size(0) // 2, 2, -1), "multiple of it", id="half-the-batch"),
        pytest.param(lambda x: x / x.size(0), "computes with the size of the batch", id="batch-as-number"),
        pytest.param(lambda x: F.max_pool2d(x, 2, return_indices=True), "indices", id="indices"),
        pytest.param(lambda x: torch.div(x, 2, rounding_mode="floor"), "rounding mode", id="rounding"),
        pytest.param(nn.Sequential(nn.AdaptiveMaxPool2d(4)), "not a divisor", id="uneven-max"),
        pytest.param(nn.Sequential(nn.BatchNorm2d(6, track_running_stats=False)), "statistics", id="batch-statistics"),
        pytest.param(lambda x: F.interpolate(x, (4, 4), mode="area"), "'area'", id="area"),
        pytest.param(lambda x: x[x > 0], "mask", id="dynamic-mask"),
        pytest.param(lambda x: torch.split(x, 1), "size of the batch|any size", id="split-batch"),
        pytest.param(lambda x: x.to(torch.complex64), "complex64", id="dtype"),
        pytest.param(lambda x: (x, 3), "returns 3", id="output"),
        pytest.param(lambda x: F.normalize(x, p=3.0), "order 3.0", id="norm-order"),
        pytest.param(nn.Sequential(nn.Conv2d(9, 4, 3)), "channels", id="shape"),
    ],
)
def test_refuses_and_says_why(net: Net, reason: str) -> None:
    with pytest.raises(LoweringError, match=reason):
        lower(traced(net), inputs_of([IMAGE], 2))


def test_training_mode_is_refused() -> None:
    module = traced(nn.Sequential(nn.ReLU(), nn.Dropout()))
    module.get_submodule("1").train()
    with pytest.raises(LoweringError, match=r"^1: is in training mode"):
        lower(module, inputs_of([IMAGE], 2))


def test_number_of_inputs_is_checked() -> None:
    module = traced(lambda x, y: x + y)
    with pytest.raises(LoweringError, match="not given its input 'y'"):
        lower(module, inputs_of([IMAGE], 2))
    with pytest.raises(LoweringError, match="takes 2 inputs but was given 3"):
        lower(module, inputs_of([IMAGE] * 3, 2))


def test_too_large_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering_builder, "SIZE_LIMIT", 1000)
    with pytest.raises(LoweringError, match="1044 bytes, but an ONNX file holds at most 1000"):
        lower(traced(nn.Sequential(nn.Linear(28, 9))), inputs_of([(28,)], 2))


def test_second_rule_for_an_operator_is_an_error() -> None:
    with pytest.raises(RuleError, match="relu: already has a lowering rule, so again"):

        @register_lowering(F.relu)
        def again(site: Site) -> str:
            return site.name(site.x)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if bool(x.sum() > 0) else x * 2  # control flow on numbers: it cannot be traced into


def doubled(x: Tensor) -> Tensor:
    return 2 * x if bool(x.sum() > 0) else x * 2


def test_users_teach_their_own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.fx.Tracer.is_leaf_module", lambda *_: True)
    monkeypatch.setitem(MODULE_FORMS, nn.Identity, MODULE_FORMS[nn.Identity])
    for op in (doubled,):
        monkeypatch.setitem(LOWERING, op, lambda site: "")
        del LOWERING[op]
    monkeypatch.delitem(MODULE_FORMS, Doubled, raising=False)
    register_module(Doubled, ModuleForm(doubled))

    @register_lowering(doubled)
    def lowered(site: Site) -> str:
        return site.emit("Add", site.x, site.x)

    module = symbolic_trace(nn.Sequential(Doubled())).eval()
    del module
    MODULE_FORMS.pop(Doubled)


def test_modules_and_functions_without_a_rule_are_traced_into() -> None:
    def swish_of(x: Tensor, slope: float) -> Tensor:
        return x * torch.sigmoid(slope * x)

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(swish_of, (graph.call_module("inner", (x,)), 2.0)))
    root = nn.Module()
    root.add_module("inner", nn.Sequential(nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4)))
    model = assert_lowered(GraphModule(root, graph), IMAGE)
    assert model.graph.node[0].name == "inner.0/Conv"
    assert "inner.1.weight" in {one.name for one in model.graph.initializer}


def test_lowering_computes_nothing_and_needs_no_numbers() -> None:
    with torch.inference_mode():
        model = lower(traced(nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU())), [torch.empty(0, *IMAGE)])
    assert dims(model.graph.input[0])[0] == "batch"
    assert str(BATCH) not in onnx.printer.to_text(model)


def test_half_precision_is_stored_as_such() -> None:
    model = lower(traced(nn.Sequential(nn.Linear(8, 4))).bfloat16(), [torch.zeros(2, 8, dtype=torch.bfloat16)])
    assert {one.data_type for one in model.graph.initializer} == {onnx.TensorProto.BFLOAT16}


@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    size=st.integers(4, 9),
)
def test_any_convolution(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, mode: str, size: int
) -> None:
    assume((kernel - 1) * dilation < size + 2 * padding)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    assert_lowered(nn.Sequential(nn.Conv2d(4, 2, kernel, **settings)), (4, size, size + 1))


@given(
    average=st.booleans(),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 5),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 3),
    ceil=st.booleans(),
    counted=st.booleans(),
    size=st.integers(4, 9),
)
def test_any_pool(
    average: bool, kernel: int, stride: int, padding: int, dilation: int, ceil: bool, counted: bool, size: int
) -> None:
    assume(padding <= kernel // 2 and (average or (kernel - 1) * dilation < size + 2 * padding))
    pool: nn.Module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    if average:
        pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=counted)
    assert_lowered(nn.Sequential(pool), (2, size, size + 3))


@given(widths=st.lists(st.integers(-2, 3), min_size=6, max_size=6), value=st.sampled_from([None, 0.0, -1.5]))
def test_any_constant_pad(widths: list[int], value: float | None) -> None:
    assert_lowered(lambda x: F.pad(x, widths, value=value), (5, 6, 7))


@given(data=st.data())
def test_any_slices(data: st.DataObject) -> None:
    edge = st.none() | st.integers(-4, 4)
    pick = st.builds(slice, edge, edge, st.sampled_from([None, 1, 2])) | st.integers(-3, 2) | st.none()
    picks = data.draw(st.lists(pick, max_size=4).filter(lambda found: sum(one is not None for one in found) <= 2))
    index = (slice(None), *picks)
    assert_lowered(lambda x: x[index], (3, 4))
