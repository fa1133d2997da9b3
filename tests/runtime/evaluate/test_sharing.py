"""What programs share (graph, code, views) and what is their own; what is shared keeps nothing alive."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from network_cases import EXACT, Case, everything
from torch import nn

from bnas.passes import Subnet
from bnas.passes.assembly.frames import Frames
from bnas.testing import assert_gradients_match, assert_program_is_extracted


def others(case: Case) -> tuple[Subnet, Subnet]:
    """The sub-network of the case, and one of the same structure with other widths."""
    smallest = {name: sizes[0] for name, sizes in case.supernet.space.widths.items()}
    return case.subnet, Subnet(smallest, case.subnet.skipped)


def test_one_structure_has_one_code_and_layers_of_its_own() -> None:
    case = everything()
    programs = [case.supernet.program(subnet) for subnet in (*others(case), case.subnet)]
    assert type(programs[0]) is type(programs[2])
    assert type(programs[0]) is not type(case.supernet.program(case.supernet.space.maximal()))
    modules = [{id(module) for module in program.modules()} for program in programs]
    assert not modules[0] & modules[2]
    modes = [module.training for module in programs[2].modules()]
    programs[0].train().register_forward_hook(lambda *_: pytest.fail("it is not called"))
    assert [module.training for module in programs[2].modules()] == modes
    assert not programs[2].training
    programs[2](case.inputs)


def test_programs_of_one_structure_are_all_right() -> None:
    case = everything()
    programs = [(subnet, case.supernet.program(subnet)) for subnet in others(case) * 2]
    for subnet, program in programs:
        assert_program_is_extracted(case.supernet, subnet, case.inputs, program=program, tolerance=EXACT)
        assert_gradients_match(case.supernet, subnet, case.inputs, program=program, tolerance=EXACT)
    with pytest.raises(AssertionError, match="outputs of"):
        assert_program_is_extracted(case.supernet, programs[0][0], case.inputs, program=programs[1][1])


def test_the_graph_of_an_extracted_module_is_its_own() -> None:
    case = everything()
    first, second = (case.supernet.extract(case.subnet) for _ in range(2))
    assert first.graph is not second.graph
    assert type(first) is not type(second)


def test_views_keep_no_gradients_after_backward() -> None:
    case = everything()
    program = case.supernet.program(case.subnet)
    program(case.inputs).square().sum().backward()
    shared = {id(parameter) for parameter in case.supernet.parameters()}
    kept = [parameter for parameter in program.parameters() if id(parameter) not in shared]
    assert kept
    assert all(parameter.grad is None for parameter in kept)
    gradients = [weakref.ref(p.grad) for p in case.supernet.parameters() if p.grad is not None]
    assert gradients
    case.supernet.zero_grad()
    gc.collect()
    assert not any(gradient() is not None for gradient in gradients)


def test_memory_that_was_replaced_is_let_go() -> None:
    case = everything()
    case.supernet.program(case.subnet)
    views = list(case.supernet._views._known.values())
    assert {view.tensor.dtype for view in views} == {torch.float64}
    case.supernet.float()
    program = case.supernet.program(case.subnet)
    assert {view.tensor.dtype for view in case.supernet._views._known.values()} == {torch.float32}
    assert not set(views) & set(case.supernet._views._known.values())
    assert all(parameter.dtype is torch.float32 for parameter in program.parameters())
    assert_program_is_extracted(case.supernet, case.subnet, case.inputs.float(), program=program)


def test_a_program_that_was_converted_spoils_no_other() -> None:
    case = everything()
    expected = case.supernet.program(case.subnet)(case.inputs)
    kept = {id(p) for p in case.supernet.parameters()}
    spoilt = [p for p in case.supernet.program(case.subnet).parameters() if id(p) not in kept]
    for parameter in spoilt:
        parameter.data = parameter.data + 1
    torch.testing.assert_close(case.supernet.program(case.subnet)(case.inputs), expected, rtol=0, atol=0)


def test_programs_made_for_inference_can_be_trained_later() -> None:
    case = everything()
    with torch.inference_mode():
        case.supernet.program(case.subnet)(case.inputs)
    assert_gradients_match(case.supernet.train(), case.subnet, case.inputs, tolerance=EXACT)


def test_a_copy_of_the_model_is_not_kept() -> None:
    case = everything()
    twin = copy.deepcopy(case.network.module)
    held = weakref.ref(twin)
    part = case.supernet.skeleton.build(case.subnet, lambda shell, slots: shell, twin)
    assert isinstance(part, nn.Module)
    del twin, part
    gc.collect()
    assert held() is None


def test_only_the_latest_structures_are_kept() -> None:
    frames, made = Frames(limit=2), list[str]()
    case = everything()

    def get(structure: str) -> None:
        frame = case.supernet.skeleton._frames
        some = next(iter(frame.held.values()))
        frames.get(structure, lambda: made.append(structure) or some)  # type: ignore[func-returns-value]

    case.supernet.program(case.subnet)
    for structure in "abacab":
        get(structure)
    assert made == ["a", "b", "c", "b"]
    assert list(frames.held) == ["a", "b"]
