"""Random networks and checks of super-networks: for the tests of bnas, and for those of your own models and rules.

A `Network` is made from a plan of plain values, and its ``repr`` is the plan: a failing example shrinks to something
readable that can be pasted into a test. The checks raise `AssertionError` (or `bnas.passes.VerificationError`) and
leave the super-network as they found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnas.passes import SearchSpace, Subnet
from bnas.passes.ir import as_call, as_program_call
from bnas.passes.lowering import lower, named_outputs
from bnas.passes.slot import Slot
from bnas.runtime.program import Program
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.verification import verify

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("bnas.testing needs hypothesis, which is optional: pip install 'bnas[test]'") from error

__all__ = [
    "Branches",
    "Downsample",
    "Head",
    "Layer",
    "Network",
    "Pool",
    "Residual",
    "Stage",
    "Twice",
    "assert_extracted_is_oracle",
    "assert_gradients_match",
    "assert_maximal_is_original",
    "assert_onnx_is_extracted",
    "assert_program_is_extracted",
    "networks",
    "subnets",
]

ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(),
    "relu_": lambda width: nn.ReLU(inplace=True),
    "gelu": lambda width: nn.GELU(),
    "silu": lambda width: nn.SiLU(),
    "hardswish": lambda width: nn.Hardswish(),
    "sigmoid": lambda width: nn.Sigmoid(),
    "prelu": lambda width: nn.PReLU(width),
}
"""Activation layers by name, for a given number of channels; a trailing underscore writes in place."""

WIDTHS = (4, 6, 8, 12, 16, 24, 32)


class Stage(Protocol):
    """A part of a network's plan."""

    def build(self, channels: int) -> nn.Module:
        """The part for so many input channels."""

    def width(self, channels: int) -> int:
        """Its output channels."""

    def shrinks(self) -> bool:
        """Whether it halves height and width."""


@dataclass(frozen=True)
class Layer:
    """A convolution with BatchNorm and activation."""

    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    groups: int = 1
    norm: bool = False
    activation: str = "relu"
    dilation: int = 1
    same: bool = False
    """Whether the padding is said by the word "same" and not by numbers; not with a stride."""

    def build(self, channels: int) -> nn.Module:
        """The layer for so many input channels."""
        sizes = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        padding: Any = "same" if self.same else tuple(self.dilation * (size // 2) for size in sizes)
        settings = (sizes, self.stride, padding, self.dilation, self.groups, not self.norm)
        conv = nn.Conv2d(channels, self.channels, *settings)
        norm = [nn.BatchNorm2d(self.channels)] if self.norm else []
        return nn.Sequential(conv, *norm, ACTIVATIONS[self.activation](self.channels))

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels

    def shrinks(self) -> bool:
        """Whether it halves height and width."""
        return self.stride > 1


@dataclass(frozen=True)
class Residual:
    """A residual block ``x + scale * gate(project(middle(expand(x))))``; `middle` is called `repeats` times."""

    hidden: int
    groups: int = 1
    """Groups of the middle layer; `hidden` makes it depthwise."""
    repeats: int = 1
    norm: bool = False
    activation: str = "relu"
    gate: int | None = None
    """Hidden channels of a squeeze-excite gate."""
    scale: bool = False
    """Whether the branch is scaled by a parameter that forward reads by itself."""
    after: str | None = None
    """Activation of the sum."""
    kernel: int | tuple[int, int] = 3
    """Kernel of the middle layer."""

    def build(self, channels: int) -> nn.Module:
        """The block for so many channels."""
        return _ResidualModule(self, channels)

    def width(self, channels: int) -> int:
        """As many as it gets."""
        return channels

    def shrinks(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Downsample:
    """A strided residual block; its shortcut is a projection, or a strided slice with zero channels (option A)."""

    channels: int
    project: bool = True
    norm: bool = False
    activation: str = "relu"

    def build(self, channels: int) -> nn.Module:
        """The block for so many input channels."""
        return _DownsampleModule(self, channels)

    def width(self, channels: int) -> int:
        """Its output channels."""
        return self.channels

    def shrinks(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Branches:
    """The concatenation of several layers' outputs, and of the input itself with `keep`."""

    layers: tuple[Layer, ...]
    keep: bool = False

    def build(self, channels: int) -> nn.Module:
        """The branches for so many input channels."""
        return _BranchesModule(self, channels)

    def width(self, channels: int) -> int:
        """The sum over the branches."""
        return sum(layer.channels for layer in self.layers) + (channels if self.keep else 0)

    def shrinks(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Twice:
    """One layer that is called twice."""

    kernel: int | tuple[int, int] = 1
    norm: bool = False
    activation: str = "relu"

    def build(self, channels: int) -> nn.Module:
        """The layer for so many channels."""
        return _TwiceModule(Layer(channels, self.kernel, norm=self.norm, activation=self.activation).build(channels))

    def width(self, channels: int) -> int:
        """As many as it gets."""
        return channels

    def shrinks(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Pool:
    """Strided pooling."""

    maximum: bool = True

    def build(self, channels: int) -> nn.Module:
        """The pooling layer."""
        return nn.MaxPool2d(3, 2, 1) if self.maximum else nn.AvgPool2d(2, ceil_mode=True)

    def width(self, channels: int) -> int:
        """As many as it gets."""
        return channels

    def shrinks(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Head:
    """The classifier: all positions flattened or their mean, then one or two linear layers."""

    flatten: bool = False
    hidden: int | None = None

    def build(self, channels: int, positions: int) -> nn.Module:
        """The classifier for so many channels of so many positions."""
        first = nn.Flatten() if self.flatten else _Mean()
        features = channels * positions if self.flatten else channels
        if self.hidden is None:
            return nn.Sequential(first, nn.Linear(features, CLASSES))
        return nn.Sequential(first, nn.Linear(features, self.hidden), nn.ReLU(), nn.Linear(self.hidden, CLASSES))


CLASSES = 3


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
        return nn.Sequential(body, self.head.build(channels, positions))


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class _Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class _ResidualModule(nn.Module):
    def __init__(self, plan: Residual, channels: int) -> None:
        super().__init__()
        settings: dict[str, Any] = {"norm": plan.norm, "activation": plan.activation}
        self.repeats = plan.repeats
        self.expand = Layer(plan.hidden, **settings).build(channels)
        middle = Layer(plan.hidden, plan.kernel, groups=plan.groups, **settings)
        self.middle = middle.build(plan.hidden) if plan.repeats else nn.Identity()
        self.project = nn.Conv2d(plan.hidden, channels, 1, bias=not plan.norm)
        self.norm = nn.BatchNorm2d(channels) if plan.norm else nn.Identity()
        self.gate = None if plan.gate is None else _Gate(channels, plan.gate)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1)) if plan.scale else None
        self.after = None if plan.after is None else ACTIVATIONS[plan.after](channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.expand(x)
        for _ in range(self.repeats):
            branch = self.middle(branch)
        branch = self.norm(self.project(branch))
        branch = branch if self.gate is None else self.gate(branch)
        branch = branch if self.scale is None else self.scale * branch
        total: Tensor = x + branch
        return total if self.after is None else self.after(total)


class _DownsampleModule(nn.Module):
    def __init__(self, plan: Downsample, channels: int) -> None:
        super().__init__()
        self.extra = plan.channels - channels
        self.layer = Layer(plan.channels, 3, 2, norm=plan.norm, activation=plan.activation).build(channels)
        self.last = nn.Conv2d(plan.channels, plan.channels, 1)
        self.shortcut = nn.Conv2d(channels, plan.channels, 1, 2) if plan.project else None

    def forward(self, x: Tensor) -> Tensor:
        branch = self.last(self.layer(x))
        if self.shortcut is not None:
            return F.relu(branch + self.shortcut(x))
        before = self.extra // 2
        return F.relu(branch + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra - before)))


class _TwiceModule(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))  # type: ignore[no-any-return]


class _BranchesModule(nn.Module):
    def __init__(self, plan: Branches, channels: int) -> None:
        super().__init__()
        self.keep = plan.keep
        self.branches = nn.ModuleList(layer.build(channels) for layer in plan.layers)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        return torch.cat([x, *parts] if self.keep else parts, 1)


def _randomise(module: nn.Module) -> None:
    """Statistics, biases and scales unlike the initial ones, and weights that let the signal live: or mistakes hide."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.ndim > 1 and tensor[0].numel() > 1:
            nn.init.kaiming_normal_(tensor)
        elif tensor.is_floating_point():
            positive = name.endswith(("weight", "var", "scale"))
            tensor.data.uniform_(*((0.5, 1.5) if positive else (-0.5, 0.5)))


@st.composite
def networks(draw: st.DrawFn, *, max_stages: int = 4) -> Network:
    """Random `Network`s: residual, strided, concatenated, grouped, gated, shared and scaled parts in any order.

    Kernels are of 1 to 7 entries, square or not, dilated or not.
    """
    size = draw(st.integers(8, 12))
    stem = draw(_layers(3))
    channels, height, stages = stem.channels, -(-size // stem.stride), list[Stage]()
    for _ in range(draw(st.integers(1, max_stages))):
        stage = draw(_stages(channels, may_shrink=height > 4))
        channels, height = stage.width(channels), -(-height // 2) if stage.shrinks() else height
        stages.append(stage)
    head = draw(st.builds(Head, st.booleans(), st.none() | st.sampled_from(WIDTHS)))
    return Network(stem, tuple(stages), head, size, draw(st.integers(2, 3)), draw(st.integers(0, 2**16)))


@st.composite
def subnets(draw: st.DrawFn, space: SearchSpace) -> Subnet:
    """The sub-networks of `space`: every variable by itself; examples shrink towards the maximal one."""
    last = [len(variable.choices) - 1 for variable in space.variables()]
    return space.decode([number - draw(st.integers(0, number)) for number in last])


def _stages(channels: int, *, may_shrink: bool) -> st.SearchStrategy[Stage]:
    kinds: list[st.SearchStrategy[Stage]] = [
        _layers(channels, may_shrink=may_shrink),
        _residuals(channels),
        _residuals(channels),
        st.builds(Twice, _KERNELS, st.booleans(), _ACTIVATIONS),
        _branches(channels),
    ]
    if may_shrink:
        kinds += [_downsamples(channels), st.builds(Pool, st.booleans())]
    return st.one_of(kinds)


_KERNELS: st.SearchStrategy[int | tuple[int, int]] = st.sampled_from((1, 3, 3, 5, 7, (1, 5), (7, 3)))
_ACTIVATIONS = st.sampled_from(tuple(ACTIVATIONS))


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
    hidden = draw(st.sampled_from(WIDTHS))
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
    )


@st.composite
def _downsamples(draw: st.DrawFn, channels: int) -> Downsample:
    width = draw(st.sampled_from(WIDTHS))
    return Downsample(width, draw(st.booleans()) or width < channels, draw(st.booleans()), draw(_ACTIVATIONS))


@st.composite
def _branches(draw: st.DrawFn, channels: int) -> Branches:
    layers = draw(st.lists(_layers(channels), min_size=1, max_size=2))
    keep = draw(st.booleans()) or len(layers) == 1
    return Branches(tuple(layers), keep and channels <= WIDTHS[-1])


def assert_maximal_is_original(supernet: SuperNetwork, inputs: Any) -> None:
    """The program of the maximal sub-network gives the outputs of the model, bit for bit, in evaluation mode."""
    (tensors, named), (args, kwargs) = as_program_call(inputs), as_call(inputs)
    with _put_back(supernet), torch.no_grad():
        supernet.eval()
        found = supernet.program(supernet.space.maximal())(*tensors, **named)
        torch.testing.assert_close(found, supernet.model(*args, **kwargs), rtol=0, atol=0)


def assert_program_is_extracted(
    supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, program: Program | None = None, tolerance: float = 1e-6
) -> None:
    """Program and extracted module of `subnet` agree, in the mode that the super-network is in.

    Outputs agree to `tolerance`, relative to the largest. In training mode BatchNorm changes the shared statistics of
    the kept channels as it changes those of the extracted module, and no others.

    Args:
        supernet: the super-network; its statistics are put back.
        subnet: which sub-network.
        inputs: as the example inputs of the super-network.
        program: the program to test, if it was made before.
        tolerance: 1e-6 for single precision.
    """
    args, kwargs = as_program_call(inputs)
    with _put_back(supernet):
        extracted = supernet.extract(subnet).train(supernet.training)
        expected_buffers = dict(supernet.model.named_buffers())
        expected_buffers = {name: buffer.clone() for name, buffer in expected_buffers.items()}
        program = supernet.program(subnet) if program is None else program
        found, expected = _same_noise(program, args, kwargs), _same_noise(extracted, args, kwargs)
        _assert_near(found, expected, tolerance, f"outputs of {subnet.to_json()}")
        for name, buffer in extracted.named_buffers():
            if name in expected_buffers:
                _slot(supernet, subnet, name).put(expected_buffers[name], buffer)
        for name, buffer in supernet.model.named_buffers():
            _assert_near(buffer, expected_buffers[name], tolerance, f"statistics {name} of {subnet.to_json()}")


def assert_extracted_is_oracle(
    supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, tolerance: float = 1e-12
) -> None:
    """The extracted module agrees with the zeroed model in double precision: see `bnas.runtime.verify`.

    Raises:
        VerificationError: it does not.
    """
    verify(supernet.model, supernet, subnet, inputs, tolerance=tolerance)


def assert_gradients_match(
    supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, program: Program | None = None, tolerance: float = 1e-6
) -> None:
    """Backward through a program gives the shared parameters the gradients of the extracted module.

    They stand at the kept entries, and all other gradients are zero or None; those of a smaller kernel are led back to
    the full one and to its matrices. Arguments as for
    `assert_program_is_extracted`; gradients and statistics of the super-network are put back.
    """
    args, kwargs = as_program_call(inputs)
    shared = dict(supernet.model.named_parameters(remove_duplicate=False))
    with _put_back(supernet):
        supernet.zero_grad()
        extracted = supernet.extract(subnet).train(supernet.training)
        program = supernet.program(subnet) if program is None else program
        for module in (program, extracted):
            _loss(_same_noise(module, args, kwargs)).backward()  # type: ignore[no-untyped-call]
        trained = {**shared, **{f"matrix {name}": m for name, m in supernet.kernel_matrices.named_parameters()}}
        expected = {id(tensor): torch.zeros_like(tensor) for tensor in trained.values()}
        for name, tensor in extracted.named_parameters():
            if tensor.grad is not None:
                _lead_back(_slot(supernet, subnet, name), tensor.grad, expected)
        for name, tensor in trained.items():
            found = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            _assert_near(found, expected[id(tensor)], tolerance, f"gradient of {name} of {subnet.to_json()}")


def assert_onnx_is_extracted(supernet: SuperNetwork, subnet: Subnet, inputs: Any, *, tolerance: float = 1e-4) -> None:
    """The lowered sub-network gives the extracted module's outputs on ONNX Runtime, relative to the largest."""
    args, kwargs = as_program_call(inputs)
    extracted, tensors = supernet.extract(subnet), [*args, *kwargs.values()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = lower(extracted, tensors).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    found = [torch.from_numpy(one) for one in session.run(None, dict(zip(names, arrays, strict=True)))]
    with torch.no_grad():
        expected = [tensor.cpu() for _, tensor in named_outputs(extracted(*args, **kwargs))]
    _assert_near(found, expected, tolerance, f"ONNX outputs of {subnet.to_json()}")


def _lead_back(slot: Slot, gradient: Tensor, expected: Mapping[int, Tensor]) -> None:
    """Put the gradient of what `slot` takes where it comes from: `expected` is by the ``id`` of the parameter."""
    if slot.shrink is None:
        slot.put(expected[id(slot.shared)], gradient)
        return
    sources = [slot.shared, *slot.shrink.parameters()]
    for source, part in zip(sources, torch.autograd.grad(slot.take(slot.shared), sources, gradient), strict=True):
        expected[id(source)].add_(part)


def _slot(supernet: SuperNetwork, subnet: Subnet, name: str) -> Slot:
    skeleton = supernet.skeleton
    return skeleton.slot(supernet.model, name, skeleton.assignment(subnet))


def _same_noise(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call it with the same random numbers each time: dropout drops the same entries."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module(*args, **kwargs)


def _loss(outputs: Any) -> Tensor:
    """A number in which every output has another weight."""
    total = torch.zeros(())
    for tensor in tree_leaves(outputs):
        weights = torch.linspace(-1, 1.5, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        total = total + (tensor * weights.view(tensor.shape)).sum().cpu()
    return total


def _assert_near(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """All tensors agree to `tolerance`, relative to the largest entry of each expected one."""
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    for one, other in pairs:
        largest = float(other.detach().abs().max()) if other.numel() else 0.0

        def message(text: str) -> str:
            return f"{what}: {text}"

        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(largest, 1e-30), msg=message)


@contextmanager
def _put_back(supernet: SuperNetwork) -> Iterator[None]:
    """Put mode, gradients and buffers back as they were, the same tensors with the same values."""
    modes = {module: module.training for module in supernet.modules()}
    gradients = {tensor: tensor.grad for tensor in supernet.parameters()}
    changed = [*supernet.buffers(), *(grad for grad in gradients.values() if grad is not None)]
    values = [tensor.clone() for tensor in changed]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for tensor, grad in gradients.items():
            tensor.grad = grad
        with torch.no_grad():
            for one, value in zip(changed, values, strict=True):
                one.copy_(value)
