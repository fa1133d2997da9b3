"""`Job` (model, data and settings of a run), `Splits` (its data) and `Watch` (functions that follow its progress)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from bnas.loggers import TensorBoard
from bnas.passes import Elasticity
from bnas.runtime import (
    EpochRecord,
    Evaluator,
    FineTune,
    Int8,
    LatencySettings,
    Progress,
    Recipe,
    Stage,
    SuperNetwork,
    TrainingError,
)
from bnas.runtime.errors import BatchError
from bnas.runtime.evaluate.evaluation import Batch, Loader
from bnas.runtime.feed import drawn, length_of, try_batch
from bnas.runtime.train.callbacks import checked_callbacks
from bnas.runtime.train.random_state import undisturbed
from bnas.runtime.train.stages import STAGES
from bnas.search import Callback, Constraint, Evaluation, Objective, SearchError, SearchRecord, SearchSettings

from .latencies import INT8_ACCURACY, LATENCY, check_clocks, check_quality, of_objectives
from .plan.budget import Plan, seconds_of
from .quality import Quality
from .winners.winners import checked_targets

if TYPE_CHECKING:
    import os

    from .files.output import Output


@dataclass(frozen=True)
class Splits:
    """The data of a job."""

    train: Loader
    """Batches with the training transform, for training and for BatchNorm statistics."""
    validation: Loader
    """Hold-out batches that the search measures sub-networks on."""
    test: Loader
    """Batches that neither training nor search uses; the report is measured on them."""
    record: Mapping[str, Any] | None = None
    """Description of the data and the hold-out as plain data; a run saves it as ``data.json``."""

    def __repr__(self) -> str:
        """Return the number of batches of each part, without their content, which would fill a notebook."""
        parts = {name: length_of(getattr(self, name)) for name in ("train", "validation", "test")}
        told = (f"{name} {'a stream' if length is None else length}" for name, length in parts.items())
        return f"Splits of batches: {', '.join(told)}"

    def check_held_out(self, model: nn.Module) -> None:
        """Raise unless `model` runs on the data to choose winners on, and on those to measure them on at the end.

        The first batch of each is tried: the run itself would find a fault after its training, which may take hours.

        Raises:
            BatchError: The data are empty, or no batches, or the model fails on the first one.
        """
        for name, use in (
            ("validation", "the search chooses winners on them"),
            ("test", "the result is measured on them"),
        ):
            loader, source = getattr(self, name), f"the {name} data"
            if isinstance(loader, Iterator):  # can be read only once
                continue
            with undisturbed(loader):
                batch = next(drawn(loader, source), None)
            if batch is None:
                raise BatchError(f"{source} are empty: {use}; hold out samples that training does not use")
            try_batch(model, batch, f"batch 0 of {source}")


def sought(bounded: Iterable[str], quality: Quality) -> tuple[Objective, ...]:
    """Return the default objectives: the best quality, and the least of each bounded value (or MACs without bounds)."""
    costs = list(bounded) or ["macs"]
    return (quality.objective, *(Objective(name, "min") for name in costs))


@dataclass(frozen=True)
class Job:
    """Everything that a run needs; `bnas.run_job` runs a job. `from_config` reads a job from a configuration file."""

    model: nn.Module = field(repr=False)
    """The pre-trained model, on the device to compute on; training changes its parameters in place."""
    data: Splits
    example_inputs: Any = field(repr=False)
    """A tensor, or a tuple or dict of inputs, with the batch as axis 0."""
    elasticity: Elasticity = field(default_factory=Elasticity)
    stages: Sequence[Stage] = STAGES
    recipe: Recipe = field(default_factory=Recipe)
    """Settings of the training."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `bnas.Trainer`, such as your own ``criterion``."""
    quality: Quality = field(default_factory=Quality)
    """The metric that winners are chosen by and that is reported; by default top-1 accuracy. Everything that is called
    accuracy below is this metric."""
    search: SearchSettings = field(default_factory=SearchSettings)
    """Settings of the search. Its seed also seeds the randomness of the training outside the recipe."""
    objectives: Sequence[Objective] | None = None
    """Objectives of the search. One must be "accuracy" or "int8_accuracy", or your own metric by its name in
    `quality`: winners are chosen by it. By default high accuracy and low values of the costs that targets bound, or
    without targets few MACs. If an objective, constraint or target is "latency" or one of `latencies`, the run fits a
    latency model to the trained super-network and saves it as ``latency.json`` or ``latencies/NAME.json``."""
    targets: Mapping[str, Constraint] = field(default_factory=dict)
    """Winners by name, such as {"half": "macs <= 50 %"}: each is the most accurate evaluated sub-network within its
    bound. A bound in percent is relative to the original. Latencies are measured before a winner is chosen. Without
    targets the winners are "best" and "smallest"."""
    num_bn_adaptation_samples: int = 2000
    """Number of training samples for the BatchNorm statistics of each evaluated sub-network."""
    fine_tune: FineTune | None = None
    """Fine-tuning of the winners before their export; by default none."""
    budget: float | None = None
    """Wall-clock time for the whole run, in seconds or as a text such as "30m". bnas plans the epochs and evaluations
    for it. Stages keep their proportions, and a search has at most `num_evals` evaluations."""
    acc_delta: float = 0.01
    """Accuracy that a winner may lose against the reference, as a fraction, if there are no targets; of your own
    metric in its own unit."""
    reference: float | Literal["original", "maximal"] = "original"
    """Reference accuracy for winners: a fraction, or that of the original or the trained maximal sub-network.

    If the original was trained on the validation data too, its accuracy there is too high: use "maximal".
    """
    latency: LatencySettings = field(default_factory=LatencySettings)
    """How the value "latency" is measured."""
    latencies: Mapping[str, LatencySettings] = field(default_factory=dict)
    """Further latencies by name, such as {"phone": LatencySettings(target=...)}, each with its own settings.
    Objectives, constraints and targets may use these names."""
    int8: Int8 | None = field(default_factory=Int8)
    """Write an int8 file for each ONNX file, calibrated on the training data unless these settings give other data.
    None: no int8 files."""
    tensorboard: bool = False
    """Write scalars of training and search for TensorBoard."""
    callbacks: Sequence[Callback] = ()
    """Callbacks for the training, the search and the fine-tuning of each winner (with its name in `Training`), such as
    the loggers of `bnas.loggers`. A resumed run may have other callbacks."""
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    """Axes whose size may change, as in `bnas.SuperNetwork.from_model`; by default all axes that can."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", checked_targets(self.targets, self.quality.name))
        if "callbacks" in self.training:
            raise TrainingError("training: 'callbacks' is a setting of the job; give Job(callbacks=[...])")
        object.__setattr__(self, "callbacks", checked_callbacks(self.callbacks, Callback, TrainingError))
        check_clocks(self.latency, self.latencies, self.objectives)
        check_quality(self.quality, self.latencies, self.objectives)
        if self.int8 is None and self.chosen_by == INT8_ACCURACY:
            raise SearchError(f"objective {INT8_ACCURACY!r}: needs int8 files; pass int8=Int8()")
        object.__setattr__(self, "budget", None if self.budget is None else seconds_of(self.budget))

    @property
    def tuning(self) -> FineTune | None:
        """Settings of the fine-tuning. With a budget winners are always fine-tuned."""
        return self.fine_tune or (None if self.budget is None else FineTune(epochs=1))

    @property
    def chosen_by(self) -> str:
        """The value that winners are chosen by: int8 accuracy if it is an objective, else `quality`."""
        asked = [one.name for one in self.objectives or ()]
        return INT8_ACCURACY if INT8_ACCURACY in asked else self.quality.name

    @property
    def sought(self) -> tuple[Objective, ...]:
        """The objectives, and the values that targets bound, so that the search also explores near the bounds."""
        bounded = dict.fromkeys(one.name for one in self.targets.values())
        given = tuple(sought(bounded, self.quality) if self.objectives is None else self.objectives)
        names = {one.name for one in given}
        return (*given, *(Objective(name, "min") for name in bounded if name not in names))

    @property
    def clocks(self) -> dict[str, LatencySettings]:
        """Settings of each latency by name: "latency", `latencies`, and objectives with a target."""
        return {LATENCY: self.latency, **self.latencies, **of_objectives(self.latency, self.objectives)}

    @staticmethod
    def from_config(path: str | os.PathLike[str], changes: Sequence[str] = (), *, trust: bool = False) -> Job:
        """Return the job that a configuration file describes, with its model and data loaded.

        Args:
            path: A file in JSON, JSON5 or YAML. Names of files in it are relative to its folder.
            changes: ``KEY=VALUE``, as ``--set`` of the command line takes them.
            trust: If the file is the ``config.json`` of a run that another person made: also import the code that it
                names. Read that code first.

        Raises:
            TrustError: The file belongs to a run and names code that you have not named before.
            ConfigurationError: The file has errors; the message lists all of them.
            BnasError: Model, weights, data or device do not exist, or do not fit each other.
        """
        from bnas.config.file import load_config

        from .files.trust import admit
        from .runner import job_of

        configuration = load_config(Path(path), changes)
        admit(Path(path), configuration, changes, trust=trust)
        return job_of(configuration, Path(path).parent)


@dataclass(frozen=True)
class Watch(Callback):
    """Functions that a job calls while it runs, to show its progress; replace any of them."""

    phase: Callable[[str], None] = lambda _: None
    on_job: Callable[[Job], None] = lambda _: None
    """Called with the job before its first phase."""
    on_supernet: Callable[[SuperNetwork], None] = lambda _: None
    """Called with the super-network when it is created or loaded."""
    on_step: Callable[[Progress], None] = lambda _: None
    on_epoch: Callable[[EpochRecord], None] = lambda _: None
    on_evaluation: Callable[[Evaluation, int], None] = lambda _, __: None
    """Called with each evaluation and the total number of evaluations."""
    on_plan: Callable[[Plan], None] | None = None
    """Called with the plan of a run before its first phase, and with a budget again before each later phase. Without a
    budget, bnas makes a plan only if this callback is set, since it must measure steps for a few seconds."""
    on_results: Callable[[], None] = lambda: None
    """Called by the command line after the last phase, before it prints the results."""

    def on_step_end(self, progress: Progress) -> None:
        """Call `on_step`."""
        self.on_step(progress)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Call `on_epoch`."""
        self.on_epoch(record)

    def on_evaluation_end(self, record: SearchRecord) -> None:
        """Call `on_evaluation`."""
        self.on_evaluation(record.evaluation, record.planned)


def evaluator_of(
    job: Job, supernet: SuperNetwork, calibration: Sequence[Batch] | None, validation: Iterable[Batch]
) -> Evaluator:
    """Return the evaluator for the sub-networks of a job, with the job's metric."""
    return Evaluator(supernet, calibration, validation, job.quality.function, metric_name=job.quality.name)


def trainer_settings(job: Job, watch: Watch, output: Output) -> dict[str, Any]:
    """Return the arguments of `bnas.Trainer` for the training of a run in the folder ``training/``.

    Raises:
        LoggerError, OutputError: As `callbacks_of`.
    """
    own = {"directory": output.path("training"), "callbacks": callbacks_of(job, watch, output, "training")}
    return {**own, **job.quality.of_training, **job.training}


def callbacks_of(job: Job, watch: Watch, output: Output, phase: Literal["training", "search"]) -> tuple[Callback, ...]:
    """Return all callbacks of the training or the search of a run.

    Raises:
        LoggerError: TensorBoard is asked for, and not installed.
        OutputError: The folder of its files is a symbolic link.
    """
    if not job.tensorboard:
        return (watch, *job.callbacks)
    return (watch, *job.callbacks, TensorBoard(output.path(f"{phase}/tensorboard")))
