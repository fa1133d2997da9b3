"""Programs on random networks against the model, the extracted module, the oracle and ONNX Runtime; wrong ones too."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from network_cases import ELASTICITY, EXACT, Case, assert_same, cases, everything, snapshot
from torch import Tensor, nn

from bnas import testing
from bnas.passes import OPERATORS, VerificationError
from bnas.passes.axes.terms import Cat, K
from bnas.passes.axes.types import Axes, AxisTypes
from bnas.passes.ops.calls import Call
from bnas.runtime.program import Gathered, GatheredTensor
from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import (
    Branches,
    Downsample,
    Layer,
    Network,
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
)


def test_the_fixed_case_has_every_kind_of_binding() -> None:
    case = everything()
    program = case.supernet.program(case.subnet)
    kinds = {type(module) for module in program.modules()}
    assert {Gathered, GatheredTensor} <= kinds
    assert {binding.view.whole for binding in program._bindings} == {True, False}
    assert len(case.supernet.space.blocks) == 4
    assert case.supernet.diagnostics


# (a), (k): the maximal sub-network, at any batch size


@given(case=cases(), batch=st.sampled_from((1, 5)))
def test_maximal_program_is_the_original_at_any_batch_size(case: Case, batch: int) -> None:
    assert_maximal_is_original(case.supernet, case.inputs)
    inputs = torch.randn(batch, *case.inputs.shape[1:])
    assert_maximal_is_original(case.supernet, inputs)
    assert_program_is_extracted(case.supernet, case.subnet, inputs)


def test_another_maximal_program_is_rejected() -> None:
    case = everything()
    case.supernet.model = copy.deepcopy(case.network.module)
    assert_maximal_is_original(case.supernet, case.inputs)
    next(case.supernet.model.parameters()).data.mul_(1 + 1e-15)
    with pytest.raises(AssertionError, match="not equal"):
        assert_maximal_is_original(case.supernet, case.inputs)


# (b): program and extracted module, in both modes


@given(case=cases())
def test_program_is_the_extracted_in_evaluation(case: Case) -> None:
    assert_program_is_extracted(case.supernet, case.subnet, case.inputs)


@given(case=cases(torch.float64))
def test_program_is_the_extracted_in_training(case: Case) -> None:
    case.supernet.train()
    program = case.supernet.program(case.subnet)
    assert program.training
    for _ in range(2):
        assert_program_is_extracted(case.supernet, case.subnet, case.inputs, program=program, tolerance=EXACT)


def test_statistics_of_dropped_channels_are_untouched() -> None:
    case = everything()
    supernet = case.supernet.train()
    before = {name: buffer.clone() for name, buffer in supernet.model.named_buffers()}
    program, extracted = supernet.program(case.subnet), supernet.extract(case.subnet)
    program(case.inputs)
    updated = dict(extracted.named_buffers())
    for name, buffer in supernet.model.named_buffers():
        kept = torch.zeros(buffer.shape, dtype=torch.bool)
        if name in updated:
            slot = supernet.skeleton.slot(supernet.model, name, supernet.skeleton.assignment(case.subnet))
            slot.put(kept, torch.ones(updated[name].shape, dtype=torch.bool))
        assert torch.equal(buffer[~kept], before[name][~kept])
        assert (buffer[kept] != before[name][kept]).all()


@pytest.mark.parametrize("mode", [True, False])
def test_another_program_is_rejected(mode: bool) -> None:
    case, other = everything(), everything()
    program = other.supernet.train(mode).program(case.subnet)
    case.supernet.train(mode)
    norm = next(m for m in other.network.module.modules() if isinstance(m, nn.BatchNorm2d))
    norm.bias.data[0] += 1e-4
    with pytest.raises(AssertionError, match="outputs of"):
        assert_program_is_extracted(case.supernet, case.subnet, case.inputs, program=program)


def test_statistics_that_are_not_written_back_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(layer: Gathered, *args: Any) -> Any:
        tensors = {name: slot.take(slot.shared) for name, slot in layer.slots.items()}
        return torch.func.functional_call(layer.layer, tensors, args)

    case = everything()
    monkeypatch.setattr(Gathered, "forward", forgets)
    assert_program_is_extracted(case.supernet, case.subnet, case.inputs)
    with pytest.raises(AssertionError, match="statistics"):
        assert_program_is_extracted(case.supernet.train(), case.subnet, case.inputs)


def test_checks_put_everything_back() -> None:
    case = everything()
    supernet = case.supernet.train()
    supernet.model(case.inputs).sum().backward()
    before = snapshot(supernet.model), {n: p.grad.clone() for n, p in supernet.named_parameters()}
    assert_maximal_is_original(supernet, case.inputs)
    assert_program_is_extracted(supernet, case.subnet, case.inputs, tolerance=EXACT)
    assert_gradients_match(supernet, case.subnet, case.inputs, tolerance=EXACT)
    assert_extracted_is_oracle(supernet, case.subnet, case.inputs)
    assert_same(before[0], snapshot(supernet.model))
    assert all(torch.equal(before[1][n], p.grad) for n, p in supernet.named_parameters())


# (c): the oracle


@given(case=cases())
def test_extracted_is_the_oracle(case: Case) -> None:
    assert_extracted_is_oracle(case.supernet, case.subnet, case.inputs)


def cat_in_the_wrong_order(types: AxisTypes, call: Call) -> Axes:
    parts = [types.type(part) for part in call.argument(0, "tensors")]
    return [parts[0][0], Cat(tuple(part[1] for part in reversed(parts))), *parts[0][2:]]


def pad_on_the_wrong_side(types: AxisTypes, call: Call) -> Axes:
    inputs, padding = types.type(call.argument(0, "input")), call.argument(1, "pad")
    extra = sum(padding)
    return [inputs[0], Cat((inputs[1], K(extra))), *inputs[2:]]


def maximum_that_pins_nothing(types: AxisTypes, call: Call) -> Axes:
    inputs = types.type(call.argument(0, "input"))
    return [inputs[0], *inputs[2:]]


class LargestOfChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).amax(1))


CONCAT = Network(Layer(8), (Branches((Layer(12),), keep=True), Layer(8)))
SHORTCUT = Network(Layer(8), (Downsample(12, project=False), Layer(8)))


@pytest.mark.parametrize(
    ("op", "rule", "module"),
    [
        pytest.param(torch.cat, cat_in_the_wrong_order, CONCAT.module, id="order-of-parts"),
        pytest.param(F.pad, pad_on_the_wrong_side, SHORTCUT.module, id="side-of-padding"),
        pytest.param(torch.amax, maximum_that_pins_nothing, None, id="largest-of-fewer"),
    ],
)
def test_a_wrong_rule_is_caught_by_the_oracle(
    change: Callable[..., Any], op: Any, rule: Any, module: nn.Module | None
) -> None:
    # At some of 512 places all kept channels are negative, so that the zeros of the dropped ones are the largest.
    inputs = torch.randn(2, 3, 64, 4) if module is None else CONCAT.example_inputs
    module = LargestOfChannels().eval() if module is None else module
    right = SuperNetwork.from_model(module, inputs, ELASTICITY)
    assert_extracted_is_oracle(right, right.space.minimal(), inputs)
    change(op, axes=rule)
    wrong = SuperNetwork.from_model(module, inputs, ELASTICITY)
    assert wrong.space.maximal() != wrong.space.minimal()
    assert_extracted_is_oracle(wrong, wrong.space.maximal(), inputs)
    with pytest.raises(VerificationError, match="a rule is wrong"):
        assert_extracted_is_oracle(wrong, wrong.space.minimal(), inputs)


# (d): ONNX


@given(case=cases())
def test_onnx_is_the_extracted(case: Case) -> None:
    assert_onnx_is_extracted(case.supernet, case.subnet, case.inputs)


def test_another_onnx_graph_is_rejected(change: Callable[..., Any]) -> None:
    case = everything(torch.float32)
    assert_onnx_is_extracted(case.supernet, case.subnet, case.inputs)
    change(F.relu, onnx=OPERATORS[torch.tanh].onnx)
    with pytest.raises(AssertionError, match="ONNX outputs of"):
        assert_onnx_is_extracted(case.supernet, case.subnet, case.inputs)


# bnas.testing itself


def test_plans_are_readable_and_make_the_same_network_again() -> None:
    case = everything()
    again = eval(repr(case.network), vars(testing))  # what a failing test shows can be pasted
    assert again == case.network
    for name, tensor in again.module.double().state_dict().items():
        assert torch.equal(tensor, case.network.module.state_dict()[name])


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "bnas.testing")
    with pytest.raises(ImportError, match=r"bnas\[test\]"):
        importlib.import_module("bnas.testing")
