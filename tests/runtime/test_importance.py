"""Importance from data is what the loss changes by without an entry, a head or a block; nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from network_cases import Case, assert_same, cases, snapshot
from torch import Tensor, nn

from bnas.passes import ElasticityError, Subnet
from bnas.passes.assembly import importance as of_entries
from bnas.runtime import Recipe, Schedule, Stage, SuperNetwork, Trainer, TrainingError, block_importance, taylor

FINE = {"min_width": 1, "divisor": 1}


def linear(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is linear in the outputs, so that its first order is all of it."""
    return (outputs * targets).mean()


class Gated(nn.Module):
    """Entry i is ``gate[i]`` times what the layer before makes of it; linear in the gate."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.made, self.gate, self.read = nn.Linear(3, width), nn.Parameter(torch.randn(width)), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Two numbers."""
        out: Tensor = self.read(torch.relu(self.made(x)) * self.gate)
        return out


def batches_of(shape: tuple[int, ...], outputs: int, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(x, torch.randn(len(x), outputs, generator=generator, dtype=torch.float64)) for x in made]


def zeroed(model: nn.Module, places: Mapping[str, object]) -> nn.Module:
    """A copy with the given places of its parameters set to zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, place in places.items():
            twin.get_parameter(name)[place] = 0  # type: ignore[index]
    return twin


def brute_force(model: nn.Module, batches: list[tuple[Tensor, Tensor]], places: list[Mapping[str, object]]) -> Tensor:
    """The mean square over the batches of what the linear loss changes by without each entry."""
    rows = []
    with torch.no_grad():
        for x, y in batches:
            whole = linear(model(x), y)
            rows.append([float(whole - linear(zeroed(model, one)(x), y)) ** 2 for one in places])
    return torch.tensor(rows, dtype=torch.float64).mean(0)


def gated() -> tuple[SuperNetwork, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    batches = batches_of((4, 3), 2)
    return SuperNetwork.from_model(Gated().double().eval(), batches[0][0], FINE), batches


def test_scores_of_entries_are_those_of_zeroing_them() -> None:
    """Three factors make an entry (layer, gate and reader): the loss is linear in each, and each counts once."""
    supernet, batches = gated()
    (found,) = taylor(supernet, batches, linear).values()
    expected = brute_force(supernet.model, batches, [{"gate": i} for i in range(6)])
    torch.testing.assert_close(found, 9 * expected)


@pytest.mark.parametrize("wrong", ["sign", "axis", "part"])
def test_wrong_scores_are_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = of_entries.effects

    def twin(skeleton: object, gradients: Mapping[str, Tensor]) -> object:
        if wrong == "part":
            gradients = {name: one for name, one in gradients.items() if name != "read.weight"}
        found = right(skeleton, {n: g.abs() for n, g in gradients.items()} if wrong == "sign" else gradients)  # type: ignore[arg-type]
        return {symbol: np.roll(one, wrong == "axis") for symbol, one in found.items()}

    monkeypatch.setattr("bnas.runtime.importance.effects", twin)
    with pytest.raises(AssertionError, match="not close"):
        test_scores_of_entries_are_those_of_zeroing_them()


class Attention(nn.Module):
    """Three heads of four; linear in the values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Two numbers for each sample."""
        q, k, v = (one(x).reshape(len(x), 5, 3, 4).transpose(1, 2) for one in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 5, 12)
        out: Tensor = self.o(mixed).mean((1, 2))[:, None].expand(-1, 2)
        return out


def test_heads_are_scored_by_the_same_means() -> None:
    """A head is an entry: value and output projection hold the whole of it; queries and keys add their first order."""
    torch.manual_seed(0)
    batches = batches_of((4, 5, 12), 2)
    supernet = SuperNetwork.from_model(Attention().double().eval(), batches[0][0], FINE)
    scores = {len(one): one for one in taylor(supernet, batches, linear).values()}[3]
    model, expected = supernet.model, []
    for x, y in batches:
        linear(model(x), y).backward()
        products = [one.weight * one.weight.grad for one in (model.q, model.k, model.v, model.o)]
        made = sum(one.reshape(3, 4, 12).sum((1, 2)) for one in products[:3])
        expected.append((made + products[3].reshape(12, 3, 4).sum((0, 2))).detach() ** 2)
        model.zero_grad()
    torch.testing.assert_close(scores, torch.stack(expected).mean(0))
    alone = brute_force(model, batches, [{"v.weight": slice(4 * i, 4 * i + 4)} for i in range(3)])
    with torch.no_grad():
        model.q.weight.zero_()
        model.k.weight.zero_()
    uniform = {len(one): one for one in taylor(supernet, batches, linear).values()}[3]
    same = brute_force(model, batches, [{"v.weight": slice(4 * i, 4 * i + 4)} for i in range(3)])
    torch.testing.assert_close(uniform, 4 * same)
    assert not torch.allclose(alone, same)


@settings(max_examples=10)
@given(case=cases(torch.float64), seed=st.integers(0, 2**16))
def test_nothing_is_changed_and_the_maximal_stays(case: Case, seed: int) -> None:
    supernet = case.supernet.eval()
    kept = next(iter(supernet.model.parameters()))
    kept.requires_grad_(False)
    before, random = snapshot(supernet.model), torch.get_rng_state()
    targets = torch.randn(supernet(case.inputs).shape, generator=torch.Generator().manual_seed(seed)).double()
    scores = taylor(supernet, [(case.inputs, targets)], linear)
    assert_same(before, snapshot(supernet.model))
    assert torch.equal(random, torch.get_rng_state())
    assert not supernet.training
    assert not kept.requires_grad
    assert all(one.grad is None for one in supernet.parameters())
    assert {name: len(one) for name, one in scores.items()} == {n: s[-1] for n, s in supernet.space.widths.items()}
    outputs = supernet.program(supernet.space.maximal())(case.inputs)
    supernet.reorder("taylor", data=[(case.inputs, targets)], criterion=linear)
    torch.testing.assert_close(supernet.program(supernet.space.maximal())(case.inputs), outputs, rtol=1e-9, atol=1e-9)


def test_gradients_that_were_there_stay() -> None:
    supernet, batches = gated()
    linear(supernet(batches[0][0]), batches[0][1]).backward()
    before = {name: one.grad.clone() for name, one in supernet.model.named_parameters()}
    taylor(supernet, batches, linear)
    assert all(torch.equal(one.grad, before[name]) for name, one in supernet.model.named_parameters())


def test_reordering_brings_the_important_entries_to_the_front() -> None:
    supernet, batches = gated()
    (scores,) = taylor(supernet, batches, linear).values()
    gate = supernet.model.gate.detach().clone()
    supernet.reorder("taylor", data=batches, criterion=linear)
    assert torch.equal(supernet.model.gate, gate[scores.argsort(descending=True, stable=True)])


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        ({}, ElasticityError, r"'taylor' needs data, as in supernet.reorder\('taylor', data=batches\)"),
        ({"data": []}, TrainingError, "the data are empty"),
        ({"scores": {}}, ElasticityError, "'taylor': made needs 6 scores; got none"),
        ({"scores": {"made": torch.ones(5)}}, ElasticityError, r"needs 6 scores; got the shape \(5,\)"),
        ({"data": [(torch.ones(4, 3).double() * 1e308, torch.ones(4, 2).double())]}, TrainingError, "inf|nan|finite"),
    ],
)
def test_what_is_missing_is_said(given: dict[str, object], error: type[Exception], reason: str) -> None:
    supernet, _ = gated()
    with pytest.raises(error, match=reason):
        supernet.reorder("taylor", criterion=linear, **given)  # type: ignore[arg-type]


def test_scores_in_a_sub_network_are_those_of_the_plain_smaller_model() -> None:
    supernet, batches = gated()
    subnet = Subnet({name: sizes[-1] - 2 for name, sizes in supernet.space.widths.items()})
    small = SuperNetwork.from_model(supernet.extract(subnet), batches[0][0], FINE)
    (found,), (expected,) = (
        one.values()
        for one in (taylor(supernet, batches, F.mse_loss, subnet=subnet), taylor(small, batches, F.mse_loss))
    )
    torch.testing.assert_close(found[:4], expected)
    assert found[4:].tolist() == [0, 0]
    assert not torch.allclose(next(iter(taylor(supernet, batches, F.mse_loss).values()))[:4], expected)


# in a training


def classified(settings: Mapping[str, object]) -> tuple[SuperNetwork, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
    batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
    elasticity = {"dimensions": ("width",), **FINE, "filter_importance": "taylor", **settings}
    return SuperNetwork.from_model(model, batches[0][0], elasticity), batches


def test_a_stage_reorders_by_the_data_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, batches = classified({"importance_samples": 16})
    twin, _ = classified({"importance_samples": 16})
    seen = list[Mapping[str, Tensor]]()
    reorder = SuperNetwork.reorder

    def noted(self: SuperNetwork, **given: Any) -> None:
        seen.append(given["scores"])
        reorder(self, **given)

    monkeypatch.setattr(SuperNetwork, "reorder", noted)
    Trainer(supernet, [Stage(reorg_weights=True)], Recipe(distillation=None)).fit(batches)
    (scores,) = seen
    expected = taylor(twin, batches[:2])
    assert scores.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(scores[name], one)
    assert not torch.allclose(scores["0"], taylor(twin, batches)["0"])


def test_a_resumed_training_reorders_as_one_that_was_not_stopped(tmp_path: object) -> None:
    stages, recipe = [Stage(), Stage(reorg_weights=True)], Recipe(distillation=None, num_bn_adaptation_samples=8)

    class Stop(Exception):
        pass

    def stop(progress: object) -> None:
        if progress.step == 2:  # type: ignore[attr-defined]
            raise Stop

    whole, batches = classified({})
    Trainer(whole, stages, recipe).fit(batches)
    begun, _ = classified({})
    with pytest.raises(Stop):
        Trainer(begun, stages, recipe, directory=tmp_path, checkpoint_every=1, on_step=stop).fit(batches)  # type: ignore[arg-type]
    resumed, _ = classified({})
    Trainer(resumed, stages, recipe, directory=tmp_path, checkpoint_every=1).fit(batches, resume=True)  # type: ignore[arg-type]
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)


def test_a_schedule_of_your_own_is_given_the_scores() -> None:
    supernet, batches = classified({})
    with pytest.raises(TrainingError, match=r"importance=lambda: bnas\.runtime\.taylor"):
        Schedule(supernet, [Stage(reorg_weights=True)], steps_per_epoch=2)
    asked = list[int]()

    def scores() -> dict[str, Tensor]:
        asked.append(1)
        return taylor(supernet, batches)

    schedule = Schedule(supernet, [Stage(), Stage(reorg_weights=True)], steps_per_epoch=2, importance=scores)
    counts = []
    for _ in range(4):
        schedule.step()
        counts.append(len(asked))
    assert counts == [0, 0, 1, 1]


# blocks


class Blocks(nn.Module):
    """Two residual blocks with BatchNorm; the second adds almost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.first = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.second = copy.deepcopy(self.first)
        with torch.no_grad():
            self.second[3].weight.mul_(0.01)
            self.second[3].bias.mul_(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of two classes."""
        x = self.stem(x)
        x = x + self.first(x)
        x = x + self.second(x)
        out: Tensor = self.head(x)
        return out


def blocks() -> tuple[SuperNetwork, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    batches = [(torch.randn(16, 3), torch.randint(2, (16,)))]
    return SuperNetwork.from_model(Blocks().eval(), batches[0][0], {"dimensions": ("depth",)}), batches


def recalibrated(blocks: nn.Sequential, x: Tensor) -> Tensor:
    """The block with the statistics of its own inputs."""
    norm = blocks[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.reset_running_stats()
    norm.momentum = None
    norm.train()
    blocks(x)
    norm.eval()
    out: Tensor = blocks(x)
    return out


def test_a_block_is_worth_what_the_network_loses_without_it() -> None:
    supernet, batches = blocks()
    before = snapshot(supernet.model)
    found = [block_importance(supernet, batches)[name] for name in supernet.space.blocks]
    assert_same(before, snapshot(supernet.model))
    (x, y), twin = batches[0], copy.deepcopy(supernet.model)
    with torch.no_grad():
        stem = twin.stem(x)
        first = stem + recalibrated(twin.first, stem)
        outputs = [
            twin.head(first + recalibrated(twin.second, first)),
            twin.head(stem + recalibrated(twin.second, stem)),
            twin.head(first),
        ]
    whole, *without = (float(F.cross_entropy(one, y)) for one in outputs)
    assert [one.loss for one in found] == pytest.approx(without, abs=1e-5)
    assert [one.rise for one in found] == pytest.approx([one - whole for one in without], abs=1e-5)
    right = [float((one.argmax(1) == y).float().mean()) for one in outputs[1:]]
    assert [one.accuracy for one in found] == pytest.approx(right)
    assert abs(found[1].rise) < abs(found[0].rise)


def test_the_metric_of_a_block_is_that_of_the_criterion() -> None:
    supernet, batches = blocks()
    (name, *_) = supernet.space.blocks
    assert block_importance(supernet, batches, F.cross_entropy)[name].accuracy is None
    assert block_importance(supernet, batches, F.cross_entropy, lambda *_: 0.25)[name].accuracy == 0.25
    with pytest.raises(TrainingError, match="the data are empty"):
        block_importance(supernet, [])


def test_blocks_of_a_sub_network_are_held_against_it() -> None:
    supernet, batches = blocks()
    first, second = supernet.space.blocks
    without = block_importance(supernet, batches)[first].loss
    found = block_importance(supernet, batches, subnet=Subnet(skipped=frozenset([first])))
    assert list(found) == [second]
    assert found[second].loss - found[second].rise == pytest.approx(without)
