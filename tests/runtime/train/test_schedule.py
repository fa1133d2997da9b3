"""What each step trains, at which rate, and that a schedule can be left and taken up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_cases import batches, plain, same, supernet, tensors

from bnas.passes import Subnet
from bnas.runtime import CosineSchedule, Recipe, Schedule, Stage, SuperNetwork, Trainer, TrainingError
from bnas.runtime.train import schedule
from bnas.runtime.train.averages import Average
from bnas.runtime.train.schedule import optimizer_tensors

NET = supernet().train()
"""For tests that change nothing of it."""


def steps(stages: Sequence[Stage] = (Stage(),), per_epoch: int = 12, **options: Any) -> list[tuple[Subnet, ...]]:
    plan = Schedule(NET, stages, Recipe(**options), steps_per_epoch=per_epoch)
    return [plan.step() for _ in range(plan.steps)]


def test_rules() -> None:
    full, least = NET.space.maximal(), NET.space.minimal()
    assert all(len(one) == 1 for one in steps(rule="random"))
    assert len({one for (one,) in steps(rule="random")}) > 3
    assert all(one[0] == full and len(one) == 2 for one in steps(rule="maximal"))
    assert all(one[:2] == (full, least) and len(one) == 3 for one in steps(rule="sandwich"))
    assert full != least


def test_minimal_is_that_of_the_stage() -> None:
    stage = Stage(("depth",), depth_indicator=1)
    space = stage.space(NET.space)
    assert all(one[:2] == (NET.space.maximal(), space.minimal()) for one in steps([stage], rule="sandwich"))
    assert space.minimal() != NET.space.minimal()


@pytest.mark.parametrize(("rule", "least"), [("random", 1), ("maximal", 1), ("sandwich", 2)])
def test_subnets_per_step(rule: str, least: int) -> None:
    for count in (least, 4):
        assert all(len(one) == count for one in steps(rule=rule, subnets_per_step=count))
    fault = "too few for the rule" if least > 1 else "must be greater than or equal to 1"
    with pytest.raises(TrainingError, match=f"subnets_per_step is {least - 1}: {fault}"):
        steps(rule=rule, subnets_per_step=least - 1)
    with pytest.raises(TrainingError, match="rule is 'sandwhich': must be 'random', 'maximal' or 'sandwich'"):
        steps(rule="sandwhich")


def test_spread_samples_are_of_all_sizes() -> None:
    full, least = NET.space.maximal(), NET.space.minimal()  # three choices of two each
    for sampling, large, small in (("uniform", 1 / 8, 1 / 8), ("spread", 15 / 32, 1 / 32)):
        drawn = steps(per_epoch=2000, rule="random", sampling=sampling)
        assert abs(drawn.count((full,)) / 2000 - large) < 0.04
        assert abs(drawn.count((least,)) / 2000 - small) < 0.04
        assert drawn == steps(per_epoch=2000, rule="random", sampling=sampling)
    with pytest.raises(TrainingError, match="sampling is 'even': must be 'uniform', 'spread' or 'attentive'"):
        steps(sampling="even")


@pytest.mark.parametrize("sampling", ["spread", "attentive"])
def test_what_a_step_trains_anyway_is_not_drawn_again(sampling: str) -> None:
    """Under the rule "random" nothing else is trained, so there all are drawn (above)."""
    full, least = NET.space.maximal(), NET.space.minimal()
    drawn = [one[-1] for one in steps(per_epoch=300, rule="sandwich", subnets_per_step=3, sampling=sampling)]
    assert drawn.count(full) == drawn.count(least) == 0
    assert len(set(drawn)) == 6, "all others of the eight"
    drawn = [one[-1] for one in steps(per_epoch=300, rule="maximal", sampling=sampling)]
    assert drawn.count(full) == 0 < drawn.count(least)


def test_sample_rate_counts_from_the_start_of_the_stage() -> None:
    stages = [Stage(("depth",), 1, sample_rate=3), Stage(epochs=2, sample_rate=5), Stage()]
    drawn = [one for (one,) in steps(stages, 7, rule="random", seed=3)]
    starts = [0, 3, 6, 7, 12, 17, *range(21, 28)]  # counted over the whole training it would be 0, 3, 6, 10, 15, 20
    for step in range(28):
        began = max(start for start in starts if start <= step)
        assert drawn[step] == drawn[began]
    assert len({drawn[start] for start in starts[3:]}) > 4
    assert all(drawn[start] != drawn[start - 1] for start in (12, 17))


@given(
    dims=st.sampled_from([("depth",), ("width",), ("depth", "width"), None]),
    width=st.sampled_from([None, 1, 2, 3]),
    depth=st.sampled_from([None, 1, 2]),
    rule=st.sampled_from(["random", "maximal", "sandwich"]),
    seed=st.integers(0, 99),
)
def test_stages_are_respected(
    dims: tuple[str, ...] | None, width: int | None, depth: int | None, rule: str, seed: int
) -> None:
    stage = Stage(dims, depth_indicator=depth, width_indicator=width)
    trained = ("depth", "width") if dims is None else dims
    for subnets in steps([stage], rule=rule, seed=seed):
        for subnet in subnets:
            NET.space.check(subnet)
            for name, choices in NET.space.widths.items():
                largest = sorted(choices, reverse=True)[: width if "width" in trained else 1]
                assert subnet.widths.get(name, max(choices)) in largest
            for chain in NET.space.chains:
                limit = (depth or len(chain)) if "depth" in trained else 0
                assert len(subnet.skipped & set(chain)) <= limit
            assert "depth" in trained or not subnet.skipped


def test_what_the_hypothesis_test_forbids_is_drawn_without_the_indicators() -> None:
    drawn = [one for (one,) in steps(per_epoch=40, rule="random")]
    assert any(len(one.skipped) == 2 for one in drawn)
    assert any(min(one.widths.values()) < 12 for one in drawn if one.widths)


def test_a_supernet_in_evaluation_mode_is_told_of_at_the_first_step() -> None:
    plan = Schedule(supernet().eval(), [Stage(epochs=1)], steps_per_epoch=3)
    with pytest.warns(UserWarning, match=r"call supernet\.train\(\)"):
        plan.step()
    plan.step()  # no warning, which would be an error
    for quiet in (supernet().train(), supernet(norm=False).eval()):
        Schedule(quiet, [Stage(epochs=1)], steps_per_epoch=1).step()


def test_end_is_told() -> None:
    plan = Schedule(NET, [Stage(epochs=2)], steps_per_epoch=2)
    for step in range(4):
        assert (plan.taken, plan.done, plan.place.epoch) == (step, False, step // 2)
        plan.step()
    assert plan.done
    with pytest.raises(TrainingError, match="the schedule is finished: all 4 steps were taken"):
        plan.step()


def test_settings_are_checked() -> None:
    with pytest.raises(TrainingError, match="steps_per_epoch: 0 is smaller than 1"):
        Schedule(NET, steps_per_epoch=0)
    with pytest.raises(TrainingError, match="'kernel' is not elastic"):
        Schedule(supernet(elasticity={"dimensions": ("depth", "width")}), [Stage(("kernel",))], steps_per_epoch=1)
    still = torch.optim.SGD(NET.parameters(), lr=0.0)
    with pytest.raises(TrainingError, match="learning rate of the optimizer is 0"):
        Schedule(NET, steps_per_epoch=1, optimizer=still)


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_state_is_plain_data_and_goes_on_exactly(stop: int) -> None:
    def made() -> tuple[Schedule, torch.optim.Optimizer]:
        optimizer = torch.optim.SGD(NET.parameters(), lr=0.1)
        stages = [Stage(("depth",), 1, sample_rate=2), Stage(sample_rate=3)]
        return Schedule(NET, stages, Recipe(subnets_per_step=4), steps_per_epoch=5, optimizer=optimizer), optimizer

    plan, optimizer = made()
    for _ in range(stop):
        plan.step()
    state = json.loads(json.dumps(plan.state_dict()))
    rest = [(plan.step(), optimizer.param_groups[0]["lr"]) for _ in range(10 - stop)]
    again, other = made()
    again.load_state_dict(state)
    assert [(again.step(), other.param_groups[0]["lr"]) for _ in range(10 - stop)] == rest
    assert again.done
    if 0 < stop:
        anew, _ = made()
        assert [anew.step() for _ in range(10 - stop)] != [subnets for subnets, _ in rest]


def test_groups_keep_the_ratios_of_their_rates() -> None:
    parameters = list(NET.parameters())
    groups = [{"params": parameters[:3], "lr": 0.02}, {"params": parameters[3:], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    plan = Schedule(NET, [Stage(epochs=2)], steps_per_epoch=4, optimizer=optimizer)
    for step in range(8):
        plan.step()
        low, high = (group["lr"] for group in optimizer.param_groups)
        assert high == pytest.approx(plan.rate(step))
        assert low == pytest.approx(high / 10)
    assert plan.rate(0) == 0.2
    assert high < 0.05


def test_rate_reaches_an_optimizer_whose_state_was_loaded() -> None:
    """Loading replaces the optimizer's groups."""
    optimizer = torch.optim.SGD(NET.parameters(), lr=0.1)
    plan = Schedule(NET, [Stage()], steps_per_epoch=4, optimizer=optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    for step in range(4):
        plan.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(plan.rate(step))


def own_loop(net: SuperNetwork, stages: Sequence[Stage], **options: Any) -> None:
    """The loop of the docstring of `Schedule`."""
    loader = batches(4)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    plan = Schedule(net, stages, Recipe(**options), steps_per_epoch=len(loader), optimizer=optimizer)
    for _ in range(plan.epochs):
        for x, y in loader:
            for subnet in plan.step():
                F.cross_entropy(net.program(subnet)(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    net.eval()


@pytest.mark.parametrize("options", [{}, {"rule": "sandwich", "lr_schedule": CosineSchedule(0.05, None, 1)}])
def test_own_loop_gives_what_the_trainer_gives(options: dict[str, Any]) -> None:
    stages = [Stage(("depth",), 1), Stage(epochs=1, reorg_weights=True)]
    nets = [supernet(dropout=0.3) for _ in range(3)]
    for net, seed in zip(nets[:2], (0, 1), strict=True):
        torch.manual_seed(1)
        own_loop(net, stages, seed=seed, **options)
    torch.manual_seed(1)
    trainer = Trainer(nets[2], stages, plain(**options), optimizer=lambda p: torch.optim.SGD(p, 0.05, momentum=0.9))
    trainer.fit(batches(4))
    assert same(tensors(nets[0]), tensors(nets[2]))
    assert not same(tensors(nets[1]), tensors(nets[2]))


def outputs_after(reorg: bool) -> tuple[list[torch.Tensor], SuperNetwork]:
    """What the weights, and their averages, compute after an epoch, perhaps a reordering, and another epoch."""
    net = supernet(norm=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    average = Average(dict(net.model.named_parameters()), 0.8)
    stages = [Stage(), Stage(reorg_weights=reorg)]
    plan = Schedule(net, stages, Recipe(subnets_per_step=1), steps_per_epoch=3, optimizer=optimizer)
    for _ in range(2):
        for x, y in batches():
            (subnet,) = plan.step([average.tensors])
            F.cross_entropy(net.program(subnet)(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update()
    x = batches(1)[0][0]
    found = [net(x).detach()]
    with average.applied():
        found.append(net(x).detach())
    return found, net


def test_reordering_takes_momentum_and_averages_along(monkeypatch: pytest.MonkeyPatch) -> None:
    (weights, averages), net = outputs_after(False)
    (turned, turned_averages), other = outputs_after(True)
    assert not torch.allclose(net.model.stem.weight, other.model.stem.weight)  # it was really reordered
    torch.testing.assert_close(turned, weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned_averages, averages, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(schedule, "optimizer_tensors", lambda *_: [])
    (wrong, _), _ = outputs_after(True)
    assert not torch.allclose(wrong, weights, rtol=1e-2, atol=1e-3)


def test_averages_that_are_not_reordered_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    (_, averages), _ = outputs_after(False)
    reorder = SuperNetwork.reorder
    monkeypatch.setattr(SuperNetwork, "reorder", lambda self, alike: reorder(self, alike=list(alike)[1:]))
    (_, wrong), _ = outputs_after(True)
    assert not torch.allclose(wrong, averages, rtol=1e-2, atol=1e-3)


def test_only_state_of_the_shape_of_its_parameter_is_reordered() -> None:
    net = supernet().train()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    found = optimizer_tensors(optimizer, net)
    assert len(found) == 2  # both moments; the count of steps is no tensor of that shape
    assert all(set(one) == {name for name, _ in net.model.named_parameters()} for one in found)
    assert optimizer_tensors(None, net) == []


@settings(max_examples=10)
@given(seed=st.integers(0, 2**16))
def test_seed_fixes_the_subnetworks(seed: int) -> None:
    assert steps(seed=seed) == steps(seed=seed)
    assert steps(seed=seed) != steps(seed=seed + 1)


def test_model_without_a_width_has_the_stages_of_its_dimensions() -> None:
    net = SuperNetwork.from_model(nn.Linear(3, 2), torch.zeros(2, 3))
    assert Schedule(net, [Stage()], Recipe(rule="sandwich"), steps_per_epoch=1).step() == (net.space.maximal(),) * 3
