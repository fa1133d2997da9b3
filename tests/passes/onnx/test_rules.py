"""Every lowering rule on ONNX Runtime against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from lowering_checks import IMAGE, assert_lowered
from torch import Tensor, nn

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
    "rms-norm": (nn.RMSNorm((9, 8)), IMAGE),
    "rms-norm-plain": (nn.RMSNorm(8, eps=0.01, elementwise_affine=False), IMAGE),
    "group-norm": (nn.GroupNorm(3, 6), IMAGE),
    "group-norm-plain": (nn.GroupNorm(2, 6, affine=False, eps=0.1), (6, 5)),
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
    "adaptive-max1d": (nn.AdaptiveMaxPool1d(3), (6, 9)),
    "adaptive-max3d": (nn.AdaptiveMaxPool3d((2, 1, 3)), (2, 4, 5, 6)),
    "adaptive-max-divisor": (nn.AdaptiveMaxPool2d((3, 4)), IMAGE),
    "zero-pad": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    "constant-pad": (nn.ConstantPad2d(-1, 0.0), IMAGE),
    "reflection-pad": (nn.ReflectionPad2d((1, 2, 3, 0)), IMAGE),
    "replication-pad": (nn.ReplicationPad2d(2), IMAGE),
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
    "add-alpha": lambda x: torch.add(x, x * x, alpha=3) - torch.sub(x, 2, alpha=0.5),
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
    "compare-functions": lambda x: (
        torch.where(torch.gt(x, 1) | torch.lt(x, -1) | torch.eq(x, 0), x, 2 * x) * torch.ge(x, 0)
    ),
    "compare-operators": lambda x: x * (x >= 0.5) + x * ~(x == 1) - torch.le(x, 0.1) * x + x * torch.ne(x, 3),
    "logic": lambda x: torch.logical_or(torch.logical_and(x > 0, x < 1), torch.logical_not(x < 2)).float(),
    "casts": lambda x: (
        x.bool(),
        x.half().float(),
        x.double(),
        x.type(torch.int32),
        x.int().type_as(x),
        x.short(),
        x.bfloat16().float(),
    ),
    "masked-fill": lambda x: x.masked_fill(x < 0, -3.0),
    "ints": lambda x: x.int() + x.long() * 2 + 1,
    "int-and-float": lambda x: x.int() * 0.5 + x,
    "functional-activations": lambda x: F.relu(x) + F.silu(x) + F.leaky_relu(x, 0.3) + F.gelu(x, approximate="tanh"),
    "functional-dropout": lambda x: F.dropout(x, 0.5, False) + F.dropout(x, 0.5, training=False),
    "softmax": lambda x: F.softmax(x, 1, _stacklevel=5) + torch.softmax(x, -1) + x.log_softmax(2),
    "clamp-max": lambda x: x.clamp_max(0.2) + torch.clamp_max(x, 0.1),
    "group-norms": lambda x: F.group_norm(x, 2) + torch.group_norm(x, 3, torch.arange(6.0), torch.ones(6)),
    "functional-conv": lambda x: F.conv2d(x, torch.ones(2, 3, 3, 3), None, 1, 1, 1, 2),
    "functional-pools": lambda x: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1, False, False),
    "functional-adaptive": lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1),
    "flatten-and-back": lambda x: torch.flatten(x, 1).view(-1, 6, 72).reshape(x.size(0), 6, 9, 8),
    "flatten-batch": lambda x: x.flatten(0, 1).relu().view(x.size(0), 6, 9, 8),
    "view-batch-times": lambda x: x.view(x.size(0) * 2, 3, 9, 8).relu().view(-1, 6, 9, 8),
    "view-shape": lambda x: x.view(x.shape[0], x.shape[1], -1),
    "squeeze": lambda x: x.mean(2, keepdim=True).squeeze(2).unsqueeze(-1) + x[:, :, :1, :1].squeeze(3).unsqueeze(3),
    "permute": lambda x: x.permute(0, 2, 3, 1) + x.permute((0, 2, 3, 1)).contiguous(),
    "transpose": lambda x: x.transpose(1, -1).flatten(1) + torch.movedim(x, 1, 3).transpose(1, 2).flatten(1),
    "axes": lambda x: x.swapaxes(1, 2).flatten(1) + torch.swapdims(x, 1, 2).flatten(1) + x.moveaxis(1, 2).flatten(1),
    "views-as": lambda x: x.flatten(1).view_as(x) + x.flatten(2).reshape_as(x) + x.unflatten(1, (2, 3)).flatten(1, 2),
    "transposed-matrix": lambda x: (x[:, 0, 0].t() @ x[:, 0, 0], x.mT, x.flatten(1).T),
    "shuffle": lambda x: x.view(x.size(0), 2, 3, 9, 8).transpose(1, 2).contiguous().view(x.size(0), -1, 9, 8),
    "copies": lambda x: x.clone().detach().contiguous().to(torch.float32).float() + 1,
    "expand": lambda x: (
        torch.broadcast_to(x[:, :, :, :1], (-1, 6, 9, 8))
        + x.mean((2, 3), keepdim=True).expand(-1, -1, 9, 8)
        + x[:, :1].expand_as(x)
    ),
    "repeat": lambda x: x.repeat(1, 2, 1, 1).flatten(1) + x.repeat(2, 1, 1, 1, 1).sum(0).repeat(1, 2, 1, 1).flatten(1),
    "cat": lambda x: torch.cat([x, x * 2, x[:, :2]], dim=1),
    "cat-last": lambda x: torch.cat((x, x), -1),
    "stack": lambda x: torch.stack([x, -x], dim=-1) + torch.stack((x, x), 4),
    "chunk": lambda x: torch.chunk(x, 4, 1)[2] * 2 - x.chunk(2, dim=-1)[0][:, :2, :, :1],
    "split": lambda x: (torch.split(x, [1, 2, 3], 1)[:2], x.split(4, dim=2)[2].relu()),
    "split-others": lambda x: x.tensor_split(4, 1)[0] + torch.split_with_sizes(x, [1, 2, 3], 1)[1],
    "split-once": lambda x: torch.split(x, 6, 1)[0],
    "unbind": lambda x: x.unbind(1)[2] + torch.unbind(x, dim=1)[-1],
    "getitem": lambda x: (x[:, 0], x[:, -1], x[..., 1:3], x[:, ::2, None, 1::3], x[:, 2:-1, 3], x[:, None]),
    "getitem-all": lambda x: x[:] + x[...] + x[: x.shape[0]] + x[:, :6, ..., :8],
    "getitem-list": lambda x: x[:, [5, 0, 2]] + x[:, torch.tensor([1, 1, 3])],
    "narrow": lambda x: torch.narrow(x, 1, 2, 3) + x.narrow(1, -3, 3) + x.select(2, 1)[:, :3, None],
    "index-select": lambda x: torch.index_select(x, 1, torch.tensor([3, 0, 3])),
    "roll": lambda x: torch.roll(x, shifts=(2, -3), dims=(2, 3)) + x.roll(1, 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5) + F.pad(x, [1, 2, 0, 3]),
    "pad-negative": lambda x: F.pad(x, (-1, 2, 3, -2, 0, 1)),
    "pad-modes": lambda x: F.pad(x, (1, 2, 0, 3), "reflect") + F.pad(x, (2, 1, 1, 2), mode="circular"),
    "instance-norm": lambda x: F.instance_norm(x) + F.instance_norm(x, weight=torch.arange(6.0), eps=0.1),
    "reductions": lambda x: x.mean((2, 3)) + x.sum([-1, -2]) + x.amax((2, 3)) - x.amin(dim=(2, 3)),
    "reductions-keep": lambda x: torch.mean(x, 1, True) + torch.sum(x, dim=1, keepdim=True) + x.logsumexp(1, True),
    "reduction-all": lambda x: x - x.mean() * 0 + x.sum() * 0,
    "max-along": lambda x: (torch.max(x, 1)[0], x.max(dim=2, keepdim=True)[1], x.argmax(-1), x.argmin(2), x.min(1)),
    "products": lambda x: x.prod(1) + torch.tile(x.prod(dim=1, keepdim=True), (1, 6, 1, 1)).sum(1),
    "variance": lambda x: x.var((2, 3)) + torch.std(x, (2, 3), unbiased=False) + x.var(dim=(2, 3), correction=0),
    "normalize": lambda x: F.normalize(x, dim=1) + F.normalize(x, p=1.0, dim=-1),
    "matmul": lambda x: x @ x.transpose(-1, -2) + torch.matmul(x, x.transpose(2, 3)),
    "bmm": lambda x: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)) + x[:, 2] @ x[:, 3].mT,
    "mm-mv": lambda x: torch.mm(x[0, 0], x[0, 1].T) @ x[0, 1] + torch.mv(x[0, 0], x[0, 1, 0])[:, None],
    "baddbmm": lambda x: torch.baddbmm(x[:, 0], x[:, 1] @ x[:, 2].mT, x[:, 3], beta=2, alpha=0.5),
    "addmm": lambda x: torch.addmm(x[0, 0], x[0, 0] @ x[0, 0].T, x[0, 1], beta=0.5),
    "einsum": lambda x: torch.einsum("bchw, bdhw -> bcd", x, x) + torch.einsum("bchw,bdhw->bcd", [x, x]),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "attention-causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3),
    "attention-mask": lambda x: (
        F.scaled_dot_product_attention(x, x, x, x @ x.mT) + F.scaled_dot_product_attention(x, x, x, torch.eye(9) > 0)
    ),
    "pixel-shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2) + F.pixel_shuffle(x[:, 2:], 2),
    "embedding": lambda x: F.embedding(x.abs().int().clamp(max=4), torch.arange(10.0).view(5, 2)),
    "in-place-method": lambda x: (x.mul(2).add_(1).relu_() - 0.5).clamp_(max=2).abs_().sqrt(),
    "constant-arithmetic": lambda x: x + torch.ones(8).mul_(3).add_(torch.arange(8)),
    "more-unary": lambda x: x.tan() + x.tanh().asin() + x.tanh().acos() + x.atan() + x.sinh() + x.cosh() + x.trunc(),
    "more-logarithms": lambda x: (x.abs() + 1).log2() + (x.abs() + 1).log10() + x.expm1() + x.exp2(),
    "no-numbers": lambda x: (x.log().isnan(), (x / 0).isinf(), x.log().isfinite(), torch.logical_xor(x > 0, x < 1)),
    "bits": lambda x: (
        x.int() & 3 | (x.int() ^ 1),
        (x > 0) & (x < 1) | ~(x > 2) ^ (x > 0),
        ~x.int(),
    ),
    "division": lambda x: (
        x // 0.3 + torch.div(x, 0.3, rounding_mode="trunc") + torch.div(x, 0.7, rounding_mode="floor"),
        (8 * x).int() // 3 + torch.div((8 * x).int(), 3, rounding_mode="trunc"),
        (8 * x).int() % 3 + (8 * x).long() % -3,
        x % 0.7 + x % -0.7 + torch.fmod(x, 0.7),
    ),
    "products-and-sums": lambda x: (
        torch.addcmul(x, x, x + 1, value=0.5) + torch.addcdiv(x, x, x.abs() + 1) + torch.lerp(x, x * 2, 0.3),
        torch.outer(x[0, 0, 0], x[0, 0, :, 0]),
    ),
    "any-all": lambda x: ((x > 1).any(1), (x < 2).all(), torch.any(x > 3, 2, True)),
    "norms": lambda x: (x.norm(dim=1), torch.norm(x, 1, 2, True), torch.linalg.vector_norm(x, float("inf"), (2, 3))),
    "similar": lambda x: F.cosine_similarity(x, x + 1, 1),
    "shrinks": lambda x: (
        F.tanhshrink(x) + F.hardshrink(x) + F.softshrink(x, 0.3) + F.threshold(x, 0.2, 5.0) + F.softmin(x, 1)
    ),
    "flip": lambda x: torch.flip(x, [2, -1]) + x.flip(1),
    "roll-all": lambda x: x.roll(7),
    "filled": lambda x: (
        torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 2) + torch.empty_like(x).zero_(),
        x.new_zeros(3) + x.new_ones((3,)) + x.new_full((3,), 2.5) + x.new_empty(3).zero_(),
    ),
    "filled-by-size": lambda x: (
        torch.zeros((x.size(0), 2)) + torch.ones((x.size(0), 1)) + torch.full((x.size(0), 2), 1.5),
        torch.arange(x.size(0)) + torch.arange(x.size(0), dtype=torch.float16) + torch.arange(1, x.size(0) + 1),
        torch.empty((x.size(0),)).fill_(2.0) + torch.linspace(-1, 1, x.size(0)) @ torch.eye(x.size(0)),
    ),
    "triangles": lambda x: x.tril() + torch.triu(x, 1) + torch.tril(x.int(), -1),
    "meshgrid": lambda x: (
        torch.meshgrid(x[0, 0, 0], x[0, 0, :, 0], indexing="ij"),
        torch.meshgrid([x[0, 0, 0], x[0, 0, :, 0]], indexing="xy"),
    ),
    "cumsum": lambda x: x.cumsum(1) + torch.cumsum(x > 0, 2),
    "gathers": lambda x: (
        x.gather(1, (x.abs() * 2).long().clamp(max=5)) + x.take_along_dim((x.abs() * 2).long().clamp(max=5), 1),
        x.take_along_dim(torch.tensor([3, 5])),
    ),
    "scatters": lambda x: (
        x.scatter(1, x[:, :2].argmax(1, True), -5.0) + x.scatter(2, x.argmax(2, True), x[:, :, :1]),
        x.scatter_add(3, x.argmax(3, True), x[..., :1]) + x.scatter(1, x.argmax(1, True), 2.0, reduce="add"),
    ),
    "index-writes": lambda x: (
        x.index_add(1, torch.tensor([0, 2, 0]), x[:, :3], alpha=2) + x.index_copy(1, torch.tensor([4, 1]), x[:, :2]),
        x.index_fill(2, torch.tensor([0, 3]), 7.0) + x.index_put((torch.tensor([0]), torch.tensor([2])), x[0, 0]),
    ),
    "ordered": lambda x: (x.topk(2, 1), torch.topk(x, 3, largest=False)[0], x.sort(1, descending=True), x.argsort(2)),
    "one-hot": lambda x: F.one_hot(x.argmax(1), 6),
    "repeat-interleave": lambda x: (x.repeat_interleave(2, 1), torch.repeat_interleave(x, 2)),
    "unfold": lambda x: (x.unfold(2, 3, 2), x.unfold(-1, 2, 1)),
    "masks": lambda x: (x[x > 0], x[x[..., 0] > 0], x.masked_select(x > 1), x[:, torch.tensor([True, False] * 3)]),
    "many-vectors": lambda x: (
        x[:, torch.tensor([0, 5]), torch.tensor([[1], [-1]])],
        x[:, torch.tensor([0, 5]), :, torch.tensor([1, -2])],
        x[0, :, torch.tensor([0, 5])],
        x[:, [1, 2], None, 2:, [0, 3]],
        x[x.argmax(0)[0, 0] * 0, x[0, 0, 0].argmax() % 6],
        x[:, torch.tensor([[1, 2, 3]]), 1:],
    ),
    "writes": lambda x: x.clone().copy_(x[:, :1]).masked_fill_(x > 1, 3.0),
    "sampled": lambda x: (
        F.grid_sample(
            x,
            F.affine_grid(x[:, :2, 0, :3], (x.size(0), 6, 4, 5), align_corners=True).tanh(),
            "nearest",
            "border",
            True,
        )
        + F.grid_sample(x, x[:, 0, :8, :].view(-1, 4, 8, 2)[:, :, :5], align_corners=False)
    ),
    "einsum-dots": lambda x: torch.einsum("...ij,...kj->...ik", x, x) + torch.einsum("...ij,...kj", x, x).sum(),
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
