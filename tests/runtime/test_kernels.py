"""Elastic kernels at work: gradients, costs, files, training, reordering; what is not shrunk stays shared itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from network_cases import ELASTICITY, EXACT, Case, cases, supernet_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bnas.cli.inspection import inspect_model
from bnas.data.inputs import Input
from bnas.passes import Elasticity, Subnet, SubnetError
from bnas.passes.assembly.slot import Matrices, Shrink
from bnas.runtime.errors import CheckpointError
from bnas.runtime.program import Gathered
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.train.stages import Stage
from bnas.runtime.train.trainer import Trainer
from bnas.testing import (
    Branches,
    Head,
    Layer,
    Network,
    Residual,
    Twice,
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
    subnets,
)


def network() -> Network:
    """Kernels that are dense, depthwise, rectangular, dilated, behind a concatenation, called twice, in a block."""
    stages = (
        Residual(8, groups=8, norm=True, kernel=7),
        Branches((Layer(4, (7, 5), norm=True),), keep=True),
        Layer(6, 5, groups=2, norm=True, dilation=2, same=True),
        Twice((1, 5), norm=True),
    )
    return Network(Layer(8, 5, stride=2, norm=True), stages, Head(), size=12)


def kernels_case(dtype: torch.dtype = torch.float64) -> Case:
    case = Case(network(), supernet_of(network(), dtype), Subnet())
    case.network.module.to(dtype)
    supernet = supernet_of(case.network, dtype)
    widths = {name: sizes[len(sizes) // 2] for name, sizes in supernet.space.widths.items()}
    smallest = {name: sizes[0] for name, sizes in supernet.space.kernels.items()}
    return Case(case.network, supernet, Subnet(widths, frozenset(), smallest))


def test_the_case_has_every_kind_of_kernel() -> None:
    supernet = kernels_case().supernet
    kernels = supernet.skeleton.choices.kernels.found
    assert {kernel.sizes for kernel in kernels.values()} == {(5, 5), (7, 7), (7, 5), (1, 5)}
    assert [len(kernel.nodes) for kernel in kernels.values()] == [1, 1, 1, 1, 2]
    assert set(supernet.space.kernels_inside) == {"0.1.middle.0", "0.4.layer.0"}
    assert set(supernet.space.kernels) == set(kernels)


def test_all_checks_hold_for_the_smallest_kernels() -> None:
    case = kernels_case()
    assert_maximal_is_original(case.supernet, case.inputs)
    assert_extracted_is_oracle(case.supernet, case.subnet, case.inputs)
    for mode in (True, False):
        case.supernet.train(mode)
        assert_program_is_extracted(case.supernet, case.subnet, case.inputs, tolerance=EXACT)
        assert_gradients_match(case.supernet, case.subnet, case.inputs, tolerance=EXACT)
    single = kernels_case(torch.float32)
    assert_onnx_is_extracted(single.supernet, single.subnet, single.inputs)


# what is shared and what is the model's


def test_the_model_has_no_more_tensors_and_the_super_network_has() -> None:
    case, names = kernels_case(), set(network().module.state_dict())
    assert set(case.supernet.model.state_dict()) == names
    matrices = {name for name, _ in case.supernet.kernel_matrices.named_parameters()}
    assert matrices == {
        *("0.0.0.5to3", "0.1.middle.0.7to5", "0.1.middle.0.5to3", "0.2.branches.0.0.7to5"),
        *("0.2.branches.0.0.5to3", "0.3.0.5to3", "0.4.layer.0.5to3"),
    }
    shapes = {name: tuple(m.shape) for name, m in case.supernet.kernel_matrices.named_parameters()}
    assert shapes["0.2.branches.0.0.7to5"] == (25, 25)
    assert shapes["0.4.layer.0.5to3"] == (3, 3)
    trained = {id(parameter) for parameter in case.supernet.parameters()}
    assert trained >= {id(matrix) for matrix in case.supernet.kernel_matrices.parameters()}


def test_a_whole_kernel_is_the_shared_tensor_itself() -> None:
    case = kernels_case()
    part = Subnet(kernels={"0.0.0": 3})
    program = case.supernet.program(part)
    gathered = {name for name, module in program.named_modules() if isinstance(module, Gathered)}
    assert gathered == {"0.0.0"}
    shared = dict(case.supernet.model.named_parameters())
    for name, tensor in program.named_parameters():
        if not name.startswith("0.0.0"):
            assert tensor is shared[name]


def test_the_extracted_is_plain() -> None:
    case = kernels_case()
    part = case.supernet.extract(case.subnet)
    assert {type(module) for module in part.modules() if hasattr(module, "weight")} == {
        *(nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    }
    assert part.state_dict().keys() == case.supernet.model.state_dict().keys()
    for conv in (module for module in part.modules() if isinstance(module, nn.Conv2d)):
        assert tuple(conv.weight.shape[2:]) == conv.kernel_size
        assert max(conv.kernel_size) <= 3
        assert conv.weight.is_leaf
        assert conv.weight.requires_grad
        assert conv.weight.is_contiguous()


# gradients


def by_hand(case: Case) -> dict[str, Tensor]:
    """Gradients of stem and matrix where only the stem's kernel is small, written with differentiable slices."""
    supernet, weight = case.supernet, case.supernet.model.get_parameter("0.0.0.weight")
    matrix = supernet.kernel_matrices.get_parameter("0.0.0.5to3")
    stem, rest = case.supernet.model.get_submodule("0.0"), case.supernet.model.get_submodule("0")
    small = (weight[:, :, 1:4, 1:4].reshape(-1, 9) @ matrix.T).view(8, 3, 3, 3)
    out = F.conv2d(case.inputs, small, None, stride=2, padding=1)
    for layer in (*list(stem)[1:], *list(rest)[1:], case.supernet.model.get_submodule("1")):  # type: ignore[call-overload]
        out = layer(out)
    loss = (out * torch.arange(out.numel()).view(out.shape)).sum()
    found = torch.autograd.grad(loss, [weight, matrix])
    return dict(zip(("weight", "matrix"), found, strict=True))


def by_program(case: Case) -> dict[str, Tensor]:
    case.supernet.zero_grad()
    out = case.supernet.program(Subnet(kernels={"0.0.0": 3}))(case.inputs)
    (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
    weight = case.supernet.model.get_parameter("0.0.0.weight").grad
    matrix = case.supernet.kernel_matrices.get_parameter("0.0.0.5to3").grad
    assert weight is not None
    assert matrix is not None
    return {"weight": weight, "matrix": matrix}


def test_gradients_reach_the_shared_weight_and_the_matrix() -> None:
    case = kernels_case()
    found, expected = by_program(case), by_hand(case)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert found["weight"][:, :, 1:4, 1:4].abs().min() > 0
    assert found["weight"][:, :, 0].abs().max() == 0
    others = [m for n, m in case.supernet.kernel_matrices.named_parameters() if n != "0.0.0.5to3"]
    assert all(matrix.grad is None for matrix in others)


def without_matrix(self: Shrink, weight: Tensor) -> Tensor:
    return right(Shrink(_Detached(self.matrices), self.steps), weight)


def without_weight(self: Shrink, weight: Tensor) -> Tensor:
    return right(self, weight.detach())


right = Shrink.__call__


class _Detached(nn.Module):
    def __init__(self, matrices: nn.Module) -> None:
        super().__init__()
        for name, matrix in matrices.named_parameters():
            self.register_parameter(name, nn.Parameter(matrix.detach().clone()))


@pytest.mark.parametrize("wrong", [without_matrix, without_weight])
def test_gradients_that_are_lost_are_rejected(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    case = kernels_case()
    expected = case.supernet.extract(case.subnet)(case.inputs)
    original = Gathered.forward

    def forward(layer: Gathered, *args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:  # in programs only: the check itself stays right
            inner.setattr(Shrink, "__call__", wrong)
            return original(layer, *args, **kwargs)

    monkeypatch.setattr(Gathered, "forward", forward)
    torch.testing.assert_close(case.supernet.program(case.subnet)(case.inputs), expected, rtol=EXACT, atol=EXACT)
    with pytest.raises(AssertionError, match="gradient of"):
        assert_gradients_match(case.supernet, case.subnet, case.inputs, tolerance=EXACT)


# number types and replaced tensors


@pytest.mark.parametrize("together", [True, False])
def test_programs_follow_another_number_type(together: bool) -> None:
    case = kernels_case(torch.float32)
    program, inputs = case.supernet.program(case.subnet), case.inputs.double()
    (case.supernet if together else case.supernet.model).double()
    types = {matrix.dtype for matrix in case.supernet.kernel_matrices.parameters()}
    assert types == {torch.float64 if together else torch.float32}
    assert_program_is_extracted(case.supernet, case.subnet, inputs, program=program, tolerance=EXACT)


def test_a_program_sees_matrices_that_are_trained_or_replaced() -> None:
    case = kernels_case()
    program = case.supernet.program(case.subnet)
    before = program(case.inputs)
    state = {name: 2 * tensor for name, tensor in case.supernet.kernel_matrices.state_dict().items()}
    case.supernet.kernel_matrices.load_state_dict(state, assign=True)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(program(case.inputs), before)
    assert_program_is_extracted(case.supernet, case.subnet, case.inputs, program=program, tolerance=EXACT)


# costs


def assert_costs(case: Case, costs: dict[str, int], subnet: Subnet) -> None:
    part = case.supernet.extract(subnet)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part(case.inputs[:1])
    assert costs["macs"] * 2 == counter.get_total_flops()
    assert costs["parameters"] == sum(parameter.numel() for parameter in part.parameters())


def test_costs_of_every_kernel() -> None:
    case = kernels_case(torch.float32)
    space = case.supernet.space
    chosen = [Subnet(case.subnet.widths, frozenset(), {n: k}) for n, sizes in space.kernels.items() for k in sizes]
    chosen += [case.subnet, space.minimal(), space.maximal(), Subnet({}, frozenset(space.blocks))]
    together = case.supernet.cost_model.many(chosen)
    assert len(set(together["macs"].tolist())) > len(space.kernels)
    for number, subnet in enumerate(chosen):
        costs = case.supernet.costs(subnet)
        assert_costs(case, costs, subnet)
        assert {name: int(values[number]) for name, values in together.items()} == costs
    assert all(values.dtype == np.int64 for values in together.values())
    with pytest.raises(AssertionError):
        assert_costs(case, case.supernet.costs(chosen[0]), space.maximal())


# the space


def test_only_kernels_in_skipped_blocks_do_not_count() -> None:
    case = kernels_case()
    space = case.supernet.space
    block, _ = space.blocks
    skipping = Subnet(case.subnet.widths, frozenset({block}), case.subnet.kernels)
    canonical = space.canonical(skipping)
    assert canonical.kernels == {**case.subnet.kernels, "0.1.middle.0": 7}
    assert space.canonical(case.subnet).kernels == case.subnet.kernels
    found, expected = (case.supernet.extract(subnet)(case.inputs) for subnet in (canonical, skipping))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert case.supernet.costs(canonical) == case.supernet.costs(skipping)


def test_a_kernel_of_another_space_is_refused() -> None:
    supernet = kernels_case().supernet
    for kernels, reason in (
        ({"0.0.0": 4}, r"0\.0\.0: kernel 4 is not one of \(3, 5\)"),
        ({"other": 3}, "there is no elastic kernel 'other'; there are 0.0.0"),
    ):
        for use in (supernet.program, supernet.extract, supernet.costs, supernet.space.encode):
            with pytest.raises(SubnetError, match=reason):
                use(Subnet(kernels=kernels))


# files


def test_matrices_are_saved_and_loaded(tmp_path: Path) -> None:
    case, other = kernels_case(), network().module.double()
    case.supernet.save(tmp_path)
    loaded = SuperNetwork.load(tmp_path, other)
    found, expected = (one.kernel_matrices.state_dict() for one in (loaded, case.supernet))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="not equal"):
        torch.testing.assert_close(
            expected,
            SuperNetwork.from_model(other, case.inputs, ELASTICITY).kernel_matrices.state_dict(),
            rtol=0,
            atol=0,
        )
    assert loaded.space == case.supernet.space
    assert_program_is_extracted(loaded, case.subnet, case.inputs, tolerance=EXACT)


def test_missing_matrices_are_told_and_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, other = kernels_case(), network().module.double()
    monkeypatch.setattr("bnas.runtime.supernetwork.matrix_tensors", lambda matrices: {})
    case.supernet.save(tmp_path)
    other[1][1].bias.data.fill_(7)
    with pytest.raises(CheckpointError, match=r"missing: kernel matrix:0\.0\.0\.5to3"):
        SuperNetwork.load(tmp_path, other)
    assert (other[1][1].bias == 7).all()


# training and reordering


@pytest.mark.parametrize(("dims", "trained"), [(("kernel",), True), (("depth", "width"), False)])
def test_a_stage_trains_the_matrices_if_it_says_kernel(dims: tuple[str, ...], trained: bool) -> None:
    case = kernels_case(torch.float32)
    supernet = case.supernet
    before = [matrix.detach().clone() for matrix in supernet.kernel_matrices.parameters()]
    loader = [(case.inputs, torch.arange(len(case.inputs))) for _ in range(6)]
    stage = Stage(dims, init_lr=1e-3)
    assert len(stage.space(supernet.space).kernels) == len(supernet.space.kernels)
    Trainer(supernet, [stage]).fit(loader)
    after = list(supernet.kernel_matrices.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) is not trained


def test_a_stage_without_kernels_keeps_them_whole() -> None:
    space = kernels_case().supernet.space
    part = Stage(("depth", "width")).space(space)
    assert part.minimal().kernels == space.maximal().kernels
    assert Stage(("kernel",)).space(space).minimal() == Subnet(
        space.maximal().widths, frozenset(), space.minimal().kernels
    )


@given(case=cases(torch.float64), data=st.data())
def test_reordering_keeps_what_full_widths_compute_with_any_kernel(case: Case, data: st.DataObject) -> None:
    chosen = data.draw(subnets(case.supernet.space))
    subnet = Subnet({}, chosen.skipped, chosen.kernels)
    before = case.supernet.extract(subnet)(case.inputs)
    case.supernet.reorder()
    torch.testing.assert_close(case.supernet.extract(subnet)(case.inputs), before, rtol=EXACT, atol=EXACT)
    assert_extracted_is_oracle(case.supernet, subnet, case.inputs)


# what people see


def test_inspection_shows_kernels() -> None:
    found = inspect_model("net", network().module, [Input((1, 3, 12, 13))]).to_json()
    assert found["kernel"]["0.2.branches.0.0"] == {"choices": [3, 5, 7], "sizes": [[3, 3], [5, 5], [7, 5]]}
    even = inspect_model("net", nn.Sequential(nn.Conv2d(3, 4, 4, 4)).eval(), [Input((1, 3, 8, 8))]).to_json()
    assert even["kernel"] == {}
    assert {"place": "0", "reason": "the kernel 4x4 is even: it has no centre"} in even["diagnostics"]


def test_matrices_are_made_for_the_choices_only() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3)).eval()
    supernet = SuperNetwork.from_model(net, torch.zeros(2, 3, 9, 9), Elasticity(max_num_kernels=2))
    assert isinstance(supernet.kernel_matrices, Matrices)
    ((name, matrix),) = supernet.kernel_matrices.named_parameters()
    assert name == "0.7to5"
    assert torch.equal(matrix, torch.eye(25))
