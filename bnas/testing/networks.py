"""Random networks as values, and hypothesis strategies for them and for the sub-networks of a space."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from bnas.passes import SearchSpace, Subnet

from .channels import PARTS, Einsum, Gated, Norm, Padded, Parts, Shuffle, Tied, Unshuffle, Upsample
from .convolutions import Around, Branches, Downsample, Head, Layer, Pool, Residual, Twice
from .plain import PIECES, Plain, Recurrent
from .stage import ACTIVATIONS, DROPS, WIDTHS, Stage
from .tokens import PROJECTIONS, Attention, Mix, Mlp, Tokens

# Random networks as values.


@dataclass(frozen=True)
class Network:
    """A small convolutional network in evaluation mode with random weights and statistics; its ``repr`` makes it."""

    stem: Layer = field(default_factory=lambda: Layer(4))
    stages: tuple[Stage, ...] = ()
    head: Head = field(default_factory=Head)
    size: int = 8
    """Height of the images; they are one pixel wider."""
    batch: int = 2
    seed: int = 0
    nested: bool = False
    """Whether it returns ``{"out": head, "more": [features, (mean,)]}``."""
    module: nn.Module = field(init=False, repr=False, compare=False)
    example_inputs: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Build the module; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            example = torch.randn(self.batch, 3, self.size, self.size + 1)
            module = self._build(example).eval()
            _randomise(module)
        object.__setattr__(self, "module", module)
        object.__setattr__(self, "example_inputs", example)

    def _build(self, example: Tensor) -> nn.Module:
        parts, channels = [self.stem.build(3)], self.stem.channels
        for stage in self.stages:
            parts.append(stage.build(channels))
            channels = stage.width(channels)
        body = nn.Sequential(*parts).eval()
        with torch.no_grad():
            positions = body(example)[0, 0].numel()
        for part in body.modules():
            vars(part).get("tables", {}).clear()  # at the example's size a table would be there already
        head = self.head.build(channels, positions)
        return _Nested(body, head) if self.nested else nn.Sequential(body, head)


class _Nested(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        features = self[0](x)
        return {"out": self[1](features), "more": [features, (features.mean((1, 2, 3)),)]}


def _randomise(module: nn.Module) -> None:
    """Statistics, biases and scales unlike the initial ones, and weights that let the signal live: or mistakes hide."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim > 1 and tensor[0].numel() > 1:
            nn.init.kaiming_normal_(tensor)
        elif tensor.is_floating_point():
            positive = name.endswith(("weight", "var", "scale"))
            tensor.data.uniform_(*((0.5, 1.5) if positive else (-0.5, 0.5)))


# Hypothesis strategies: random networks, and the sub-networks of a space.


@st.composite
def networks(draw: st.DrawFn, *, max_stages: int = 4, nested: bool = False) -> Network:
    """Random `Network`s of any parts in any order; they shrink towards few and plain layers.

    Convolutions (dense, grouped, depthwise, transposed; kernels of 1 to 7 entries, square or not, dilated or not),
    residual, strided, concatenated, gated, shared, tied, padded, split and shuffled parts, all normalisations, dropout
    and stochastic depth, attention in all common spellings, perceptrons on tokens, positions, recurrent layers, and
    plain code: writes through views, item assignment, kept tables, arithmetic of sizes, branches by the mode. With
    `nested`, some return their outputs in a nested structure.
    """
    size = draw(st.integers(8, 12))
    stem = draw(_layers(3))
    channels, rows, stages = stem.channels, stem.rows(size), list[Stage]()
    for _ in range(draw(st.integers(1, max_stages))):
        stages.append(draw(_stages(channels, rows)))
        channels, rows = stages[-1].width(channels), stages[-1].rows(rows)
    if draw(st.sampled_from((False, False, True))):
        stages.append(draw(_tokens(rows, ("mean", "class"))))
    head = draw(st.builds(Head, st.booleans(), st.none() | st.sampled_from(WIDTHS)))
    batch, seed = draw(st.integers(2, 3)), draw(st.integers(0, 2**16))
    return Network(stem, tuple(stages), head, size, batch, seed, nested and draw(st.booleans()))


@st.composite
def subnets(draw: st.DrawFn, space: SearchSpace) -> Subnet:
    """The sub-networks of `space`: every variable by itself; examples shrink towards the maximal one."""
    last = [len(variable.choices) - 1 for variable in space.variables()]
    return space.decode([number - draw(st.integers(0, number)) for number in last])


def _stages(channels: int, rows: int) -> st.SearchStrategy[Stage]:
    """What can stand at this place of a network: images neither vanish nor become large."""
    kinds = [*_keeping(channels, rows), _arounds(channels, rows), _layers(channels, may_shrink=rows > 4)]
    if rows > 4:
        kinds += [_downsamples(channels), st.builds(Pool, st.booleans()), st.builds(Unshuffle, _WIDTHS)]
        kinds.append(_tokens(rows, ("image",), patches=(1, 2)))
    elif rows > 1:
        kinds.append(_upsamples(channels))
    return st.one_of(kinds)


def _keeping(channels: int, rows: int) -> list[st.SearchStrategy[Stage]]:
    """What keeps height and width, the plainest first."""
    return [
        _layers(channels),
        _residuals(channels),
        st.builds(Twice, _KERNELS, st.booleans(), _ACTIVATIONS),
        _branches(channels),
        _norms(channels, rows),
        st.builds(Shuffle, _divisors(channels), st.booleans()),
        st.builds(Gated, _WIDTHS, st.booleans()),
        st.builds(Padded, st.integers(0, 3), st.integers(0, 2), st.sampled_from((0.0, 0.5)), st.integers(0, 1)),
        _parts(channels),
        st.builds(Einsum, _WIDTHS),
        st.builds(Tied, st.sampled_from((1, 3))),
        st.builds(Plain, st.sampled_from(tuple(PIECES))),
        st.builds(Recurrent, st.sampled_from(("gru", "lstm", "rnn")), st.sampled_from((2, 4)), st.booleans()),
        _tokens(rows, ("image",)),
    ]


_KERNELS: st.SearchStrategy[int | tuple[int, int]] = st.sampled_from((1, 3, 3, 5, 7, (1, 5), (7, 3)))
_ACTIVATIONS = st.sampled_from(tuple(ACTIVATIONS))
_WIDTHS = st.sampled_from(WIDTHS)
_DROPS = st.none() | st.sampled_from(tuple(DROPS))


def _divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in (1, 2, 3, 4, 8) if number % n == 0])


@st.composite
def _layers(draw: st.DrawFn, channels: int, *, may_shrink: bool = False) -> Layer:
    """Dense, grouped and depthwise ones, the last with one or two outputs for each input."""
    groups = draw(st.sampled_from([1, 1, *(n for n in (2, 4) if channels % n == 0), channels]))
    widths = [n for n in WIDTHS if n % groups == 0] or [groups]
    stride = draw(st.sampled_from((1, 2))) if may_shrink else 1
    width, kernel, dilation = draw(st.sampled_from(widths)), draw(_KERNELS), draw(st.sampled_from((1, 1, 2)))
    same = stride == 1 and draw(st.booleans())
    return Layer(width, kernel, stride, groups, draw(st.booleans()), draw(_ACTIVATIONS), dilation, same)


@st.composite
def _residuals(draw: st.DrawFn, channels: int) -> Residual:
    hidden = draw(_WIDTHS)
    return Residual(
        hidden,
        draw(st.sampled_from([1, *(n for n in (2, 4) if hidden % n == 0), hidden])),
        draw(st.integers(0, 2)),
        draw(st.booleans()),
        draw(_ACTIVATIONS),
        draw(st.none() | st.sampled_from((4, 6))),
        draw(st.booleans()),
        draw(st.none() | _ACTIVATIONS),
        draw(_KERNELS),
        draw(_DROPS),
    )


@st.composite
def _arounds(draw: st.DrawFn, channels: int, rows: int) -> Around:
    first = draw(st.one_of(_keeping(channels, rows)))
    second = draw(st.none() | st.one_of(_keeping(first.width(channels), rows)))
    return Around((first,) if second is None else (first, second), draw(_DROPS))


@st.composite
def _downsamples(draw: st.DrawFn, channels: int) -> Downsample:
    width = draw(_WIDTHS)
    return Downsample(width, draw(st.booleans()) or width < channels, draw(st.booleans()), draw(_ACTIVATIONS))


@st.composite
def _upsamples(draw: st.DrawFn, channels: int) -> Upsample:
    width, shuffle = draw(_WIDTHS), draw(st.booleans())
    groups = draw(st.sampled_from([n for n in (1, 2, 4) if channels % n == 0 and width % n == 0]))
    return Upsample(width, 1 if shuffle else groups, shuffle)


@st.composite
def _branches(draw: st.DrawFn, channels: int) -> Branches:
    layers = draw(st.lists(_layers(channels), min_size=1, max_size=2))
    keep = draw(st.booleans()) or len(layers) == 1
    return Branches(tuple(layers), keep and channels <= WIDTHS[-1])


@st.composite
def _norms(draw: st.DrawFn, channels: int, rows: int) -> Norm:
    kind = draw(st.sampled_from(("group", "layer", "rms", *(("instance",) if rows > 1 else ()))))
    groups = draw(_divisors(channels)) if kind == "group" else 1
    return Norm(kind, groups, draw(st.booleans()), draw(_ACTIVATIONS))


@st.composite
def _parts(draw: st.DrawFn, channels: int) -> Parts:
    half = channels % 2 == 0
    written = draw(st.sampled_from([one for one in PARTS if half or one != "chunk"]))
    first = channels // 2 if written == "chunk" else draw(st.integers(1, channels - 1))
    return Parts(first, draw(_layers(channels - first)), written)


@st.composite
def _tokens(draw: st.DrawFn, rows: int, readouts: tuple[str, ...], patches: tuple[int, ...] = (1,)) -> Tokens:
    width = draw(_WIDTHS)
    blocks = draw(st.lists(st.one_of(_mlps(), _attentions(width), st.just(Mix())), max_size=2))
    positions, readout = draw(st.sampled_from((None, "parameter", "embedding"))), draw(st.sampled_from(readouts))
    if readout == "class" and not any(isinstance(block, Attention | Mix) for block in blocks):
        readout = "mean"  # the first token would know nothing of the others
    return Tokens(width, tuple(blocks), draw(st.sampled_from(patches)), positions, readout)


def _mlps() -> st.SearchStrategy[Stage]:
    return st.builds(Mlp, _WIDTHS, st.booleans(), st.sampled_from(("gelu", "silu")), _TOKEN_NORMS, _DROPS)


_TOKEN_NORMS = st.sampled_from(("layer", "rms"))


def _attentions(width: int) -> st.SearchStrategy[Stage]:
    heads, product = st.sampled_from((1, 2, 3)), st.booleans()
    free = st.builds(
        Attention, heads, st.sampled_from((2, 4, 6)), st.sampled_from(PROJECTIONS[:-1]), product, _TOKEN_NORMS, _DROPS
    )
    heads = _divisors(width)
    module = st.builds(Attention, heads, st.just(0), st.just("module"), st.just(False), _TOKEN_NORMS, _DROPS)
    return free | module
