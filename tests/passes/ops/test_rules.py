"""Every axis rule: what it keeps elastic is right, what it does not understand is rigid and said so."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from network_cases import ELASTICITY
from rule_cases import CHANNELS, INPUTS, PASSING, RIGID, SYMBOLS, Between, Named, Of, parameter
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bnas.passes import OPERATORS, Operator, Subnet, VerificationError, analyse, canonical, register, trace
from bnas.passes.axes.terms import K, Prod, symbols
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.errors import RuleError
from bnas.passes.ops import recurrent
from bnas.passes.ops.calls import Call, writes_in_place
from bnas.passes.ops.record import AxisRule
from bnas.passes.ops.rnn import gru, lstm
from bnas.passes.ops.views import regroup
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import (
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
)


def supernet_of(model: nn.Module) -> SuperNetwork:
    return SuperNetwork.from_model(model, INPUTS, ELASTICITY)


def middle(supernet: SuperNetwork) -> Subnet:
    return supernet.space.decode([len(variable.choices) // 2 for variable in supernet.space.variables()])


def assert_right(supernet: SuperNetwork) -> None:
    """The maximal, the minimal and a middle sub-network compute what they should."""
    assert_maximal_is_original(supernet, INPUTS)
    for subnet in (supernet.space.minimal(), middle(supernet)):
        assert_extracted_is_oracle(supernet, subnet, INPUTS)
        assert_program_is_extracted(supernet, subnet, INPUTS, tolerance=1e-12)


@pytest.mark.parametrize("name", PASSING)
def test_what_an_operator_leaves_elastic_is_right(name: str) -> None:
    supernet = supernet_of(Between(PASSING[name]))
    assert len(supernet.analysis.types.free_symbols()) == SYMBOLS.get(name, 1)
    assert "first" in {width.partition("#")[0] for width in supernet.space.widths}
    assert_right(supernet)


@pytest.mark.parametrize("name", RIGID)
def test_what_a_rule_refuses_is_rigid_and_said_so(name: str) -> None:
    body, reason = RIGID[name]
    supernet = supernet_of(Between(body))
    assert not supernet.space.widths
    assert any(re.search(reason, diagnostic.reason) for diagnostic in supernet.diagnostics)
    assert_right(supernet)


PARAMETRISED: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("name", PARAMETRISED)
def test_rows_of_a_parametrised_weight_are_elastic(name: str) -> None:
    of = PARAMETRISED[name]
    model = nn.Sequential(of(nn.Conv2d(3, 8, 1)), nn.ReLU(), of(nn.Conv2d(8, 6, 1)), nn.ReLU(), nn.Conv2d(6, 2, 1))
    supernet = supernet_of(model.double().eval())
    assert len(supernet.space.widths) == (1 if name == "weight_norm" else 2)
    assert_right(supernet)
    assert_same_as_cut(supernet, model, name)


def assert_same_as_cut(supernet: SuperNetwork, model: nn.Sequential, name: str) -> None:
    """The last layers of a smaller sub-network, with rows cut by hand."""
    width, sizes = list(supernet.space.widths.items())[-1]
    found = supernet.extract(Subnet({width: sizes[0]}))(INPUTS)
    hidden, last = model[:2](INPUTS), model[4]
    weight = model[2].weight
    if name == "spectral_norm":
        inner = model[2].parametrizations.weight
        raw, u, v, rows = inner.original.flatten(1), inner[0]._u, inner[0]._v, sizes[0]
        weight = inner.original / torch.dot(u[:rows], raw[:rows] @ v)
    hidden = F.conv2d(hidden, weight[: sizes[0]], model[2].bias[: sizes[0]]).relu()
    torch.testing.assert_close(found, F.conv2d(hidden, last.weight[:, : sizes[0]], last.bias))


def test_outputs_with_names_are_right() -> None:
    assert_right(supernet_of(Named()))


def test_a_rule_that_gives_another_shape_freezes_its_operator_and_the_model_stays(
    change: Callable[..., Any],
) -> None:
    change(torch.flatten, axes=lambda types, call: types.type(call.argument(0, "input")))
    supernet = supernet_of(Between(lambda x: x.flatten(2)))
    assert not supernet.space.widths
    assert any(re.search("bug in the rule, please report", d.reason) for d in supernet.diagnostics)
    assert_right(supernet)


@pytest.mark.parametrize(("before", "after"), [([6], [4]), ([4], [6]), ([2, 0], [0, 3]), ([2, 3], [2]), ([], [2])])
def test_an_impossible_view_is_an_error_and_no_endless_loop(before: list[int], after: list[int]) -> None:
    with pytest.raises(RuleError, match="a view from"):
        regroup(AxisTypes(), [K(n) for n in before], after)


class Sliced(nn.Module):
    """Positions up to the length of the batch's own size: a size that follows the input."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = parameter(2000, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x) + self.table[: x.shape[0]].narrow(0, 0, x.shape[0])
        return self.last(hidden.view(x.shape[0], -1, 2).expand(x.shape[0], -1, 2).reshape(-1, 6))


def test_slices_that_end_where_an_input_says_keep_all_rows() -> None:
    types = analyse(trace(Sliced(), torch.randn(8, 6)))
    assert types.tensors["table"][0].size == 2000
    assert not any(symbols(types.tensors["table"][0]))
    assert any(symbols(types.tensors["table"][1]))


def hands_on(types: AxisTypes, call: Call) -> Any:
    """As if entries stayed where they are and had nothing to do with one another."""
    axes = types.type(call.argument(0, "input"))
    value = call.node.meta["value"]
    return (axes,) * len(value) if isinstance(value, tuple) else axes


def repeats_each(types: AxisTypes, call: Call) -> Axes:
    axes = list(types.type(call.args[0]))
    axes[1] = Prod((axes[1], K(types.output_shape(call)[1] // axes[1].size)))
    return axes


def repeats_all(types: AxisTypes, call: Call) -> Axes:
    axes = list(types.type(call.args[0]))
    axes[1] = Prod((K(types.output_shape(call)[1] // axes[1].size), axes[1]))
    return axes


def unfolds_into_rows(types: AxisTypes, call: Call) -> Axes:
    axes, shape = types.type(call.argument(0, "input")), types.output_shape(call)
    return [axes[0], Prod((K(shape[1] // axes[1].size), axes[1])), K(shape[2])]


def averages_fewer(types: AxisTypes, call: Call) -> Axes:
    axes = list(types.type(call.argument(0, "input")))
    return [axes[0], K(1), *axes[2:]]


def divided_by_all(x: torch.Tensor, kept: int) -> torch.Tensor:
    return x.sum(1, keepdim=True) / CHANNELS


def averages_all(types: AxisTypes, call: Call) -> Axes:
    """As if what is left out counted as zero."""
    axes = list(types.type(call.argument(0, "input")))
    types.replace(call, divided_by_all, axes[1])
    return [axes[0], K(1), *axes[2:]]


def sums_anything(types: AxisTypes, call: Call) -> Axes:
    axes = types.type(call.argument(0, "input"))
    return [axes[0], K(1), *axes[2:]]


def gates_in_another_order(types: AxisTypes, call: Call) -> Any:
    with mock.patch.object(recurrent, "Prod", lambda terms: Prod(terms[::-1])):
        return recurrent.layer_axes(types, call)


WRONG: dict[str, tuple[Any, AxisRule, Callable[..., Any] | nn.Module]] = {
    "roll": (torch.roll, hands_on, RIGID["roll"][0]),
    "flip": (torch.flip, hands_on, RIGID["flip"][0]),
    "softmax": (F.softmax, hands_on, RIGID["softmax of channels"][0]),
    "sort": (torch.sort, hands_on, RIGID["sort of channels"][0]),
    "shuffle": (F.channel_shuffle, hands_on, nn.ChannelShuffle(2)),
    "repeat": ("repeat", repeats_each, lambda x: x.repeat(1, 2, 1, 1)),
    "repeat-interleave": (torch.repeat_interleave, repeats_all, PASSING["repeat_interleave"]),
    "unfold": (F.unfold, unfolds_into_rows, PASSING["unfold"]),
    "sum": (torch.sum, sums_anything, RIGID["sum of gates"][0]),
    "lstm": (lstm, gates_in_another_order, PASSING["lstm"]),
    "gru": (gru, gates_in_another_order, PASSING["gru"]),
    "amax": (torch.amax, averages_fewer, RIGID["largest of channels"][0]),
    "mean": (torch.mean, averages_all, PASSING["mean of channels"]),
    "weighted-norm": (
        F.batch_norm,
        hands_on,
        Of(lambda w, x: F.conv2d(x, F.batch_norm(w, None, None, training=True)), parameter(6, CHANNELS, 1, 1)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name: str, change: Callable[..., Any]) -> None:
    op, rule, body = WRONG[name]
    assert_right(supernet_of(Between(body)))
    change(op, axes=rule)
    wrong = supernet_of(Between(body))
    assert wrong.space.widths
    with pytest.raises((VerificationError, RuntimeError)):
        assert_extracted_is_oracle(wrong, middle(wrong), INPUTS)


IN_PLACE = {
    operator.iadd: torch.add,
    operator.isub: torch.sub,
    operator.imul: torch.mul,
    operator.itruediv: torch.div,
    operator.ifloordiv: torch.floor_divide,
    operator.imod: torch.remainder,
    operator.ipow: torch.pow,
    operator.iand: torch.bitwise_and,
    operator.ior: torch.bitwise_or,
    operator.ixor: torch.bitwise_xor,
}


@pytest.mark.parametrize("spelling", IN_PLACE)
def test_operators_in_place_are_known_and_write(spelling: Callable[..., object]) -> None:
    node = torch.fx.Graph().call_function(spelling, (1, 2))
    assert canonical(spelling) is IN_PLACE[spelling]
    assert OPERATORS[canonical(spelling)].axes is not None
    assert writes_in_place(node)


class Cube(torch.autograd.Function):
    """The third power, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradients[0]  # type: ignore[no-any-return]


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Cube.apply(x)


@torch.library.custom_op("bnas_tests::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    """The same as an operator of a library."""
    return x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


CUBES: dict[str, Any] = {
    "packet": torch.ops.bnas_tests.cube,
    "overload": torch.ops.bnas_tests.cube.default,
    "definition": cube,
}


def same(types: AxisTypes, call: Call) -> Any:
    return types.type(call.argument(0, "x"))


def of_zero(*_: Any) -> bool:
    return True


@pytest.mark.parametrize("called", CUBES)
@pytest.mark.parametrize("registered", CUBES)
def test_an_operator_of_a_library_has_one_record_by_all_of_its_names(registered: str, called: str) -> None:
    net = Between(lambda x: CUBES[called](x))
    with OPERATORS.copied():
        assert not supernet_of(net).space.widths
        register(Operator(CUBES[registered], axes=same, zeros=of_zero))
        supernet = supernet_of(net)
        assert supernet.space.widths
        assert_extracted_is_oracle(supernet, supernet.space.minimal(), INPUTS)
        with pytest.raises(RuleError, match="cube already has a record"):
            register(Operator(CUBES[called]))


def test_a_record_of_an_autograd_function_is_used() -> None:
    net, inputs = nn.Sequential(nn.Conv2d(3, 16, 1), Cubed(), nn.Conv2d(16, 2, 1)).eval(), torch.randn(2, 3, 4, 5)
    with OPERATORS.copied():
        whole = SuperNetwork.from_model(net, inputs)
        assert not whole.space.widths
        assert any("the autograd function Cube has no rule" in str(one) for one in whole.diagnostics)
        with pytest.raises(RuleError, match=r"register the class itself, Operator\(Cube, \.\.\.\)"):
            register(Operator(Cube.apply))
        register(
            Operator(Cube, axes=same, zeros=of_zero, onnx=lambda site: site.emit("Pow", site.x, torch.tensor(3.0)))
        )
        supernet = SuperNetwork.from_model(net, inputs)
        smallest = supernet.space.minimal()
        assert supernet.space.widths
        assert_extracted_is_oracle(supernet, smallest, inputs)
        assert_gradients_match(supernet, smallest, inputs)
        assert_onnx_is_extracted(supernet, smallest, inputs)
