"""The state of a running training: everything that changes with its steps and that a checkpoint must restore."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bnas.runtime.errors import CheckpointError
from bnas.runtime.evaluate.evaluation import Batch, recalibrate
from bnas.runtime.nested import LAYOUTS, batch_size, device_of
from bnas.runtime.storage.checkpoint import (
    OPTIMIZER,
    TRAINING,
    check_settings,
    check_state,
    described_space,
    matrix_tensors,
    optimizer_state,
    set_optimizer_state,
    shared_tensors,
)
from bnas.runtime.supernetwork import SuperNetwork

from . import parallel, random_state
from .averages import Average, put_back
from .batches import Batches
from .learner import Learner, Moment
from .recipe import Recipe
from .schedule import Place, Schedule
from .validation import EpochRecord, Validator, write_history

AVERAGE = "average:"
SELDOM = 20.0
"""Checkpoints at ends of epochs are so many times as long apart as it takes to write one, at least.

So writing takes a twentieth of the time at most: an epoch on little data may take less time than a checkpoint.
"""


class TrainingRun:
    """Makes the steps and ends the epochs of a training; `Trainer` decides when.

    Args:
        supernet, recipe, schedule, batches, optimizer: The parts of the training.
        directory: Folder for ``best/`` and ``last/``; None writes nothing.
        start: The `digest_of` the model's tensors before the training.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        recipe: Recipe,
        schedule: Schedule,
        batches: Batches,
        optimizer: Optimizer,
        directory: Path | None,
        start: str,
    ) -> None:
        self.supernet, self.recipe, self.schedule, self.batches = supernet, recipe, schedule, batches
        self.optimizer, self.directory, self.start = optimizer, directory, start
        self.layout = "contiguous"
        self.average: Average | None = None
        self.history: list[EpochRecord] = []
        self.validated = True
        """Whether each epoch ends with a validation; equal in all processes, although only one measures."""
        self.metric = ""
        """Name of the metric of the validation."""
        self.losses: list[float] = []
        """The losses of the steps of this epoch."""
        rates = [group["initial_lr"] for group in optimizer.param_groups]
        self._optimizer = f"{type(optimizer).__name__} at {', '.join(map(str, rates))}"
        self.calibration: list[Batch] = []
        """Training batches for BatchNorm statistics; the same in a resumed training."""
        self._next_write = -math.inf
        """When the next checkpoint is due, by `time.monotonic`."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors by name, and the buffers of the model."""
        return shared_tensors(self.supernet.model) | matrix_tensors(self.supernet.kernel_matrices)

    @property
    def _averages(self) -> dict[str, Tensor]:
        """Return the averages, under names that no other tensor has."""
        averages = {} if self.average is None else self.average.tensors
        return {f"{AVERAGE}{name}": tensor for name, tensor in averages.items()}

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return self.schedule.rate(self.schedule.taken - 1)

    def begin(self, resume: bool, layout: Callable[[], str]) -> None:
        """Start at the first step in this layout, or resume the training in the directory."""
        parallel.agree(self._settings(), "the settings of the training")
        found = self.directory is not None and TRAINING.exists(self.directory / "last")
        if parallel.from_first(found) and not resume:
            raise CheckpointError(
                f"{self.directory} holds a training already: resume it (resume=True), or choose another folder"
            )
        saved = self._read() if parallel.from_first(found) else None
        self.layout = layout() if saved is None else saved[0]["state"]["layout"]
        self.supernet.model.to(memory_format=LAYOUTS[self.layout])
        self.average = None if self.recipe.ema_decay is None else Average(self.tensors, self.recipe.ema_decay)
        if samples := self.recipe.num_bn_adaptation_samples:
            self.calibration = self.batches.calibration(samples, self.recipe.seed)
        if saved is not None:
            self._restore(*saved)

    def step(self, learner: Learner, group: Sequence[Batch]) -> list[float]:
        """Train the next sub-networks on a group of batches; return the loss of each."""
        place = self.schedule.place
        if place.since == 0 and self.schedule.stages[place.stage].bn_adapt:
            self._adapt()
        self.optimizer.zero_grad()
        averages = [] if self.average is None else [self.average.tensors]
        losses = learner.accumulate(self.schedule.step(averages), group, self._moment(place))
        samples = sum(map(batch_size, group))
        share, losses = parallel.weighted(samples, losses, device_of(self.supernet))
        self.schedule.tell(losses)
        parallel.average_gradients(self.supernet.parameters(), share)
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.losses.append(losses[0])
        return losses

    def _moment(self, place: Place) -> Moment:
        """Return the moment of the first batch of the step."""
        return Moment(place.step, place.epoch, (self.batches.taken - 1) * self.recipe.accumulate)

    def end_epoch(self, validator: Validator | None, always: bool) -> EpochRecord:
        """Validate, write ``best/`` if this epoch is the best so far (without validation: always), and write ``last/``.

        ``last/`` is written at the end, and before as often as `SELDOM` allows, or with `always` after each epoch.
        """
        place = self.schedule.at(self.schedule.taken - 1)
        record = EpochRecord(place.epoch, place.stage, statistics.fmean(self.losses), self.rate)
        if self.validated or self.schedule.done:
            with random_state.undisturbed(self.batches.loader), self._finished():
                record = replace(record, metrics={} if validator is None else validator())
                sign = 1.0 if validator is None else validator.sign
                best = max((sign * one.score for one in self.history if one.metrics), default=-math.inf)
                if self.directory is not None and parallel.rank() == 0 and sign * record.score >= best:
                    self.supernet.save(self.directory / "best")
        due = always or self.schedule.done or time.monotonic() >= self._next_write
        described, due = parallel.from_first((record.to_json(), due))
        record = EpochRecord(**described)
        self.history.append(record)
        self.losses.clear()
        self.metric = "" if validator is None else validator.name
        if due:
            start = time.monotonic()
            self.save()
            self._write_history()
            now = time.monotonic()
            self._next_write = now + SELDOM * (now - start)
        return record

    def _write_history(self) -> None:
        if self.directory is not None and parallel.rank() == 0:
            write_history(self.directory / "history.json", self.schedule.stages, self.metric, self.history)

    def finish(self) -> None:
        """Set the weights to their averages and recalibrate BatchNorm for the maximal (or only) sub-network."""
        if self.average is not None:
            self.average.settle()
        self._adapt()

    @contextmanager
    def _finished(self) -> Iterator[None]:
        """Inside, the state is as after `finish`; afterwards as before. Weights are swapped in place to save memory."""
        averages = nullcontext() if self.average is None else self.average.applied()
        with averages, put_back(dict(self.supernet.model.named_buffers())):
            self._adapt()
            yield

    def _adapt(self) -> None:
        """Recalibrate the shared BatchNorm statistics for the maximal (or only) sub-network."""
        if self.recipe.num_bn_adaptation_samples:
            with random_state.undisturbed(self.batches.loader, self.recipe.seed):
                subnet = self.schedule.subnet or self.supernet.space.maximal()
                recalibrate(self.supernet.program(subnet), self.calibration)
            parallel.share_tensors(self.supernet.model.buffers())

    def _settings(self) -> dict[str, Any]:
        stages = {f"stages[{number}]": asdict(stage) for number, stage in enumerate(self.schedule.stages)}
        here = {"optimizer": self._optimizer, "batches": self.batches.length}
        alone = self.schedule.subnet
        return {**asdict(self.recipe), **stages, **here, "subnet": None if alone is None else alone.to_json()}

    def save(self) -> None:
        """Write ``last/`` atomically."""
        data = parallel.from_all(self.batches.state_dict())
        if self.directory is None or parallel.rank() > 0:
            return
        tensors, optimizer = optimizer_state(self.optimizer)
        state = {
            "schedule": self.schedule.state_dict(),
            "data": data,
            "layout": self.layout,
            "losses": self.losses,
            "history": [record.to_json() for record in self.history],
            "metric": self.metric,
        }
        manifest = {
            "settings": self._settings(),
            "model": described_space(self.supernet.space),
            "start": self.start,
            "state": state,
            "optimizer": optimizer,
        }
        TRAINING.write(self.directory / "last", self.tensors | self._averages | tensors, manifest)

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the checkpoint, if it belongs to this training."""
        assert self.directory is not None
        folder = self.directory / "last"
        manifest, tensors = TRAINING.read(folder)
        if parallel.rank() == 0:
            TRAINING.remove_others(folder, manifest["weights"])
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith((AVERAGE, OPTIMIZER))}
        check_state(self.tensors, own, str(folder))
        check_settings(folder, {"space": manifest["model"]}, {"space": described_space(self.supernet.space)})
        before = {key: one for key, one in manifest["settings"].items() if key != "processes"}  # of earlier versions
        check_settings(folder, before, self._settings())
        self.batches.check_same(manifest["state"]["data"])
        if manifest["start"] != self.start:
            raise CheckpointError(
                f"{folder}: this training began with another model: its weights differ; "
                "make the super-network from the same pre-trained model"
            )
        return manifest, tensors

    def _restore(self, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        set_optimizer_state(self.optimizer, tensors, manifest["optimizer"])
        with torch.no_grad():
            for name, tensor in (self.tensors | self._averages).items():
                tensor.copy_(tensors[name])
        state = manifest["state"]
        self.losses = list(state["losses"])
        self.history, self.metric = [EpochRecord(**record) for record in state["history"]], state["metric"]
        if self.history:  # the process may have ended after it saved the training and before it wrote this
            self._write_history()
        self.schedule.load_state_dict(state["schedule"])
        self.batches.load_states(state["data"])
