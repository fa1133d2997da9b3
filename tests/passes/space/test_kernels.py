"""Elastic kernels: which convolutions have one and why others have not, and what the small kernel computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnas.passes import Elasticity, Subnet, VerificationError, analyse, find_kernels, trace
from bnas.passes.assembly import rewriting
from bnas.passes.assembly.slot import Shrink
from bnas.passes.space.kernels import Kernels
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import assert_extracted_is_oracle, assert_program_is_extracted


def kernels_of(net: nn.Module, *shape: int, **settings: Any) -> Kernels:
    return find_kernels(analyse(trace(net.eval(), torch.randn(2, *shape))), **settings)


class Of(nn.Module):
    """One convolution, called as `forward` says."""

    def __init__(self, conv: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.how = conv, forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.conv, x)


# what is found


@pytest.mark.parametrize(
    ("conv", "settings", "sizes"),
    [
        pytest.param(nn.Conv2d(4, 4, 7, padding=3), {}, [(3, 3), (5, 5), (7, 7)], id="square"),
        pytest.param(nn.Conv2d(4, 4, 7, padding=3), {"max_num_kernels": 2}, [(5, 5), (7, 7)], id="the-largest-two"),
        pytest.param(nn.Conv2d(4, 4, 7, padding=3), {"max_num_kernels": 1}, None, id="only-the-largest"),
        pytest.param(nn.Conv2d(4, 4, 7, padding=3), {"min_kernel": 4}, [(5, 5), (7, 7)], id="even-minimum"),
        pytest.param(nn.Conv2d(4, 4, 3, padding=1), {"min_kernel": 1}, [(1, 1), (3, 3)], id="down-to-one"),
        pytest.param(nn.Conv2d(4, 4, 3, padding=1), {}, None, id="at-the-minimum"),
        pytest.param(nn.Conv2d(4, 4, 1), {"min_kernel": 1}, None, id="one"),
        pytest.param(nn.Conv2d(4, 4, 5, padding="same"), {}, [(3, 3), (5, 5)], id="same"),
        pytest.param(nn.Conv2d(4, 4, 5, padding=2, stride=2), {}, [(3, 3), (5, 5)], id="strided"),
        pytest.param(nn.Conv2d(4, 4, 5, padding=4, dilation=2), {}, [(3, 3), (5, 5)], id="dilated"),
        pytest.param(nn.Conv2d(4, 4, 5, padding=2, groups=2), {}, [(3, 3), (5, 5)], id="grouped"),
        pytest.param(nn.Conv2d(4, 4, 5, padding=2, groups=4), {}, [(3, 3), (5, 5)], id="depthwise"),
        pytest.param(nn.Conv2d(4, 4, 5, padding=2, padding_mode="reflect"), {}, [(3, 3), (5, 5)], id="reflected"),
        pytest.param(nn.Conv2d(4, 4, (7, 1), padding=(3, 0)), {}, [(3, 1), (5, 1), (7, 1)], id="column"),
        pytest.param(nn.Conv2d(4, 4, (1, 7), padding="same"), {}, [(1, 3), (1, 5), (1, 7)], id="row"),
        pytest.param(nn.Conv2d(4, 4, (7, 5), padding=(3, 2)), {}, [(3, 3), (5, 5), (7, 5)], id="rectangle"),
        pytest.param(nn.Conv2d(4, 4, (5, 2), padding=(2, 0)), {}, [(3, 2), (5, 2)], id="an-even-axis-that-stays"),
        pytest.param(nn.Conv2d(4, 4, 7, padding=2), {}, [(3, 3), (5, 5), (7, 7)], id="less-padding-that-is-enough"),
        pytest.param(nn.Conv1d(4, 4, 5, padding=2), {}, [(3,), (5,)], id="1d"),
        pytest.param(nn.Conv3d(4, 4, (1, 5, 5), padding="same"), {}, [(1, 3, 3), (1, 5, 5)], id="3d"),
    ],
)
def test_finds_kernels(conv: Any, settings: dict[str, int], sizes: list[tuple[int, ...]] | None) -> None:
    kernels = kernels_of(nn.Sequential(conv), 4, *[16] * len(conv.kernel_size), **settings)
    assert not kernels.refused
    if sizes is None:
        assert not kernels.found
        return
    ((name, kernel),) = kernels.found.items()
    assert (name, kernel.name, kernel.weight) == ("0", "0", "0.weight")
    assert [kernel.at(choice) for choice in kernel.choices] == sizes


@pytest.mark.parametrize(
    ("conv", "choices", "reason"),
    [
        pytest.param(nn.Conv2d(4, 4, 4, padding=2), (), "the kernel 4x4 is even: it has no centre", id="even"),
        pytest.param(nn.Conv2d(4, 4, 2), (), "the kernel 2x2 is even", id="even-and-small"),
        pytest.param(nn.Conv2d(4, 4, 5), (), "padding is 0, and outputs keep .* only with 1 or more", id="no-padding"),
        pytest.param(nn.Conv2d(4, 4, 5, padding="valid"), (), "its padding is 0", id="valid"),
        pytest.param(nn.Conv2d(4, 4, 7, padding=1), (5, 7), "7x7 cannot be cut to 3: its padding is 1", id="stops"),
        pytest.param(nn.Conv2d(4, 4, 5, padding=1, dilation=2), (), "only with 2 or more", id="dilated"),
        pytest.param(nn.Conv2d(4, 4, 5, padding=(2, 0)), (), "axis 1 of the kernel 5x5", id="one-axis"),
        pytest.param(nn.Conv2d(4, 4, (7, 4), padding=3), (5, 7), "axis 1 .* to 3: it is even", id="even-axis"),
    ],
)
def test_says_why_a_kernel_cannot_shrink(conv: Any, choices: tuple[int, ...], reason: str) -> None:
    kernels = kernels_of(nn.Sequential(conv), 4, 16, 16)
    assert [kernel.choices for kernel in kernels.found.values()] == ([choices] if choices else [])
    (refused,) = kernels.refused
    assert refused.place == "0"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused.reason)


class Tied(nn.Module):
    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second
        second.weight = first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Opaque(nn.Module):
    """Branches on values, so it is a leaf, and holds the weight of the convolution too."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.inner = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x


def five(padding: int = 2, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 5, padding=padding, dilation=dilation)


def standardised(conv: Any, x: Tensor) -> Tensor:
    weight = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight, conv.bias, padding=2)


def buffered() -> nn.Conv2d:
    conv = five()
    weight = conv.weight.data
    del conv.weight
    conv.register_buffer("weight", weight)
    return conv


class TiedOpaque(Opaque):
    def __init__(self) -> None:
        super().__init__(five())
        self.opaque = Opaque(five())
        self.opaque.inner.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.opaque(self.inner(x))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        pytest.param(Of(five(), standardised), "computes the kernel or reads it", id="standardised"),
        pytest.param(
            Of(five(), lambda conv, x: F.conv2d(x, conv.weight)), "computes the kernel or reads it", id="functional"
        ),
        pytest.param(
            Of(five(), lambda conv, x: conv(x) * conv.weight.mean()), "is also read by mean", id="read-elsewhere"
        ),
        pytest.param(Tied(five(), five(4, 2)), "different settings share the kernel: first, second", id="settings"),
        pytest.param(TiedOpaque(), "is also read by opaque", id="opaque-reader"),
        pytest.param(Of(buffered(), lambda conv, x: conv(x)), "not a parameter", id="buffer"),
    ],
)
def test_leaves_kernels_alone_that_others_use(net: nn.Module, reason: str) -> None:
    kernels = kernels_of(net, 4, 16, 16)
    assert not kernels.found
    assert any(reason in refused.reason for refused in kernels.refused)


@pytest.mark.parametrize(
    ("net", "calls"),
    [
        pytest.param(Tied(five(), five()), 2, id="tied"),
        pytest.param(Of(five(), lambda conv, x: conv(conv(x).relu())), 2, id="called-twice"),
        pytest.param(Of(five(), lambda conv, x: conv(x)), 1, id="called-once"),
    ],
)
def test_one_kernel_for_one_weight(net: nn.Module, calls: int) -> None:
    inputs = torch.randn(2, 4, 9, 8)
    kernels = kernels_of(net, 4, 9, 8)
    (kernel,) = kernels.found.values()
    assert len(kernel.nodes) == calls
    supernet = randomised(SuperNetwork.from_model(net, inputs))
    subnet = supernet.space.minimal()
    assert set(subnet.kernels.values()) == {3}
    assert_extracted_is_oracle(supernet, subnet, inputs)
    assert_program_is_extracted(supernet, subnet, inputs)


def test_finding_changes_nothing_and_finds_the_same_again() -> None:
    net = nn.Sequential(five(), nn.Conv2d(4, 4, 4)).eval()
    before = {name: (tensor, tensor.clone()) for name, tensor in net.named_parameters()}
    types = analyse(trace(net, torch.randn(2, 4, 9, 9)))
    first, second = find_kernels(types), find_kernels(types)
    assert first.refused == second.refused
    assert [k.choices for k in first.found.values()] == [k.choices for k in second.found.values()]
    for name, tensor in net.named_parameters():
        assert tensor is before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_a_space_without_kernels_has_no_matrices() -> None:
    for net, elasticity in ((five(), Elasticity(("depth", "width"))), (nn.Conv2d(4, 4, 3), Elasticity())):
        supernet = SuperNetwork.from_model(nn.Sequential(net).eval(), torch.randn(2, 4, 9, 9), elasticity)
        assert not supernet.space.kernels
        assert not list(supernet.kernel_matrices.parameters())


# what the small kernel computes


def randomised(supernet: SuperNetwork, seed: int = 0) -> SuperNetwork:
    """With matrices unlike identities."""
    generator = torch.Generator().manual_seed(seed)
    for matrix in supernet.kernel_matrices.parameters():
        matrix.data += 0.3 * torch.randn(matrix.shape, generator=generator)
    return supernet


def one_conv(conv: nn.Module, *shape: int, least: int = 1) -> tuple[SuperNetwork, Tensor]:
    inputs = torch.randn(2, *shape)
    return randomised(SuperNetwork.from_model(nn.Sequential(conv).eval(), inputs, Elasticity(min_kernel=least))), inputs


def test_at_first_the_small_kernel_is_the_centre() -> None:
    conv, x = nn.Conv2d(4, 4, (7, 5), padding=(3, 2)), torch.randn(2, 4, 9, 8)
    supernet = SuperNetwork.from_model(nn.Sequential(conv).eval(), x)
    for choice, centre in ((5, conv.weight[:, :, 1:6]), (3, conv.weight[:, :, 2:5, 1:4])):
        part = supernet.extract(Subnet(kernels={"0": choice}))
        torch.testing.assert_close(part.get_submodule("0").weight, centre, rtol=0, atol=0)
        padding = tuple(n // 2 for n in centre.shape[2:])
        torch.testing.assert_close(part(x), F.conv2d(x, centre, conv.bias, padding=padding))


def test_steps_follow_each_other_as_in_once_for_all() -> None:
    conv = nn.Conv2d(4, 4, 7, padding=3, groups=4)
    supernet, x = one_conv(conv, 4, 9, 9, least=3)
    first, second = (supernet.kernel_matrices.get_parameter(f"0.{name}") for name in ("7to5", "5to3"))
    middle = F.linear(conv.weight[:, :, 1:6, 1:6].reshape(4, 25), first).view(4, 1, 5, 5)
    small = F.linear(middle[:, :, 1:4, 1:4].reshape(4, 9), second).view(4, 1, 3, 3)
    for choice, weight in ((5, middle), (3, small)):
        found = supernet.extract(Subnet(kernels={"0": choice}))
        torch.testing.assert_close(found.get_submodule("0").weight, nn.Parameter(weight))
        torch.testing.assert_close(found(x), F.conv2d(x, weight, conv.bias, padding=choice // 2, groups=4))
    with pytest.raises(AssertionError, match="not close"):  # the second matrix alone
        torch.testing.assert_close(small, F.linear(conv.weight[:, :, 2:5, 2:5].reshape(4, 9), second).view(4, 1, 3, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Convolutions of 1 to 3 dimensions with any settings, and the shape of an input."""
    axes = draw(st.integers(1, 3))
    each = st.tuples(*[st.sampled_from((1, 2, 3, 5, 7))] * axes)
    sizes, dilation = draw(each), draw(st.integers(1, 2))
    stride, groups = draw(st.integers(1, 2)), draw(st.sampled_from((1, 2, 4)))
    mode = draw(st.sampled_from(("zeros", "reflect", "replicate", "circular")))
    padding: Any = tuple(draw(st.integers(0, dilation * (size // 2) + (size > 1))) for size in sizes)
    if draw(st.booleans()):
        padding, stride = "same", 1
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    return kind(4, 8, sizes, stride, padding, dilation, groups, padding_mode=mode), (4, *[14 + axes] * axes)


@given(case=convolutions(), data=st.data())
def test_any_convolution_is_the_original_with_a_small_kernel_amid_zeros(
    case: tuple[nn.Module, tuple[int, ...]], data: st.DataObject
) -> None:
    conv, shape = case
    supernet, x = one_conv(conv, *shape)
    kernels = {name: data.draw(st.sampled_from(choices)) for name, choices in supernet.space.kernels.items()}
    subnet = Subnet({}, frozenset(), kernels)
    assert supernet.extract(subnet)(x).shape == conv(x).shape
    assert_extracted_is_oracle(supernet, subnet, x)
    assert_program_is_extracted(supernet, subnet, x)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", (6, 7)])
def test_every_padding_mode_by_hand(mode: str, padding: Any) -> None:
    conv = nn.Conv2d(4, 4, (7, 5), padding=padding, dilation=2, padding_mode=mode)
    supernet, x = one_conv(conv, 4, 17, 16, least=3)
    part = supernet.extract(Subnet(kernels={"0": 3}))
    before = (6, 4) if padding == "same" else padding
    rows, columns = before[0] - 4, before[1] - 2
    padded = F.pad(x, (columns, columns, rows, rows), mode="constant" if mode == "zeros" else mode)
    torch.testing.assert_close(part(x), F.conv2d(padded, part.get_submodule("0").weight, conv.bias, dilation=2))
    assert part.get_submodule("0").kernel_size == (3, 3)
    assert part.get_submodule("0").padding == (padding if padding == "same" else (2, 5))
    assert type(part.get_submodule("0")) is nn.Conv2d


def transposed(self: Shrink, weight: Tensor) -> Tensor:
    for matrix, (_, sizes) in zip(self.parameters(), self.steps, strict=True):
        margins = [(full - size) // 2 for full, size in zip(weight.shape[2:], sizes, strict=True)]
        part = weight[:, :, margins[0] : margins[0] + sizes[0], margins[1] : margins[1] + sizes[1]]
        weight = F.linear(part.flatten(2), matrix.T.to(weight)).unflatten(2, sizes)
    return weight


def corner(self: Shrink, weight: Tensor) -> Tensor:
    return weight[:, :, : self.sizes[0], : self.sizes[1]]


def centred(self: Shrink, weight: Tensor) -> Tensor:
    return weight[:, :, 1:-1, 1:-1]


@pytest.mark.parametrize("wrong", [transposed, corner, centred])
def test_a_wrong_kernel_is_caught_by_the_oracle(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    supernet, x = one_conv(five(), 4, 9, 9, least=3)
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), x)
    monkeypatch.setattr(Shrink, "__call__", wrong)
    with pytest.raises(VerificationError, match="differs"):
        assert_extracted_is_oracle(supernet, supernet.space.minimal(), x)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_wrong_padding_is_caught_by_the_oracle(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    def stays(conv: Any, full: tuple[int, ...], sizes: tuple[int, ...]) -> None:
        conv.kernel_size = sizes

    conv = nn.Conv2d(4, 4, 5, padding=3, padding_mode=mode)
    supernet, x = one_conv(conv, 4, 9, 9, least=3)
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), x)
    monkeypatch.setattr(rewriting, "fit_kernel", stays)
    with pytest.raises(VerificationError, match="differs"):
        assert_extracted_is_oracle(supernet, supernet.space.minimal(), x)


def test_a_model_with_an_attribute_set_by_hand_is_still_right() -> None:
    conv = nn.Conv2d(4, 4, 1)
    conv.weight, conv.padding = nn.Parameter(torch.randn(4, 4, 5, 5)), 2  # type: ignore[assignment]
    supernet, x = one_conv(conv, 4, 9, 9, least=3)
    assert supernet.space.kernels == {"0": (3, 5)}
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), x)
    assert copy.copy(conv).kernel_size == (1, 1)
