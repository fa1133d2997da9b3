"""Gradients of programs are those of the extracted module, wherever they are zeroed and whatever is replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from network_cases import EXACT, Case, cases, everything
from torch import Tensor, nn

from bnas.passes import Subnet
from bnas.runtime.program import Binding, View
from bnas.testing import assert_gradients_match, assert_program_is_extracted, subnets

# (e): gradients


@given(case=cases(torch.float64), train=st.booleans())
def test_gradients_are_those_of_the_extracted(case: Case, train: bool) -> None:
    assert_gradients_match(case.supernet.train(train), case.subnet, case.inputs, tolerance=EXACT)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda self, shared, view: None, id="nowhere"),
        pytest.param(
            lambda self, shared, view: setattr(view, "grad", self.slot.take(shared.grad.flip(0))), id="in-a-copy"
        ),
    ],
)
def test_gradients_that_land_elsewhere_are_rejected(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    def bind(self: View, shared: Tensor, view: Tensor) -> None:
        shared.grad = torch.zeros_like(shared) if shared.grad is None else shared.grad
        wrong(self, shared, view)

    case = everything()
    assert_gradients_match(case.supernet, case.subnet, case.inputs, tolerance=EXACT)
    monkeypatch.setattr(View, "_bind_gradient", bind)
    with pytest.raises(AssertionError, match="gradient of"):
        assert_gradients_match(case.supernet, case.subnet, case.inputs, tolerance=EXACT)


def test_gradients_at_the_wrong_entries_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last entries of axis 0 where the first are kept: right numbers, wrong place."""

    def bind(self: View, shared: Tensor, view: Tensor) -> None:
        shared.grad = torch.zeros_like(shared)
        kept = self.slot.take(shared.grad)
        view.grad = self.slot.take(shared.grad[len(shared) - len(kept) :])

    case = everything()
    monkeypatch.setattr(View, "_bind_gradient", bind)
    with pytest.raises(AssertionError, match="gradient of"):
        assert_gradients_match(case.supernet, case.subnet, case.inputs, tolerance=EXACT)


def loss_of(module: nn.Module, inputs: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), torch.arange(len(inputs)) % 3)


def train_by_program(case: Case, place: str, set_to_none: bool, steps: int = 3) -> Mapping[str, Tensor]:
    """Train with one program for all steps; zero_grad at the given place of each."""
    supernet = case.supernet.train()
    program = supernet.program(case.subnet)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)

    def reached(now: str) -> None:
        if now == place:
            optimizer.zero_grad(set_to_none=set_to_none)

    for _ in range(steps):
        reached("before forward")
        loss = loss_of(program, case.inputs)
        reached("between forward and backward")
        loss.backward()
        optimizer.step()
        reached("after the step")
    return supernet.model.state_dict()


def train_by_extraction(case: Case, steps: int = 3) -> Mapping[str, Tensor]:
    """The same with a newly extracted module at each step: gradients and statistics are carried over by hand."""
    supernet = case.supernet.train()
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)
    assignment = supernet.skeleton.assignment(case.subnet)
    for _ in range(steps):
        optimizer.zero_grad()
        part = supernet.extract(case.subnet).train()
        loss_of(part, case.inputs).backward()
        for name, tensor in part.named_parameters():
            slot = supernet.skeleton.slot(supernet.model, name, assignment)
            slot.shared.grad = torch.zeros_like(slot.shared)
            slot.put(slot.shared.grad, tensor.grad)
        for name, tensor in part.named_buffers():
            slot = supernet.skeleton.slot(supernet.model, name, assignment)
            slot.put(slot.shared, tensor)
        optimizer.step()
    return supernet.model.state_dict()


PLACES = ("before forward", "between forward and backward", "after the step")


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_training_does_not_depend_on_where_gradients_are_zeroed(place: str, set_to_none: bool) -> None:
    found = train_by_program(everything(), place, set_to_none)
    torch.testing.assert_close(found, train_by_extraction(everything()), rtol=EXACT, atol=EXACT)


def test_gradients_that_are_never_zeroed_are_seen() -> None:
    found, expected = train_by_program(everything(), "never", True), train_by_extraction(everything())
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def gradients(case: Case, *chosen: Subnet) -> dict[str, Tensor]:
    """The shared gradients after all forwards and then all backwards of the programs."""
    case.supernet.zero_grad()
    losses = [loss_of(case.supernet.program(subnet), case.inputs) for subnet in chosen]
    for loss in losses:
        loss.backward()
    named = case.supernet.model.named_parameters()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}


@given(case=cases(torch.float64), data=st.data())
def test_several_programs_in_one_step_accumulate(case: Case, data: st.DataObject) -> None:
    chosen = [case.subnet, data.draw(subnets(case.supernet.space)), case.supernet.space.maximal(), case.subnet]
    together, alone = gradients(case, *chosen), [gradients(case, subnet) for subnet in chosen]
    total = {name: sum(one[name] for one in alone) for name in together}
    torch.testing.assert_close(together, total, rtol=EXACT, atol=EXACT)
    doubled = {name: 2 * tensor for name, tensor in together.items()}
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(together, doubled, rtol=EXACT, atol=EXACT)


def test_a_program_sees_the_weights_after_a_step() -> None:
    case = everything()
    program = case.supernet.program(case.subnet)
    before = program(case.inputs)
    optimizer = torch.optim.SGD(case.supernet.parameters(), lr=0.1)
    loss_of(program, case.inputs).backward()
    optimizer.step()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(program(case.inputs), before)
    assert_program_is_extracted(case.supernet, case.subnet, case.inputs, program=program, tolerance=EXACT)


def converted(model: nn.Module) -> None:
    model.double()


def assigned(model: nn.Module) -> None:
    state = {n: t.double() * 0.5 if t.is_floating_point() else t + 1 for n, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def with_other_data(model: nn.Module) -> None:
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.double() * 0.5 if tensor.is_floating_point() else tensor.data + 1


def with_a_new_parameter(model: nn.Module) -> None:
    model.double()
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None:
                setattr(module, name, nn.Parameter(tensor.detach() * 0.5))


def freed(model: nn.Module) -> None:
    model.double().requires_grad_(True)


@pytest.mark.parametrize("replace", [converted, assigned, with_other_data, with_a_new_parameter, freed])
def test_a_program_follows_tensors_that_are_replaced(replace: Callable[[nn.Module], None]) -> None:
    case = everything(torch.float32)
    model, supernet = case.network.module, case.supernet
    model.requires_grad_(replace is not freed)
    program, inputs = supernet.program(case.subnet), case.inputs.double()
    replace(model)
    for _ in range(2):
        assert_program_is_extracted(supernet, case.subnet, inputs, program=program, tolerance=EXACT)
        assert_gradients_match(supernet, case.subnet, inputs, program=program, tolerance=EXACT)
        before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_of(program, inputs).backward()
        optimizer.step()
        trained = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
        used = {name for name, _ in supernet.extract(case.subnet).named_parameters()}
        assert trained == used
        optimizer.zero_grad()


def test_a_program_that_does_not_follow_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    case = everything()
    program = case.supernet.program(case.subnet)
    monkeypatch.setattr(Binding, "refresh", lambda self: None)
    assigned(case.network.module)
    with pytest.raises(AssertionError, match="outputs of"):
        assert_program_is_extracted(case.supernet, case.subnet, case.inputs, program=program)


def test_frozen_parameters_get_no_gradient() -> None:
    case = everything()
    program = case.supernet.program(case.subnet)
    case.network.module.requires_grad_(False)
    last = list(case.network.module.parameters())[-1].requires_grad_(True)
    loss_of(program, case.inputs).backward()
    assert [p for p in case.network.module.parameters() if p.grad is not None] == [last]
