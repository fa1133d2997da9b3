"""A tiny model for every operator that has an axis rule: the operator stands between two layers."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bnas.testing.stage import DropPath

CHANNELS, HEIGHT, WIDTH = 8, 4, 6
INPUTS = torch.randn(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

Body = Callable[[Tensor], Any] | nn.Module


class Between(nn.Module):
    """A convolution with 8 outputs, the operator, and a layer on whatever axis 1 is then; in double precision."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, CHANNELS, 1), copy.deepcopy(body)
        with torch.no_grad():
            out = self.body(torch.randn(3, CHANNELS, HEIGHT, WIDTH))
        kind: Any = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[out.ndim]
        self.last = kind(out.shape[1], 2, *([] if out.ndim == 2 else [1]))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))


class Of(nn.Module):
    """A function of layers or parameters and of the input."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
        self.parameter_list = nn.ParameterList(part for part in parts if isinstance(part, nn.Parameter))

    def forward(self, x: Tensor) -> Any:
        return self.function(*self.layers, *self.parameter_list, x)


class Named(nn.Module):
    """Whose outputs have names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Between(torch.relu)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(first=self.inner(x), second=x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(1)))


def last(x: Tensor) -> Tensor:
    """Channels as the last axis."""
    return x.permute(0, 2, 3, 1)


def first(x: Tensor) -> Tensor:
    """Channels as axis 1 again."""
    return x.permute(0, 3, 1, 2)


def normalised(weight: Any, bias: Any, x: Tensor) -> Tensor:
    """Layer normalisation over channels, as ConvNeXt and others spell it."""
    centred = x - x.mean(1, keepdim=True)
    return weight * (centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 0.1)) + bias


PASSING: dict[str, Body] = {
    "dropout1d": lambda x: F.dropout1d(x.flatten(2), 0.5, False),
    "dropout3d": lambda x: F.dropout3d(x.unsqueeze(2), 0.5, False),
    "identity": DropPath(0.5),
    "imaginary part": lambda x: x.to(torch.complex128).imag + x,
    "type_as": lambda x: x.type_as(torch.zeros(5, dtype=torch.float64)) + x.to(torch.zeros(2, dtype=torch.float64)),
    "positive": lambda x: torch.log(x.abs() + 1) + torch.sqrt(x.abs() + 1) + torch.rsqrt(x.abs() + 1) + x.abs().log1p(),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1) + torch.div(x, x.abs() + 1) + torch.pow(x, 2),
    "rests": lambda x: torch.remainder(x, 0.3) + torch.fmod(x, 0.3) + torch.floor_divide(x, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2) + torch.clamp(x, -0.5, 0.5),
    "bits": lambda x: x * (((x > 0) & (x < 1)) | ~(x > 2)),
    "of three": lambda x: torch.lerp(x, x.cos(), 0.3) + torch.addcmul(x, x, x.sin()) + torch.addcdiv(x, x, x.exp()),
    "where": lambda x: torch.where(x > 0, x, x.exp()),
    "fills": lambda x: x.masked_fill(x > 0.5, 2.0) + torch.full_like(x, 0.5) + x.clone().fill_(2) + x.clone().zero_(),
    "random": lambda x: (
        x + 0 * torch.rand_like(x) + 0 * torch.randn_like(x) + torch.bernoulli(torch.zeros_like(x)) + x.mul(0)
    ),
    "empty_like": lambda x: x + torch.empty_like(x).copy_(x.relu()),
    "types": lambda x: x * (1 + x.to(torch.float32)) + x.int().type_as(x) + x.type(torch.int32),
    "factories": lambda x: (
        x + torch.zeros(x.shape[0], 1, 1, 1) + torch.ones(x.shape[0], 1, 1, 1) + torch.full((x.shape[0], 1, 1, 1), 2.0)
    ),
    "factories of noise": lambda x: (
        x
        + 0 * torch.rand(x.shape[0], 1, 1, 1)
        + 0 * torch.randn(x.shape[0], 1, 1, 1)
        + torch.empty(x.shape[0], 1, 1, 1).zero_()
        + torch.arange(x.shape[0]).view(-1, 1, 1, 1)
    ),
    "new": lambda x: (
        x + x.new_zeros(x.shape[0], 1, 1, 1) + x.new_ones(x.shape[0], 1, 1, 1) + x.new_full((x.shape[0], 1, 1, 1), 2.0)
    ),
    "new_empty": lambda x: x + x.new_empty(x.shape[0], 1, 1, 1).zero_(),
    "normalize": lambda x: F.normalize(x, dim=1),
    "prelu": nn.PReLU(CHANNELS),
    "glu": lambda x: F.glu(x, 1),
    "linear": Of(lambda layer, x: first(layer(last(x)).relu()), nn.Linear(CHANNELS, CHANNELS)),
    "embedding": Of(lambda layer, x: x + layer(torch.arange(WIDTH)).t()[:, None], nn.Embedding(WIDTH, CHANNELS)),
    "conv1d": Of(lambda layer, x: layer(x.flatten(2)).relu(), nn.Conv1d(CHANNELS, 6, 3, padding=1)),
    "conv2d": nn.Conv2d(CHANNELS, 12, 3, padding=1),
    "conv2d grouped": nn.Conv2d(CHANNELS, 12, 3, groups=4),
    "conv2d depthwise": nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, groups=CHANNELS),
    "conv3d": Of(lambda layer, x: layer(x.unsqueeze(2)).relu(), nn.Conv3d(CHANNELS, 6, 1)),
    "conv_transpose1d": Of(lambda layer, x: layer(x.flatten(2)).relu(), nn.ConvTranspose1d(CHANNELS, 6, 3, 2)),
    "conv_transpose2d": nn.ConvTranspose2d(CHANNELS, 12, 2, 2),
    "conv_transpose2d grouped": nn.ConvTranspose2d(CHANNELS, 12, 2, 2, groups=2),
    "conv_transpose3d": Of(lambda layer, x: layer(x.unsqueeze(2)).relu(), nn.ConvTranspose3d(CHANNELS, 6, 1)),
    "batch_norm": nn.BatchNorm2d(CHANNELS),
    "torch.batch_norm": Of(
        lambda n, x: torch.batch_norm(x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, 1e-5, False),
        nn.BatchNorm2d(CHANNELS),
    ),
    "instance_norm": nn.InstanceNorm2d(CHANNELS, affine=True),
    "torch.instance_norm": Of(
        lambda w, b, x: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, False),
        parameter(CHANNELS),
        parameter(CHANNELS),
    ),
    "layer_norm": Of(lambda layer, x: first(layer(last(x))), nn.LayerNorm(CHANNELS)),
    "layer_norm without weight": lambda x: first(F.layer_norm(last(x).sigmoid(), (CHANNELS,))),
    "norms without weights": lambda x: first(F.rms_norm(F.layer_norm(last(x).sigmoid(), (8,)).relu(), (8,))),
    "norm of padding": lambda x: F.group_norm(F.pad(x.relu(), (0, 0, 0, 0, 2, 1)), 1),
    "rms_norm": Of(lambda layer, x: first(layer(last(x))), nn.RMSNorm(CHANNELS)),
    "group_norm": nn.GroupNorm(1, CHANNELS),
    "torch.group_norm": Of(lambda w, b, x: torch.group_norm(x, 1, w, b), parameter(CHANNELS), parameter(CHANNELS)),
    "permute": lambda x: x.permute(0, 3, 1, 2).transpose(1, 2),
    "movedim": lambda x: torch.movedim(x, 1, 3).movedim(3, 1),
    "t": Of(lambda w, x: torch.einsum("bchw,dc->bdhw", x, w.t()), parameter(CHANNELS, 5)),
    "adjoint": lambda x: torch.adjoint(x),
    "getattr": lambda x: x.mT,
    "expand": lambda x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, HEIGHT, WIDTH),
    "expand by numbers": lambda x: x[:, :, None].expand(x.shape[0], CHANNELS, 2, HEIGHT, WIDTH).flatten(1, 2),
    "expand_as": lambda x: x[:, :, :1].expand_as(x) * x,
    "repeat": lambda x: x.repeat(1, 3, 1, 1) + torch.tile(x, (1, 3, 1, 1)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "channel_shuffle": nn.ChannelShuffle(2),
    "pixel_shuffle": nn.PixelShuffle(2),
    "pixel_unshuffle": nn.PixelUnshuffle(2),
    "unfold": lambda x: F.unfold(x, 2),
    "fold": lambda x: F.fold(F.unfold(x, 2), (HEIGHT, WIDTH), 2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    **{f"pool{n}": lambda x, n=n: pooled(x, n) for n in (1, 2, 3)},
    "matmul": lambda x: x.flatten(2).mT @ x.flatten(2),
    "bmm": lambda x: torch.bmm(x.flatten(2).mT, x.flatten(2)),
    "mm": Of(lambda w, x: x.mean((2, 3)).mm(w), parameter(CHANNELS, 5)),
    "mv": Of(lambda w, v, x: x * torch.mv(w, v)[:, None, None], parameter(CHANNELS, 5), parameter(5)),
    "dot": Of(lambda w, x: x * torch.dot(w[:CHANNELS], w[:CHANNELS]), parameter(CHANNELS)),
    "addmm": Of(lambda b, w, x: torch.addmm(b, x.mean((2, 3)), w), parameter(5), parameter(CHANNELS, 5)),
    "addmv": Of(lambda b, w, x: x * torch.addmv(b, w, b)[:, None, None], parameter(8), parameter(8, 8)),
    "baddbmm": Of(lambda b, x: torch.baddbmm(b, x.flatten(2).mT, x.flatten(2)), parameter(1)),
    "einsum": Of(lambda w, x: torch.einsum("bchw,dc->bdhw", x, w), parameter(5, CHANNELS)),
    "attention": lambda x: attended(x, 2),
    "lstm": Of(lambda layer, x: layer(x.flatten(2).mT)[0].mT, nn.LSTM(CHANNELS, 6, 2, True, True, 0.0, True)),
    "gru": Of(lambda layer, x: layer(x.flatten(2).mT)[0].mT, nn.GRU(CHANNELS, 6, batch_first=True)),
    "rnn": Of(lambda layer, x: layer(x.flatten(2).mT)[0].mT, nn.RNN(CHANNELS, 6, 2, batch_first=True)),
    "lstm_cell": Of(lambda cell, x: cell(x.mean((2, 3)), (new_state(x, 6), new_state(x, 6)))[1], nn.LSTMCell(8, 6)),
    "gru_cell": Of(lambda cell, x: cell(x.mean((2, 3)), cell(x[:, :, 0, 0])), nn.GRUCell(CHANNELS, 6)),
    "rnn_cell": Of(lambda cell, x: cell(x.mean((2, 3)), x.new_zeros((x.shape[0], 6))), nn.RNNCell(CHANNELS, 6)),
    "padding of zeros": lambda x: torch.cat([x, x.new_zeros(x.shape[0], 4, HEIGHT, WIDTH)], 1),
    "sum": lambda x: x * x.sum(1, keepdim=True),
    "vector_norm": lambda x: (
        x * torch.linalg.vector_norm(x, dim=1, keepdim=True) + torch.norm(x, dim=(2, 3))[:, :, None, None]
    ),
    "sum of zeros": lambda x: (
        x * (x.relu() * x.sigmoid() + x.tanh()).flatten(2).pow(2).sum(1).view(-1, 1, HEIGHT, WIDTH)
    ),
    "mean": lambda x: x * x.mean((2, 3), keepdim=True),
    "mean of channels": lambda x: x * x.mean(1, keepdim=True),
    "mean of all": lambda x: x * torch.mean(x.sigmoid(), (1, 2, 3), keepdim=True) + x.exp().mean(),
    "variance of channels": lambda x: x * x.var(1, keepdim=True) + x.exp().std(dim=1, unbiased=False, keepdim=True),
    "mean of padding": lambda x: F.pad(x, (0, 0, 0, 0, 2, 1), value=0.5) + F.pad(x, (0, 0, 0, 0, 2, 1)).mean(1, True),
    "mean of means": lambda x: x * x.mean((2, 3)).mean(1)[:, None, None, None],
    "mean over heads": lambda x: (x.unflatten(1, (4, 2)) - x.unflatten(1, (4, 2)).mean(1, keepdim=True)).flatten(1, 2),
    "rms norm by hand": Of(lambda w, x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 0.1) * w, parameter(8, 1, 1)),
    "rms norm in float32": Of(
        lambda w, x: w * (x.to(torch.float32) * torch.rsqrt(x.float().pow(2).mean(1, True) + 0.1)).to(x.dtype),
        parameter(8, 1, 1),
    ),
    "layer norm by hand": Of(normalised, parameter(8, 1, 1), parameter(8, 1, 1)),
    "layer norm by hand, twice": lambda x: normalised(1, 0, normalised(1, 0, x).sigmoid()),
    "any": lambda x: x * (1 + torch.any(x > 0, 2, keepdim=True).double() + torch.all(x > 0, 2, keepdim=True).double()),
    "max": lambda x: x * (x.max(2, keepdim=True)[0] + x.min(2, keepdim=True)[0] + x.median(2, keepdim=True)[0]),
    "argmax": lambda x: x * (x.argmax(3, keepdim=True) + x.argmin(3, keepdim=True)),
    "softmax": lambda x: F.softmax(x, 2) + F.log_softmax(x, 2) + F.softmin(x, 2),
    "scans": lambda x: torch.cumsum(x, 2) + torch.cumprod(x, 3) + torch.argsort(x, 2),
    "sort": lambda x: torch.sort(x, 2)[0] + torch.topk(x, HEIGHT, 2)[0],
    "getitem": lambda x: x[:, 2:] * x[:, :6],
    "getitem by a tensor": lambda x: x[:, :, torch.tensor([1, 0])],
    "narrow": lambda x: x.narrow(1, 2, 6) * x.narrow(1, 0, 6),
    "select": lambda x: x.select(2, 1),
    "unbind": lambda x: x.unbind(2)[1],
    "chunk": lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1],
    "split": lambda x: x.split([2, 6], 1)[1] + torch.split_with_sizes(x, [6, 2], 1)[0],
    "tensor_split": lambda x: x.tensor_split(2, 1)[1],
    "index_select": lambda x: torch.index_select(x, 2, torch.tensor([2, 0])),
    "flatten": lambda x: x.flatten(1),
    "squeeze": lambda x: x[:, :, :1].squeeze(2).unsqueeze(3),
    "reshape": lambda x: x.reshape(x.shape[0], CHANNELS, -1),
    "unflatten": lambda x: x.unflatten(1, (4, 2)).flatten(1, 2),
    "view_as": lambda x: x.flatten(2).view_as(x) + x.flatten(1).reshape_as(x),
    "stack": lambda x: torch.stack([x, x.exp()], 2),
    "cat": lambda x: torch.cat([x, x.exp(), x], 1),
    "broadcast_to": lambda x: torch.broadcast_to(x[:, :, :1], (x.shape[0], 8, 4, 6)) * x.broadcast_to(x.shape),
    "maximum of two": lambda x: torch.max(x, x.exp()) + torch.min(x, x.cos()).max(other=x),
    "clamps": lambda x: x.clamp_min(0.1) + torch.clamp_max(x, 0.2),
    "exclusive or": lambda x: x * ((x > 0) ^ (x < 1)) + x * torch.logical_xor(x > 0, x < 1),
    "vdot": Of(lambda w, x: x * torch.vdot(w, w), parameter(CHANNELS)),
    "outer": Of(
        lambda w, v, x: x * torch.outer(w, v).sum(1)[:, None, None] + torch.ger(w, v).sum(1)[:, None, None],
        parameter(CHANNELS),
        parameter(3),
    ),
    "kron": Of(lambda w, x: torch.einsum("bchw,dc->bdhw", x, torch.kron(w, torch.ones(2))), parameter(5, 4)),
    "einsum with ellipsis": lambda x: torch.einsum("b...,b...->b...", x, x.cos()),
    "einsum without output": Of(lambda w, x: first(torch.einsum("...c,dc", last(x), w)), parameter(5, CHANNELS)),
    "einsum of broadcast": lambda x: torch.einsum("...hw,...hw->...", x, x[:, :1].cos()),
    "triangles": lambda x: x.triu(1) + torch.tril(x),
    "one_hot": lambda x: (x.unsqueeze(-1) * F.one_hot((x > 0).long(), 2)).flatten(3),
    "windows": lambda x: x.unfold(2, 2, 1),
    "pooled with places": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "unpool1": lambda x: F.max_unpool1d(*F.max_pool1d(x.flatten(2), 2, return_indices=True), 2),
    "unpool3": lambda x: F.max_unpool3d(*F.max_pool3d(x.unsqueeze(4), (2, 2, 1), return_indices=True), (2, 2, 1)),
    "places of the largest": lambda x: (
        x * F.adaptive_max_pool2d(x, 1, return_indices=True)[1]
        + F.adaptive_max_pool1d(x.flatten(2), 1, return_indices=True)[0].unsqueeze(3)
        + F.adaptive_max_pool3d(x.unsqueeze(4), 1, return_indices=True)[0].squeeze(4)
    ),
    "grid_sample": lambda x: F.grid_sample(x, last(x[:, :2]).tanh(), align_corners=False),
    "affine_grid": Of(
        lambda layer, x: F.grid_sample(
            x, F.affine_grid(layer(x.mean((2, 3))).view(-1, 2, 3), [x.shape[0], 1, 4, 6], False), align_corners=False
        ),
        nn.Linear(CHANNELS, 6),
    ),
    "embedding_bag": Of(
        lambda w, x: x * F.embedding_bag(torch.tensor([[0, 2]]), w)[:, :, None, None], parameter(3, CHANNELS)
    ),
    "scatter": lambda x: x.scatter_add(2, (x > 0).long(), x.cos()) + torch.scatter(x, 3, (x > 0).long(), 0.5),
    "gather": lambda x: torch.gather(x, 2, (x > 0).long()) + torch.take_along_dim(x, (x > 0).long(), 2),
    "index_add": lambda x: x.index_add(2, torch.tensor([0, 1]), x[:, :, :2]),
    "index_copy": lambda x: x.index_copy(2, torch.tensor([0, 1]), x[:, :, :2].cos()),
    "index_fill": lambda x: x.index_fill(2, torch.tensor([0, 1]), 0.5),
    "list of rows": lambda x: x[:, :, [0, -1]] * x[:, 2:, [1]].sum(1, keepdim=True),
    "several indices": lambda x: x[:, :, torch.tensor([0, 1]), torch.tensor([1, 0])],
    "indices apart": lambda x: x.transpose(1, 2)[:, torch.tensor([0, 1]), :, torch.tensor([1, 0])].movedim(0, 2),
    "an index and a number": lambda x: x[:, :, torch.tensor([0, 1]), 2],
    "grouped queries": lambda x: grouped(x.flatten(2).unflatten(1, (4, 2)).mT),
    "aminmax": lambda x: x * torch.aminmax(x, dim=2, keepdim=True)[0],
    "weight standardisation": Of(
        lambda w, x: F.conv2d(x, (w - w.mean((1, 2, 3), True)) / (w.var((1, 2, 3), keepdim=True) + 0.1)),
        parameter(6, CHANNELS, 1, 1),
    ),
    "unflatten module": Of(lambda layer, x: layer(x).flatten(1, 2), nn.Unflatten(1, (4, 2))),
    "items of rows": lambda x: assigned(x, (slice(None), slice(None), 0), 1.0),
    "items of parts": lambda x: assigned(x, (slice(None), slice(None), slice(1, None)), x[:, :, :3].cos()),
    "items of all": lambda x: assigned(x, Ellipsis, x.cos()),
    "items by list": lambda x: assigned(x, (Ellipsis, [0, 2]), x[..., :2].cos()),
    "items by mask": lambda x: assigned(x, x > 0, 0.5),
    "pad": lambda x: F.pad(x, (1, 0, 0, 2, 3, 1), value=0.5),
}
"""Where the width of the first layer stays elastic: beside the examples of the records, operators in company."""


def new_state(x: Tensor, width: int) -> Tensor:
    """The first state of a recurrent layer."""
    return torch.zeros(x.shape[0], width, dtype=x.dtype)


def pooled(x: Tensor, rank: int) -> Tensor:
    """All poolings of one rank."""
    x = {1: x.flatten(2), 2: x, 3: x.unsqueeze(2)}[rank]
    average, largest = getattr(F, f"avg_pool{rank}d"), getattr(F, f"max_pool{rank}d")
    adaptive = getattr(F, f"adaptive_avg_pool{rank}d")(x, 1) + getattr(F, f"adaptive_max_pool{rank}d")(x, 1)
    out: Tensor = average(x, 1) * largest(x, 1) + adaptive
    return out


def attended(x: Tensor, heads: int) -> Tensor:
    """Self-attention of the pixels, the channels being heads and their widths."""
    tokens = x.flatten(2).unflatten(1, (heads, -1)).mT
    return F.scaled_dot_product_attention(tokens, tokens, tokens.exp()).mT.flatten(1, 2)


def grouped(tokens: Tensor) -> Tensor:
    """Attention in which each head of the keys serves two of the queries."""
    keys = tokens.unflatten(1, (2, 2))[:, :, 0]
    return F.scaled_dot_product_attention(tokens, keys, keys.exp(), enable_gqa=True).mT.flatten(1, 2)


NOT_ZERO = "its dropped entries are not zero"


def written(x: Tensor) -> Tensor:
    """Exponentials, in the memory that held a copy."""
    copy = x.clone()
    copy.exp_()
    return copy


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of a tensor after an assignment to items, which plain proxies of fx do not take."""
    copy = x.clone()
    if isinstance(copy, fx.Proxy):
        copy.tracer.create_proxy("call_function", operator.setitem, (copy, index, value), {})
    else:
        copy[index] = value
    return copy


RIGID: dict[str, tuple[Body, str]] = {
    "local_response_norm": (lambda x: F.local_response_norm(x, 3), "neighbouring channels"),
    "roll": (lambda x: torch.roll(x, 2, 1), "moved to other places"),
    "flip": (lambda x: torch.flip(x, (1,)), "moved to other places"),
    "softmax of channels": (lambda x: F.softmax(x, 1), "softmax runs along it"),
    "recurrent channels": (
        Of(lambda layer, x: layer(x.flatten(2))[0], nn.GRU(24, 6, batch_first=True)),
        "runs along it",
    ),
    "cumsum of channels": (lambda x: torch.cumsum(x, 1), "cumsum runs along it"),
    "sort of channels": (lambda x: torch.sort(x, 1)[0], "sorted"),
    "largest of channels": (lambda x: x * x.amax(1, keepdim=True), "searched"),
    "one channel": (lambda x: x[:, 1:2] * x[:, 3, None], "read by index"),
    "a step": (lambda x: x[:, ::2], "read by index"),
    "index of channels": (lambda x: torch.index_select(x, 1, torch.tensor([2, 0])), "read by index"),
    "unbound channels": (lambda x: torch.stack(x.unbind(1)[:3], 1), "one by one"),
    "reflected channels": (lambda x: F.pad(x.flatten(2).mT, (1, 1), "reflect").mT, "own values"),
    # what is left out would be something else than zero
    "sum of gates": (lambda x: x * x.sigmoid().sum(1, keepdim=True), NOT_ZERO),
    "sum after a number": (lambda x: x * (x + 1).sum(1, keepdim=True), NOT_ZERO),
    "sum of what was written into": (lambda x: x * written(x).sum(1, keepdim=True), NOT_ZERO),
    "length of exponentials": (lambda x: F.normalize(x.exp(), dim=1), NOT_ZERO),
    "kernel attention": (lambda x: x.flatten(2).exp().mT @ x.flatten(2).exp(), NOT_ZERO),
    "einsum of exponentials": (
        lambda x: torch.einsum("bct,bcs->bts", x.flatten(2).exp(), x.flatten(2).exp()),
        NOT_ZERO,
    ),
    # what a rule does not understand, each with its reason
    "no rule": (lambda x: torch.special.i0(x), "no rule"),
    "repeated flat": (Of(lambda w, x: x * w.repeat_interleave(2)[:, None, None], parameter(4)), "flattened"),
    "argsort without axis": (lambda x: x + torch.argsort(x), "no axis"),
    "list of channels": (lambda x: x[:, [0, 2]], "read by index"),
    "two indices": (lambda x: x[:, torch.tensor([0, 2]), torch.tensor([0, 1])], "read by index"),
    "gather": (lambda x: torch.gather(x, 1, torch.ones_like(x).long()), "read by index"),
    "gather of fewer": (lambda x: torch.gather(x, 2, (x[:, :4] > 0).long()), "read by index"),
    "take_along_dim": (lambda x: torch.take_along_dim(x, torch.ones_like(x).long(), 1), "read by index"),
    "take_along_dim without axis": (
        lambda x: x + torch.take_along_dim(x, x.argmax().view(1)).view(1, 1, 1, 1),
        "no axis is given",
    ),
    "scatter of channels": (lambda x: torch.scatter(x, 1, (x > 0).long(), 0.5), "read by index"),
    "items of a channel": (lambda x: assigned(x, (slice(None), 1), 0.0), "read by index"),
    "items of channels": (lambda x: assigned(x, (slice(None), slice(2)), 0.0), "a part of it is overwritten"),
    "sum of items": (
        lambda x: x * assigned(x, (slice(None), slice(None), 0), 1.0).sum(1, keepdim=True),
        NOT_ZERO,
    ),
    "masked_scatter": (lambda x: x.masked_scatter(x > 0, x.cos()), "in their order"),
    "triangle of channels": (lambda x: x.transpose(1, 2).triu().transpose(1, 2), "triangle"),
    "windows of channels": (lambda x: x.unfold(1, 2, 2).flatten(3), "windows"),
    "another type": (lambda x: x.view(torch.int64).view(torch.float64), "another number type"),
}
"""Where it does not, and what the diagnostics say."""

SYMBOLS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv2d depthwise", "conv3d"), 2),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 2),
    **dict.fromkeys(("conv2d grouped", "conv_transpose2d grouped"), 3),  # groups, and the inner widths on both sides
    **dict.fromkeys(("t", "mm", "mv", "dot", "addmm", "einsum"), 2),  # and the axis that a parameter adds
    **dict.fromkeys(("lstm", "gru", "rnn", "lstm_cell", "gru_cell", "rnn_cell"), 2),
    **dict.fromkeys(("attention", "unflatten"), 2),  # an outer and an inner size
    "tensor_split": 2,
    **dict.fromkeys(
        ("outer", "vdot", "einsum of broadcast", "einsum without output", "weight standardisation", "kron"), 2
    ),
    **dict.fromkeys(("grouped queries", "unflatten module", "list of rows"), 2),
    **dict.fromkeys(("expand by numbers", "mean over heads"), 2),
}
"""The number of free symbols where it is not one."""
