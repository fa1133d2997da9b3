"""Racing: how often it errs, that samples are only shuffled, and that what is not dropped is measured as ever."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bnas.data.digits import DigitNet, splits
from bnas.runtime import Evaluator, SuperNetwork
from bnas.runtime.evaluate.evaluation import accuracy
from bnas.runtime.evaluate.together import Bar, RacingError, divergence, shuffled

PROBABILITIES = st.sampled_from([0.0, 1.0]) | st.floats(1e-6, 1 - 1e-6)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    data = splits()
    supernet = SuperNetwork.from_model(DigitNet().eval(), torch.zeros(1, 1, 8, 8))
    return Evaluator(supernet, list(data.train)[:2], data.validation)


def some(evaluator: Evaluator, count: int) -> list[Any]:
    generator = np.random.default_rng(0)
    return list({evaluator.supernet.space.sample(generator): None for _ in range(count)})


# the bound


@given(p=PROBABILITIES, q=PROBABILITIES)
def test_divergence_is_that_of_two_coins(p: float, q: float) -> None:
    if 0 < p < 1 and 0 < q < 1:
        coins = [torch.distributions.Bernoulli(torch.tensor(one, dtype=torch.float64)) for one in (p, q)]
        expected = float(torch.distributions.kl_divergence(*coins))
        assert divergence(p, q) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert divergence(p, p) == 0
    assert divergence(p, q) >= -1e-12


def dropped(reach: float, bar: float, error: float, looks: tuple[int, ...], runs: int = 2000) -> float:
    """How often one that has `reach` on all 400 samples is dropped at one of the looks."""
    generator, population = np.random.default_rng(0), np.arange(400) < 400 * reach
    count = 0
    for _ in range(runs):
        right = generator.permutation(population)
        count += any(Bar(bar, error).is_out_of_reach(right[:look].mean(), look) for look in looks)
    return count / runs


@pytest.mark.parametrize("reach", [0.1, 0.5, 0.8, 0.95, 1.0])
def test_one_that_reaches_its_bar_is_seldom_dropped(reach: float) -> None:
    assert dropped(reach, reach, 0.05, (50, 100, 200)) <= 3 * 0.05


def test_one_that_is_far_below_is_dropped() -> None:
    assert dropped(0.5, 0.9, 0.001, (50,)) == 1
    assert dropped(0.9, 0.5, 0.001, (50,)) == 0


def test_a_bound_for_fewer_samples_would_err_too_often() -> None:
    """The twin of the test above: without regard to how few samples were seen."""
    generator = np.random.default_rng(0)
    draws = [generator.permutation(np.arange(400) < 320)[:50].mean() for _ in range(2000)]
    assert np.mean([Bar(0.8, 0.05).is_out_of_reach(mean, 400) for mean in draws]) > 0.15


# samples


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_shuffled_batches_have_the_same_samples(sizes: list[int], seed: int) -> None:
    rows = iter(torch.arange(sum(sizes)).split(sizes))
    batches = [({"a": one[:, None].float(), "b": one.double()}, -one) for one in rows]
    found = shuffled(batches, seed)
    assert [len(targets) for _, targets in found] == sizes
    for inputs, targets in found:
        assert torch.equal(inputs["a"][:, 0].long(), -targets)
        assert torch.equal(inputs["b"].long(), -targets)
    assert sorted(torch.cat([-targets for _, targets in found]).tolist()) == list(range(sum(sizes)))


@pytest.mark.parametrize("targets", [[1, 2, 3], torch.zeros(2), torch.tensor(1.0)])
def test_samples_that_cannot_be_drawn_are_refused(targets: Any) -> None:
    with pytest.raises(RacingError, match="one row for each sample"):
        shuffled([(torch.zeros(3, 1), targets)])


# sub-networks


def test_without_bars_all_are_measured_to_the_end(evaluator: Evaluator) -> None:
    subnets = some(evaluator, 6)
    expected = [{**values, "part": 1.0} for values in evaluator.evaluate_many(subnets) if isinstance(values, dict)]
    assert evaluator.evaluate_many(subnets, {}) == expected


def test_what_cannot_reach_its_bar_is_dropped_alone(evaluator: Evaluator) -> None:
    subnets = some(evaluator, 6)
    plain = evaluator.evaluate_many(subnets)
    found = evaluator.evaluate_many(subnets, {subnets[2]: Bar(1.0), subnets[4]: Bar(0.0)})
    for place, (one, other) in enumerate(zip(found, plain, strict=True)):
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        if place == 2:
            assert 0 < one["part"] < 1
        else:
            assert one == {**other, "part": 1.0}


def test_no_output_is_computed_twice() -> None:
    """Colour images have another layout when they are measured: known outputs are found all the same."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    batches = [(torch.randn(8, 3, 6, 6), torch.randint(4, (8,))) for _ in range(4)]
    ran: list[nn.Module] = []

    def metric(module: nn.Module, given: Iterable[Any]) -> float:
        handle = next(module.children()).register_forward_hook(lambda inner, *_: ran.append(inner))
        try:
            return accuracy(module, given)
        finally:
            handle.remove()

    supernet = SuperNetwork.from_model(model.eval(), torch.zeros(1, 3, 6, 6))
    evaluator = Evaluator(supernet, batches[:1], batches, metric)
    assert all(isinstance(one, dict) for one in evaluator.evaluate_many(some(evaluator, 3), {}))
    assert not ran


def test_a_metric_that_fails_for_one_fails_for_one(evaluator: Evaluator) -> None:
    asked: list[nn.Module] = []

    def metric(module: nn.Module, batches: Iterable[Any]) -> float:
        asked.append(module)
        if module is asked[0]:
            raise ValueError("no")
        return accuracy(module, batches)

    fails = Evaluator(evaluator.supernet, evaluator.calibration, evaluator.validation.batches, metric)
    first, *others = fails.evaluate_many(some(evaluator, 4), {})
    assert isinstance(first, ValueError)
    assert all(isinstance(one, dict) for one in others)


def test_a_metric_that_is_no_share_is_refused(evaluator: Evaluator) -> None:
    def loss(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        return 2.5

    other = Evaluator(evaluator.supernet, evaluator.calibration, evaluator.validation.batches, loss)
    for found in other.evaluate_many(some(evaluator, 2), {}):
        assert isinstance(found, RacingError)
        assert "between 0 and 1" in str(found)
