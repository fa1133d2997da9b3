"""A graph that is not the model is refused: by the first node that differs, or by axis."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture_cases import Between, captured, everything, image, same_as_before
from torch import Tensor, nn

from bnas.passes import CaptureError, InputError, trace
from bnas.passes.frontend.differences import distance
from bnas.passes.frontend.emission import Emitter
from bnas.passes.frontend.merging import Merged
from bnas.runtime import SuperNetwork


def steps(net: Any, x: Tensor) -> Tensor:
    x = net.inner(x)
    x = x * 2
    x = x.relu()  # the line to name
    return x + 1


def line_of(text: str) -> int:
    with open(__file__) as file:
        return next(number for number, line in enumerate(file, 1) if text in line and "line_of" not in line)


def test_the_first_node_that_differs_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Between(steps).eval()
    before = everything(net)
    emit: Any = Emitter._emit

    def wrong(emitter: Emitter, merged: Merged) -> Any:
        node = emit(emitter, merged)
        if node.target == "relu":
            source = node.args[0]
            with emitter.graph.inserting_before(node):
                flipped = emitter.graph.call_method("neg", (source,))
            flipped.meta.update(source.meta)
            flipped.meta.pop("line", None)
            node.args = (flipped,)
        return node

    monkeypatch.setattr(Emitter, "_emit", wrong)
    place = re.escape(f"first at relu ({__file__}:{line_of('# the line to name')})")
    with pytest.raises(
        CaptureError, match=rf"the graph differs from the model: output: differs by .*{place}.*bug in bnas"
    ):
        trace(net, image())
    same_as_before(net, before)


def test_a_graph_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    emit: Any = Emitter._emit

    def wrong(emitter: Emitter, merged: Merged) -> Any:
        node = emit(emitter, merged)
        if node.target == "relu":
            node.target = "no_such_method"
        return node

    monkeypatch.setattr(Emitter, "_emit", wrong)
    place = re.escape(f"it fails at relu ({__file__}:{line_of('# the line to name')})")
    with pytest.raises(
        CaptureError, match=f"it fails where the model does not: AttributeError: .*{place}.*bug in bnas"
    ):
        trace(Between(steps).eval(), image())


def otherwise(net: Any, x: Tensor) -> Tensor:
    """Another computation while a library thinks that it is exported."""
    if torch.compiler.is_exporting():
        return net.inner(x) * 1.01
    return net.inner(x)


def test_a_model_that_computes_otherwise_while_it_is_captured_is_refused() -> None:
    with pytest.raises(
        CaptureError,
        match=r"the graph differs from the model: output: differs by .*; first at last \(.*is_exporting\(\)",
    ):
        trace(Between(otherwise).eval(), image())


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        pytest.param(
            lambda x: torch.compiler.is_exporting(), r"correct the branch that is taken then", id="while-exported"
        ),
        pytest.param(
            lambda x: x.data_ptr() == 0, r"in which tensors have no numbers\. Move that code", id="without-numbers"
        ),
        pytest.param(lambda x: True, r"Call the model on the example inputs yourself", id="always"),
    ],
)
def test_the_advice_on_a_forward_that_fails_is_about_when_it_fails(fails: Callable[[Tensor], bool], told: str) -> None:
    def step(net: Any, x: Tensor) -> Tensor:
        return x.view(-1, 7, 11, 13, 17) if fails(x) else net.inner(x)

    with pytest.raises(CaptureError, match=rf"shape '\[-1, 7, 11, 13, 17\]' is invalid.*{told}"):
        trace(Between(step).eval(), image())


def test_a_replaced_forward_that_the_fused_path_leaves_out_is_refused_until_that_is_off() -> None:
    net, x = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval(), torch.randn(2, 5, 16)
    linear = net.linear1.forward
    net.linear1.forward = lambda x: linear(x) + 0.25  # type: ignore[method-assign]
    with pytest.raises(CaptureError, match=r"replaced forward.*set_fastpath_enabled\(False\) before$"):
        trace(net, x)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        captured(net, x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_model_that_is_not_the_same_twice_is_refused() -> None:
    calls = itertools.count(1)
    with pytest.raises(CaptureError, match=r"the graph differs .*; first at .* gives other outputs in a second call"):
        trace(Between(lambda net, x: net.inner(x) * next(calls)).eval(), image())


class Large(nn.Module):
    """The columns with a large entry: none of zeros or of random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., (x > 100).flatten(0, 2).any(0).nonzero()[:, 0]]


class Numbered(nn.Module):
    """Reads the number of columns that a part of it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.gain = Large(), nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.large(x)
        return (x * self.gain + torch.arange(x.shape[-1])).sum(-1)


def test_a_size_that_depends_on_large_values_is_explained() -> None:
    x = image()
    trace(Numbered(), x)  # no column is left, as in the capture
    with pytest.raises(CaptureError, match=r"it fails at .*The graph calls large unchanged.*pad them"):
        trace(Numbered(), x.abs() * 1e6)


class Chosen(nn.Module):
    """The columns that a mask leaves in any sample."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x[..., mask.any(0).nonzero()[:, 0]]


def test_a_size_that_depends_on_a_mask() -> None:
    def step(net: Any, x: Tensor) -> Tensor:
        x = net.part(x, x[:, 0, 0] > -1e6)
        return net.inner(x + torch.arange(x.shape[-1]))

    captured(Between(step, part=Chosen()).eval(), image(), [image(5)])


@pytest.mark.parametrize("check", [True, False])
def test_what_agrees_to_rounding_is_told(check: bool) -> None:
    def step(net: Any, x: Tensor) -> Tensor:
        return net.inner(x) * (1 + 1e-6 * torch.compiler.is_exporting())

    ir = trace(Between(step).eval(), image(), check=check)
    told = [one.reason for one in ir.diagnostics if one.place == "the model"]
    expected = "the graph equals the model up to rounding" if check else "not compared with the model: check=False"
    assert len(told) == 1
    assert expected in told[0]


def test_without_the_check_it_is_told() -> None:
    ir = trace(Between(otherwise).eval(), image(), check=False)
    assert [str(one) for one in ir.diagnostics] == ["the model: its graph was not compared with the model: check=False"]


def test_a_model_on_the_meta_device_is_captured_and_not_compared() -> None:
    ir = trace(Between(steps).eval().to("meta"), image().to("meta"))
    assert ir.sizes.names == ("batch", "height", "width")
    assert [str(one) for one in ir.diagnostics] == [
        "the model: its graph was not compared with the model, which is on the meta device"
    ]


def test_an_axis_at_which_the_graph_is_wrong_becomes_static() -> None:
    """The model does something at a length that no recording has: the comparison finds it."""

    def step(net: Any, x: Tensor) -> Tensor:
        return net.inner(x) if torch.compiler.is_exporting() or x.shape[3] == 6 else net.inner(x) * 2

    net = Between(step).eval()
    ir = trace(net, image())
    assert "width" not in ir.sizes.names
    assert "the graph differs from the model" in ir.sizes.static["x[3]"]
    supernet = SuperNetwork.from_model(net, image())
    with pytest.raises(InputError, match=r"axis 3 has size 9, expected 6\. .*the graph differs from the model"):
        supernet.extract(supernet.space.maximal())(image(2, 4, 9))
    with pytest.raises(CaptureError, match="'columns' cannot be dynamic: at the size"):
        trace(net, image(), {"x": {3: "columns"}})


def test_a_graph_that_is_wrong_in_training_is_refused() -> None:
    def step(net: Any, x: Tensor) -> Tensor:
        return net.inner(x) * (3.0 if net.training and not torch.compiler.is_exporting() else 1.0)

    with pytest.raises(CaptureError, match="in training mode the graph differs from the model: output: differs"):
        trace(Between(step).eval(), image())


def test_buffers_that_training_writes_are_compared() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training and not torch.compiler.is_exporting():
                self.steps += 1
            return x

    with pytest.raises(CaptureError, match=r"in training mode the graph differs from the model: buffer part\.steps"):
        trace(Between(lambda net, x: net.part(x), part=Counts()).eval(), image())


def test_dropout_is_no_difference() -> None:
    ir = trace(Between(lambda net, x: F.dropout(net.inner(x), 0.5, net.training)).eval(), image())
    assert not ir.training
    assert not ir.diagnostics


class Student(nn.Module):
    """Returns its distance from a teacher, as self-distillation and consistency training do."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), nn.Linear(32, 8)]
        self.net = nn.Sequential(*layers)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, wanted = self.net(x), self.teacher(x)
        loss = (y - wanted).square().mean()
        return y, loss


def test_the_distance_of_a_model_from_its_copy_is_rounding() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 32)
    trace(Student().eval(), x)


@pytest.mark.parametrize(("wrong", "told"), [(1e-16, ""), (1e-8, "differs by"), (float("nan"), "differs by")])
def test_only_what_is_as_small_as_the_square_of_a_rounding_error_is_rounding(wrong: float, told: str) -> None:
    """The twin: a small output that is wrong is told."""
    found = distance((torch.ones(3), torch.tensor(1e-15)), (torch.ones(3), torch.tensor(wrong)))
    assert (told in str(found)) if told else isinstance(found, float)
    small = distance(torch.tensor([1e-15]), torch.tensor([2e-15]))
    assert "differs by" in str(small), "alone it is the largest output itself"
