"""All promises at once on random networks: 20 of them here, 2,000 in the long profile (``make properties``)."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_cases import EXACT, supernet_of
from torch import Tensor

from bnas.runtime import SuperNetwork
from bnas.testing import (
    Gated,
    Head,
    Layer,
    Network,
    Norm,
    Shuffle,
    assert_extracted_is_oracle,
    assert_gradients_match,
    assert_maximal_is_original,
    assert_maximal_trains_as_original,
    assert_onnx_is_extracted,
    assert_program_is_extracted,
    networks,
    subnets,
)

ROUNDED = 1e-10
"""Allowed between the oracle and what is extracted: norms of almost equal entries enlarge rounding, 1 of 1,000 networks
to just above 1e-12. Entries that are wrong make 1e-3 and more."""
SUBNETS = 3
"""Sub-networks of each network."""
HALF = 1000
"""Networks in each of the two tests of the long profile, so that two cores can work on them."""


def at_another_size(supernet: SuperNetwork, inputs: Tensor) -> Tensor:
    """Inputs of other sizes of all dynamic axes, if the model takes them; of another batch else."""
    shape = list(inputs.shape)
    for number, axis in enumerate(supernet.ir.sizes.axes):
        for _, place in axis.places:
            shape[place] = axis.size + axis.step * (number + 1)
    made = torch.randn(shape, dtype=inputs.dtype)
    try:
        with torch.no_grad():
            supernet.eval().model(made)
    except Exception:  # such as positions that end
        return torch.cat([inputs, inputs[:1]]) if "batch" in supernet.ir.sizes.names else inputs
    return made


def keeps_all_promises(network: Network, data: st.DataObject) -> None:
    supernet, inputs = supernet_of(network, torch.float64), network.example_inputs.double()
    other = at_another_size(supernet, inputs)
    for one in (inputs, other):
        assert_maximal_is_original(supernet, one)
        assert_maximal_trains_as_original(supernet, one, tolerance=EXACT)
    chosen = [data.draw(subnets(supernet.space)) for _ in range(SUBNETS)]
    for subnet in chosen:
        assert_extracted_is_oracle(supernet, subnet, inputs, tolerance=ROUNDED)
        for train in (False, True):
            supernet.train(train)
            assert_program_is_extracted(supernet, subnet, inputs, tolerance=EXACT)
            assert_gradients_match(supernet, subnet, inputs, tolerance=EXACT)
        assert_program_is_extracted(supernet.eval(), subnet, other, tolerance=EXACT)
        module = supernet.extract(subnet)
        torch.testing.assert_close(pickle.loads(pickle.dumps(module))(other), module(other), rtol=0, atol=0)
    supernet.eval().float()
    for subnet in chosen:
        assert_onnx_is_extracted(supernet, subnet, network.example_inputs)


@given(network=networks(nested=True), data=st.data())
@settings(max_examples=20)
def test_random_networks_keep_all_promises(network: Network, data: st.DataObject) -> None:
    keeps_all_promises(network, data)


@pytest.mark.slow
@pytest.mark.parametrize("half", ["first", "second"])
def test_many_random_networks_keep_all_promises(half: str) -> None:
    """Each half starts from a seed of its own; a failure is shrunk and printed."""

    @settings(max_examples=HALF, suppress_health_check=list(HealthCheck))
    @given(network=networks(nested=True), data=st.data())
    def check(network: Network, data: st.DataObject) -> None:
        keeps_all_promises(network, data)

    check()


@pytest.mark.parametrize(
    ("activation", "norms"),
    [
        pytest.param("sigmoid", (("rms", False), ("layer", False), ("rms", False)), id="a dropped entry is no zero"),
        pytest.param("relu", (("rms", True), ("layer", False)), id="a weight decides before it is zeroed"),
    ],
)
def test_norms_without_weights_follow_others(activation: str, norms: tuple[tuple[str, bool], ...]) -> None:
    """The oracle's norms without a weight go over the entries that are kept, which it finds by what depends on what."""
    layers = tuple(Norm(kind, groups=1, affine=affine, activation="relu") for kind, affine in norms)
    stem = Layer(4, kernel=1, stride=1, groups=1, norm=False, activation=activation, dilation=1, same=False)
    network = Network(stem, layers, Head(), size=8, batch=2, seed=0, nested=False)
    supernet, inputs = supernet_of(network, torch.float64), network.example_inputs.double()
    subnet = replace(supernet.space.maximal(), widths={"0.0.0": 3})
    assert_extracted_is_oracle(supernet, subnet, inputs, tolerance=ROUNDED)


def test_an_entry_that_an_activation_cuts_off_is_not_dropped() -> None:
    """The oracle asks what depends on what; a ReLU behind a norm may give zero at a place for all inputs."""
    stem = Layer(4, kernel=1, stride=1, groups=1, norm=False, activation="relu", dilation=1, same=False)
    parts = (Gated(8, False), Norm("group", groups=1, affine=False, activation="relu"), Shuffle(1, False))
    network = Network(stem, parts, Head(), size=8, batch=2, seed=0, nested=True)
    supernet, inputs = supernet_of(network, torch.float64), network.example_inputs.double()
    subnet = replace(supernet.space.maximal(), widths={"0.0.0": 3})
    assert_extracted_is_oracle(supernet, subnet, inputs, tolerance=ROUNDED)
