"""A training that was interrupted, killed even, ends to the bit where it would have ended."""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resume_cases
import safetensors.torch
import torch
from resume_cases import RECIPE, STAGES, STEPS, disturb, shuffled, train
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from training_cases import batches, plain, same, supernet, tensors

import bnas
from bnas.data.digits import Shifted
from bnas.runtime import CheckpointError, Progress, Stage, Trainer, TrainingError
from bnas.runtime.evaluate.evaluation import Batch, Loader
from bnas.runtime.train import random_state
from bnas.runtime.train.batches import Batches

KILLS = 10


def child(*args: Any) -> int:
    """The exit code of a process that trains; forked from a server that has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resume_cases"])
    process = context.Process(target=train, args=args)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def final(directory: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(directory / "final.safetensors")


def test_killed_ten_times_it_ends_to_the_bit_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(resume_cases.__file__).parent))  # for the server of processes
    draw = random.Random(4)
    assert child(tmp_path / "whole", None, 1) == 0
    places = set()
    for number in range(KILLS):
        kill = ("step", draw.randint(1, 3)) if number % 2 else ("write", draw.randint(1, 4))
        manifest = tmp_path / "killed" / "last" / "training.json"
        seed = 100 + number if manifest.is_file() else 1  # before the first checkpoint it begins anew
        assert child(tmp_path / "killed", kill, seed) == -signal.SIGKILL
        places.add(json.loads(manifest.read_text())["state"]["schedule"]["taken"] if manifest.is_file() else 0)
    assert len(places) > 3
    assert max(places) < STEPS
    assert child(tmp_path / "killed", None, 7) == 0
    assert same(final(tmp_path / "killed"), final(tmp_path / "whole"))
    for folder in ("best", "last"):
        one, other = (tmp_path / name / folder for name in ("whole", "killed"))
        assert sorted(p.name for p in one.glob("*.safetensors")) == sorted(p.name for p in other.glob("*.safetensors"))
        assert [(one / p.name).read_bytes() for p in one.glob("*.json")] == [
            p.read_bytes() for p in other.glob("*.json")
        ]


class Stop(Exception):
    """Interrupts a training in this process."""


def run(directory: Path, make: Callable[[], Any], stops: Sequence[int] = (), **options: Any) -> dict[str, Tensor]:
    """Train, interrupted after the steps `stops`; every part has its own super-network, loader and random numbers."""
    settings: dict[str, Any] = {"stages": STAGES, "recipe": RECIPE, **options}
    for number, stop in enumerate((*stops, None)):
        net = supernet(dropout=0.4)
        disturb(50 + number if (directory / "last").is_dir() else 1)  # before the first checkpoint it begins anew

        def note(progress: Progress, stop: int | None = stop) -> None:
            if progress.step == stop:
                raise Stop

        trainer = Trainer(net, directory=directory, checkpoint_every=2, on_step=note, **settings)
        try:
            trainer.fit(make(), resume=True)
        except Stop:
            continue
        assert not net.training
    return tensors(net)


class GlobalShuffle:
    """Shuffles with numpy's and moves images with Python's global generator, batch by batch."""

    def __init__(self) -> None:
        ((self.x, self.y),) = batches(1, 20)

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(5):
            chosen = np.random.permutation(20)[:4]
            yield self.x[chosen] + random.random(), self.y[chosen]


class Replaying:
    """As torchdata's StatefulDataLoader: what `load_state_dict` is given, the next iteration goes on from."""

    def __init__(self) -> None:
        ((self.x, self.y),) = batches(1, 20)
        self.draw = random.Random(3)
        self._live: Any = None
        self._loaded: dict[str, Any] | None = None

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Batch]:
        if self._loaded is not None and self._loaded["place"] < 5:
            self._live, self._loaded = self._loaded, None
        else:
            order = self.draw.sample(range(20), 20)
            self._live, self._loaded = {"order": order, "place": 0}, None
        return self._batches(self._live)

    def _batches(self, live: dict[str, Any]) -> Iterator[Batch]:
        while live["place"] < 5:
            chosen = live["order"][live["place"] * 4 :][:4]
            live["place"] += 1
            yield self.x[chosen], self.y[chosen]

    def state_dict(self) -> dict[str, Any]:
        live = self._loaded or self._live or {"order": [], "place": 5}
        version, numbers, gauss = self.draw.getstate()
        return {"order": list(live["order"]), "place": live["place"], "draw": [version, list(numbers), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, numbers, gauss = state["draw"]
        self.draw.setstate((version, tuple(numbers), gauss))
        self._loaded, self._live = {"order": list(state["order"]), "place": state["place"]}, None


def with_sampler() -> DataLoader[Any]:
    """The generator is the sampler's."""
    ((x, y),) = batches(1, 20)
    data = TensorDataset(x, y)
    return DataLoader(data, 4, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(2)))


def shifted() -> Shifted:
    ((x, y),) = batches(1, 20)
    return Shifted(torch.nn.functional.pad(x, (2, 2, 2, 2)), y, 4, 9)


LOADERS: dict[str, Callable[[], Loader]] = {
    "generator": shuffled,
    "global": lambda: shuffled(False),
    "sampler": with_sampler,
    "numpy-and-python": GlobalShuffle,
    "own-generator": shifted,
    "stateful": Replaying,
}


@pytest.mark.parametrize("name", LOADERS)
def test_resumes_with_every_kind_of_loader(tmp_path: Path, name: str) -> None:
    whole = run(tmp_path / "whole", LOADERS[name])
    # in an epoch, before the first checkpoint, at the end of an epoch, at the start of a stage, and late
    assert same(run(tmp_path / "cut", LOADERS[name], (0, 2, 7, 10, 13)), whole)
    disturb(9)
    other = supernet(seed=1, dropout=0.4)
    assert not same(tensors(other), whole)


@pytest.mark.parametrize("name", ["generator", "global", "own-generator", "stateful"])
def test_resumes_with_epochs_that_are_cut_short_and_groups_of_batches(tmp_path: Path, name: str) -> None:
    recipe = plain(train_steps=12, accumulate=2, num_bn_adaptation_samples=8)
    options: dict[str, Any] = {"recipe": recipe, "stages": [Stage(epochs=4, bn_adapt=True)]}
    whole = run(tmp_path / "whole", LOADERS[name], **options)
    assert same(run(tmp_path / "cut", LOADERS[name], (2, 4, 5), **options), whole)


def test_without_random_states_it_ends_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", shuffled)
    monkeypatch.setattr(random_state, "restore", lambda *_: None)
    assert not same(run(tmp_path / "cut", shuffled, (7,)), whole)


@pytest.mark.parametrize("part", ["optimizer", "schedule", "average"])
def test_each_part_of_the_state_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    from bnas.runtime import Schedule
    from bnas.runtime.train import run as training_run

    whole = run(tmp_path / "whole", shuffled)
    if part == "optimizer":
        monkeypatch.setattr(training_run, "set_optimizer_state", lambda *_: None)
    elif part == "schedule":
        load = Schedule.load_state_dict
        monkeypatch.setattr(Schedule, "load_state_dict", lambda s, state: load(s, {**s.state_dict(), "taken": 8}))
    else:
        monkeypatch.setattr(training_run.TrainingRun, "_averages", {})
    assert not same(run(tmp_path / "cut", shuffled, (8,)), whole)


@pytest.mark.parametrize("name", ["AdamW", "RMSprop"])
def test_resumes_other_optimizers(tmp_path: Path, name: str) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return getattr(torch.optim, name)(parameters, lr=0.01)  # type: ignore[no-any-return]

    whole = run(tmp_path / "whole", shuffled, optimizer=optimizer)
    assert same(run(tmp_path / "cut", shuffled, (3, 12), optimizer=optimizer), whole)


def test_resumes_groups_with_rates_of_their_own(tmp_path: Path) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        own = list(parameters)
        return torch.optim.SGD([{"params": own[:2], "lr": 0.01}, {"params": own[2:], "lr": 0.1}], momentum=0.9)

    whole = run(tmp_path / "whole", shuffled, optimizer=optimizer)
    assert same(run(tmp_path / "cut", shuffled, (3, 12), optimizer=optimizer), whole)


def test_resumes_in_the_layout_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnas.runtime.train import trainer as training
    from bnas.runtime.train.recipe import Recipe

    recipe = Recipe(memory_format="auto", num_bn_adaptation_samples=16, clip_norm=0.5)
    monkeypatch.setattr(training, "lasting_layout", lambda *_: "channels_last")
    whole = run(tmp_path / "whole", shuffled, recipe=recipe)
    answers = iter(["channels_last", *["contiguous"] * 3])  # a measurement may come out otherwise the next time
    monkeypatch.setattr(training, "lasting_layout", lambda *_: next(answers))
    assert same(run(tmp_path / "cut", shuffled, (3, 12), recipe=recipe), whole)


def test_finished_training_is_resumed_to_its_end(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", shuffled)
    assert same(run(tmp_path / "whole", shuffled), whole)


def test_batches_of_the_middle_are_those_that_were_left() -> None:
    def drawn(data: Batches) -> list[list[int]]:
        return [y.tolist() for group in data for _, y in group]

    disturb(3)
    data = Batches(shuffled(False))
    everything = iter(data)
    next(everything)
    state = json.loads(json.dumps(data.state_dict()))
    rest = [y.tolist() for group in everything for _, y in group]
    disturb(4)
    again = Batches(shuffled(False))
    again.load_state_dict(state)
    assert drawn(again) == rest
    assert len(rest) == 4
    disturb(4)
    assert drawn(Batches(shuffled(False)))[1:] != rest


def test_what_is_drawn_undisturbed_leaves_no_trace() -> None:
    loader = shuffled()
    before = random_state.capture(loader)
    with random_state.undisturbed(loader, 6):
        first = [y.tolist() for _, y in loader]
        np.random.rand()
        random.random()
    assert random_state.capture(loader) == before
    with random_state.undisturbed(loader, 6):
        assert [y.tolist() for _, y in loader] == first
    assert [y.tolist() for _, y in loader] != first
    assert random_state.capture(loader) != before


def test_child_is_what_the_parent_means() -> None:
    assert resume_cases.STEPS == sum(stage.epochs for stage in STAGES) * len(shuffled())


@pytest.mark.parametrize("teacher", [None, "kept"])
def test_a_stopped_training_goes_on_with_the_model_that_it_changed(tmp_path: Path, teacher: str | None) -> None:
    """As in a notebook, in which the cell with the training is run again."""
    kept = copy.deepcopy(supernet().model) if teacher else None
    recipe = replace(RECIPE, distillation=bnas.Distillation("original" if teacher else "maximal"))

    def cell(net: bnas.SuperNetwork, directory: Path, stop: int | None = None) -> bnas.Trainer:
        def note(progress: Progress) -> None:
            if progress.step == stop:
                raise KeyboardInterrupt

        options: Any = {"teacher": kept, "checkpoint_every": 2, "on_step": note}
        return Trainer(net, STAGES, recipe, directory=directory, **options)

    whole, net = supernet(), supernet()
    cell(whole, tmp_path / "whole").fit(batches(3))
    with pytest.raises(KeyboardInterrupt):
        cell(net, tmp_path / "cut", stop=4).fit(batches(3), resume=True)
    for _ in range(2):  # the second time nothing is left to do
        history = cell(net, tmp_path / "cut").fit(batches(3), resume=True)
        assert same(tensors(net), tensors(whole))
    assert len(history) == STAGES[0].epochs + STAGES[1].epochs

    other = supernet()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(CheckpointError, match="its weights differ; make the super-network from the same"):
        cell(other, tmp_path / "cut").fit(batches(3), resume=True)


def test_what_only_the_weights_before_can_give_is_refused(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    net = supernet()
    with pytest.raises(KeyboardInterrupt):
        Trainer(net, STAGES, RECIPE, directory=tmp_path / "early", on_step=stop, checkpoint_every=9).fit(batches(5))
    with pytest.raises(CheckpointError, match=r"early: the training was stopped before its first checkpoint.*again"):
        Trainer(net, STAGES, RECIPE, directory=tmp_path / "early").fit(batches(5), resume=True)
    Trainer(net, STAGES, RECIPE, directory=tmp_path / "other").fit(batches(3), resume=True)  # another training

    net, taught = supernet(), replace(RECIPE, distillation=bnas.Distillation("original"))
    with pytest.raises(KeyboardInterrupt):
        Trainer(net, STAGES, taught, directory=tmp_path / "taught", on_step=stop, checkpoint_every=2).fit(batches(3))
    with pytest.raises(CheckpointError, match=r"taught: the teacher is the model from before the training.*teacher="):
        Trainer(net, STAGES, taught, directory=tmp_path / "taught", checkpoint_every=2).fit(batches(3), resume=True)


def test_there_is_nothing_to_resume_without_a_directory() -> None:
    with pytest.raises(TrainingError, match=r"resume=True needs the directory"):
        Trainer(supernet(), STAGES, RECIPE).fit(batches(3), resume=True)
