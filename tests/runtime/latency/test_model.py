"""Latency models on latencies that are made up: what is fitted, chosen, saved and refused. No time is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnas.data.digits import DigitNet
from bnas.passes import Subnet
from bnas.runtime import Latency, LatencyError, LatencyModel, LatencySettings, SuperNetwork
from bnas.runtime.latency import measurement
from bnas.runtime.latency.measurement import FEATURES, ratios, spread
from bnas.runtime.latency.model import MULTIPLES, kendall_tau

IMAGES = torch.zeros(2, 1, 8, 8)


@pytest.fixture(scope="module")
def supernet() -> SuperNetwork:
    return SuperNetwork.from_model(DigitNet().eval(), IMAGES)


def made_up(supernet: SuperNetwork, subnets: Sequence[Subnet], noise: float = 0.0) -> dict[Subnet, float]:
    """Latencies that follow the features; with `noise`, not exactly."""
    costs, generator = supernet.cost_model.many(subnets, FEATURES), np.random.default_rng(0)
    times = 1e-7 * costs["macs"] + 3e-6 * costs["activations"] + 0.01 * costs["layers"] + 0.05
    return dict(zip(subnets, times * (1 + noise * generator.standard_normal(len(subnets))), strict=True))


def test_a_law_of_the_costs_is_found(supernet: SuperNetwork) -> None:
    chosen = spread(supernet, 15, np.random.default_rng(0))
    model = LatencyModel.of(supernet, made_up(supernet, chosen))
    others = spread(supernet, 40, np.random.default_rng(5))
    np.testing.assert_allclose(model.many(others), list(made_up(supernet, others).values()), rtol=1e-6)
    assert model(others[7]) == pytest.approx(made_up(supernet, others)[others[7]])
    assert (model.tau, model.error) == (1.0, pytest.approx(0.0, abs=1e-9))
    assert dict(zip(FEATURES, model.coefficients, strict=False))["parameters"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("multiple", MULTIPLES)
def test_kernels_that_fill_vectors_are_found_by_what_was_measured(multiple: int) -> None:
    """A law of rounded widths is found with its rounding; with another rounding it predicts otherwise."""
    supernet = SuperNetwork.from_model(DigitNet().eval(), IMAGES, {"width_step": 4, "divisor": 4, "min_width": 4})
    ones = spread(supernet, 40, np.random.default_rng(0))
    costs = supernet.cost_model.many(ones, FEATURES, multiple)
    law = dict(zip(ones, (1e-7 * costs["macs"] + 3e-6 * costs["activations"] + 0.05).tolist(), strict=True))
    model = LatencyModel.of(supernet, {one: law[one] for one in ones[:20]})
    assert model.multiple == multiple
    np.testing.assert_allclose(model.many(ones), list(law.values()), rtol=1e-6)
    another = replace(model, multiple=MULTIPLES[multiple == 1])
    assert not np.allclose(another.many(ones[20:]), list(law.values())[20:], rtol=1e-3), "the twin"


def test_many_are_to_the_bit_what_each_is_by_itself(supernet: SuperNetwork) -> None:
    """A search that is resumed asks for others together than one that was not stopped, and must go the same way."""
    chosen = spread(supernet, 15, np.random.default_rng(0))
    model, others = (
        LatencyModel.of(supernet, made_up(supernet, chosen, noise=0.1)),
        spread(supernet, 60, np.random.default_rng(3)),
    )
    assert min(model.coefficients) >= 0
    assert sum(one > 0 for one in model.coefficients) > 1
    for together in (others, others[:7], others[::-1][:2]):
        assert model.many(together).tolist() == [model(one) for one in together]


def test_what_it_says_of_itself_is_what_it_does_not_know(supernet: SuperNetwork) -> None:
    chosen = spread(supernet, 20, np.random.default_rng(0))
    noisy = LatencyModel.of(supernet, made_up(supernet, chosen, noise=0.2))
    assert noisy.error > 0.08
    assert noisy.tau < 1
    shuffled = dict(zip(chosen, np.random.default_rng(1).uniform(1, 9, len(chosen)), strict=True))
    assert LatencyModel.of(supernet, shuffled).tau < 0.6


def test_no_cost_makes_a_network_quicker(supernet: SuperNetwork) -> None:
    chosen = spread(supernet, 15, np.random.default_rng(0))
    costs = supernet.cost_model.many(chosen)
    falling = dict(zip(chosen, 1e7 / (1e4 + costs["macs"]), strict=True))
    assert min(LatencyModel.of(supernet, falling).coefficients) >= 0


def test_chosen_are_spread_from_end_to_end(supernet: SuperNetwork) -> None:
    chosen = spread(supernet, 12, np.random.default_rng(0))
    space = supernet.space
    assert len(set(chosen)) == 12
    assert chosen[:2] == [space.canonical(space.maximal()), space.canonical(space.minimal())]
    for subnet in chosen:
        space.check(subnet)
    macs = np.sort(np.log(supernet.cost_model.many(chosen)["macs"]))
    assert np.diff(macs).max() < 0.4 * (macs[-1] - macs[0])
    assert spread(supernet, 12, np.random.default_rng(0)) == chosen


def test_a_small_space_has_no_more_than_it_has() -> None:
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    small = SuperNetwork.from_model(net, IMAGES, {"dimensions": ("width",)})
    chosen = spread(small, 15, np.random.default_rng(0))
    assert len(chosen) == len(set(chosen)) == small.space.size
    with pytest.raises(LatencyError, match="2 sub-networks are too few to fit a latency model; at least 6 are needed"):
        LatencyModel.of(small, made_up(small, chosen))


def latency(ms: float, ratio: float | None) -> Latency:
    return Latency(ms, (ms, ms), 0.0, ms, (ms, ms), 50, 7, 1, 1, ratio)


def test_groups_are_related_to_the_maximal(
    supernet: SuperNetwork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The machine gets twice as slow between one group and the next, and nobody should see that."""
    chosen = spread(supernet, 12, np.random.default_rng(0))
    law, asked, repeats = made_up(supernet, chosen), list[int](), list[int | None]()
    groups: list[list[Subnet]] = []

    def measure(named: dict[str, Subnet], _: None, settings: LatencySettings, **__: Any) -> dict[str, Latency]:
        slow = 2.0 ** len(asked)
        repeats.append(settings.repeats)
        groups.append(list(named.values()))
        asked.append(len(named))
        base = law[chosen[0]]
        return {
            name: latency(slow * ms, ms / base)
            for name, ms in ((n, law[supernet.space.canonical(s)]) for n, s in named.items())
        }

    monkeypatch.setattr(measurement, "measure_latency", measure)
    now = ratios(supernet, chosen, LatencySettings())
    assert asked == [6, 6, 3] * 3
    assert list(now.found) == chosen
    assert (now.level_ms, now.repeats) == (pytest.approx(2**4 * law[chosen[0]]), 7)  # of the fifth group of nine
    np.testing.assert_allclose(list(now.found.values()), [law[one] / law[chosen[0]] for one in chosen])
    assert len({frozenset(one) for one in groups}) == len(groups)  # never in the same company
    model = LatencyModel.fit(supernet, subnets=12, batch=4, threads=2)
    assert model.settings == LatencySettings(subnets=12, batch=4, threads=2, repeats=7)
    assert (model.tau, model.level) == (1, pytest.approx(2**13 * law[chosen[0]]))
    assert repeats == [None, *[7] * 8] * 2  # as many in one group as in the other
    model.save(tmp_path / "latency.json")
    for same in (model, LatencyModel.load(tmp_path / "latency.json", supernet)):  # in milliseconds of its fit
        assert same.measure(chosen[:2]) == pytest.approx([2**13 * law[one] for one in chosen[:2]])
    assert asked[18:] == [3] * 6
    without = LatencyModel.of(supernet, model.measured)
    assert without.measure(chosen[:2]) == pytest.approx([2**25 * law[one] for one in chosen[:2]])


def test_saved_and_loaded_it_says_the_same(supernet: SuperNetwork, tmp_path: Path) -> None:
    chosen = spread(supernet, 15, np.random.default_rng(0))
    model = LatencyModel.of(supernet, made_up(supernet, chosen, noise=0.1), LatencySettings(batch=2))
    model.save(tmp_path / "latency.json")
    again = LatencyModel.load(tmp_path / "latency.json", supernet)
    np.testing.assert_array_equal(again.many(chosen), model.many(chosen))
    assert (again.tau, again.error, again.settings) == (model.tau, model.error, LatencySettings(batch=2))


def changed(data: dict[str, Any], key: str, value: Any) -> str:
    part = data["machine"] if key in data["machine"] else data
    part[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda data: changed(data, "cpu", "abacus"),
            r"another machine \(cpu was 'abacus' and is .*\); fit a new one here with",
        ),
        (lambda data: changed(data, "onnxruntime", "1.0"), "another machine .*onnxruntime"),
        (lambda data: changed(data, "space", {}), "another search space; fit a new one here"),
        (lambda data: changed(data, "format", 9), "an unknown format; this version of bnas reads format 1"),
        (lambda data: json.dumps({"format": 1}), "damaged: 'machine' is missing"),
        (lambda data: "{", "is not a latency model"),
    ],
)
def test_what_does_not_hold_here_is_refused(change: Any, reason: str, supernet: SuperNetwork, tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    LatencyModel.of(supernet, made_up(supernet, spread(supernet, 8, np.random.default_rng(0)))).save(path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(LatencyError, match=reason):
        LatencyModel.load(path, supernet)


def test_latencies_that_are_none_are_refused(supernet: SuperNetwork) -> None:
    measured = made_up(supernet, spread(supernet, 8, np.random.default_rng(0)))
    with pytest.raises(LatencyError, match="latency must be positive and finite, got nan ms"):
        LatencyModel.of(supernet, {**measured, next(iter(measured)): float("nan")})
    with pytest.raises(LatencyError, match="is not a latency model"):
        LatencyModel.load("gone.json", supernet)


@pytest.mark.parametrize(
    ("one", "two", "tau"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 2, 4, 3], 4 / 6),
        ([1], [1], 1.0),
        ([1, 1], [1, 2], 0.0),
    ],
)
def test_kendall_tau(one: list[float], two: list[float], tau: float) -> None:
    assert kendall_tau(np.array(one), np.array(two)) == pytest.approx(tau)
