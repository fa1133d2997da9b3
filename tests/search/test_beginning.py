"""What a search begins with: sub-networks that pruning leaves, of all sizes, and no worse a result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bnas
from bnas.data.digits import DigitNet
from bnas.search import SearchError, pruned_sizes

EXAMPLE = torch.zeros(1, 1, 8, 8)
OBJECTIVES = (bnas.Objective("quality", "max"), bnas.Objective("macs", "min"))


@pytest.fixture(scope="module")
def supernet() -> bnas.SuperNetwork:
    torch.manual_seed(0)
    made = bnas.SuperNetwork.from_model(DigitNet(), EXAMPLE, {"width_step": 8, "dimensions": ("depth", "width")})
    return made.eval()


@pytest.fixture(scope="module")
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator)) for _ in range(2)
    ]


def macs(supernet: bnas.SuperNetwork, subnet: bnas.Subnet) -> int:
    return supernet.costs(subnet)["macs"]


@pytest.mark.parametrize("share", [0.9, 0.6, 0.45])
def test_there_is_the_largest_one_within_a_bound(
    supernet: bnas.SuperNetwork, batches: list[tuple[torch.Tensor, torch.Tensor]], share: float
) -> None:
    whole = macs(supernet, supernet.space.maximal())
    found = pruned_sizes(supernet, batches, bounds=[f"macs <= {100 * share} %"], count=0)
    others = [macs(supernet, one) for one in pruned_sizes(supernet, batches, count=1000)]
    best = max(cost for cost in others if cost <= share * whole)
    assert all(macs(supernet, one) <= share * whole for one in found)
    assert max(macs(supernet, one) for one in found) >= best
    assert any(macs(supernet, one) <= 0.95 * share * whole for one in found), "one with room for an error"
    assert any(not one.skipped for one in found), "one with all blocks"


def test_a_bound_of_latency_counts_as_predicted(
    supernet: bnas.SuperNetwork, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    def latency(subnet: bnas.Subnet) -> float:
        return 1.0 + 1e-4 * supernet.costs(subnet)["parameters"]

    whole = latency(supernet.space.maximal())
    for bound, most in ((f"latency <= {0.7 * whole} ms", 0.7), ("latency <= 70 %", 0.7)):
        found = pruned_sizes(supernet, batches, bounds=[bound], latency=latency, count=0)
        assert found
        assert all(latency(one) <= most * whole for one in found)
    with pytest.raises(SearchError, match="latency"):
        pruned_sizes(supernet, batches, bounds=["latency <= 70 %"])
    with pytest.raises(SearchError, match="upper bound"):
        pruned_sizes(supernet, batches, bounds=["macs >= 70 %"])


def test_they_are_of_all_sizes_and_none_is_there_twice(
    supernet: bnas.SuperNetwork, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    ends = [macs(supernet, one) for one in (supernet.space.minimal(), supernet.space.maximal())]
    found = pruned_sizes(supernet, batches, bounds=["macs <= 100 %", f"macs <= {ends[1]}"], count=4)
    assert found[0] == supernet.space.maximal()
    assert len(found) == len(set(found)) >= 5
    assert np.ptp([macs(supernet, one) for one in found[-4:]]) > 0.4 * (ends[1] - ends[0])


def test_the_super_network_stays_as_it_is(
    supernet: bnas.SuperNetwork, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    before = supernet.fingerprint()
    pruned_sizes(supernet, batches)
    assert supernet.fingerprint() == before


def test_they_lose_less_of_the_weights_than_random_ones_of_their_size(
    supernet: bnas.SuperNetwork, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    scores = bnas.runtime.taylor(supernet, batches)

    def kept(subnet: bnas.Subnet) -> float:
        return sum(float(scores[name][: subnet.widths.get(name, len(scores[name]))].sum()) for name in scores)

    for one in pruned_sizes(supernet, batches, space=supernet.space.restrict(depth=False), count=4):
        drawn = (supernet.space.restrict(depth=False).sample(seed) for seed in range(200))
        rivals = [kept(other) for other in drawn if macs(supernet, other) <= macs(supernet, one)]
        assert not rivals or kept(one) >= np.median(rivals)


def test_a_search_begins_with_what_it_is_given(supernet: bnas.SuperNetwork) -> None:
    odd = supernet.space.sample(7)
    settings = bnas.SearchSettings(num_evals=8, begin_with=(odd,))
    result = bnas.Searcher(supernet, lambda subnet: {"quality": float(subnet == odd)}, OBJECTIVES, settings).run()
    assert supernet.space.canonical(odd) in [one.subnet for one in result.evaluations[:3]]
    assert max(one.values["quality"] for one in result.evaluations) in (0.0, 1.0)


def test_what_is_not_of_the_space_is_refused(supernet: bnas.SuperNetwork) -> None:
    settings = bnas.SearchSettings(num_evals=8, begin_with=(bnas.Subnet({"nothing": 3}),))
    with pytest.raises(bnas.BnasError, match="nothing"):
        bnas.Searcher(supernet, lambda _: {"quality": 0.0}, OBJECTIVES, settings).run()


def test_another_cost_is_refused(supernet: bnas.SuperNetwork, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with pytest.raises(SearchError, match="macs"):
        pruned_sizes(supernet, batches, cost="price")
