"""Every axis rule: what it keeps elastic is right, what it does not understand is rigid and said so."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from network_cases import ELASTICITY
from rule_cases import CHANNELS, INPUTS, PASSING, RIGID, SYMBOLS, Between, Named, Of, parameter
from torch import nn

from bnas.passes import Subnet, VerificationError, analyse, trace
from bnas.passes.axes import RULES, Axes, AxisTypes, Rule
from bnas.passes.calls import Call
from bnas.passes.recurrent import gru, lstm
from bnas.passes.rules import recurrent
from bnas.passes.terms import K, Prod
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import assert_extracted_is_oracle, assert_maximal_is_original, assert_program_is_extracted


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


def test_outputs_with_names_are_right() -> None:
    assert_right(supernet_of(Named()))


def test_every_rule_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Any] = set()

    def noting(op: Any, rule: Rule) -> Rule:
        return lambda types, call: seen.add(op) or rule(types, call)

    for op, rule in list(RULES.items()):
        monkeypatch.setitem(RULES, op, noting(op, rule))
    models = [*(Between(body) for body in PASSING.values()), *(Between(body) for body, _ in RIGID.values()), Named()]
    for model in models:
        analyse(trace(model, INPUTS))
    there_is_no_such_device = {"cuda"}
    assert {op for op in RULES if op not in seen} == there_is_no_such_device


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


def sums_anything(types: AxisTypes, call: Call) -> Axes:
    axes = types.type(call.argument(0, "input"))
    return [axes[0], K(1), *axes[2:]]


def gates_in_another_order(types: AxisTypes, call: Call) -> Any:
    with mock.patch.object(recurrent, "Prod", lambda terms: Prod(terms[::-1])):
        return recurrent.layer(types, call)


WRONG: dict[str, tuple[Any, Rule, Callable[..., Any] | nn.Module]] = {
    "roll": (torch.roll, hands_on, RIGID["roll"][0]),
    "flip": (torch.flip, hands_on, RIGID["flip"][0]),
    "softmax": (F.softmax, hands_on, RIGID["softmax of channels"][0]),
    "sort": (torch.sort, hands_on, RIGID["sort of channels"][0]),
    "shuffle": (F.channel_shuffle, hands_on, nn.ChannelShuffle(2)),
    "repeat": ("repeat", repeats_each, lambda x: x.repeat(1, 2, 1, 1)),
    "repeat-interleave": (torch.repeat_interleave, repeats_all, PASSING["repeat_interleave"]),
    "unfold": (F.unfold, unfolds_into_rows, PASSING["unfold"]),
    "sum": (torch.sum, sums_anything, RIGID["sum of gates"][0]),
    "mean": (torch.mean, averages_fewer, RIGID["mean of channels"][0]),
    "lstm": (lstm, gates_in_another_order, PASSING["lstm"]),
    "gru": (gru, gates_in_another_order, PASSING["gru"]),
    "weighted-norm": (
        F.batch_norm,
        hands_on,
        Of(lambda w, x: F.conv2d(x, F.batch_norm(w, None, None, training=True)), parameter(6, CHANNELS, 1, 1)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, rule, body = WRONG[name]
    assert_right(supernet_of(Between(body)))
    monkeypatch.setitem(RULES, op, rule)
    wrong = supernet_of(Between(body))
    assert wrong.space.widths
    with pytest.raises((VerificationError, RuntimeError)):
        assert_extracted_is_oracle(wrong, middle(wrong), INPUTS)
