"""A skipped block is the identity, and nobody writes into what it hands on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from network_cases import ELASTICITY, supernet_of
from torch import Tensor, nn

from bnas.passes import Subnet, VerificationError
from bnas.passes.oracle.detour import OracleWarning
from bnas.runtime.supernetwork import SuperNetwork
from bnas.runtime.verification import verify
from bnas.testing import (
    Layer,
    Network,
    Residual,
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
    networks,
)

# (f): a skipped block is the identity


@given(network=networks().filter(lambda n: any(isinstance(stage, Residual) for stage in n.stages)), train=st.booleans())
def test_a_skipped_block_is_the_identity(network: Network, train: bool) -> None:
    # Attention in plain operators is equal to rounding, and its memory order, which dropout follows, is another.
    plain = any(isinstance(part, nn.MultiheadAttention) for part in network.module.modules())
    train, allowed = train and not plain, 1e-5 if plain else 0
    supernet = supernet_of(network).train(train)
    places = [place for place, stage in enumerate(network.stages, start=1) if isinstance(stage, Residual)]
    blocks = supernet.skeleton.choices.blocks
    residual = frozenset(f"0.{place}" for place in places)
    assert all(blocks[name].residual for name in residual)
    twin = copy.deepcopy(network.module)
    for place in places:
        twin[0][place] = twin[0][place].after or nn.Identity()
    subnet = Subnet({}, residual)
    program = supernet.program(subnet)
    for module in (program, supernet.extract(subnet).train(train)):
        torch.manual_seed(0)
        found = module(network.example_inputs)
        torch.manual_seed(0)
        torch.testing.assert_close(found, twin(network.example_inputs), rtol=allowed, atol=allowed)
    program(network.example_inputs).sum().backward()
    unused = [p for place in places for p in inner_parameters(network.module[0][place])]
    assert unused
    assert all(p.grad is None for p in unused)
    assert all(p.grad is not None for p in network.module[1].parameters())


def inner_parameters(block: nn.Module) -> list[nn.Parameter]:
    after = set() if block.after is None else set(block.after.parameters())
    return [p for p in block.parameters() if p not in after]


def test_a_block_that_is_not_skipped_is_not_the_identity() -> None:
    network = Network(Layer(8), (Residual(8),))
    supernet = supernet_of(network)
    whole, skipped = supernet.space.maximal(), Subnet({}, frozenset(supernet.space.blocks))
    outputs = [supernet.extract(subnet)(network.example_inputs) for subnet in (whole, skipped)]
    with pytest.raises(AssertionError, match="not equal"):
        torch.testing.assert_close(*outputs, rtol=0, atol=0)


class Writes(nn.Module):
    """A block whose sum is written into, while its entry is read again afterwards."""

    def __init__(self, write: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.relu, self.drop, self.write = nn.ReLU(inplace=True), nn.Dropout(0.5), write

    def forward(self, x: Tensor) -> Tensor:
        entry = self.stem(x).tanh()
        total = entry + self.body(entry)
        total = self.write(self, entry, total)
        return self.last(total) + self.last(entry)


def relu_module(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    return net.relu(total)


def relu_function(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    return F.relu(input=total, inplace=True)


def relu_statement(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    total.relu_()
    return total


def relu_of_a_view(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    total.flatten(2).relu_()
    return total


def relu_behind_dropout(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    return net.relu(net.drop(total))


def product_in_place(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    total *= 2
    return total


def entry_in_place(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    entry.relu_()
    return total


def positional(net: nn.Module, entry: Tensor, total: Tensor) -> Tensor:
    F.hardtanh(total, -0.1, 0.1, True)
    return total


WRITES = [relu_module, relu_function, relu_statement, relu_of_a_view, relu_behind_dropout]
MORE_WRITES = [product_in_place, entry_in_place, positional]


@pytest.mark.parametrize("write", [*WRITES, *MORE_WRITES])
def test_nobody_writes_into_the_entry_of_a_skipped_block(write: Any) -> None:
    module, inputs = Writes(write).eval(), torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(module, inputs, ELASTICITY)
    assert len(supernet.space.blocks) == 1
    for subnet in (supernet.space.minimal(), supernet.space.maximal()):
        assert_extracted_is_oracle(supernet, subnet, inputs)
        assert_program_is_extracted(supernet, subnet, inputs)
        if write is not relu_of_a_view:  # ONNX has no views, which the lowering says
            assert_onnx_is_extracted(supernet, subnet, inputs)
    assert_maximal_is_original(supernet, inputs)


class SumOfTheInput(nn.Module):
    """The entry of the block is the user's own tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x + self.conv(x)).relu_())


def test_the_users_inputs_are_not_written_into() -> None:
    inputs = torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(SumOfTheInput().eval(), inputs, ELASTICITY)
    before = inputs.clone()
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), inputs)
    supernet.program(supernet.space.minimal())(inputs)
    assert torch.equal(inputs, before)


class SharedByTwoBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return self.last(x + self.body(x))


def test_blocks_that_share_parameters_are_verified_by_a_detour() -> None:
    inputs = torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(SharedByTwoBlocks().eval(), inputs, ELASTICITY)
    both = supernet.space.blocks
    assert len(both) == 2
    for skipped in (both[:1], both[1:], both):
        assert_program_is_extracted(supernet, Subnet({}, frozenset(skipped)), inputs)
        assert_gradients_match(supernet, Subnet({}, frozenset(skipped)), inputs)
        with pytest.warns(OracleWarning, match="interprets the traced graph"):
            assert_extracted_is_oracle(supernet, Subnet({}, frozenset(skipped)), inputs)


class Gated(nn.Module):
    """A residual block that is not the identity when its parameters are zero: the gate is then a half."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.inner, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x + x * self.gate(self.inner(F.adaptive_avg_pool2d(x, 1))))


@pytest.mark.parametrize(("gate", "vanishes"), [(torch.sigmoid, False), (F.hardsigmoid, False), (torch.tanh, True)])
def test_a_gated_block_is_verified_by_a_detour(gate: Callable[[Tensor], Tensor], vanishes: bool) -> None:
    inputs, net = torch.randn(2, 3, 4, 4), Gated(gate).eval()
    supernet = SuperNetwork.from_model(copy.deepcopy(net), inputs, ELASTICITY)
    (block,) = supernet.space.blocks
    for widths in ({}, supernet.space.minimal().widths):
        subnet = Subnet(widths, frozenset([block]))
        with warnings.catch_warnings() if vanishes else pytest.warns(OracleWarning, match="interprets"):
            warnings.simplefilter("error" if vanishes else "always")
            assert_extracted_is_oracle(supernet, subnet, inputs)
    part = supernet.extract(Subnet({}, frozenset([block])))
    torch.testing.assert_close(part(inputs), net.last(net.stem(inputs)))


class Branch(nn.Module):
    """A residual block with a branch that is not zero when its parameters are."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.last, self.step = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1), step

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.last((x + self.step(self.body(x))).relu())


def with_a_hook(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    "step", [torch.sigmoid, torch.exp, F.softplus, lambda x: x + 0.1, lambda x: x.softmax(1), with_a_hook]
)
def test_a_branch_that_is_not_zero_without_its_parameters_is_verified_by_a_detour(step: Any) -> None:
    model, inputs = Branch(step).eval(), torch.randn(2, 3, 4, 4)
    if step is with_a_hook:
        model.body.register_forward_hook(lambda module, args, out: out + 0.1)
    supernet = SuperNetwork.from_model(model, inputs, ELASTICITY)
    assert supernet.space.blocks
    for subnet in (supernet.space.minimal(), Subnet({}, frozenset(supernet.space.blocks))):
        with pytest.warns(OracleWarning, match="interprets the traced graph"):
            assert verify(model, supernet, subnet, inputs) <= 1e-12


def test_a_branch_that_is_zero_without_its_parameters_needs_no_graph() -> None:
    """The twin: there the model's own forward is the oracle, without a warning."""
    model, inputs = Branch(F.relu).eval(), torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(model, inputs, ELASTICITY)
    assert verify(model, supernet, supernet.space.minimal(), inputs) <= 1e-12
    other = Branch(torch.sigmoid).eval()
    other.load_state_dict(model.state_dict())
    with pytest.raises(VerificationError, match="a rule is wrong"):
        verify(other, supernet, supernet.space.maximal(), inputs)
