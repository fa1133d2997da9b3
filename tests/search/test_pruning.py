"""A pruned model keeps its bound, is what the oracle expects, and leaves the model that was given as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from network_cases import Case, assert_same, cases, snapshot
from torch import Tensor, nn

import bnas
from bnas.passes import ElasticityError
from bnas.runtime import accuracy
from bnas.search import SearchError
from bnas.testing import assert_extracted_is_oracle

FINE = {"dimensions": ("width",), "min_width": 1, "divisor": 1, "width_step": 1}
QUICK = bnas.LatencySettings(runs=3, warmup=1, repeats=1)


class Net(nn.Module):
    """Two residual blocks; some of the channels of the first layer are not read at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.next = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.wide, self.last = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of three classes."""
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.next(torch.relu(self.body(x)))
        x = x + self.last(torch.relu(self.wide(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def problem() -> tuple[Net, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    labels = [torch.arange(12) % 3 for _ in range(4)]
    batches = [(one.view(-1, 1, 1, 1) + torch.randn(12, 1, 6, 6), one) for one in labels]
    return Net().eval(), torch.zeros(1, 1, 6, 6), batches


@settings(max_examples=10)
@given(
    case=cases(torch.float64),
    share=st.floats(0, 1),
    measure=st.sampled_from(["taylor", "L2"]),
    seed=st.integers(0, 99),
)
def test_random_networks_are_pruned_as_the_oracle_says(case: Case, share: float, measure: str, seed: int) -> None:
    model, inputs = case.network.module.double().eval(), case.inputs
    targets = torch.randn(model(inputs).shape, generator=torch.Generator().manual_seed(seed)).double()
    before = snapshot(model)
    given: Any = {"importance": measure, "criterion": lambda outputs, wanted: (outputs * wanted).mean()}
    least = bnas.SuperNetwork.from_model(model, inputs, FINE)
    costs = [least.costs(one)["macs"] for one in (least.space.minimal(), least.space.maximal())]
    bound = f"macs <= {costs[0] + share * (costs[1] - costs[0])}"
    found = bnas.prune(model, inputs, [(inputs, targets)], bound, elasticity=FINE, **given)
    assert_same(before, snapshot(model))
    assert found.costs["macs"] <= costs[0] + share * (costs[1] - costs[0])
    assert {**found.costs} == found.supernet.costs(found.subnet)
    assert_extracted_is_oracle(found.supernet, found.subnet, inputs)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("bound", ["macs <= 50 %", "parameters <= 1 k", "activations <= 70 %", "peak_memory <= 80 %"])
def test_every_cost_can_be_the_bound(bound: str, allocation: Any) -> None:
    model, example, batches = problem()
    found = bnas.prune(model, example, batches, bound, elasticity=FINE, allocation=allocation)
    asked = bnas.search.Constraint.parse(bound).resolved(found.original)
    assert found.costs[asked.name] <= asked.bound < found.original[asked.name]
    assert sum(one.numel() for one in found.module.parameters()) == found.costs["parameters"]
    assert not found.module.training
    assert 0 <= accuracy(found.module, batches) <= 1


def test_statistics_are_those_of_what_is_left() -> None:
    """The first norm has those of the data, which are drawn without a trace."""
    model, example, batches = problem()
    state = torch.get_rng_state()
    found = bnas.prune(model, example, batches, "macs <= 60 %", elasticity=FINE)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        expected = torch.stack([found.module.stem(x).mean((0, 2, 3)) for x, _ in batches]).mean(0)
    torch.testing.assert_close(found.module.norm.running_mean, expected)


def test_the_data_of_splits_are_those_of_the_training() -> None:
    model, example, batches = problem()
    splits = bnas.Splits(batches, [], [])
    found = [bnas.prune(model, example, one, "macs <= 60 %") for one in (batches, splits)]
    assert found[0].subnet == found[1].subnet
    torch.testing.assert_close(found[0].module.state_dict(), found[1].module.state_dict())


def test_what_the_loss_does_not_need_goes_first() -> None:
    """Channels that nobody reads: by their weights they look important."""
    model, example, batches = problem()
    with torch.no_grad():
        model.body.weight[:4].mul_(10)
        model.next.weight[:, :4] = 0
        model.wide.weight[:6].mul_(10)
        model.last.weight[:, :6] = 0
    elasticity = {**FINE, "target_scopes": ["body", "wide"]}
    wanted = {"body": 4, "wide": 6}
    kept = {"body": model.body.weight[4:].sum((1, 2, 3)), "wide": model.wide.weight[6:].sum((1, 2, 3))}
    macs = bnas.SuperNetwork.from_model(model, example, elasticity).costs(bnas.Subnet(wanted))["macs"]
    found = bnas.prune(model, example, batches, f"macs <= {macs}", elasticity=elasticity)
    assert dict(found.subnet.widths) == wanted
    for name, rows in kept.items():
        left = found.module.get_submodule(name).weight.sum((1, 2, 3))
        torch.testing.assert_close(left.sort().values, rows.sort().values)
    by_weights = bnas.prune(model, example, batches, f"macs <= {macs}", elasticity=elasticity, importance="L2")
    assert not torch.isin(by_weights.module.body.weight.sum((1, 2, 3)), kept["body"]).all()


def test_blocks_go_by_the_loss_without_them() -> None:
    model, example, batches = problem()
    with torch.no_grad():
        model.last.weight.mul_(1e-3)
        model.last.bias.mul_(1e-3)
    elasticity = {"dimensions": ("depth",)}
    for allocation in ("global", "uniform"):
        given: Any = {"elasticity": elasticity, "allocation": allocation}
        found = bnas.prune(model, example, batches, "macs <= 95 %", **given)
        (gone,) = found.subnet.skipped
        assert "wide" not in dict(found.module.named_modules()) or "body" in dict(found.module.named_modules()), gone
        assert "body" in dict(found.module.named_modules())
        assert "wide" not in dict(found.module.named_modules())


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_measure_again_in_what_is_left(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round removes the same ratio of what is left; all of them have the bound in the end."""
    model, example, batches = problem()
    seen = list[bnas.Subnet]()
    right = bnas.runtime.taylor

    def noted(*given: Any, subnet: bnas.Subnet) -> Any:
        seen.append(subnet)
        return right(*given, subnet=subnet)

    monkeypatch.setattr("bnas.search.pruning.taylor", noted)
    found = bnas.prune(model, example, batches, "macs <= 40 %", elasticity=FINE, rounds=rounds)
    parts = [found.supernet.costs(one)["macs"] / found.original["macs"] for one in (*seen, found.subnet)]
    assert len(seen) == rounds
    for number, part in enumerate(parts):
        assert 0.4 ** (number / rounds) - 0.1 < part <= 0.4 ** (number / rounds) + 1e-9


def test_latency_is_measured_along_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stopwatch that counts parameters: the bound holds for what was really measured."""
    model, example, batches = problem()
    quick, thorough = list[bnas.Subnet](), list[bnas.Subnet]()
    slower = 1.0

    class Times:
        level_ms = 4.0

        def __init__(self, supernet: bnas.SuperNetwork, subnets: list[bnas.Subnet], settings: Any) -> None:
            (quick if settings.turns == 1 else thorough).extend(subnets)
            whole = supernet.costs(supernet.space.maximal())["parameters"] * (1 if settings.turns == 1 else 1 / slower)
            self.found = {one: supernet.costs(one)["parameters"] / whole for one in subnets}

    monkeypatch.setattr("bnas.search.pruning.ratios", Times)
    for bound, most in (("latency <= 60 %", 2.4), ("latency <= 1.5 ms", 1.5)):
        for slower in (1.0, 1.2):
            quick.clear(), thorough.clear()
            found = bnas.prune(model, example, batches, bound, elasticity=FINE)
            share = slower * found.costs["parameters"] / found.original["parameters"]
            assert found.costs["latency"] <= most < found.original["latency"] == 4.0
            assert found.costs["latency"] == pytest.approx(4 * share), "what is told was measured thoroughly"
            assert len(quick) == len(set(quick)) < 15
            assert len(thorough) == len(set(thorough))
            assert (len(thorough) > 1) == (slower > 1), "what misses the bound in the end is not taken"


def test_scores_of_a_file_decide_what_stays(tmp_path: Path) -> None:
    model, example, batches = problem()
    path = tmp_path / "scores.json"
    scores = {"body": [0.0, 9, 0, 9, 9, 0, 9, 0], "wide": [9.0] * 12}
    path.write_text(json.dumps(scores))
    scored: Any = {"filter_importance": "external", "external_importance_path": str(path)}
    elasticity = bnas.Elasticity(**{**FINE, **scored}, target_scopes=("body", "wide"))
    macs = bnas.SuperNetwork.from_model(model, example, elasticity).costs(bnas.Subnet({"body": 4}))["macs"]
    found = bnas.prune(model, example, batches, f"macs <= {macs}", elasticity=elasticity, importance="external")
    assert dict(found.subnet.widths) == {"body": 4, "wide": 12}
    assert torch.equal(found.module.body.weight, model.body.weight[[1, 3, 4, 6]])


def test_latency_on_the_machine() -> None:
    model, example, batches = problem()
    found = bnas.prune(model, example, batches, "latency <= 200 %", elasticity=FINE, latency=QUICK)
    assert found.subnet == bnas.Subnet({name: sizes[-1] for name, sizes in found.supernet.space.widths.items()})
    assert found.costs["latency"] > 0


@pytest.mark.parametrize(
    ("bound", "given", "reason"),
    [
        ("macs >= 50 %", {}, "give an upper bound, with <="),
        ("speed <= 50 %", {}, "'speed' is not a cost; known are 'macs'"),
        ("macs <= 0.01 %", {}, r"cannot be met: the smallest sub-network has [\d,]+, which is \d+.\d% of"),
        ("macs <= 50 %", {"importance": "L3"}, "importance 'L3': known are 'L1'"),
        ("macs <= 50 %", {"allocation": "local"}, "allocation 'local': known are 'global', 'uniform'"),
        ("macs <= 50 %", {"rounds": 0}, "rounds: 0 is smaller than 1"),
        ("macs <= 50 %", {"price": "time"}, "price 'time': known are 'cost', 'entry'"),
        ("macs <= 50 %", {"importance": "external"}, "needs an elasticity with filter_importance and external_imp"),
        ("macs <= 50 %", {"elasticity": {"dimensions": ("width", "kernel")}}, "remove 'kernel'"),
        (
            "macs <= 50 %",
            {"elasticity": {"dimensions": ("width", "depth")}, "importance": "L1"},
            "cannot be compared with that of",
        ),
    ],
)
def test_what_cannot_be_is_refused(bound: str, given: dict[str, Any], reason: str) -> None:
    model, example, batches = problem()
    with pytest.raises((SearchError, ElasticityError), match=reason):
        bnas.prune(model, example, batches, bound, **given)
