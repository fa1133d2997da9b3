"""Training a super-network, or one sub-network of it: stages, steps, validation and checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bnas.passes import Subnet
from bnas.passes.frontend.copies import deep_copy
from bnas.runtime.errors import TrainingError
from bnas.runtime.evaluate.evaluation import Batch, Loader, Metric, accuracy
from bnas.runtime.feed import length_of, running
from bnas.runtime.importance import taylor
from bnas.runtime.nested import LAYOUTS, as_batch, inputs_of
from bnas.runtime.supernetwork import SuperNetwork

from . import parallel
from .batches import Batches
from .callbacks import Callbacks, Progress, StepsAndEpochs, Training, TrainingCallback, checked_callbacks
from .layout import lasting_layout
from .learner import Criterion, Learner
from .optimizers import optimizer_of
from .recipe import Recipe
from .run import TrainingRun
from .schedule import Schedule
from .stages import STAGES, Stage
from .stopped import beginning, remembered
from .validation import EpochRecord, Validator, watched


class Trainer:
    """Train a super-network by progressive shrinking; its parameters change in place.

    If ``torch.distributed`` is initialised, every process trains the same sub-networks on its own loader (give it a
    ``DistributedSampler``), gradients are averaged once each step, and process 0 validates and writes. BatchNorm then
    uses the batch of its process only; use ``torch.nn.SyncBatchNorm`` for all batches, on devices that support it.

    Args:
        supernet: the super-network; `fit` sets it to training mode and restores its mode.
        stages: the stages, in order.
        recipe: the settings of the training.
        optimizer: a function that creates one from the parameters, or an optimizer of ``supernet.parameters()``; by
            default that of the recipe.
        criterion: the loss of outputs against targets, a mean over the batch; by default cross-entropy.
        teacher: the "original" of the recipe's distillation; by default a copy of the present model.
        metric: the metric of the validation; by default top-1 accuracy.
        direction: whether large ("max") or small ("min") values of the metric are better.
        watch: number of random sub-networks that the validation measures, besides the maximal and the minimal one.
        subnet: train only this sub-network, in the shared weights; the recipe's settings of sub-networks are ignored.
        directory: folder for ``best/`` (a super-network for `SuperNetwork.load`), ``last/`` (to resume from) and
            ``history.json`` (a record of each epoch, written with ``last/``).
        checkpoint_every: write ``last/`` every so many steps and after each epoch. By default it is written after an
            epoch, but seldom enough that writing takes at most a twentieth of the time, and at the end.
        callbacks: told of the course of the training on process 0, such as a logger of `bnas.loggers`.
        name: tells the callbacks which training it is, where there are several; loggers put it before their names.
        on_step: a callback of which only ``on_step_end`` is needed, as a function.
        on_epoch: the same for ``on_epoch_end``.

    Raises:
        TrainingError: settings contradict each other or the super-network.
    """

    def __init__(
        self,
        supernet: SuperNetwork,
        stages: Sequence[Stage] = STAGES,
        recipe: Recipe | None = None,
        *,
        optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        criterion: Criterion | None = None,
        teacher: nn.Module | None = None,
        metric: Metric = accuracy,
        direction: Literal["min", "max"] = "max",
        watch: int = 3,
        subnet: Subnet | None = None,
        directory: str | Path | None = None,
        checkpoint_every: int | None = None,
        callbacks: Sequence[TrainingCallback] = (),
        name: str = "",
        on_step: Callable[[Progress], None] | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
    ) -> None:
        self.supernet, self.stages, self.recipe = supernet, tuple(stages), recipe or Recipe()
        self.optimizer, self.criterion, self.metric, self.watch = optimizer, criterion, metric, watch
        self.direction: Literal["min", "max"] = direction
        self.teacher, self.subnet = teacher, subnet
        self._scored: list[Batch] = []
        self.directory = None if directory is None else Path(directory)
        self.checkpoint_every, self.name = checkpoint_every, name
        self.callbacks = checked_callbacks(callbacks, TrainingCallback, TrainingError)
        self.on_step, self.on_epoch = on_step, on_epoch
        if self.directory is None and checkpoint_every is not None:
            raise TrainingError("checkpoint_every needs a directory to write to: Trainer(..., directory=...)")
        if checkpoint_every is not None and checkpoint_every < 1:
            raise TrainingError(f"checkpoint_every: {checkpoint_every} is smaller than 1; give a number of steps")
        if self.recipe.num_bn_adaptation_samples == 0 and any(stage.bn_adapt for stage in self.stages):
            raise TrainingError(
                "bn_adapt needs samples, and num_bn_adaptation_samples is 0: set it to a number of samples such as "
                "2000, or turn bn_adapt off in all stages"
            )
        self._schedule(1)  # raises for invalid settings now

    def fit(self, loader: Loader, validation: Loader | None = None, *, resume: bool = False) -> tuple[EpochRecord, ...]:
        """Train all stages; return a record of each epoch.

        At the end, the BatchNorm statistics are recalibrated for the maximal sub-network. If the recipe has running
        averages of the weights, these become the weights.

        Args:
            loader: iterated once an epoch; batches of (inputs, targets), where several inputs are a tuple or a dict, or
                dicts with the targets under "labels". Of a stream (an `IterableDataset`, or a loader without a length)
                an epoch is the next ``train_steps`` samples of the recipe. Random numbers that it takes from
                generators of PyTorch, numpy, Python, or its own attribute ``generator``, are resumed where they were.
            validation: hold-out batches; without them nothing is measured.
            resume: continue the training in the directory, if there is one. Create the super-network again from the
                same model, or, in the same process, go on with the one that was trained; the result is bitwise equal to
                that of an uninterrupted training.

        Raises:
            TrainingError: a loader is empty, a batch does not fit the model or the criterion, or a loss is NaN or inf,
                or nothing that can be trained with; names the step, the epoch and the batch. Or there is no directory
                to resume from.
            BatchError: a loader fails, or returns something that is not a batch; the message names the batch.
            CheckpointError: the directory holds a training and `resume` is False; or the training there has another
                model, settings, size of data or format, or is damaged; or the training was stopped in this process
                and cannot go on with the model that it has changed.
            Exception: any error of a callback; the training in the directory can be resumed.
        """
        if resume and self.directory is None:
            raise TrainingError("resume=True needs the directory of the training: Trainer(..., directory=...)")
        callbacks = self._callbacks()
        with callbacks.hear_of_errors():
            return self._fit(callbacks, loader, validation, resume)

    def _callbacks(self) -> Callbacks[TrainingCallback]:
        if parallel.rank() > 0:
            return Callbacks(())
        functions = [StepsAndEpochs(self.on_step, self.on_epoch)] if self.on_step or self.on_epoch else []
        return Callbacks((*self.callbacks, *functions))

    def _fit(
        self, callbacks: Callbacks[TrainingCallback], loader: Loader, validation: Loader | None, resume: bool
    ) -> tuple[EpochRecord, ...]:
        mode = self.supernet.training
        parallel.share_tensors([*self.supernet.parameters(), *self.supernet.model.buffers()])
        original = self._original()
        self.supernet.train()
        try:
            run = self._begin(loader, resume, self.directory)
            learner, validator = self._learner(run, original), self._validator(run, validation)
            with remembered(run.directory, self.supernet.model, run.start):
                callbacks.tell(TrainingCallback.on_train_start, self._described(run.schedule))
                while not run.schedule.done:
                    self._epoch(run, learner, callbacks)
                    callbacks.tell(
                        TrainingCallback.on_epoch_end, run.end_epoch(validator, self.checkpoint_every is not None)
                    )
                run.finish()
        finally:
            self.supernet.model.to(memory_format=torch.contiguous_format)
            self.supernet.train(mode)
        history = tuple(run.history)
        callbacks.tell(TrainingCallback.on_train_end, history)
        return history

    def _described(self, schedule: Schedule) -> Training:
        return Training(self.name, self.stages, self.recipe, schedule.epochs, schedule.steps, schedule.taken)

    def steps(self, loader: Loader) -> Iterator[float]:
        """Train the first epoch step by step and yield the loss of each step, to try or to time a training.

        Unlike `fit`, it does not validate, write files, call callbacks or recalibrate statistics.

        Raises:
            TrainingError: as `fit`.
            BatchError: as `fit`.
        """
        mode, original = self.supernet.training, self._original()
        self.supernet.train()
        try:
            run = self._begin(loader, False, None)
            learner = self._learner(run, original)
            for group in run.batches:
                yield run.step(learner, group)[0]
        finally:
            self.supernet.model.to(memory_format=torch.contiguous_format)
            self.supernet.train(mode)

    def _original(self) -> nn.Module | None:
        """Return the frozen teacher, if the recipe needs it."""
        distillation = self.recipe.distillation
        if distillation is None or distillation.teacher != "original":
            return None
        return deep_copy(self.supernet.model if self.teacher is None else self.teacher).eval().requires_grad_(False)

    def _schedule(self, steps_per_epoch: int, optimizer: Optimizer | None = None) -> Schedule:
        planned: Any = {"steps_per_epoch": steps_per_epoch, "optimizer": optimizer, "subnet": self.subnet}
        return Schedule(self.supernet, self.stages, self.recipe, importance=self._scores, **planned)

    def _scores(self) -> Mapping[str, Tensor]:
        """Return the scores for reordering weights, if they are measured on data; they are equal in all processes."""
        scores: Mapping[str, Tensor] = taylor(self.supernet, self._scored, self.criterion, self.recipe)
        return cast("Mapping[str, Tensor]", parallel.from_first(scores))

    def _begin(self, loader: Loader, resume: bool, directory: Path | None) -> TrainingRun:
        batches, optimizer = Batches(loader, self.recipe.accumulate, self.recipe.train_steps), self._optimizer()
        distillation = self.recipe.distillation
        untaught = distillation is not None and distillation.teacher == "original" and self.teacher is None
        start = beginning(self.supernet.model, directory if resume else None, untaught)
        schedule = self._schedule(batches.steps, optimizer)
        if schedule.scored:
            self._scored = batches.calibration(self.supernet.elasticity.importance_samples, self.recipe.seed)
        run = TrainingRun(self.supernet, self.recipe, schedule, batches, optimizer, directory, start)
        run.begin(resume, lambda: self._layout(batches))
        return run

    def _optimizer(self) -> Optimizer:
        given, own = self.optimizer, list(self.supernet.parameters())
        if given is None:
            return optimizer_of(self.recipe, own, dict(self.supernet.model.named_parameters()))
        optimizer = given if isinstance(given, Optimizer) else given(own)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not held <= {id(p) for p in own}:
            raise TrainingError(
                "the optimizer holds tensors that are not in supernet.parameters(); create it from those"
            )
        if any(id(matrix) not in held for matrix in self.supernet.kernel_matrices.parameters()):
            warnings.warn(
                "the optimizer does not hold the matrices of elastic kernels, so they are not trained; "
                "create it with supernet.parameters()",
                stacklevel=3,
            )
        return optimizer

    def _layout(self, batches: Batches) -> str:
        if self.recipe.memory_format != "auto":
            return self.recipe.memory_format
        inputs, _ = as_batch(batches.first(), inputs_of(self.supernet))
        with running("batch 0 of the training data", inputs, self.supernet.model, TrainingError):
            return str(parallel.from_first(lasting_layout(self.supernet.model, inputs)))

    def _learner(self, run: TrainingRun, original: nn.Module | None) -> Learner:
        if original is not None:
            original.to(memory_format=LAYOUTS[run.layout])
        return Learner(self.supernet, self.recipe, self.criterion, original, run.layout)

    def _validator(self, run: TrainingRun, validation: Loader | None) -> Validator | None:
        run.validated = validation is not None
        if validation is None or parallel.rank() > 0:
            return None
        if length_of(validation) == 0:
            raise TrainingError(
                "the validation loader is empty: pass validation=None, or hold batches out of the training data"
            )
        alone = None if self.subnet is None else {"subnet": self.subnet}
        subnets = alone or watched(run.schedule.spaces[-1], self.watch, self.recipe.seed)
        return Validator(self.supernet, subnets, run.calibration or None, validation, self.metric, self.direction)

    def _epoch(self, run: TrainingRun, learner: Learner, callbacks: Callbacks[TrainingCallback]) -> None:
        """Train the rest of an epoch."""
        callbacks.tell(TrainingCallback.on_epoch_start, run.schedule.place)
        for group in run.batches:
            place, losses = run.schedule.place, run.step(learner, group)
            at = (place.stage, place.epoch, place.step, run.schedule.steps)
            callbacks.tell(TrainingCallback.on_step_end, Progress(*at, tuple(losses), run.rate))
            within = run.batches.taken < run.batches.steps
            if self.checkpoint_every and run.schedule.taken % self.checkpoint_every == 0 and within:
                run.save()
