"""What programs share with the model and what extracted modules are called; the model is left as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from network_cases import ELASTICITY, Case, assert_same, cases, snapshot, supernet_of
from torch import Tensor, nn

from bnas.runtime.supernetwork import SuperNetwork
from bnas.testing import Network, assert_extracted_is_oracle, assert_maximal_is_original, networks, subnets

# (g): identity of parameters, names of tensors


@given(case=cases())
def test_what_is_kept_whole_is_shared_itself(case: Case) -> None:
    shared = dict(case.network.module.named_parameters(remove_duplicate=False))
    for name, tensor in case.supernet.program(case.supernet.space.maximal()).named_parameters():
        assert tensor is shared[name]
    for name, tensor in case.supernet.program(case.subnet).named_parameters():
        if name in shared and tensor.shape == shared[name].shape:
            assert tensor is shared[name]
        elif name in shared:
            assert tensor.data_ptr() == shared[name].data_ptr()
    own, theirs = case.supernet.extract(case.subnet).state_dict(), case.network.module.state_dict()
    memory, shared_memory = ({t.untyped_storage().data_ptr() for t in state.values()} for state in (own, theirs))
    assert not memory & shared_memory


@given(case=cases())
def test_extracted_maximal_has_the_names_of_the_original(case: Case) -> None:
    part = case.supernet.extract(case.supernet.space.maximal())
    expected = case.network.module.state_dict()
    assert part.state_dict().keys() == expected.keys()
    case.network.module.load_state_dict(part.state_dict())
    sizes = {type(m): m for m in case.supernet.extract(case.subnet).modules()}
    for conv in (m for kind, m in sizes.items() if kind is nn.Conv2d):
        assert (conv.out_channels, conv.in_channels // conv.groups) == tuple(conv.weight.shape[:2])


class Constants(nn.Module):
    """Tensors that are made in forward, and buffers that are not saved, read by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("saved", torch.rand(8, 1, 1) + 1)
        self.register_buffer("unsaved", torch.rand(8, 1, 1) + 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.full((8, 1, 1, 1), 0.5, dtype=x.dtype, device=x.device)
        x = F.conv2d(self.conv(x), kernel, groups=8)
        return self.last((x + torch.arange(4)) * self.saved * self.unsaved)


def test_constants_are_not_saved_and_follow_the_parameters() -> None:
    inputs = torch.randn(2, 3, 4, 4)
    supernet = SuperNetwork.from_model(Constants().eval(), inputs, ELASTICITY)
    part = supernet.extract(supernet.space.maximal())
    assert part.state_dict().keys() == supernet.model.state_dict().keys()
    whole = {id(tensor) for tensor in supernet.ir.constants.values()}
    assert len(whole) == 2
    assert not whole & {id(tensor) for tensor in part.buffers()}
    assert_maximal_is_original(supernet, inputs)
    supernet.double()
    assert_maximal_is_original(supernet, inputs.double())
    assert_extracted_is_oracle(supernet, supernet.space.minimal(), inputs)


# (h): the model is left as it was


@given(network=networks(), train=st.booleans(), data=st.data())
def test_the_model_is_left_as_it_was(network: Network, train: bool, data: st.DataObject) -> None:
    model = network.module.train(train)
    model[0].eval()  # a mixed mode is kept too
    model[1].register_forward_hook(lambda *_: None)
    before = snapshot(model)
    supernet = supernet_of(network)
    assert_same(before, snapshot(model))
    subnet = data.draw(subnets(supernet.space))
    program, part = supernet.program(subnet), supernet.extract(subnet)
    supernet.costs(subnet)
    for module in (*program.modules(), *part.modules()):
        module.register_forward_hook(lambda *_: None)
        module.register_buffer("more", torch.zeros(1), persistent=False)
        module.train(not module.training)
    assert_same(before, snapshot(model))
    with torch.no_grad():
        part(network.example_inputs)
        program.eval()(network.example_inputs)
    assert_same(before, snapshot(model))


def test_a_model_that_is_changed_is_noticed() -> None:
    for change in (
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.train(),
        lambda module: module.parameters().__next__().data.add_(1),
        lambda module: setattr(module, "extra", 1),
    ):
        model = Network().module
        before = snapshot(model)
        change(model[0])
        with pytest.raises(AssertionError):
            assert_same(before, snapshot(model))
