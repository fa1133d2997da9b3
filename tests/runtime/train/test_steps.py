"""What a step of the trainer does to gradients, weights, averages and the layout of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_cases import WIDTH, batches, gradients, plain, same, supernet, tensors

from bnas.passes import Subnet
from bnas.runtime import Distillation, Progress, Recipe, Stage, SuperNetwork, Trainer
from bnas.runtime.evaluate.evaluation import Batch
from bnas.runtime.train import layout
from bnas.runtime.train import trainer as training
from bnas.runtime.train.batches import Batches
from bnas.runtime.train.learner import Learner, Moment

MAXIMAL = {"subnets_per_step": 1, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}


def learned(group: list[Batch], recipe: Recipe | None = None, count: int = 2, **options: Any) -> dict[str, Tensor]:
    """The gradients of the maximal and the minimal sub-network on `group`."""
    net = supernet(norm=False).train()
    subnets = [net.space.maximal(), net.space.minimal()][:count]
    Learner(net, recipe or plain(), **options).accumulate(subnets, group, Moment())
    return gradients(net)


def apart(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference."""
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 5), (1, 4, 2)])
@pytest.mark.parametrize("teacher", [None, "maximal"])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(sizes: tuple[int, ...], teacher: str | None) -> None:
    x, y = batches(1, sum(sizes))[0]
    recipe = plain(distillation=None if teacher is None else Distillation(teacher, temperature=2.0))
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    whole = learned([(x, y)], recipe)
    assert apart(learned(parts, recipe), whole) < 1e-6
    assert apart(learned(parts[:1], recipe), whole) > 1e-3
    if len(set(sizes)) > 1:  # all parts counted the same: not the mean over the samples
        shares = [learned([part], recipe) for part in parts]
        plainly = {name: sum(one[name] for one in shares) / len(sizes) for name in whole}
        assert apart(plainly, whole) > 1e-3


def test_gradients_of_the_subnetworks_of_a_step_add_up() -> None:
    group = batches(1)
    both, first = learned(group), learned(group, count=1)
    net = supernet(norm=False).train()
    F.cross_entropy(net.program(net.space.minimal())(group[0][0]), group[0][1]).backward()
    second = gradients(net)
    total = {name: first[name] + second.get(name, torch.zeros(())) for name in first}
    assert apart(both, total) < 1e-6 < apart(both, first)


def test_accumulating_trainer_ends_where_the_one_with_large_batches_does() -> None:
    """Seven batches, in steps of three, three and one."""
    small = batches(7)
    groups = [small[:3], small[3:6], small[6:]]
    large = [(torch.cat([x for x, _ in group]), torch.cat([y for _, y in group])) for group in groups]
    nets = [supernet(norm=False) for _ in range(3)]
    Trainer(nets[0], [Stage(epochs=2)], plain(accumulate=3)).fit(small)
    Trainer(nets[1], [Stage(epochs=2)], plain()).fit(large)
    Trainer(nets[2], [Stage(epochs=2)], plain(accumulate=3)).fit(small[:6])
    for ours, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
    assert apart(tensors(nets[2]), tensors(nets[1])) > 1e-3


@pytest.mark.parametrize(
    ("samples", "accumulate", "steps"), [(None, 1, 5), (16, 1, 2), (17, 1, 3), (1, 1, 1), (999, 1, 5), (24, 2, 2)]
)
def test_train_steps_are_samples_in_whole_batches(samples: int | None, accumulate: int, steps: int) -> None:
    seen: list[Progress] = []
    recipe = plain(train_steps=samples, accumulate=accumulate)
    Trainer(supernet(), [Stage(epochs=2)], recipe, on_step=seen.append).fit(batches(5))
    assert [one.step for one in seen] == list(range(2 * steps))
    assert {(one.epoch, one.steps) for one in seen} == {(0, 2 * steps), (1, 2 * steps)}


def test_last_group_of_a_cut_epoch_is_the_rest() -> None:
    data = Batches(batches(5), accumulate=2, samples=20)
    assert [[len(x) for x, _ in group] for group in data] == [[8, 8], [8]]
    assert [len(group) for group in Batches(batches(5), accumulate=2)] == [2, 2, 1]


def stepped(recipe: Recipe, epochs: int = 1, **options: Any) -> SuperNetwork:
    """A network after an epoch of one batch for the maximal sub-network."""
    net = supernet(norm=False)
    Trainer(net, [Stage(epochs=epochs)], recipe, **options).fit(batches(1))
    return net


def moved(net: SuperNetwork) -> float:
    """How far all parameters together are from the start."""
    before = supernet(norm=False).parameters()
    squares = [((a - b) ** 2).sum() for a, b in zip(net.parameters(), before, strict=True)]
    return float(torch.stack(squares).sum().sqrt().detach())


def test_clip_norm() -> None:
    free = moved(stepped(plain(**MAXIMAL, learning_rate=0.1))) / 0.1
    assert free > 0.2
    assert moved(stepped(plain(**MAXIMAL, learning_rate=0.1, clip_norm=0.1))) == pytest.approx(0.01, rel=1e-3)
    assert moved(stepped(plain(**MAXIMAL, learning_rate=0.1, clip_norm=9.0))) == pytest.approx(free * 0.1, rel=1e-3)


def test_label_smoothing_by_hand() -> None:
    (x, y) = batches(1)[0]
    net = supernet(norm=False)
    logs = net(x).detach().log_softmax(1)
    expected = -(0.7 * logs[range(8), y] + 0.3 * logs.mean(1)).mean()
    for smoothing, found in ((0.3, True), (0.0, False)):
        learner = Learner(supernet(norm=False).train(), plain(label_smoothing=smoothing))
        [loss] = learner.accumulate([net.space.maximal()], [(x, y)], Moment())
        assert (loss == pytest.approx(float(expected), rel=1e-5)) is found


def test_own_criterion_sees_outputs_and_targets_as_they_are() -> None:
    data = [(x, {"class": y}) for x, y in batches(2)]
    nets = [supernet(), supernet()]
    Trainer(nets[0], [Stage()], plain(), criterion=lambda out, y: F.cross_entropy(out, y["class"])).fit(data)
    Trainer(nets[1], [Stage()], plain()).fit(batches(2))
    assert same(tensors(nets[0]), tensors(nets[1]))


def test_average_follows_its_formula() -> None:
    net, history = supernet(norm=False), []
    start = [p.detach().double().clone() for p in net.parameters()]

    def note(_: Progress) -> None:
        history.append([p.detach().double().clone() for p in net.parameters()])

    Trainer(net, [Stage(epochs=2)], plain(ema_decay=0.7), on_step=note).fit(batches(3))
    for number, now in enumerate(net.parameters()):
        expected = start[number]
        for weights in history:
            expected = 0.7 * expected + 0.3 * weights[number]
        torch.testing.assert_close(now.detach().double(), expected, rtol=1e-4, atol=1e-6)
        if start[number].ndim > 1:
            assert not torch.allclose(now.detach().double(), history[-1][number], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("type_", ["softmax", "mse"])
def test_in_place_distillation_teaches_the_smaller_ones_only(type_: str) -> None:
    """The teacher's outputs get no gradient, and it learns from the targets."""
    recipe = plain(distillation=Distillation(type=type_, scale=3.0, hard=0.5))
    group = batches(1)
    x, y = group[0]
    found = learned(group, recipe)
    net = supernet(norm=False).train()
    teacher = net(x)
    student = net.program(net.space.minimal())(x)
    if type_ == "mse":
        soft = ((student - teacher.detach()) ** 2).mean()
    else:
        soft = -(teacher.detach().softmax(1) * student.log_softmax(1)).sum(1).mean()
    (F.cross_entropy(teacher, y) + 3 * soft + 0.5 * F.cross_entropy(student, y)).backward()
    assert apart(found, gradients(net)) < 1e-6
    leaky = supernet(norm=False).train()
    teacher, student = leaky(x), leaky.program(leaky.space.minimal())(x)
    (F.cross_entropy(teacher, y) + 3 * ((student - teacher) ** 2).mean()).backward()
    assert apart(found, gradients(leaky)) > 1e-3


def test_original_teaches_frozen_and_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Learner] = []
    monkeypatch.setattr(training, "Learner", lambda *args: made.append(Learner(*args)) or made[-1])
    net = supernet(dropout=0.5)
    before = tensors(net)
    modes: list[bool] = []
    teacher = Distillation("original")
    trainer = Trainer(net, [Stage(epochs=2)], plain(distillation=teacher, rule="random"))
    trainer.on_step = lambda _: modes.append(any(m.training for m in made[0].original.modules()))
    trainer.fit(batches(2))
    original = made[0].original
    assert modes == [False] * 4
    assert all(torch.equal(tensor, before[f"model.{name}"]) for name, tensor in original.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in original.parameters())
    assert not same(before, tensors(net))


def test_original_and_its_formula() -> None:
    group = batches(1)
    x, _ = group[0]
    original = supernet(seed=9, norm=False).model
    recipe = plain(distillation=Distillation("original", temperature=2.0), rule="random")
    found = learned(group, recipe, count=1, original=original)
    net = supernet(norm=False).train()
    soft = -((original(x).detach() / 2).softmax(1) * (net(x) / 2).log_softmax(1)).sum(1).mean() * 4
    soft.backward()
    assert apart(found, gradients(net)) < 1e-6
    assert apart(found, learned(group, count=1)) > 1e-3


def test_bfloat16_computes_in_half_and_keeps_parameters_and_gradients() -> None:
    kinds: set[torch.dtype] = set()

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        kinds.add(outputs.dtype)
        return F.cross_entropy(outputs.float(), targets)

    nets = []
    for precision in ("float32", "bfloat16"):
        nets.append(supernet(norm=False))
        Trainer(nets[-1], [Stage()], plain(precision=precision), criterion=criterion).fit(batches(2))
    assert kinds == {torch.float32, torch.bfloat16}
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in nets[1].model.parameters())
    assert 0 < apart(tensors(nets[0]), tensors(nets[1])) < 2e-2


def formats(net: SuperNetwork) -> set[bool]:
    """Whether the convolutions of a net are in channels_last."""
    convs = [m.weight for m in net.model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
    return {weight.is_contiguous(memory_format=torch.channels_last) for weight in convs}


@pytest.mark.parametrize("chosen", ["channels_last", "contiguous"])
def test_layout_changes_nothing_but_rounding_and_is_put_back(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setattr(training, "lasting_layout", lambda *_: chosen)
    nets, seen = [supernet(norm=False) for _ in range(3)], []
    for net, form in zip(nets, ("contiguous", "channels_last", "auto"), strict=True):
        trainer = Trainer(net, [Stage(epochs=2)], plain(memory_format=form))
        trainer.on_step = lambda _, net=net: seen.append(formats(net))
        trainer.fit(batches(2))
    assert seen == [{False}] * 4 + [{True}] * 4 + [{chosen == "channels_last"}] * 4
    assert [formats(net) for net in nets] == [{False}] * 3
    for other in nets[1:]:
        assert apart(tensors(nets[0]), tensors(other)) < 1e-4
    assert same(tensors(nets[2]), tensors(nets[1 if chosen == "channels_last" else 0]))


def test_a_measured_layout_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two layouts that take about equally long would be chosen by chance, and they round differently."""
    monkeypatch.setenv("BNAS_STATE", str(tmp_path / "state"))
    answers = iter(["channels_last", "contiguous", "contiguous"])
    monkeypatch.setattr(layout, "faster_layout", lambda *_: next(answers))
    net, images = supernet(), batches(1)[0][0]
    assert [layout.lasting_layout(net.model, images) for _ in range(3)] == ["channels_last"] * 3
    assert layout.lasting_layout(net.model, images[:1]) == "contiguous", "another input is another question"
    (tmp_path / "state").rename(tmp_path / "gone")
    assert layout.lasting_layout(net.model, images) == "contiguous"


def test_measured_layout_leaves_no_trace() -> None:
    nets = [supernet(dropout=0.5) for _ in range(2)]
    layouts = []
    for net, recipe in zip(nets, (plain(), plain(memory_format="auto")), strict=True):
        torch.manual_seed(3)
        trainer = Trainer(net, [Stage()], recipe)
        trainer.on_step = lambda _, net=net: layouts.append(formats(net))
        trainer.fit(batches(2))
    assert layouts[-1] in ({True}, {False})
    if layouts[-1] == {False}:
        assert same(tensors(nets[0]), tensors(nets[1]))
    assert apart(tensors(nets[0]), tensors(nets[1])) < 1e-4


def test_weights_of_what_a_stage_does_not_train_still_move_with_the_maximal() -> None:
    """A stage of depth trains full widths."""
    net = supernet(norm=False)
    before = tensors(net)
    Trainer(net, [Stage(("depth",))], plain(rule="random")).fit(batches(3))
    after = tensors(net)
    assert (after["model.stem.weight"] != before["model.stem.weight"]).flatten(1).any(1).sum() == WIDTH


class Watched:
    """A loader that counts how often it is iterated."""

    def __init__(self) -> None:
        self.begun = 0

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Batch]:
        self.begun += 1
        return iter(batches(2))


def test_loader_is_iterated_once_an_epoch() -> None:
    loader = Watched()
    Trainer(supernet(), [Stage(epochs=3)], plain()).fit(loader)
    assert loader.begun == 3


def test_statistics_of_a_step_are_those_of_its_subnetworks() -> None:
    net = supernet()
    assert isinstance(net.space.minimal(), Subnet)
    Trainer(net, [Stage()], plain(subnets_per_step=1)).fit(batches(2))
    by_hand = supernet().model.train()
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
    for step, (x, y) in enumerate(batches(2)):
        optimizer.param_groups[0]["lr"] = (0.01, 0.005)[step]
        optimizer.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        optimizer.step()
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(net.model.state_dict()[name], tensor)
    assert apart(tensors(net), tensors(supernet())) > 1e-3
