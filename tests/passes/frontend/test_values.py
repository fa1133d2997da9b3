"""Inputs and outputs of every structure, and models behind wrappers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from capture_cases import Between, captured, image, same_outputs
from torch import Tensor, nn

from bnas.passes import CaptureError, trace
from bnas.passes.frontend.copies import deep_copy
from bnas.passes.frontend.differences import distance
from bnas.runtime import SuperNetwork, verify


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    loss: Tensor | None = None


class Named(OrderedDict[str, Any]):
    """As the outputs of text libraries are."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Cache:
    """No value that a graph can return."""


class Returns(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.form = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), form

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return self.form(y, self.second(y.relu()))


OUTPUTS: dict[str, Any] = {
    "named-tuple": lambda y, z: Pair(y, (z, [y])),
    "data-class": lambda y, z: Output(z, (y, z)),
    "data-class-in-a-list": lambda y, z: [Output(z), {"more": Output(y, (z,), z.mean())}],
    "ordered": lambda y, z: OrderedDict(b=z, a=y),
    "ordered-subclass": lambda y, z: Named(logits=z, hidden=(y, y)),
    "none": lambda y, z: (z, None, {"loss": None}),
    "scalar": lambda y, z: (z, z.mean(), y.sum()),
    "one-scalar": lambda y, z: z.mean(),
    "lists-of-lists": lambda y, z: [[y, [z]], [], [[y.mean(1)]]],
    "dict": lambda y, z: {"out": z, 3: y},
    "plain-values": lambda y, z: (z, 3, "text", 0.5, True),
    "the-same-twice": lambda y, z: (z, z, y),
    "sizes": lambda y, z: (z, tuple(y.shape)),
    "tuple-of-one": lambda y, z: (z,),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_come_back_in_their_own_type(name: str) -> None:
    net = Returns(OUTPUTS[name]).eval()
    supernet = captured(net, image(), [image(5), image(1, 7, 5)])
    found = supernet.extract(supernet.space.maximal())(image())
    assert type(found) is type(net(image()))


def test_an_output_in_another_place_is_rejected() -> None:
    net = Returns(OUTPUTS["named-tuple"]).eval()
    supernet = captured(net, image())
    net.form = lambda y, z: Pair(y, (z + 1e-6, [y]))
    with pytest.raises(AssertionError, match="not equal"):
        same_outputs((supernet.extract(supernet.space.maximal()),), net, image())


class WithoutNone(Named):
    """As the outputs of text libraries are: a part that is None is not there."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__({name: one for name, one in parts.items() if one is not None})


def test_an_output_class_may_leave_out_what_is_none() -> None:
    net = Returns(lambda y, z: WithoutNone({"out": z, "cache": Cache()})).eval()
    supernet = SuperNetwork.from_model(net, image())
    found = supernet.extract(supernet.space.maximal())(image())
    assert type(found) is WithoutNone
    assert list(found) == ["out"]
    torch.testing.assert_close(found["out"], net(image())["out"])


def test_an_output_class_must_not_leave_out_a_tensor() -> None:
    both, one = {"out": image(), "more": image()}, {"out": image()}
    assert "another structure" in str(distance(WithoutNone(both), WithoutNone(one)))
    assert distance(WithoutNone(one | {"cache": Cache()}), WithoutNone(one)) == 0.0


class Growing(nn.Module):
    """Attention whose cache of keys begins empty, as `torch.tensor([])`."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.keys, self.out, self.empty = nn.Linear(8, 16), nn.Linear(16, 4), torch.tensor([], dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        keys = torch.cat([self.empty, self.keys(x)], dim=-2)
        return self.out(torch.relu(keys.float()))


def test_what_begins_empty_stays_elastic() -> None:
    supernet = SuperNetwork.from_model(Growing().eval(), torch.randn(2, 5, 8))
    assert supernet.space.minimal().widths["keys"] < 16
    small = supernet.extract(supernet.space.minimal())
    assert small.keys.out_features == supernet.space.minimal().widths["keys"]


def test_what_begins_empty_in_another_type_decides_the_type() -> None:
    captured(Growing(torch.float64).eval(), torch.randn(2, 5, 8))


def test_objects_that_are_no_values_are_none_with_a_diagnostic() -> None:
    net = Returns(lambda y, z: {"out": z, "cache": [Cache(), y]}).eval()
    supernet = SuperNetwork.from_model(net, image())
    told = [str(one) for one in supernet.diagnostics if "None is returned" in one.reason]
    assert told == ["output cache.0: an object that is neither a tensor nor a plain value: None is returned instead"]
    found, expected = supernet.extract(supernet.space.maximal())(image()), net(image())
    assert found["cache"][0] is None
    torch.testing.assert_close((found["out"], found["cache"][1]), (expected["out"], expected["cache"][1]))


class Takes(nn.Module):
    """Two layers for whatever it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)


class TakesList(Takes):
    def forward(self, images: list[Tensor]) -> Tensor:
        return sum(self.conv(one) for one in images)


class TakesDict(Takes):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.conv(batch["image"]) * batch.get("scale", 1.0) + self.other(batch["more"][0])


class TakesMany(Takes):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.conv(xs[0]) + self.other(xs[1])


class TakesNamed(Takes):
    def forward(self, **batch: Any) -> Tensor:
        return self.conv(batch["image"]) + self.other(batch["other"])


class TakesOptional(Takes):
    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None, *, add: bool = False) -> Tensor:
        y = self.conv(x) * scale
        y = y if mask is None else y * mask
        return y + self.other(x) if add else y


def inputs(form: Any) -> list[Any]:
    """An example of a form of inputs, and two at other sizes."""
    return [form(image(2), image(2) * 2), form(image(5), image(5) * 2), form(image(1, 7, 5), image(1, 7, 5) + 1)]


INPUTS: dict[str, tuple[type[Takes], Any]] = {
    "list": (TakesList, lambda x, y: ([x, y],)),
    "tuple-in-a-tuple": (TakesList, lambda x, y: ((x, y, x),)),
    "dict": (TakesDict, lambda x, y: ({"image": x, "more": [y], "scale": 2.0},)),
    "many": (TakesMany, lambda x, y: (x, y)),
    "named": (TakesNamed, lambda x, y: {"image": x, "other": y}),
    "optional-left-out": (TakesOptional, lambda x, y: (x,)),
    "number": (TakesOptional, lambda x, y: (x, 3.0)),
    "by-keyword": (TakesOptional, lambda x, y: {"x": x, "mask": y[:, :1], "add": True}),
    "none": (TakesOptional, lambda x, y: (x, 2.0, None)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_every_structure(name: str) -> None:
    kind, form = INPUTS[name]
    example, *others = inputs(form)
    captured(kind().eval(), example, others)


# wrappers


def plain() -> nn.Module:
    return Between(lambda net, x: net.inner(x).relu()).eval()


def test_a_compiled_model() -> None:
    net = plain()
    supernet = SuperNetwork.from_model(torch.compile(net, backend="eager"), image())
    same_outputs((supernet.extract(supernet.space.maximal()),), net, image(5))


def test_a_compiled_submodule() -> None:
    net = plain()
    net.inner = torch.compile(net.inner, backend="eager")
    ir = trace(net, image())
    assert not [told for told in ir.diagnostics if "opaque" in told.reason]
    supernet = SuperNetwork.from_model(net, image())
    same_outputs((supernet.extract(supernet.space.maximal()),), net, image(5))


def test_a_model_on_several_devices() -> None:
    net = nn.DataParallel(plain())  # on a machine with GPUs it moves what it wraps there
    supernet = SuperNetwork.from_model(net, image())
    device = next(net.parameters()).device
    same_outputs((supernet.extract(supernet.space.maximal()),), net, image(5).to(device))


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(CaptureError, match="a scripted model has no Python code to record: give the original module"):
        trace(scripted(), image())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*jit.*:FutureWarning")
def scripted() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).eval(), image())


def test_a_scripted_submodule_is_opaque() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), scripted(), nn.Conv2d(8, 2, 1)).eval()
    ir = trace(net, image())
    assert [told.place for told in ir.diagnostics if "scripted" in told.reason] == ["1"]
    supernet = SuperNetwork.from_model(net, image())
    same_outputs((supernet.program(supernet.space.maximal()),), net, image(5))


def test_a_scripted_part_of_a_copy_is_trained_where_the_model_trains_it() -> None:
    """PyTorch's own deep copy makes its parameters results of an operation, which no optimizer takes."""
    part = scripted()
    next(part.parameters()).requires_grad_(False)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), part, nn.Conv2d(8, 2, 1))
    copied = deep_copy(net)
    assert [one.requires_grad for one in copied.parameters()] == [one.requires_grad for one in net.parameters()]
    assert all(one.is_leaf for one in copied.parameters())
    supernet = SuperNetwork.from_model(copied, image())
    supernet.program(supernet.space.maximal())(image()).sum().backward()
    assert [one.grad is not None for one in copied.parameters()] == [one.requires_grad for one in net.parameters()]


def test_a_lazy_model_ends_in_a_message() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 1), nn.ReLU())
    with pytest.raises(CaptureError, match=r"0\.weight has no shape yet: run the lazy model once on the example"):
        trace(net, image())
    net(image())
    captured(net.eval(), image(), [image(5)])


# Two statistics in one call.


class Standardised(nn.Conv2d):
    """A convolution with standardised weights, as Big Transfer has them (Kolesnikov et al. 2020)."""

    def standard(self) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return (self.weight - mean) / torch.sqrt(var + 1e-10)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standard(), self.bias, padding=self.padding)


class ByBatchNorm(Standardised):
    """The same with a gain for each channel, as libraries write it: by a batch norm over the rows of the weight."""

    def __init__(self, *sizes: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5)

    def standard(self) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(rows, None, None, weight=self.gain * 0.7, training=True, eps=1e-6).reshape_as(self.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x - torch.std_mean(x, 1, keepdim=True)[1],
        lambda x: x / (1 + torch.var_mean(x, False)[0]),
        lambda x: x * torch.std_mean(x, (2, 3), keepdim=True, correction=0)[0],
        lambda x: x + torch.var_mean(x, keepdim=True)[1],
    ],
    ids=["channels", "all", "pixels", "kept"],
)
@pytest.mark.parametrize("kind", [Standardised, ByBatchNorm])
def test_two_statistics_in_one_call_are_those_of_the_kept_entries(
    kind: type[Standardised], change: Callable[[Tensor], Tensor]
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = kind(3, 16, 3, padding=1), kind(16, 16, 3)
            self.last = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(change(self.inner(F.relu(self.first(x)))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = Net().eval()
    supernet = SuperNetwork.from_model(net, image())
    assert {"first", "inner"} <= supernet.space.widths.keys()
    assert verify(net, supernet, supernet.space.minimal(), image()) < 1e-12
    # One call after another rounds differently than both together.
    torch.testing.assert_close(
        supernet.program(supernet.space.maximal())(image(5)), net(image(5)), rtol=1e-4, atol=1e-4
    )


def test_a_computed_bias_is_not_zero_where_a_channel_is_removed() -> None:
    """What is summed over these channels cannot do without them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.bias = nn.Conv2d(3, 16, 3, bias=False), nn.Parameter(torch.rand(16))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.inner.weight, self.bias + 1).sum(1)

    supernet = SuperNetwork.from_model(Net().eval(), image())
    assert not supernet.space.widths
    assert any("not zero" in one.reason for one in supernet.diagnostics)


@pytest.mark.parametrize("persistent", [False, True])
def test_the_bias_of_keys_may_be_a_buffer_of_zeros(persistent: bool) -> None:
    """As BEiT has it. A persistent buffer may be loaded from a checkpoint later, and hold anything."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.out = nn.Linear(8, 96, bias=False), nn.Linear(32, 8)
            self.q_bias, self.v_bias = nn.Parameter(torch.rand(32)), nn.Parameter(torch.rand(32))
            self.register_buffer("k_bias", torch.zeros(32), persistent=persistent)

        def forward(self, x: Tensor) -> Tensor:
            bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
            y = F.linear(x, self.project.weight, bias).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(y[0], y[1], y[2])
            return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net, tokens = Attention().eval(), torch.randn(2, 5, 8)
    supernet = SuperNetwork.from_model(net, tokens, {"min_width": 1, "divisor": 1})
    summed = [one for one in supernet.diagnostics if "summed over, and its dropped entries are not zero" in one.reason]
    assert bool(summed) is persistent
    assert verify(net, supernet, supernet.space.minimal(), tokens) < 1e-12
