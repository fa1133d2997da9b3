"""Random sub-networks: which ones are drawn, and what attentive sampling learns from losses."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_cases import supernet

from bnas.passes import SearchSpace, Subnet
from bnas.runtime import Recipe, Schedule, Stage, TrainingError
from bnas.runtime.train.sampler import Estimate, Sampler

NET = supernet().train()
SPACE = NET.space
NAMES = tuple("abcdef")
WIDE = SearchSpace({name: (8, 16, 24) for name in NAMES}, ())
FULL = WIDE.maximal()


def macs(subnets: Sequence[Subnet]) -> list[float]:
    return [float(np.prod([size / 24 for size in one.widths.values()])) for one in subnets]


def sampler(sampling: str, seed: int = 0) -> Sampler:
    return Sampler(sampling, macs, seed)


def excess(subnet: Subnet, bad: dict[str, float]) -> float:
    """What a made-up network loses more than the largest: some widths matter, others do not."""
    return sum(weight * (1 - subnet.widths[name] / 24) for name, weight in bad.items())


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(0.1, 3)), st.integers(0, 2**16))
def test_an_estimate_learns_a_sum_over_choices(bad: dict[str, float], seed: int) -> None:
    estimate, generator = Estimate(), np.random.default_rng(seed)
    for _ in range(600):
        one = WIDE.sample(generator)
        estimate.tell(one, excess(one, bad))
    for _ in range(20):
        one = WIDE.sample(generator)
        assert estimate(one) == pytest.approx(excess(one, bad), abs=0.02 * sum(bad.values()) + 1e-9)


def test_an_estimate_knows_nothing_before_it_is_told() -> None:
    assert Estimate()(FULL) == 0
    estimate = Estimate()
    estimate.tell(FULL, 2.0)
    assert 0 < estimate(FULL) < 2


def test_attention_goes_to_what_loses_little_for_its_size() -> None:
    bad, mean = {"a": 5.0}, {}
    for sampling in ("spread", "attentive"):
        mine, drawn = sampler(sampling), []
        for _ in range(400):
            drawn.append(mine.draw(WIDE))
            mine.tell([FULL, drawn[-1]], [1.0, 1.0 + excess(drawn[-1], bad)])
        mean[sampling] = {name: np.mean([one.widths[name] for one in drawn[100:]]) for name in NAMES}
    gained = {name: mean["attentive"][name] - mean["spread"][name] for name in NAMES}
    others = np.mean([gained[name] for name in NAMES if name != "a"])
    assert gained["a"] > others + 2
    assert abs(others) < 1  # it is no preference for the large


def test_attentive_sampling_draws_the_smallest_now_and_then() -> None:
    mine = sampler("attentive")
    smallest = [mine.draw(WIDE) == WIDE.minimal() for _ in range(3200)]
    assert 25 < sum(smallest) < 100


def test_without_losses_attentive_sub_networks_are_any_of_all_sizes() -> None:
    mine = sampler("attentive")
    sizes = np.array([macs([mine.draw(WIDE)])[0] for _ in range(300)])
    assert sizes.min() < 0.02
    assert sizes.max() == 1
    assert np.mean(sizes > 0.3) > 0.3


@pytest.mark.parametrize("sampling", ["uniform", "spread", "attentive"])
def test_state_is_plain_data_and_goes_on_exactly(sampling: str) -> None:
    mine, other = sampler(sampling), sampler(sampling, seed=9)
    for _ in range(20):
        one = mine.draw(WIDE)
        mine.tell([FULL, one], [0.0, excess(one, {"b": 1.0})])
    other.load_state_dict(json.loads(json.dumps(mine.state_dict())))
    assert [mine.draw(WIDE) for _ in range(20)] == [other.draw(WIDE) for _ in range(20)]
    fresh = sampler(sampling)
    assert [mine.draw(WIDE) for _ in range(20)] != [fresh.draw(WIDE) for _ in range(20)]


def test_losses_that_are_no_numbers_are_not_learned_from() -> None:
    mine = sampler("attentive")
    mine.tell([FULL, WIDE.minimal()], [float("inf"), 1.0])
    assert mine.state_dict()["estimate"] == {}


def test_sub_networks_of_a_stage_are_of_its_space() -> None:
    stage = Stage(("depth",), depth_indicator=1)
    plan = Schedule(NET, [stage, Stage()], Recipe(sampling="attentive"), steps_per_epoch=30)
    spaces = [stage.space(SPACE), SPACE]
    for step in range(60):
        subnets = plan.step()
        for one in subnets:
            spaces[step // 30].check(one)
        plan.tell([1.0, 2.0])


def test_bad_input_is_told() -> None:
    with pytest.raises(TrainingError, match="sampling is 'even': must be 'uniform', 'spread' or 'attentive'"):
        Recipe(sampling="even")  # type: ignore[arg-type]
    plan = Schedule(NET, recipe=Recipe(sampling="attentive"), steps_per_epoch=3)
    plan.step()
    with pytest.raises(TrainingError, match="got 3 losses for 2 sub-networks"):
        plan.tell([1.0, 2.0, 3.0])
    with pytest.raises(
        TrainingError, match="attentive sampling needs losses of the maximal sub-network, which the rule 'random'"
    ):
        Recipe(sampling="attentive", rule="random")
